"""The five checks pass on every architecture, and each of them can fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph import axes as ax
from ccamerge.graph.forming import _Forming
from ccamerge.graph.networks import trial, verification
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.verification import verify
from ccamerge.graph.operations import OPERATIONS, Operation, left_out
from ccamerge.graph.rules import linear, shapes
from ccamerge.graph.space import Role
from tests import models as M


def _resnet() -> nn.Module:
    from ccamerge.cli.demo.networks import ResNet20

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


def test_a_bias_without_a_rule_pins_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says what the bias does to them: it would stay in the order that it has."""
    torch.manual_seed(0)
    model = M.randomise(nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 2, 3)))
    assert [s.name for s in spaces(model, torch.randn(4, 3, 9))] == ["0"]
    real = linear._bias

    def unsaid(node: Any, d: Any, axis: Any) -> None:
        ax.unify(d.axes_of(node.args[2])[0], axis, node.name)

    monkeypatch.setattr(linear, "_bias", unsaid)
    found = spaces(model, torch.randn(4, 3, 9))
    assert not found.spaces
    assert "0.bias" in found.fixed[0].notes[0]
    assert real is not unsaid


def _moving(name: str, move: Any) -> Operation:
    return Operation(name, move=move, twin=left_out if name == "aten.tanh" else None)


def test_symmetry_fails_when_too_large_a_group_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tanh declared to be the identity: exact under any map, it says."""
    monkeypatch.setitem(OPERATIONS, "aten.tanh", _moving("aten.tanh", shapes._same))
    model = M.randomise(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))
    verdicts = _verdicts(model, (16, 6))
    assert not verdicts["symmetry"]
    assert verdicts["linear twin"]  # where tanh is the identity, any map is right


def test_linear_twin_fails_when_flatten_has_the_wrong_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H*W x C for C x H*W: permutations of channels then scramble positions."""

    def wrong(node: Any, axes: Any) -> Any:
        inner = ax.axis_size(axes[2]) * ax.axis_size(axes[3])
        return [axes[0], tuple((inner, *segment) for segment in ax.resolve(axes[1]))]

    monkeypatch.setitem(OPERATIONS, "aten.flatten", _moving("aten.flatten", wrong))
    model = M.randomise(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    )
    verdicts = _verdicts(model, (8, 3, 6, 6))
    assert not verdicts["symmetry"]
    assert not verdicts["linear twin"]
    assert verdicts["coverage"]


def test_the_linear_twin_leaves_what_no_parameter_goes_into() -> None:
    """Buckets of distances, as in T5: without the logarithm they would lie beyond the table."""

    class Bucketed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.table = nn.Embedding(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            distances = torch.arange(x.shape[1]).float() + 1
            return self.b(torch.relu(self.a(x)) + self.table(distances.log().long()))

    checks = verify(M.randomise(Bucketed()), torch.randn(4, 12, 4))
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), (4, 3, 2, 2)),  # a mean of whole windows has no room
        (nn.MaxPool2d(2, 1, dilation=2), (4, 3, 5, 5)),
        (nn.MaxPool2d(2, return_indices=True), (4, 3, 6, 6)),
        (nn.AdaptiveMaxPool2d(3), (4, 3, 5, 5)),
        (nn.MaxPool1d(3, 1, padding=1), (4, 3, 2)),
        (nn.MaxPool3d(3, 1, padding=1), (4, 3, 2, 2, 2)),
    ],
)
def test_the_linear_twin_of_maxima_of_any_windows(pool: nn.Module, shape: tuple[int, ...]) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
            self.first, self.pool, self.second = kind(3, 6, 1), pool, kind(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.pool(self.first(x))
            return self.second(found[0] if isinstance(found, tuple) else found).flatten(2).mean(2)

    checks = verify(M.randomise(Pooled()), torch.randn(shape))
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


def test_features_that_nothing_depends_on_are_no_fault() -> None:
    """The output does not depend on the hidden layer, nor on half of another one."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(4, 3)
            self.d, self.e = nn.Linear(4, 8), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            part = self.e(torch.tanh(self.d(x))[:, -3:])
            return self.c(x) + 0.0 * self.b(torch.relu(self.a(x))) + part

    checks = verify(M.randomise(Idle()), torch.randn(8, 4))
    assert all(c.passed for c in checks), "\n".join(map(str, checks))


def test_mutation_fails_when_readers_are_not_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verification.MappedParameters

    def writers_only(state: Any, spaces: Any, maps: Any, roles: Any = frozenset(Role)) -> Any:
        return whole(state, spaces, maps, roles - {Role.READ})

    for module in (verification, trial):
        monkeypatch.setattr(module, "MappedParameters", writers_only)
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["mutation"]
    assert not verdicts["symmetry"]


def test_coverage_fails_when_an_axis_gets_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Forming, "_explained", lambda *_: {})
    verdicts = _verdicts(M.randomise(M.MLP()), (16, 12))
    assert not verdicts["coverage"]
    assert all(passed for name, passed in verdicts.items() if name != "coverage")


def test_coverage_fails_when_a_group_of_rows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grouped convolution of which one group's reader is lost: its rows read nothing."""
    whole = _Forming._slots_of

    def lossy(self: _Forming, use: Any) -> Any:
        return [] if use.rows is not None and use.rows[0] > 0 else whole(self, use)

    monkeypatch.setattr(_Forming, "_slots_of", lossy)
    verdicts = _verdicts(M.randomise(M.GroupedConv()), (8, 3, 8, 8))
    assert not verdicts["coverage"]


def test_recovery_fails_when_features_are_not_where_they_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taps of all but one feature, one place too far: outputs do not depend on where they are."""
    whole = _Forming._taps_of

    def shifted(self: _Forming, *args: Any) -> Any:
        found = []
        for basis, tap in whole(self, *args):
            if tap.start == 0 and tap.node.startswith("cat"):
                tap = dataclasses.replace(tap, start=1)
            elif tap.kind == "activation":
                tap = dataclasses.replace(tap, dim=0, size=2)
            found.append((basis, tap))
        return found

    model = M.randomise(nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 4)), 3)
    monkeypatch.setattr(_Forming, "_taps_of", shifted)
    failed = [
        c.name for s in range(4) for c in verify(model, torch.randn(2, 6), seed=s) if not c.passed
    ]
    assert set(failed) == {"recovery"}


def test_a_model_without_spaces_has_nothing_to_check() -> None:
    checks = verify(nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4))
    assert all(c.passed for c in checks)
    assert [c.name for c in checks if c.detail == verification.NOTHING] == [
        *("symmetry", "linear twin", "mutation", "recovery")
    ]


class _Casts(nn.Module):
    """Casts, whole numbers as inputs, and shifts by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x.float() / 255)).float()
        h = 1 - self.b(h).to(torch.float32)
        return self.c(2 / (h.abs() + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.float16])
