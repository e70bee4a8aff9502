"""The loss on the way between aligned models."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.evaluation.interpolation import path
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.networks.inspection import spaces
from tests import models as M
from tests.moved import mapped_copy

Data = list[tuple[Tensor, Tensor]]


def _data(seed: int = 0, batches: int = 4) -> Data:
    """Five blobs in twelve dimensions."""
    centres = 2 * torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (batches, 64), generator=generator)
    return [(centres[y] + torch.randn(64, 12, generator=generator), y) for y in labels]


def _trained(seed: int, model: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(seed)
    model = (model or M.MLP()).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for x, y in _data(seed + 10, 80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def _permuted(model: nn.Module) -> nn.Module:
    """The same function with every space in another order."""
    found = spaces(model, _data()[0][0])
    generator = torch.Generator().manual_seed(1)
    maps = {
        s.name: FeatureMap.permutation(torch.randperm(s.size, generator=generator)) for s in found
    }
    return mapped_copy(model, found, maps)


def _normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 5),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[M.MLP, _normed], ids=["plain", "BatchNorm"])
def permuted(request: pytest.FixtureRequest) -> tuple[list[nn.Module], ccamerge.Statistics]:
    """A trained network, a permuted copy of it, and their moments."""
    model = _trained(0, request.param())
    models = [model, _permuted(model)]
    return models, ccamerge.collect(models, _data(1), pairs="all", progress=False)


@pytest.mark.parametrize("repair", ["none", "variance", "regression"])
@pytest.mark.parametrize("method", ["permutation", "weight_matching", "cca"])
def test_none_between_a_network_and_its_permuted_copy(
    permuted: tuple[list[nn.Module], ccamerge.Statistics], method: str, repair: str
) -> None:
    models, moments = permuted
    data = _data(2)
    settings = {"method": method, "repair": repair, "ridge": 1e-6}
    found = ccamerge.barrier(models, data, statistics=moments, points=5, **settings)
    loss = ccamerge.evaluate(models[0], data, "cross_entropy")
    assert found.t == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found.loss == pytest.approx([loss] * 5, rel=5e-3)
    assert 0 <= found.barrier < 5e-3 * loss
    assert found.metric == (ccamerge.evaluate(models[0], data),) * 5


def test_there_is_one_without_alignment(
    permuted: tuple[list[nn.Module], ccamerge.Statistics],
) -> None:
    models, moments = permuted
    found = ccamerge.barrier(
        models, _data(2), statistics=moments, method="average", repair="none", points=5
    )
    ends = ccamerge.evaluate(models[0], _data(2), "cross_entropy")
    assert found.loss[0] == pytest.approx(ends, rel=1e-5)
    assert found.loss[-1] == pytest.approx(ends, rel=1e-5)
    assert found.barrier > 0.1 + 5 * ends
    assert found.metric[2] < found.metric[0]


def test_against_the_interpolation_written_out() -> None:
    """Without alignment the way is the straight line between the parameters."""
    models = [_trained(seed) for seed in range(2)]
    data = _data(2)
    moments = ccamerge.collect(models, _data(1), progress=False)
    found = ccamerge.barrier(
        models, data, statistics=moments, method="average", repair="none", points=4
    )
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    losses, hits = [], []
    states = [m.state_dict() for m in models]
    for t in (0, 1 / 3, 2 / 3, 1):
        between = copy.deepcopy(models[0])
        between.load_state_dict({k: (1 - t) * v + t * states[1][k] for k, v in states[0].items()})
        with torch.no_grad():
            out = between(x)
        losses.append(nn.functional.cross_entropy(out, y).item())
        hits.append((out.argmax(1) == y).double().mean().item())
    assert found.loss == pytest.approx(losses, rel=1e-5)
    assert found.metric == pytest.approx(hits)
    straight = [losses[0] + t * (losses[3] - losses[0]) for t in found.t]
    expected = max(a - b for a, b in zip(losses, straight, strict=True))
    assert found.barrier == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "height"),
    [
        ((1.0, 3.0, 2.0), 1.5),
        ((1.0, 1.5, 2.0), 0.0),
        ((3.0, 0.0, 1.0), 0.0),  # a valley is no barrier
        ((0.0, 0.0, 4.0), 0.0),
        ((4.0, 2.5, 0.0), 0.5),
    ],
)
def test_height(loss: tuple[float, ...], height: float) -> None:
    found = ccamerge.Barrier((0.0, 0.5, 1.0), loss, loss, (loss[0], loss[2]))
    assert found.barrier == height


def test_the_line_ends_in_the_models() -> None:
    """Not in merges at t = 0 and 1 that repair or inexact maps have spoiled."""
    values = [(0.5, 1.0), (0.5, 2.0), (0.5, 9.0)]
    found = ccamerge.Barrier.of((0.0, 0.5, 1.0), values, [3.0, 1.0, 5.0], 1)
    assert found.ends == (1.0, 4.0)
    assert found.barrier == 5.0


def test_models_are_aligned_once_and_never_modified(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [M.randomise(M.MLP(), seed) for seed in range(3)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    moments = ccamerge.collect(models, [x for x, _ in _data()], progress=False, reference=1)
    solved = []
    solve = ccamerge.METHODS["cca"].solve

    def counted(alignment: Any) -> Any:
        solved.append(alignment)
        return solve(alignment)

    method = ccamerge.METHODS["cca"]
    monkeypatch.setitem(ccamerge.METHODS, "cca", type(method)(**{**vars(method), "solve": counted}))
    settings = {"statistics": moments, "reference": 1, "t": 0.9, "progress": False}
    way = dict(path(models, 6, **settings))
    assert list(way) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(solved) == 1
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for t, model in way.items():
        alone = ccamerge.merge(models, **{**settings, "t": t}).model  # type: ignore[arg-type]
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "cca", "norm": "paper", "gamma": 0.1},
        {"method": "permutation", "mode": "universe"},
        {"method": {"0": "permutation"}, "weights": {"3": [1, 2, 0]}, "ridge": "auto"},
        {"method": "procrustes", "reference": 2, "repair": "regression"},
    ],
)
def test_three_networks_of_any_settings(settings: dict[str, Any]) -> None:
    """The ends and the middle are what `merge` gives there."""
    models = [_trained(seed, _normed()) for seed in range(3)]
    moments = ccamerge.collect(models, _data(1), pairs="all", progress=False)
    found = ccamerge.barrier(models, _data(2), statistics=moments, points=3, **settings)
    for t, loss in zip(found.t, found.loss, strict=True):
        merged = ccamerge.merge(models, statistics=moments, t=t, **settings).model
        assert loss == pytest.approx(ccamerge.evaluate(merged, _data(2), "cross_entropy"))
    if settings.get("norm") != "paper":  # which takes its statistics from the data
        reference = models[settings.get("reference", 0)]
        own = ccamerge.evaluate(reference, _data(2), "cross_entropy")
        assert found.loss[0] == pytest.approx(own, rel=0.02)


def test_any_metric_and_loss() -> None:
    models = [M.randomise(M.MLP(), seed) for seed in range(2)]
    data = _data()
    moments = ccamerge.collect(models, data, progress=False)

    def norm(outputs: Tensor, batch: Any) -> Tensor:
        return outputs.norm(dim=-1)

    found = ccamerge.barrier(
        models, iter(data), statistics=moments, metric=norm, loss=norm, points=3
    )
    assert found.metric == found.loss
    assert found.loss[0] == pytest.approx(ccamerge.evaluate(models[0], data, norm), rel=1e-4)


@pytest.mark.parametrize("points", [2, 0, -1])
def test_too_few_points(points: int) -> None:
    models = [M.randomise(M.MLP(), seed) for seed in range(2)]
    moments = ccamerge.collect(models, _data(), progress=False)
    with pytest.raises(ValueError, match=f"points must be at least 3, .* got {points}"):
        ccamerge.barrier(models, _data(), statistics=moments, points=points)


def test_a_network_that_gives_no_numbers_is_named() -> None:
    models = [M.randomise(M.MLP(), seed) for seed in range(2)]
    moments = ccamerge.collect(models, _data(), progress=False)
    data = _data()
    data[1][0][0] = math.nan
    with pytest.raises(ValueError, match=r"batch 1, t = 0: accuracy: outputs are not numbers"):
        ccamerge.barrier(models, data, statistics=moments, points=3)
    with pytest.raises(ValueError, match="t needs another model to go to"):
        ccamerge.barrier(models, _data(), statistics=moments, weights=[1, 0])
