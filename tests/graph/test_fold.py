from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge.graph.folding import fold
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.tracing.program import trace
from ccamerge.merging.loading import load_merged
from tests import models as M


def _conv_norm(affine: bool = True, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine, eps=1e-3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda: _conv_norm(bias=False), (3, 8, 8)),
    "conv with bias": (_conv_norm, (3, 8, 8)),
    "not affine": (lambda: _conv_norm(affine=False), (3, 8, 8)),
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        (5,),
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 1)),
        (3, 9),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1)),
        (2, 4, 4, 4),
    ),
    "depthwise": (M.DepthwiseSeparable, (3, 8, 8)),
    "bottleneck": (M.BottleneckResNet, (3, 8, 8)),
}


def _random_norms(model: nn.Module) -> nn.Module:
    """As `randomise`, and gammas of either sign, some zero."""
    model = M.randomise(model).double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3.0)
            if module.affine:
                with torch.no_grad():
                    module.weight.normal_()
                    module.weight[0] = 0.0
    return model


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_folding_and_unfolding_keep_the_function(name: str, statistics: bool) -> None:
    build, shape = CASES[name]
    model, x = _random_norms(build()), torch.randn(4, *shape, dtype=torch.float64)
    found = spaces(model, x)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert len(found.folds) == norms
    assert not any(n.op == "aten.batch_norm" for n in found.program.nodes)
    state = {k: v.clone() for k, v in folded_state(model.state_dict(), found.folds).items()}
    expected = model(x).detach()
    leaves = found.program.flatten_inputs((x,), {})
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * float(expected.abs().max())}
    torch.testing.assert_close(found.program.run(state, leaves), expected, **tolerance)
    given = {}
    if statistics:  # any statistics: the function must not depend on them
        for f in found.folds:
            channels = len(state[f.folded])
            given[f.node] = (torch.randn(channels).double(), torch.rand(channels).double() + 0.1)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.fill_(torch.nan)  # nothing of the old parameters may remain
    load_merged(model, state, found, given)
    torch.testing.assert_close(model(x).detach(), expected, **tolerance)


def test_folding_in_float32_is_accurate() -> None:
    model = _random_norms(M.BottleneckResNet()).float()
    x = torch.randn(4, 3, 8, 8)
    found = spaces(model, x)
    expected = model(x).detach()
    ours = found.program.run(folded_state(model.state_dict(), found.folds), [x])
    assert float((ours - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_folding_leaves_the_state_alone() -> None:
    model = _conv_norm()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded_state(model.state_dict(), spaces(model, torch.randn(2, 3, 8, 8)).folds)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class _SharedNorm(nn.Module):
    """One BatchNorm after two convolutions, or one convolution into two readers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.how == "norm twice":
            return self.norm(self.b(torch.relu(self.norm(h))))
        if self.how == "convolution read twice":
            return self.norm(h) + h
        if self.how == "convolution is an output":
            return torch.cat([h, self.norm(h)], 1)
        h = self.norm(self.b(torch.relu(h)))  # one convolution into two norms
        return self.other(self.b(torch.relu(h)))


@pytest.mark.parametrize(
    "how", ["norm twice", "convolution read twice", "convolution is an output", "conv twice"]
)
def test_what_is_used_twice_is_not_folded(how: str) -> None:
    model = _random_norms(_SharedNorm(how))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    program, folds = fold(trace(model, (x,)))
    assert folds == ()
    torch.testing.assert_close(program.run(model.state_dict(), [x]), model(x).detach())


def test_a_transposed_convolution_is_not_folded() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 4, 4)
    program, folds = fold(trace(M.randomise(model), (x,)))
    assert folds == ()
    torch.testing.assert_close(program.run(model.state_dict(), [x]), model(x).detach())


def test_a_norm_over_another_axis_is_not_folded() -> None:
    """BatchNorm1d of (batch, length, features) normalises the length, not the features."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(6, 2))
    _, folds = fold(trace(M.randomise(model), (torch.randn(3, 7, 5),)))
    assert folds == ()


def test_a_norm_without_running_statistics_is_not_folded() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1)
    )
    _, folds = fold(trace(model, (torch.randn(3, 3, 5, 5),)))
    assert folds == ()


def test_a_norm_before_the_convolution_is_not_folded() -> None:
    _, folds = fold(trace(M.DenseBlockNet(), (torch.randn(2, 3, 8, 8),)))
    assert folds == ()
