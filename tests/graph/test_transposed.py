"""Products with weights of (in, out) are linear layers, and are put back as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import ccamerge
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.networks.verification import verify
from ccamerge.graph.tracing.program import Program, trace
from ccamerge.graph.transposed import TransposedFold, as_linear
from ccamerge.merging.loading import load_merged
from tests import models as M

INS, WIDTH, OUTS = 5, 8, 3


class Net(nn.Module):
    """Tokens (batch, positions, features) through a product and a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(INS, WIDTH)
        shape = {"stack": (1, WIDTH, WIDTH)}.get(how, (WIDTH, WIDTH))
        self.weight = nn.Parameter(torch.empty(shape))
        biased = how in ("addmm", "mm", "transpose", "permute", "multiples")
        self.bias = nn.Parameter(torch.zeros(WIDTH)) if biased else None
        self.last = nn.Linear(WIDTH, OUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.product(x)))

    def product(self, x: Tensor) -> Tensor:
        w, b, flat = self.weight, self.bias, x.reshape(-1, WIDTH)
        match self.how:
            case "addmm":
                return torch.addmm(b, flat, w)
            case "matmul" | "limited" | "stack":
                return x @ w
            case "mm":
                return torch.mm(flat, w) + b
            case "T":
                return x @ w.T
            case "transpose":
                return x @ w.transpose(-1, 0) + b
            case "permute":
                return torch.addmm(b, flat, w.permute(1, 0)).view(x.shape)
            case "T of both":
                return torch.relu(x @ w.T) @ w.T
            case "used twice":
                return torch.relu(x @ w) @ w
            case "both ways":
                return torch.relu(x @ w) @ w.T
            case "multiples":
                return torch.addmm(b, flat, w, alpha=2.0).view(x.shape)
            case "residual":
                return torch.addmm(flat, flat, w).view(x.shape)
            case _:
                return x @ torch.tanh(w)


def _net(how: str, seed: int = 0) -> nn.Module:
    model = M.randomise(Net(how), seed).double()
    return parametrizations.orthogonal(model, "weight") if how == "limited" else model


INPUTS = torch.randn(16, 4, INS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _products(program: Program) -> list[str]:
    """The operations that multiply matrices, or turn them."""
    known = ("addmm", "matmul", "mm", "linear", "numpy_T", "transpose", "permute", "t")
    return [
        n.op.removeprefix("aten.") for n in program.nodes if n.op.removeprefix("aten.") in known
    ]


@pytest.mark.parametrize("how", ["addmm", "matmul", "mm", "T", "transpose", "permute", "T of both"])
def test_products_with_a_weight_are_linear_layers(how: str) -> None:
    model = _net(how)
    program, folds = as_linear(trace(model, (INPUTS,)))
    assert _products(program) == ["linear"] * (4 if how == "T of both" else 3)
    turned = how in ("addmm", "matmul", "mm")
    assert folds == ((TransposedFold("weight"),) if turned else ())


@pytest.mark.parametrize("how", ["addmm", "residual"])
def test_the_five_checks_pass(how: str) -> None:
    checks = verify(_net(how), INPUTS)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


@pytest.mark.parametrize(
    "how", ["used twice", "both ways", "stack", "multiples", "residual", "tanh"]
)
def test_other_products_stay(how: str) -> None:
    model = _net(how)
    program = trace(model, (INPUTS,))
    kept, folds = as_linear(program)
    assert folds == ()
    if how != "both ways":  # of which one is the transpose of a parameter, as it is
        assert _products(kept) == _products(program)
    expected = model(INPUTS).detach()
    state = dict(model.state_dict())
    torch.testing.assert_close(kept.run(state, [INPUTS]), expected, rtol=1e-13, atol=1e-13)


def test_a_weight_with_limits_stays() -> None:
    """It is to be orthogonal, and its transpose would have to be."""
    found = ccamerge.spaces(_net("limited"), INPUTS)
    assert not any(isinstance(own, TransposedFold) for own in found.folds)


@pytest.mark.parametrize("how", ["addmm", "matmul", "mm"])
def test_folded_and_put_back_function_and_file_stay(how: str) -> None:
    model = _net(how)
    found, expected = ccamerge.spaces(model, INPUTS), model(INPUTS).detach()
    before = {key: (v.shape, v.dtype, v.stride()) for key, v in model.state_dict().items()}
    weight = model.weight.detach().clone()
    folded = {k: v.clone() for k, v in folded_state(model.state_dict(), found.folds).items()}
    assert torch.equal(folded["weight:transposed"], weight.T)
    assert "weight" not in folded
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(torch.nan)  # nothing of the old parameters may remain
    load_merged(model, folded, found, {})
    assert torch.equal(model.weight, weight)
    assert torch.equal(model(INPUTS).detach(), expected)
    after = {key: (v.shape, v.dtype, v.stride()) for key, v in model.state_dict().items()}
    assert after == before


@pytest.mark.parametrize("how", ["addmm", "mm", "T"])
def test_they_are_fitted_as_the_same_linear_layer_is(how: str) -> None:
    models = [_net(how, seed) for seed in range(2)]
    others = []
    for model in models:
        other = nn.Sequential(
            copy.deepcopy(model.first),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH, bias=how == "addmm", dtype=torch.float64),
            nn.ReLU(),
            copy.deepcopy(model.last),
        )
        with torch.no_grad():
            other[2].weight.copy_(model.weight if how == "T" else model.weight.T)
            if how == "addmm":
                other[2].bias.copy_(model.bias)
        others.append(other)
    ours, theirs = (ccamerge.merge(own, [INPUTS], progress=False) for own in (models, others))
    assert not ours.report.skipped
    assert len(ours.report.fitted) == 3
    if how != "mm":  # whose bias is added apart
        tolerance = {"rtol": 1e-7, "atol": 1e-8}  # rounds of a fit carry rounding errors on
        expected = theirs.model(INPUTS)
        torch.testing.assert_close(ours.model(INPUTS).view_as(expected), expected, **tolerance)
