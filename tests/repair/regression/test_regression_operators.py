"""A linear operation's patches and products, and its fit, against what autograd and lstsq say."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ccamerge.collection.positions import FITTED, lattice
from ccamerge.graph.networks.inspection import spaces
from ccamerge.repair.regression import DAMPING, Fit, Piece, Sample, fit
from ccamerge.repair.regression.operators import Operator, counted
from ccamerge.repair.regression.rounds import _mixed, _Point

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _operator(module: nn.Module, x: Tensor) -> tuple[Operator, Any, Tensor]:
    """The operator of a module, its node, and its output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch copies inputs for an odd padding
        node = spaces(nn.Sequential(module), x).program.nodes[0]
        output = module(x).detach()
    return Operator.of(node, next(module.parameters()), output), node, output


@settings(max_examples=60, deadline=None)
@given(
    spatial=st.integers(1, 3),
    channels=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    last=st.booleans(),
    size=st.sampled_from([8, 17]),
)
def test_products_with_patches_are_the_convolution_and_its_gradient(
    spatial: int,
    channels: int,
    groups: int,
    kernel: int,
    stride: int,
    padding: Any,
    dilation: int,
    last: bool,
    size: int,
) -> None:
    assume(padding != "same" or stride == 1)
    assume(spatial == 2 or size == 8)
    conv = _CONVOLUTIONS[spatial - 1](  # type: ignore[abstract]
        channels * groups, 2 * groups, kernel, stride, padding, dilation, groups
    ).double()
    x = torch.randn(2, channels * groups, *range(size, size + spatial)).double()
    if last and spatial == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    operator, node, output = _operator(conv, x)
    expected = output[lattice(output.shape, 1, FITTED)].movedim(1, -1)
    torch.testing.assert_close(counted(node, output), expected)
    weight, bias = conv.weight.detach(), conv.bias.detach()
    torch.testing.assert_close(operator.apply(x, weight, bias), expected)
    matrices = operator.matrices(weight)
    assert matrices.shape == (groups, operator.ins, operator.outs)
    torch.testing.assert_close(operator.weights(matrices), weight)
    rows = [p.flatten(-len(operator.axes)) for p in operator.patches(x)]
    ours = torch.cat([r @ m for r, m in zip(rows, matrices, strict=True)], -1) + bias
    torch.testing.assert_close(ours, expected)
    moves = torch.randn_like(expected)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        whole = conv(x)[lattice(output.shape, 1, FITTED)].movedim(1, -1)
        (gradient,) = torch.autograd.grad((whole * moves).sum(), conv.weight)
    torch.testing.assert_close(operator.transposed(x, moves), gradient)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (5, 2, 3, 4)])
def test_a_linear_layer_of_any_rank(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(4, 3).double()
    x = torch.randn(shape).double()
    operator, _, output = _operator(layer, x)
    weight = layer.weight.detach()
    torch.testing.assert_close(operator.apply(x, weight, layer.bias.detach()), output)
    torch.testing.assert_close(operator.patches(x)[0] @ operator.matrices(weight)[0], x @ weight.T)
    moves = torch.randn_like(output)
    expected = torch.einsum("...o,...i->oi", moves, x)
    torch.testing.assert_close(operator.transposed(x, moves), expected)


def test_patches_are_views() -> None:
    x = torch.randn(2, 6, 9, 9)
    for groups in (1, 2):
        operator, _, _ = _operator(nn.Conv2d(6, 4, 3, groups=groups), x)
        assert all(
            p.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            for p in operator.patches(x)
        )


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda b: nn.Linear(6, 4, bias=b), (30, 6)),
    "sequence": (lambda b: nn.Linear(6, 4, bias=b), (9, 3, 6)),
    "wide": (lambda b: nn.Linear(3, 150, bias=b), (30, 3)),
    "conv": (lambda b: nn.Conv2d(3, 4, 3, 2, 1, bias=b), (5, 3, 8, 8)),
    "thinned": (lambda b: nn.Conv2d(2, 4, 3, 1, 1, bias=b), (2, 2, 16, 17)),
    "same": (lambda b: nn.Conv2d(2, 4, (3, 2), 1, "same", 2, bias=b), (5, 2, 8, 8)),
    "grouped": (lambda b: nn.Conv2d(4, 6, 3, 1, 1, groups=2, bias=b), (5, 4, 6, 6)),
    "depthwise": (lambda b: nn.Conv2d(4, 8, 3, 1, 1, groups=4, bias=b), (5, 4, 6, 6)),
    "line": (lambda b: nn.Conv1d(3, 4, 3, 1, 2, 2, bias=b), (9, 3, 11)),
    "volume": (lambda b: nn.Conv3d(2, 3, 2, bias=b), (5, 2, 4, 4, 4)),
}