def test_casts_in_the_forward_are_run_in_double_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.rand(8, 12) * 255).to(dtype)
    checks = verify(M.randomise(_Casts()), x)
    assert all(c.passed for c in checks), "\n".join(map(str, checks))
    assert "changes by 0" in checks[0].detail or "e-1" in checks[0].detail


def test_a_network_of_half_precision_is_judged_by_its_rounding() -> None:
    class Bits(nn.Module):
        """Reads the bits of its features, which another dtype has not."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 5), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sign = (self.c(x).view(torch.int16) >= 0).to(torch.bfloat16)
            return self.b(torch.relu(self.a(x))) * sign

    torch.manual_seed(0)
    checks = verify(Bits().bfloat16(), torch.randn(16, 12).bfloat16())
    assert all(c.passed for c in checks), "\n".join(map(str, checks))


class _Mixer(nn.Module):
    """Features of two kinds in one value: channels, and mixtures of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.mix, self.back = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        mixed = torch.nn.functional.gelu(self.mix(x.transpose(1, 2)))
        return self.last((x + self.back(mixed).transpose(1, 2)).mean(1))


def test_features_seen_only_beside_others_keep_their_basis() -> None:
    """Mixtures are matched over channels, which have another order in another model."""
    torch.manual_seed(0)
    model, x = _Mixer(), torch.randn(8, 6, 5)
    found = spaces(model, x)
    assert {s.name for s in found} == {"first"}
    assert "beside others" in found.pinned["mix.weight", 0]
    checks = verify(model, x)
    assert all(c.passed for c in checks), "\n".join(map(str, checks))


def test_spaces_that_do_not_hold_are_pinned_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS, "aten.tanh", _moving("aten.tanh", shapes._same))
    model = M.randomise(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
    )
    x = torch.randn(16, 6)
    assert [s.name for s in spaces(model, x, prove=False)] == ["0", "2"]
    found = spaces(model, x)
    assert [s.name for s in found] == ["2"]
    (wrong,) = [s for s in found.fixed if s.name == "0"]
    assert "changes the output" in wrong.notes[0]
    assert "changes the output" in found.pinned["0.weight", 0]
    assert "0.weight" not in {slot.parameter for space in found for slot in space.slots}


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


class _Reduced(nn.Module):
    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.head, self.reduce = nn.Linear(6, 8), nn.Linear(8, 3), reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reduce(self.features(x)))


@pytest.mark.parametrize(
    "reduce",
    [
        lambda h: h.mean(1),
        lambda h: h.sum(1),
        lambda h: h.amax(1),
        lambda h: h.logsumexp(1),
        lambda h: h.var(1),
        lambda h: h.std(dim=1, keepdim=True).squeeze(1),
        lambda h: h.prod(1),
        lambda h: torch.linalg.vector_norm(h, dim=1),
        lambda h: h.norm(dim=1),
        lambda h: torch.where(h > 0.1, h, torch.zeros(())).mean(1),
    ],
    ids=["mean", "sum", "amax", "logsumexp", "var", "std", "prod", "vector norm", "norm", "where"],
)
def test_reductions_over_positions_keep_features(reduce: Any) -> None:
    """The features stay open, and no check finds fault; truth values are nobody's features."""
    model = M.randomise(_Reduced(reduce))
    x = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    assert [space.name for space in ccamerge.spaces(model, x)] == ["features"]
    assert all(check.passed for check in ccamerge.verify(model, x))
    ccamerge.collect([model, M.randomise(_Reduced(reduce), 1)], [x], progress=False)
