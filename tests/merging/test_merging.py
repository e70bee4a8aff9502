"""What a merge gives; how it fails is in test_merging_failures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.rules import OPERATIONS
from ccamerge.merging.paper import unfolded_spaces
from tests import models as M
from tests.backends import collect, merge
from tests.moved import exact_maps, mapped_copy

pytestmark = pytest.mark.usefixtures("backend")


def _mlps(count: int = 2) -> list[nn.Module]:
    return [M.randomise(M.MLP(), seed) for seed in range(count)]


def _batches(count: int = 8, size: int = 32, *shape: int) -> list[Tensor]:
    return [torch.randn(size, *(shape or (12,))) for _ in range(count)]


def _close(a: nn.Module, b: nn.Module, tolerance: float) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance, msg=key)


def _permuted(
    model: nn.Module, example: Tensor, seed: int = 1, unfolded: bool = False
) -> nn.Module:
    """The same function with every space permuted."""
    found = spaces(model, example)
    found = unfolded_spaces(found) if unfolded else found
    generator = torch.Generator().manual_seed(seed)
    maps = {
        s.name: FeatureMap.permutation(torch.randperm(s.size, generator=generator)) for s in found
    }
    return mapped_copy(model, found, maps)


@pytest.mark.parametrize("norm", ["fold", "paper"])
def test_models_are_not_modified(norm: Any) -> None:
    models = [M.randomise(M.vgg11(True, width=2, size=16), s) for s in range(2)]
    models[0].train()
    models[1][0][1].train()  # one BatchNorm only
    models[0][0][0].weight.requires_grad_(False)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    flags = [[x.training for x in m.modules()] for m in models]
    grads = [[p.requires_grad for p in m.parameters()] for m in models]
    batch = torch.randn(8, 3, 16, 16)
    before = batch.clone()
    result = merge(models, [batch], norm=norm, progress=False)
    for model, state, flag, grad in zip(models, states, flags, grads, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert [x.training for x in model.modules()] == flag
        assert [p.requires_grad for p in model.parameters()] == grad
        assert all(p.grad is None for p in model.parameters())
        assert not any(p.is_inference() for p in model.parameters())
    assert torch.equal(batch, before)
    assert not any(m.training for m in result.model.modules())
    mine = {v.data_ptr() for v in result.model.state_dict().values() if v.numel()}
    assert not mine & {v.data_ptr() for m in models for v in m.state_dict().values() if v.numel()}


@pytest.mark.parametrize("method", ["cca", "permutation", "procrustes", "average"])
def test_merging_a_model_with_itself_gives_the_model(method: str) -> None:
    model = M.randomise(M.MLP()).double()
    data = [b.double() for b in _batches()]
    result = merge(
        [model, copy.deepcopy(model)], data, method=method, repair="none", progress=False
    )
    # The ridge is the same on both sides, so that CCA's map is the identity to rounding.
    _close(result.model, model, 1e-8)


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_the_reference_keeps_its_basis(reference: int) -> None:
    models, data = _mlps(3), _batches()
    weights = [0.0, 0.0, 0.0]
    weights[reference] = 5.0
    result = merge(
        models, data, reference=reference, weights=weights, repair="none", progress=False
    )
    _close(result.model, models[reference], 1e-6)
    assert result.report.weights == [w / 5.0 for w in weights]
    for row in result.maps.values():
        assert torch.equal(row[reference].forward, torch.eye(16, dtype=torch.float64))


def test_weights_average_the_aligned_parameters() -> None:
    models, data = [m.double() for m in _mlps()], [b.double() for b in _batches()]
    result = merge(models, data, weights=[3, 1], repair="none", progress=False)
    states = [
        transform(
            folded_state(m.state_dict(), result.spaces.folds),
            result.spaces.spaces,
            {k: row[i] for k, row in result.maps.items()},
        )
        for i, m in enumerate(models)
    ]
    for key, value in result.model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * states[0][key] + 0.25 * states[1][key])


@pytest.mark.parametrize("norm", ["fold", "paper"])
@pytest.mark.parametrize("repair", ["variance", "none"])
def test_norm_and_repair_work_together(norm: Any, repair: Any) -> None:
    models = [M.randomise(M.BottleneckResNet(), s) for s in range(2)]
    data = _batches(3, 8, 3, 8, 8)
    result = merge(models, data, norm=norm, repair=repair, progress=False)
    assert torch.isfinite(result.model(data[0])).all()
    assert bool(result.report.repaired) == (norm == "fold" and repair == "variance")
    assert all(
        (m.running_var > 0).all() for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("norm", ["fold", "paper"])
def test_both_treatments_of_norms_are_exact_for_permutations(norm: Any) -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh()]  # no unit is ever dead
    layers += [nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)]
    model = M.randomise(nn.Sequential(*layers)).double()
    data = [b.double() for b in _batches(8, 16, 3, 6, 6)]
    other = _permuted(model, data[0], unfolded=norm == "paper")
    result = merge(
        [model, other], data, method="permutation", norm=norm, repair="none", progress=False
    )
    if norm == "fold":
        with torch.inference_mode():
            torch.testing.assert_close(result.model(data[0]), model(data[0]))
    else:  # resets the running statistics, but the parameters must be as they were
        for name, value in model.named_parameters():
            torch.testing.assert_close(result.model.get_parameter(name), value)


@pytest.mark.parametrize("norm", ["fold", "paper"])
def test_a_norm_without_running_statistics(norm: Any) -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()]
    build = lambda: nn.Sequential(*copy.deepcopy(layers), nn.Flatten(), nn.Linear(96, 4))  # noqa: E731
    models, data = [M.randomise(build(), s) for s in range(2)], _batches(2, 8, 3, 6, 6)
    merged = merge(models, data, norm=norm, progress=False).model
    assert torch.isfinite(merged(data[0])).all()


def test_batchnorm_put_back_computes_what_the_folded_program_does() -> None:
    models = [M.randomise(M.BottleneckResNet(), s).double() for s in range(2)]
    data = [b.double() for b in _batches(3, 8, 3, 8, 8)]
    result = merge(models, data, progress=False)
    folded = folded_state(result.model.state_dict(), result.spaces.folds)
    leaves = result.spaces.program.flatten_inputs((data[0],), {})
    with torch.inference_mode():
        ours = result.spaces.program.run(folded, leaves)
        torch.testing.assert_close(result.model(data[0]), ours, rtol=1e-10, atol=1e-10)


def test_training_mode_statistics_are_those_of_the_data() -> None:
    """The BatchNorm put back is ready for fine-tuning: its statistics fit the calibration data."""
    models = [M.randomise(M.vgg11(True, width=2, size=16), s) for s in range(2)]
    data = _batches(8, 32, 3, 16, 16)
    merged = merge(models, data, progress=False).model
    merged.requires_grad_(False)
    evaluated = merged(torch.cat(data))
    for module in merged.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    trained = merged(torch.cat(data))
    # All together: statistics are those of some positions, and single outputs are off by chance.
    assert float((trained - evaluated).norm()) < 1e-2 * float((evaluated - evaluated.mean()).norm())


class _Never:
    """Data that must not be read."""

    def __iter__(self) -> Iterator[Any]:
        pytest.fail("data was read although moments were given")


@pytest.mark.parametrize("method", ["cca", "permutation", "procrustes", "average"])
def test_moments_are_enough(method: str, tmp_path: Any) -> None:
    models, data = _mlps(), _batches()
    first = merge(models, data, method=method, progress=False)
    again = merge(models, _Never(), method=method, statistics=first.statistics, progress=False)
    _close(first.model, again.model, 0.0)
    first.statistics.save(tmp_path / "m.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "m.safetensors")
    third = merge(models, method=method, statistics=loaded, progress=False)
    _close(first.model, third.model, 0.0)


def test_moments_of_all_pairs_serve_any_reference() -> None:
    models, data = _mlps(3), _batches()
    collected = collect(models, data, pairs="all", progress=False)
    for reference in range(3):
        direct = merge(models, data, reference=reference, progress=False)
        reused = merge(models, statistics=collected, reference=reference, progress=False)
        _close(direct.model, reused.model, 1e-5)


def test_double_models_stay_double() -> None:
    models = [m.double() for m in _mlps()]
    result = merge(models, [b.double() for b in _batches()], progress=False)
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}
    assert not any(p.is_inference() for p in result.model.parameters())


def test_the_merged_model_can_be_trained_further() -> None:
    result = merge(_mlps(), _batches(), progress=False)
    loss = result.model.train()(torch.randn(4, 12)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_thread_counts_agree_to_rounding() -> None:
    models, data = [m.double() for m in _mlps()], [b.double() for b in _batches()]
    merged = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        ccamerge.set_num_threads(threads)
        merged.append(merge(models, data, progress=False).model)
    torch.set_num_threads(2)
    ccamerge.set_num_threads(2)
    _close(merged[0], merged[1], 1e-10)
    _close(merged[0], merged[2], 0.0)  # a fixed number of threads reproduces bit for bit


class _Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.enter = nn.Linear(5, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_parameters_tied_under_two_names_stay_tied_and_aligned() -> None:
    model = M.randomise(_Tied()).double()
    data = [b.double() for b in _batches(8, 32, 5)]
    other = _permuted(model, data[0])
    with torch.inference_mode():
        torch.testing.assert_close(other(data[0]), model(data[0]))
    assert not torch.equal(other.a.weight, model.a.weight)
    result = merge([model, other], data, method="permutation", repair="none",
                            progress=False)  # fmt: skip
    assert result.model.a.weight is result.model.b.weight
    _close(result.model, model, 1e-10)


def test_dict_batches_and_labels() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = M.MLP()

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            assert labels is None, "labels must never be looked at"
            return self.mlp(inputs)

    models: list[nn.Module] = [M.randomise(Named(), s) for s in range(2)]
    data = [{"labels": torch.zeros(16), "inputs": torch.randn(16, 12)} for _ in range(3)]
    named = merge(models, data, progress=False)
    pairs = [(batch["inputs"], torch.full((16,), torch.nan)) for batch in data]
    plain = merge(models, pairs, progress=False)
    _close(named.model, plain.model, 0.0)


def test_dead_features_do_no_harm() -> None:
    models = _mlps()
    with torch.no_grad():
        for index, model in enumerate(models):
            model.layers[0].bias[index * 3 : index * 3 + 3] = -1e3  # ReLU never opens
            model.layers[1].weight[index] = 0.0  # constant
    result = merge(models, _batches(16), progress=False)
    assert all(torch.isfinite(v).all() for v in result.model.state_dict().values())
    for row in result.maps.values():
        product = row[1].forward @ row[1].inverse
        np.testing.assert_allclose(product, np.eye(16), atol=1e-6)


class _Doubtful(nn.Module):
    """Derived as free, if a rule were wrong; here the rule is made wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).cumsum(1))