def _designs(module: nn.Module, node: Any, x: Tensor) -> np.ndarray[Any, Any]:
    """What each output's weights multiply, (outs, rows, ins), from the operation itself."""
    weight = next(module.parameters())
    columns = []
    kept = weight.detach().clone()
    for index in itertools.product(*(range(n) for n in weight.shape[1:])):
        weight.zero_()
        weight[(slice(None), *index)] = 1
        columns.append(counted(node, _bare(module, x)).flatten(0, -2).T)
    weight.copy_(kept)
    return torch.stack(columns, -1).numpy()


def _bare(module: nn.Module, x: Tensor) -> Tensor:
    bias = getattr(module, "bias", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output: Tensor = module(x)
    return output if bias is None else output - bias.view(-1, *[1] * _trailing(module))


def _trailing(module: nn.Module) -> int:
    return 0 if isinstance(module, nn.Linear) else next(module.parameters()).dim() - 2


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_a_fit_is_the_ridge_regression_written_out(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    build, shape = MODULES[kind]
    module = build(bias).double()
    xs = [torch.randn(shape).double() + 2 for _ in range(2)]
    operator, node, _ = _operator(module, xs[0])
    old = next(module.parameters()).detach().clone()
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    job = Fit(node, "weight", "bias" if bias else None, (Piece(0, len(old), None, (1.0,)),))
    with torch.no_grad():
        ys = [module(x) for x in xs]
        zs = [torch.randn_like(y) + 1 for y in ys]
        before = torch.cat([counted(node, y).flatten(0, -2) for y in ys]).numpy()
        done = fit(job, state, [Sample(*s) for s in zip(xs, ys, [[z] for z in zs], strict=True)])
        designs = np.concatenate([_designs(module, node, x) for x in xs], 1)
        z = torch.cat([counted(node, z).flatten(0, -2) for z in zs]).numpy()
    squares = 0.0
    for out, x in enumerate(designs):
        shift_x, shift_z = (x.mean(0), z[:, out].mean()) if bias else (np.zeros(x.shape[1]), 0.0)
        xc, zc, n = x - shift_x, z[:, out] - shift_z, len(x)
        damping = (DAMPING + (x.shape[1] / n) ** 2) * (xc**2).sum() / n / x.shape[1]
        # min |X w - z|^2 / n + damping |w - w_old|^2 as an ordinary least-squares problem.
        a = np.vstack([xc / np.sqrt(n), np.sqrt(damping) * np.eye(x.shape[1])])
        b = np.concatenate([zc / np.sqrt(n), np.sqrt(damping) * old[out].flatten().numpy()])
        expected = np.linalg.lstsq(a, b, rcond=None)[0]
        ours = state["weight"][out].flatten().numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        given = shift_z - expected @ shift_x
        if bias:
            assert float(state["bias"][out]) == pytest.approx(given, abs=1e-9)
        squares += ((x @ expected + given - z[:, out]) ** 2).sum()
    assert done.error == pytest.approx(np.sqrt(squares / ((before - z) ** 2).sum()), rel=1e-6)
    assert operator.ins == designs.shape[2]


def test_mixing_solves_a_linear_problem_in_as_many_steps_as_unknowns() -> None:
    """Plain rounds ``x + (b - A x)`` contract slowly; each output has a problem of its own."""
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(5, 3, 3, generator=generator).double()
    a = roots @ roots.mT
    a = a / (1.3 * torch.linalg.eigvalsh(a)[:, -1, None, None]) + 0.05 * torch.eye(3).double()
    b = torch.randn(5, 3, generator=generator).double()
    solution = torch.linalg.solve(a, b)
    at, history = torch.zeros_like(b), []
    for _ in range(4):
        step = b - (a @ at[..., None])[..., 0]
        history.append(_Point(at, step, step, step))
        at = _mixed(history)
    plain = torch.zeros_like(b)
    for _ in range(4):
        plain = plain + b - (a @ plain[..., None])[..., 0]
    assert float((at - solution).norm()) < 1e-3 * float((plain - solution).norm())


def test_outputs_that_mixing_made_worse_keep_their_best_weights() -> None:
    """Each output by itself ends no worse than it was before the fit."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 7).double()
    x = torch.randn(300, 5).double()
    _, node, output = _operator(layer, x)
    relu = spaces(nn.Sequential(nn.Linear(5, 7).double(), nn.ReLU()), x).program.nodes[1]
    state = {key: value.detach().clone() for key, value in layer.state_dict().items()}
    job = Fit(node, "weight", "bias", (Piece(0, 7, None, (1.0,)),), None, relu)
    wanted = output + 0.1 * torch.randn(300, 7).double() ** 3
    fit(job, state, [Sample(x, output, [wanted])])
    after = torch.relu(job.apply(x, state))
    errors = [(v - torch.relu(wanted)).square().sum(0) for v in (after, torch.relu(output))]
    assert bool((errors[0] <= errors[1]).all())
