"""Functions that a forward writes out are one operation each, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL, PERMUTATION
from ccamerge.graph.networks.verification import verify
from ccamerge.graph.pointwise import NAME, with_pointwise
from ccamerge.graph.tracing.program import Program, trace
from ccamerge.methods.weights import shares_of
from ccamerge.repair.regression import fits_of
from tests import models as M

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu, multiplied": lambda x: 0.5 * x * (1.0 + torch.erf(x * 0.5**0.5)),
    "gelu by tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "gelu by products": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * x * (1 + 0.044715 * x * x))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x * torch.sigmoid(x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "square": lambda x: x * x,
    "from one": lambda x: x * (1 - torch.sigmoid(x)),
}


class Net(nn.Module):
    """A function of what one linear layer, or two, give."""

    def __init__(self, function: Callable[..., Any], layers: int = 1) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(5, 8) for _ in range(layers))
        weighs = function.__code__.co_argcount > layers
        self.gain = nn.Parameter(torch.rand(8)) if weighs else None
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        more = () if self.gain is None else (self.gain,)
        return self.head(self.function(*(layer(x) for layer in self.layers), *more))


def _net(function: Callable[..., Any], layers: int = 1, seed: int = 0) -> nn.Module:
    return M.randomise(Net(function, layers), seed).double()


INPUTS = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _joined(model: nn.Module) -> Program:
    """The program with functions as single operations, which is to compute the same."""
    program = with_pointwise(trace(model, (INPUTS,)))
    found = program.run(dict(model.state_dict()), [INPUTS])
    torch.testing.assert_close(found, model(INPUTS).detach(), rtol=1e-14, atol=1e-14)
    return program


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_written_out_is_one_function(name: str) -> None:
    model = _net(FUNCTIONS[name])
    assert [node.op for node in _joined(model).nodes] == ["aten.linear", NAME, "aten.linear"]
    found = ccamerge.spaces(model, INPUTS)
    assert found["layers.0"].group == GENERAL
    assert found["layers.0"].exact == PERMUTATION


def test_the_five_checks_pass() -> None:
    checks = verify(_net(FUNCTIONS["gelu"]), INPUTS)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


@pytest.mark.parametrize("name", ["gelu", "quick gelu", "mish"])
def test_operations_are_fitted_through_it(name: str) -> None:
    """And as well as through the same function where torch has it."""
    model = _net(FUNCTIONS[name])
    found = ccamerge.spaces(model, INPUTS)
    maps = {space.name: [FeatureMap.permutation(range(space.size))] * 2 for space in found}
    absorbers = {"linear": ("layers.0.weight", "layers.0.bias")}
    fits, _ = fits_of(found, maps, shares_of(None, None, 2, 0, found), absorbers)
    activation = fits["linear"].activation
    assert activation is not None
    assert activation.op == NAME
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(activation.target(x), FUNCTIONS[name](x), rtol=1e-14, atol=1e-14)


def test_merges_as_with_the_function_of_torch() -> None:
    written = [_net(FUNCTIONS["gelu"], seed=seed) for seed in range(2)]
    known = [_net(lambda x: F.gelu(x)) for _ in range(2)]
    for model, other in zip(written, known, strict=True):
        other.load_state_dict(model.state_dict())
    ours, theirs = (ccamerge.merge(models, [INPUTS], progress=False) for models in (written, known))
    assert [f.tap for f in ours.report.fitted] == [f.tap for f in theirs.report.fitted]
    tolerance = {"rtol": 1e-7, "atol": 1e-8}  # rounds of a fit carry rounding errors on
    torch.testing.assert_close(ours.model(INPUTS), theirs.model(INPUTS), **tolerance)


def test_two_functions_of_one_value_are_not_fitted_through_as_one() -> None:
    model = _net(lambda x: torch.cat([x * torch.sigmoid(x), x * torch.tanh(x)], 0))
    assert [node.op for node in _joined(model).nodes].count(NAME) == 2
    found = ccamerge.spaces(model, INPUTS)
    maps = {space.name: [FeatureMap.permutation(range(space.size))] * 2 for space in found}
    absorbers = {"linear": ("layers.0.weight", "layers.0.bias")}
    fits, _ = fits_of(found, maps, shares_of(None, None, 2, 0, found), absorbers)
    assert fits["linear"].activation is None


OTHERS: dict[str, tuple[Callable[..., Any], int]] = {
    "a sum of two values": (lambda x, y: x + y, 2),
    "a residual sum": (lambda x: x + torch.tanh(x), 1),
    "a gate of two values": (lambda x, y: x * torch.sigmoid(y), 2),
    "a gate of a sum": (lambda x, y: x * torch.sigmoid(x + y), 2),
    "a multiple": (lambda x: 2.0 * torch.tanh(x), 1),
    "a weight": (lambda x, w: x * torch.sigmoid(w), 1),
    "a function of weights": (lambda x, w: x + w * torch.sigmoid(w), 1),
    "other features": (lambda x: x * torch.sigmoid(x.flip(-1)), 1),
    "means": (lambda x: x * torch.sigmoid(x.mean(0, keepdim=True)), 1),
    "a part that is read elsewhere": (
        lambda x: (lambda s: x * s + s.flip(0))(torch.sigmoid(x)),
        1,
    ),
    "no smooth function": (lambda x: x * torch.sign(x), 1),
    "a quotient": (lambda x: x / (1 + torch.sigmoid(x)), 1),
    "a rounded quotient": (lambda x: x * torch.div(torch.tanh(x), 2, rounding_mode="floor"), 1),
    "a root": (lambda x: x * torch.pow(torch.sigmoid(x), 0.5), 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_and_sums_stay(name: str) -> None:
    function, layers = OTHERS[name]
    model = _net(function, layers)
    program = trace(model, (INPUTS,))
    assert with_pointwise(program) is program


def test_what_the_network_returns_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.a(x)
            gate = torch.sigmoid(h)
            return self.b(h * gate), gate

    program = trace(Both().double(), (INPUTS,))
    assert with_pointwise(program) is program


def test_one_function_in_another_is_one() -> None:
    """And where the inner one is read besides, it is one by itself."""
    silu = FUNCTIONS["silu"]
    nested = _joined(_net(lambda x: silu(silu(x))))
    assert [node.op for node in nested.nodes] == ["aten.linear", NAME, "aten.linear"]
    beside = _joined(_net(lambda x: (lambda y: silu(y) + y.flip(0))(silu(x))))
    assert [node.op for node in beside.nodes].count(NAME) == 1
