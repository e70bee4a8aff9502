"""The five checks pass on every architecture, and each of them can fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ccamerge import verification
from ccamerge.graph import axes as ax
from ccamerge.graph.derivation import Derivation
from ccamerge.graph.rules import RULES, elementwise, linear
from ccamerge.graph.spaces import Role
from ccamerge.verification import verify
from tests import models as M


def _resnet() -> nn.Module:
    from ccamerge.demo.networks import ResNet20

    return ResNet20()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (M.MLP, (16, 12)),
    "vgg11": (lambda: M.vgg11(False, width=4, size=16), (4, 3, 16, 16)),
    "vgg11-bn": (lambda: M.vgg11(True, width=4, size=16), (4, 3, 16, 16)),
    "resnet20": (_resnet, (4, 3, 8, 8)),
    "bottleneck": (M.BottleneckResNet, (4, 3, 8, 8)),
    "depthwise": (M.DepthwiseSeparable, (4, 3, 8, 8)),
    "dense": (M.DenseBlockNet, (4, 3, 8, 8)),
    "grouped": (M.GroupedConv, (4, 3, 8, 8)),
    "normed": (M.NormedMLP, (16, 12)),
    "tied": (M.TiedAutoencoder, (16, 10)),
    "unknown": (M.UnknownOp, (16, 6)),
}
NAMES = ["symmetry", "linear twin", "mutation", "coverage", "recovery"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_all_checks_pass(name: str, seed: int) -> None:
    build, shape = CASES[name]
    torch.manual_seed(seed)
    model = M.randomise(build(), seed)
    checks = verify(model, torch.randn(shape), seed=seed)
    assert [c.name for c in checks] == NAMES
    assert all(c.passed for c in checks), "\n".join(map(str, checks))


def _verdicts(model: nn.Module, shape: tuple[int, ...]) -> dict[str, bool]:
    return {c.name: c.passed for c in verify(model, torch.randn(shape))}


def _without_bias(node: Any, d: Any, axis: Any) -> None:
    """The bias is forgotten: it stays where it was."""


def test_symmetry_fails_when_a_bias_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_bias", _without_bias)
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["symmetry"]
    assert not verdicts["linear twin"]
    assert not verdicts["coverage"]  # the bias' axis has neither space nor reason


def test_symmetry_fails_when_too_large_a_group_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tanh declared to be the identity: exact under any map, it says."""
    monkeypatch.setitem(RULES, "aten.tanh", elementwise._same)
    model = M.randomise(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))
    verdicts = _verdicts(model, (16, 6))
    assert not verdicts["symmetry"]
    assert verdicts["linear twin"]  # where tanh is the identity, any map is right


def test_linear_twin_fails_when_flatten_has_the_wrong_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H*W x C for C x H*W: permutations of channels then scramble positions."""

    def wrong(node: Any, d: Any) -> Any:
        axes = d.axes_of(node.args[0])
        d.passed_through(node)
        inner = ax.axis_size(axes[2]) * ax.axis_size(axes[3])
        return [axes[0], tuple((inner, *segment) for segment in ax.resolve(axes[1]))]

    monkeypatch.setitem(RULES, "aten.flatten", wrong)
    model = M.randomise(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    )
    verdicts = _verdicts(model, (8, 3, 6, 6))
    assert not verdicts["symmetry"]
    assert not verdicts["linear twin"]
    assert verdicts["coverage"]


def test_mutation_fails_for_a_space_that_does_nothing() -> None:
    """The output does not depend on the hidden layer: transforming half of it goes unseen."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x) + 0.0 * self.b(torch.relu(self.a(x)))

    verdicts = _verdicts(M.randomise(Idle()), (8, 4))
    assert not verdicts["mutation"]
    assert verdicts["symmetry"]


def test_mutation_fails_when_readers_are_not_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verification.transform

    def writers_only(state: Any, spaces: Any, maps: Any, roles: Any = frozenset(Role)) -> Any:
        return whole(state, spaces, maps, roles - {Role.READ})

    monkeypatch.setattr(verification, "transform", writers_only)
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["mutation"]
    assert not verdicts["symmetry"]


def test_coverage_fails_when_an_axis_gets_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Derivation, "_explain", lambda *_: None)
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["coverage"]
    assert all(passed for name, passed in verdicts.items() if name != "coverage")


def test_coverage_fails_when_a_group_of_rows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grouped convolution of which one group's reader is lost: its rows read nothing."""
    whole = Derivation._slots

    def lossy(self: Derivation, use: Any) -> Any:
        return [] if use.rows is not None and use.rows[0] > 0 else whole(self, use)

    monkeypatch.setattr(Derivation, "_slots", lossy)
    verdicts = _verdicts(M.randomise(M.GroupedConv()), (8, 3, 8, 8))
    assert not verdicts["coverage"]


def test_recovery_fails_when_models_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    from ccamerge.methods import METHODS

    monkeypatch.setitem(METHODS, "cca", METHODS["average"])
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["recovery"]
    assert all(passed for name, passed in verdicts.items() if name != "recovery")


def test_a_model_without_spaces_does_not_pass_by_having_none() -> None:
    verdicts = _verdicts(nn.Sequential(nn.Linear(4, 3)), (8, 4))
    assert not verdicts["symmetry"]
    assert not verdicts["mutation"]


def test_verify_leaves_the_model_alone() -> None:
    model = M.MLP().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    verify(model, torch.randn(16, 12))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_check_prints_its_verdict() -> None:
    check = verification.Check("symmetry", False, "off by one")
    assert str(check) == "FAIL symmetry: off by one"
    assert str(dataclasses.replace(check, passed=True)).startswith("ok ")
