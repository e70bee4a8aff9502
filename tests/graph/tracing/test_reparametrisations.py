"""Reparametrised weights are merged as what they compute, and put back as what they were."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations as by_map
from torch.nn.utils import parametrize, prune
from torch.nn.utils import spectral_norm as spectral_hook
from torch.nn.utils import weight_norm as weight_hook

import ccamerge
from ccamerge.graph.tracing.modules import copied as copy_of
from ccamerge.graph.tracing.plain import limits_of, plain


def copied(model: Any) -> Any:
    return copy_of(model, "model")


def plain_copy(model: Any) -> nn.Module:
    return plain(model, "model")


def plain_state(model: Any) -> dict[str, Tensor]:
    return plain_copy(model).state_dict()


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, y: Tensor) -> Tensor:
        return y / 2


class _Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return y + torch.log(-torch.expm1(-y))


class _Symmetric(nn.Module):
    """Linear, and without an inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class _Bump(nn.Module):
    """Neither linear nor with an inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2))


class _Learned(nn.Module):
    """With a parameter and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()) + 0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * x

    def right_inverse(self, y: Tensor) -> Tensor:
        return y / self.scale


def _register(*maps: nn.Module) -> Callable[[nn.Module], Any]:
    def register(layer: nn.Module) -> None:
        for item in maps:
            parametrize.register_parametrization(layer, "weight", item)

    return register


def _positive(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.abs_().add_(0.01)
    parametrize.register_parametrization(layer, "weight", _Positive())


def _twice_pruned(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "bias", 0.3)


FREE: dict[str, Callable[[Any], Any]] = {
    "weight norm": by_map.weight_norm,
    "weight norm of all": lambda layer: by_map.weight_norm(layer, dim=None),
    "weight norm by a hook": weight_hook,
    "a custom map": _register(_Doubled()),
    "two custom maps": lambda layer: _register(_Doubled(), _Learned())(layer),
    "a map of weight norm": lambda layer: _register(_Doubled())(by_map.weight_norm(layer)),
}
"""What can stand for any weight."""

LIMITED: dict[str, Callable[[Any], Any]] = {
    "spectral norm": by_map.spectral_norm,
    "spectral norm by a hook": spectral_hook,
    "a map of spectral norm": lambda layer: _register(_Doubled())(by_map.spectral_norm(layer)),
    "orthogonal": by_map.orthogonal,
    "orthogonal by reflections": lambda layer: by_map.orthogonal(
        layer, orthogonal_map="householder", use_trivialization=False
    ),
    "cayley": lambda layer: by_map.orthogonal(layer, orthogonal_map="cayley"),
    "positive": _positive,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice, bias too": _twice_pruned,
    "pruned rows": lambda layer: prune.ln_structured(layer, "weight", 0.25, 2, 0),
}
FIXED: dict[str, Callable[[Any], Any]] = {
    "symmetric": _register(_Symmetric()),
    "bump": _register(_Bump()),
}
"""Where a permuted weight is none of theirs, or cannot be put back."""

KINDS = {**FREE, **LIMITED, **FIXED}

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*cannot hold the average:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:aligned. nothing:RuntimeWarning"),
]


