"""Reparametrised weights are merged as what they compute, and put back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import ccamerge
from ccamerge.graph.plain import plain


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def _weight_norm(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model[0])


def _spectral_norm(model: nn.Sequential) -> None:
    parametrizations.spectral_norm(model[0])
    for _ in range(200):
        model(torch.randn(4, 12))


def _hooked_weight_norm(model: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])


def _hooked_spectral_norm(model: nn.Sequential) -> None:
    nn.utils.spectral_norm(model[0])
    for _ in range(200):
        model(torch.randn(4, 12))


def _pruned(model: nn.Sequential) -> None:
    torch.manual_seed(7)  # the same mask everywhere
    prune.random_unstructured(model[0], "weight", 0.5)


class _Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.flip(0)

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def _own(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", _Symmetric())


KINDS: dict[str, Callable[[nn.Sequential], None]] = {
    "weight norm": _weight_norm,
    "spectral norm": _spectral_norm,
    "weight norm by a hook": _hooked_weight_norm,
    "spectral norm by a hook": _hooked_spectral_norm,
    "pruned": _pruned,
    "one of the user's": _own,
}


def _made(kind: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = _net()
    KINDS[kind](model)
    model(torch.randn(3, 12)).sum().backward()  # what hooks keep is now the result of a graph
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_model_computes_the_same(kind: str) -> None:
    model, x = _made(kind, 0), torch.randn(32, 12)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    want = model(x)
    other = plain(model, "model")
    assert other is not model
    assert set(other.state_dict()) == set(_net().state_dict())
    torch.testing.assert_close(other(x), want)
    assert torch.equal(model(x), want)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_plain_model_is_itself() -> None:
    model = _net()
    assert plain(model, "model") is model


@pytest.mark.parametrize("kind", KINDS)
def test_copies_merge_into_the_network(kind: str) -> None:
    model = _made(kind, 0)
    x, new = torch.randn(256, 12), torch.randn(64, 12)
    result = ccamerge.merge([model, _made(kind, 0)], [x], method="permutation", progress=False)
    torch.testing.assert_close(result.model(new), model(new), rtol=1e-3, atol=1e-4)
    assert set(result.model.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_different_models_merge_into_finite_weights(kind: str) -> None:
    models, x = [_made(kind, seed) for seed in range(2)], torch.randn(256, 12)
    result = ccamerge.merge(models, [x], repair="none", progress=False)
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    assert [space.name for space in result.spaces] == ["0"]
    if kind == "pruned":
        assert (result.model[0].weight == 0).float().mean() > 0.4
        assert "0.weight" in result.report.from_reference
    if "spectral" in kind:
        assert float(torch.linalg.matrix_norm(result.model[0].weight.detach(), 2)) < 1 + 1e-4


@pytest.mark.parametrize("legacy", [False, True])
def test_opposite_signs_of_one_weight_do_not_cancel(legacy: bool) -> None:
    """(g, v) and (-g, -v) of weight norm are one weight."""
    a = _made("weight norm by a hook" if legacy else "weight norm", 0)
    b = copy.deepcopy(plain(a, "a"))
    b = _made("weight norm by a hook" if legacy else "weight norm", 0)
    with torch.no_grad():
        for key, value in b.state_dict(keep_vars=True).items():
            if "original" in key or key.endswith(("_g", "_v")):
                value.neg_()
    x = torch.randn(128, 12)
    torch.testing.assert_close(a(x), b(x))
    merged = ccamerge.merge([a, b], [x], method="permutation", repair="none", progress=False).model
    torch.testing.assert_close(merged(x), a(x), rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    import threading

    models = [_net(), _net()]
    models[0].guard = threading.Lock()
    with pytest.raises(ValueError, match=r"models\[0\] cannot be copied: attribute 'guard'"):
        ccamerge.merge(models, [torch.randn(8, 12)], progress=False)
