"""Weights by model and by space, and t: against parameters averaged by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.methods.weights import shares_of
from tests import models as M

LAYERS = ("layers.0", "layers.1", "layers.2")  # the last one writes no space


class Setting:
    """Three networks, their moments and their parameters in the reference's basis."""

    def __init__(self, reference: int = 0, method: Any = "cca") -> None:
        self.models: list[nn.Module] = [M.randomise(M.MLP(), s).double() for s in range(3)]
        self.reference = reference
        data = [torch.randn(64, 12).double() for _ in range(4)]
        first = ccamerge.merge(
            self.models, data, reference=reference, method=method, progress=False
        )
        self.moments, self.aligned, found = first.statistics, first.aligned, first.spaces
        self.mapped = [
            transform(
                folded_state(m.state_dict(), found.folds),
                found.spaces,
                {k: row[i] for k, row in first.maps.items()},
            )
            for i, m in enumerate(self.models)
        ]

    def merge(self, **given: Any) -> dict[str, Tensor]:
        model = ccamerge.merge(
            self.models,
            statistics=self.moments,
            aligned=self.aligned,
            reference=self.reference,
            repair="none",
            progress=False,
            **given,
        ).model
        return dict(model.state_dict())

    def check(self, shares: dict[str, tuple[float, ...]], **given: Any) -> None:
        """Each layer must be the mean of the models' mapped parameters with these shares."""
        merged = self.merge(**given)
        for layer, share in shares.items():
            for key in (f"{layer}.weight", f"{layer}.bias"):
                expected = sum(w * state[key] for w, state in zip(share, self.mapped, strict=True))
                torch.testing.assert_close(merged[key], expected, rtol=1e-12, atol=1e-12, msg=key)


def _all(*share: float) -> dict[str, tuple[float, ...]]:
    return dict.fromkeys(LAYERS, share)


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({}, _all(1 / 3, 1 / 3, 1 / 3)),
        ({"weights": [2, 1, 1]}, _all(0.5, 0.25, 0.25)),
        ({"t": 0.0}, _all(1, 0, 0)),
        ({"t": 1.0}, _all(0, 0.5, 0.5)),
        ({"t": 0.25}, _all(0.75, 0.125, 0.125)),
        ({"t": 0.25, "weights": [9, 3, 1]}, _all(0.75, 0.1875, 0.0625)),
        (
            {"weights": {"layers.1": [1, 0, 0]}},
            {**_all(1 / 3, 1 / 3, 1 / 3), "layers.1": (1.0, 0.0, 0.0)},
        ),
        (
            {"weights": {"layers.0": [0, 1, 0], "layers.2.*": [1, 1, 0], "*": [3, 1, 0]}},
            {"layers.0": (0, 1, 0), "layers.1": (0.75, 0.25, 0), "layers.2": (0.5, 0.5, 0)},
        ),
        (
            {"weights": {"layers.1": [1, 3, 1]}, "t": 0.5},
            {**_all(0.5, 0.25, 0.25), "layers.1": (0.5, 0.375, 0.125)},
        ),
    ],
)
def test_shares_of_the_mapped_parameters(given: dict[str, Any], shares: Any) -> None:
    Setting().check(shares, **given)


def test_t_from_another_reference() -> None:
    Setting(reference=2).check(_all(0.1, 0.1, 0.8), t=0.2)


@pytest.mark.parametrize("given", [{"weights": [0, 0, 7]}, {"weights": {"*": [0, 0, 1]}}])
def test_all_weight_on_one_model_gives_it_back_to_the_bit(given: dict[str, Any]) -> None:
    """Mapped by CCA through a non-linearity it would be another function."""
    setting = Setting()
    own = setting.models[2].state_dict()
    assert all(torch.equal(value, own[key]) for key, value in setting.merge(**given).items())


def test_all_weight_on_one_model_gives_its_function() -> None:
    setting = Setting()
    for key, value in setting.merge(weights=[1, 0, 0]).items():
        assert torch.equal(value, setting.models[0].state_dict()[key])
    permuted = Setting(method="permutation")
    merged = M.MLP().double()
    merged.load_state_dict(permuted.merge(weights=[0, 1, 0]))
    x = torch.randn(8, 12).double()
    torch.testing.assert_close(merged(x), permuted.models[1](x), rtol=1e-10, atol=1e-12)