def _network(kind: str, seed: int) -> nn.Sequential:
    """Both hidden layers reparametrised, after training steps, with gradients still there."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    for layer in (net[2], net[0]) if kind not in FIXED else (net[2],):
        KINDS[kind](layer)
    for _ in range(4):
        net(torch.randn(8, 12)).square().mean().backward()
    return net.eval()


def _inputs(seed: int = 5) -> Tensor:
    return torch.randn(256, 12, generator=torch.Generator().manual_seed(seed))


def _off(ours: nn.Module, theirs: nn.Module, x: Tensor | None = None) -> float:
    """How far the outputs of two networks are apart; of copies, since some count their calls."""
    with torch.no_grad():
        a, b = (copied(model)(_inputs(6) if x is None else x) for model in (ours, theirs))
    return float((a - b).norm() / b.norm())


def _merge(models: list[nn.Module], **settings: Any) -> ccamerge.MergeResult:
    return ccamerge.merge(models, [_inputs()], progress=False, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_copy_computes_the_same(kind: str) -> None:
    model = _network(kind, 0)
    before = copied(model).state_dict()
    plain = plain_copy(model)
    limits = limits_of(plain)
    assert (set(limits) != set()) is (kind not in FREE)
    assert _off(plain, model) < 1e-6
    assert sorted(plain.state_dict()) == sorted(
        f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")
    )
    assert set(dict(plain.named_parameters())) == set(plain_state(model)) == set(plain_state(plain))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # The class with the property is the model's own, too: it must still have it.
    assert torch.equal(model[2].weight, copied(model)[2].weight)  # type: ignore[index]
    assert not model[2].weight.is_leaf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repair", ["regression", "variance", "none"])
def test_copies_merge_into_the_network(kind: str, repair: Any) -> None:
    model = _network(kind, 0)
    merged = _merge([model, copied(model)], repair=repair).model
    assert _off(merged, model) < 1e-4
    assert merged.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_one_gives_the_model(kind: str) -> None:
    models: list[nn.Module] = [_network(kind, seed) for seed in range(2)]
    before = [copied(m).state_dict() for m in models]
    settings: dict[str, Any] = {"method": "permutation", "repair": "none"}
    own = _merge(models, t=0.0, **settings)
    assert _off(own.model, models[0]) < 1e-6
    if kind != "bump":  # nothing leads back to another's weight
        other = _merge(models, weights=[0, 1], **settings)
        assert _off(other.model, models[1]) < 1e-5
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_keeps_what_the_reparametrisation_promises(kind: str) -> None:
    models: list[nn.Module] = [_network(kind, seed) for seed in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _merge(models)
    merged = result.model
    assert copied(merged)(_inputs(6)).isfinite().all()
    assert bool(result.report.not_held) is any("cannot hold" in str(w.message) for w in caught)
    assert ("not the average: " in str(result.report)) is bool(result.report.not_held)
    weight = merged[2].weight.detach()  # type: ignore[index]
    reference = models[0][2].weight.detach()  # type: ignore[index]
    if "spectral" in kind:
        norm = torch.linalg.matrix_norm(weight, 2)
        # Power iteration underestimates norms: those of the models are not quite theirs, either.
        own = [torch.linalg.matrix_norm(m[2].weight.detach(), 2) for m in models]  # type: ignore[index]
        bound = 2.0 if "a map" in kind else 1.0
        assert bound * (1 - 1e-5) <= norm <= max(own) * (1 + 1e-5)
    if "orthogonal" in kind or kind == "cayley":
        torch.testing.assert_close(weight @ weight.T, torch.eye(16), rtol=0, atol=1e-5)
    if kind == "positive":
        assert (weight > 0).all()
        assert not result.report.not_held  # the mean of positive numbers is one
    if "pruned" in kind:
        assert not weight[reference == 0].any()
        assert torch.equal(merged[2].weight_mask, models[0][2].weight_mask)  # type: ignore[index]
    if kind == "symmetric":
        assert torch.equal(weight, weight.T)
        mean = (reference + models[1][2].weight.detach()) / 2  # type: ignore[index]
        torch.testing.assert_close(weight, mean)
    if kind == "bump":
        assert torch.equal(weight, reference)
        assert "the reference's" in result.report.not_held["2.weight"]
    # It is a network like the ones that were given: it trains, and is copied.
    assert merged.state_dict().keys() == models[0].state_dict().keys()
    copied(merged).train()(_inputs()).sum().backward()


@pytest.mark.parametrize("kind", FREE)
def test_free_weights_merge_as_plain_ones(kind: str) -> None:
    models: list[nn.Module] = [_network(kind, seed) for seed in range(2)]
    plain = [plain_copy(model) for model in models]
    ours, theirs = _merge(models), _merge(plain)
    assert _off(ours.model, theirs.model) < 1e-4
    for key, value in plain_state(ours.model).items():
        torch.testing.assert_close(value, theirs.model.state_dict()[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("flip", ["weight norm", "spectral norm"])
def test_what_stands_for_one_weight_in_two_ways(flip: str) -> None:
    model = _network(flip, 0)
    other = copied(model)
    with torch.no_grad():
        maps = other[2].parametrizations.weight  # type: ignore[index]
        pair = [maps[0]._u, maps[0]._v] if "spectral" in flip else [maps.original0, maps.original1]
        for tensor in pair:
            tensor.neg_()
    result = _merge([model, other])
    assert _off(result.model, model) < 1e-4
    ccamerge.merge([model, other], statistics=result.statistics, progress=False)  # one fingerprint


def test_rows_of_norm_zero() -> None:
    models: list[nn.Module] = [_network("weight norm", seed) for seed in range(2)]
    for model in models:
        with torch.no_grad():
            model[0].parametrizations.weight.original0[3] = 0  # type: ignore[index]
    merged = _merge(models, method="average", repair="none").model
    weight = merged[0].weight  # type: ignore[index]
    assert weight.isfinite().all()
    assert not weight[3].any()
    assert weight[2].any()


def test_batch_norm_after_reparametrised_convolutions() -> None:
    def build(seed: int, kind: Callable[[Any], Any]) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)),
        )
        for layer in (net[0], net[3]):
            kind(layer)
        with torch.no_grad():
            for _ in range(3):
                net(2 + 3 * torch.randn(32, 3, 8, 8))
        return net.eval()

    x = torch.randn(128, 3, 8, 8)
    for kind in (by_map.weight_norm, by_map.spectral_norm):
        models = [build(seed, kind) for seed in range(2)]
        settings: dict[str, Any] = {"method": "permutation", "repair": "none", "progress": False}
        for shares, alone in (([1, 0], models[0]), ([0, 1], models[1])):
            merged = ccamerge.merge(models, [x], weights=shares, **settings).model
            assert _off(merged, alone, x) < 1e-5
        assert ccamerge.merge(models, [x], progress=False).model(x).isfinite().all()


def test_verification_of_reparametrised_models() -> None:
    for kind in ("weight norm", "spectral norm by a hook"):
        checks = ccamerge.verify(_network(kind, 0), _inputs())
        assert all(check.passed for check in checks), checks


def test_tied_modules_and_tied_originals() -> None:
    class Tied(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            self.a = by_map.weight_norm(nn.Linear(12, 12))
            self.b = self.a if whole else by_map.weight_norm(nn.Linear(12, 12))
            self.o = nn.Linear(12, 5)
            if not whole:
                for name in ("original0", "original1"):
                    tensor = getattr(self.a.parametrizations.weight, name)
                    setattr(self.b.parametrizations.weight, name, tensor)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.relu(self.b(F.relu(self.a(x)))))

    for whole in (True, False):
        models: list[nn.Module] = [Tied(whole) for _ in range(2)]
        merged = _merge(models, method="average", repair="none").model
        mean = (models[0].a.weight + models[1].a.weight) / 2  # type: ignore[operator,union-attr]
        torch.testing.assert_close(merged.a.weight, mean)  # type: ignore[union-attr]
        assert torch.equal(merged.a.weight, merged.b.weight)  # type: ignore[union-attr]


def test_what_cannot_be_told_apart_is_refused() -> None:
    def half_tied() -> nn.Module:
        net = nn.Sequential(*(by_map.weight_norm(nn.Linear(12, 12)) for _ in range(2)))
        first, second = (layer.parametrizations.weight for layer in net)
        second.original1 = first.original1  # type: ignore[union-attr]
        with torch.no_grad():
            second.original0.mul_(2)  # type: ignore[union-attr]
        return net

    with pytest.raises(ValueError, match=r"models\[0\] uses what '0.weight' is computed from"):
        _merge([half_tied(), half_tied()])
    both = nn.Linear(12, 5)
    prune.l1_unstructured(weight_hook(both), "weight_v", 0.5)
    with pytest.raises(ValueError, match=r"models\[0\]: 'weight' of a Linear .* WeightNorm"):
        _merge([both, both])


def test_models_under_different_limits() -> None:
    pruned, dense = _network("pruned", 0), _network("weight norm", 1)
    message = r"'0.weight' differs: in models\[1\] none, in models\[0\] pruning"
    with pytest.raises(ValueError, match=message):
        _merge([pruned, dense])
    plain = plain_copy(_network("weight norm", 2))
    merged = _merge([dense, plain], method="average", repair="none").model
    mean = (plain_state(dense)["0.weight"] + plain_state(plain)["0.weight"]) / 2
    torch.testing.assert_close(plain_state(merged)["0.weight"], mean)
    assert not limits_of(plain_copy(merged))


def test_nothing_random_and_nothing_left_behind() -> None:
    model = _network("two custom maps", 0).train()
    state = torch.random.get_rng_state()
    calls = [m.calls.clone() for m in model.modules() if isinstance(m, _Learned)]
    plain_state(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.calls for m in model.modules() if isinstance(m, _Learned)] == calls
    assert all(m.training for m in model.modules())
    twin = copy.deepcopy(model)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_plain_model_is_itself() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
    assert plain_copy(model) is model


def test_a_model_that_cannot_be_copied_is_named() -> None:
    models: list[Any] = [nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))] * 2
    models[0].guard = threading.Lock()
    with pytest.raises(ValueError, match=r"models\[0\] cannot be copied: attribute 'guard'"):
        _merge(models)