@pytest.mark.filterwarnings("ignore:aligned. nothing")
def test_what_fails_its_proof_is_pinned_unless_that_is_turned_off(monkeypatch, tmp_path):
    """In merge, from files of moments and in the report."""
    monkeypatch.setitem(OPERATIONS, "aten.cumsum", OPERATIONS["aten.relu"])
    models = [M.randomise(_Doubtful(), seed) for seed in range(2)]
    data = [torch.randn(16, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = ccamerge.merge(models, data, progress=False)
    assert not found.spaces.spaces
    assert "a map that should be exact changes the output" in str(found.report)
    assert "not proved" not in str(found.report)
    trusted = ccamerge.merge(models, data, prove=False, progress=False)
    assert [space.name for space in trusted.spaces] == ["a"]
    assert "not proved" in str(trusted.report)
    trusted.statistics.save(tmp_path / "m.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "m.safetensors")
    again = ccamerge.merge(models, statistics=loaded, progress=False)
    assert [space.name for space in again.spaces] == ["a"]
    with pytest.raises(TypeError, match="prove must be"):
        ccamerge.merge(models, data, prove="no", progress=False)


class Remembering(nn.Module):
    """What it keeps of a parameter in evaluation it forgets when it is trained, as timm's LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.shift = nn.Parameter(torch.randn(8))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Remembering:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.compiler.is_compiling():
            return self.last(torch.relu(self.first(x) + self.shift * 2))
        self.kept = self.shift.detach() * 2 if self.kept is None else self.kept
        return self.last(torch.relu(self.first(x) + self.kept))


def test_a_merged_network_keeps_nothing_of_the_models_parameters() -> None:
    torch.manual_seed(0)
    models, x = [Remembering().eval() for _ in range(2)], torch.randn(64, 6)
    for model in models:
        model(x)
    merged = ccamerge.merge(models, [x], method="average", repair="none", progress=False).model
    fresh = Remembering()
    fresh.load_state_dict(merged.state_dict())
    assert not merged.training
    torch.testing.assert_close(merged(x), fresh.eval()(x))


class _PaddedByInfinity(nn.Module):
    """Padded before a maximum, as timm's networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.first(x), (0, 1, 0, 1), value=float("-inf"))
        return self.second(nn.functional.max_pool2d(x, 3, 2)).mean((2, 3))


def test_padding_by_infinity_is_nobodys_features() -> None:
    torch.manual_seed(0)
    model, other = (_PaddedByInfinity().double().eval() for _ in range(2))
    batch = torch.randn(16, 3, 12, 12, dtype=torch.float64)
    found = ccamerge.spaces(model, batch)
    assert [space.name for space in found] == ["first"]
    assert "pad" not in {tap.node for tap in found["first"].taps}
    moved = mapped_copy(model, found, exact_maps(found, 1))
    options: dict[str, Any] = {"method": "permutation", "progress": False, "select": "none"}
    merged = ccamerge.merge([model, moved], [batch], **options).model
    new = torch.randn(16, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(merged(new), model(new), rtol=1e-9, atol=1e-9)
    both = ccamerge.merge([model, other], [batch], **options).model
    assert all(bool(x.isfinite().all()) for x in both.state_dict().values())


@pytest.mark.parametrize("method", ["cca", "procrustes", "permutation"])
def test_a_layer_that_is_dead_in_the_data_is_matched_by_its_weights(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    with torch.no_grad():
        model[0].bias -= 100  # dead for all inputs of the data, and alive for larger ones
    batch, large = torch.randn(64, 4).double(), 200 * torch.randn(64, 4).double()
    found = ccamerge.spaces(model, batch)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    moved = mapped_copy(model, found, {"0": FeatureMap.permutation(order)})
    options: dict[str, Any] = {"method": method, "progress": False, "select": "none"}
    merged = ccamerge.merge([model, moved], [batch], **options).model
    assert float((model(large) - model(batch)[:1]).detach().abs().max()) > 1
    torch.testing.assert_close(merged(large), model(large), rtol=1e-9, atol=1e-9)