def test_a_pinned_space_keeps_its_basis() -> None:
    """Method "average" for it: what reads and writes it is mapped on its other side only."""
    setting = Setting(method={"layers.1": "average"})
    maps = setting.aligned.maps
    eye = torch.eye(16, dtype=torch.float64)
    assert all(torch.equal(m.forward, eye) for m in maps["layers.1"])
    assert all((m.forward - eye).abs().max() > 0.1 for m in maps["layers.0"][1:])
    for index, model in enumerate(setting.models):
        state, first = model.state_dict(), maps["layers.0"][index]
        mapped = setting.mapped[index]
        torch.testing.assert_close(mapped["layers.1.bias"], state["layers.1.bias"])
        torch.testing.assert_close(
            mapped["layers.1.weight"], state["layers.1.weight"] @ first.inverse.T
        )
        torch.testing.assert_close(mapped["layers.2.weight"], state["layers.2.weight"])
    setting.check(_all(1 / 3, 1 / 3, 1 / 3))


def test_weights_of_a_residual_stream_reach_all_that_writes_it() -> None:
    """The space is named after one writer, but its share goes for every one."""
    models = [M.randomise(M.BottleneckResNet(), s) for s in range(2)]
    found = spaces(models[0], torch.randn(2, 3, 8, 8))
    shares = shares_of({"blocks.0.downsample.0": [1, 0]}, None, 2, 0, found)
    kept = {k for k, share in shares.parameters.items() if share == (1.0, 0.0)}
    writers = ("blocks.0.downsample.0", "blocks.0.conv3", "blocks.1.conv3")
    assert {key.split(":")[0].rpartition(".")[0] for key in kept} >= set(writers)
    assert not any(key.startswith(("stem", "fc", "blocks.2", "blocks.3")) for key in kept)
    assert shares.of_space("blocks.0.downsample.0") == (1.0, 0.0)
    assert shares.of_space("stem.0") == (0.5, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t": -0.1}, r"t must be between 0 \(the reference\) and 1"),
        ({"t": float("nan")}, "t must be between 0"),
        ({"t": 0.5, "weights": [1, 0, 0]}, "weights leave nothing but the reference; t needs"),
        (
            {"t": 0.5, "weights": {"layers.1": [1, 0, 0]}},
            "weights of 'layers.1' leave nothing but the reference",
        ),
        ({"weights": {"layers.9": [1, 0, 0]}}, "weights: 'layers.9' matches no space"),
        ({"weights": {"layers.1": [1, 0]}}, "weights of 'layers.1' must hold one number a model"),
        ({"weights": {"*": [0, 0, 0]}}, r"weights of '\*' must be finite, not negative and not"),
    ],
)
def test_shares_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting().merge(**given)


@pytest.mark.parametrize(
    ("weights", "t", "expected"),
    [
        ([1e308, 1e308, 1e308], None, (1 / 3, 1 / 3, 1 / 3)),
        ([1.7e308, 0.0, 1.7e308], None, (0.5, 0.0, 0.5)),
        ([1e-310, 3e-310, 0.0], None, (0.25, 0.75, 0.0)),
        ([5e-324, 0.0, 0.0], None, (1.0, 0.0, 0.0)),
        ([1e308, 1e-310, 3e-310], 0.5, (0.5, 0.125, 0.375)),
        ([1e-310, 1e308, 1e308], 0.25, (0.75, 0.125, 0.125)),
        ([1e308, 1.0, 1.0], None, (1.0, 1e-308, 1e-308)),
    ],
)
def test_weights_at_the_edge_of_floating_point(
    weights: list[float], t: float | None, expected: tuple[float, ...]
) -> None:
    """Only their ratios count, whatever their sum would be."""
    found = spaces(M.MLP(), torch.randn(2, 12))
    for given in (weights, {"*": weights}):
        shares = shares_of(given, t, 3, 0, found)
        own = shares.default if given is weights else shares.of_space("layers.0")
        assert own == pytest.approx(expected, rel=1e-10, abs=0)
