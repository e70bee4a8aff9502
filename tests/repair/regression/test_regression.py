"""Linear operations of the merged network fitted to what the aligned models compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge.collection.positions import RESTORED, lattice
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Ref
from ccamerge.repair.regression import Fit, Piece, Sample, rounds, sites
from tests import models as M
from tests.backends import fit, merge

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:aligned. nothing:RuntimeWarning"),  # said, and tested apart
]

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (M.MLP, (12,)),
    "mlp without bias": (lambda: M.MLP(bias=False), (12,)),
    "vgg": (lambda: M.vgg11(False, width=2, size=16), (3, 16, 16)),
    "vgg-bn": (lambda: M.vgg11(True, width=2, size=16), (3, 16, 16)),
    "bottleneck": (M.BottleneckResNet, (3, 8, 8)),
    "dense": (M.DenseBlockNet, (3, 8, 8)),
    "depthwise": (M.DepthwiseSeparable, (3, 8, 8)),
}


class _Odd(nn.Module):
    """Padding that the exporter writes apart, padding by name, one and three spatial axes."""

    def __init__(self) -> None:
        super().__init__()
        self.reflect = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.circular = nn.Conv2d(6, 6, 3, padding=2, padding_mode="circular", groups=2)
        self.same = nn.Conv2d(6, 8, (3, 1), padding="same")
        self.valid = nn.Conv2d(8, 8, 3, stride=2, padding="valid")
        self.deep = nn.Conv3d(2, 4, 3, padding=1)
        self.line = nn.Conv1d(4, 6, 3, dilation=2)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.circular(torch.relu(self.reflect(x))))
        x = torch.relu(self.valid(torch.relu(self.same(x))))
        x = torch.relu(self.deep(x.unflatten(1, (2, 4))))
        return self.last(torch.relu(self.line(x.flatten(2))).mean(2))


class _Scalar(nn.Module):
    """One number for each input, as regressors give it, with and without an axis of its own."""

    def __init__(self, squeezed: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(12, 16), nn.CELU(), nn.Linear(16, 8), nn.CELU(), nn.Linear(8, 1)
        )
        self.squeezed = squeezed

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        return output.squeeze(-1) if self.squeezed else output


CASES["one output"] = (lambda: _Scalar(False), (12,))
CASES["one output, squeezed"] = (lambda: _Scalar(True), (12,))
CASES["odd"] = (_Odd, (3, 8, 8))
CASES["grouped"] = (M.GroupedConv, (3, 8, 8))


def _data(shape: tuple[int, ...], batches: int = 3, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(40, *shape, generator=generator).double() for _ in range(batches)]


def _models(build: Any, count: int = 2) -> list[nn.Module]:
    return [M.randomise(build(), seed).double() for seed in range(count)]


def _operation(module: nn.Module, x: Tensor) -> Fit:
    """The job of fitting one operation, alone in a network."""
    found = spaces(nn.Sequential(module), x)
    node = found.program.nodes[0]
    keys = [found.program.parameters[a.name] for a in node.args[1:3] if a is not None]
    weight = next(module.parameters())
    return Fit(
        node, keys[0], keys[1] if len(keys) > 1 else None, (Piece(0, len(weight), None, (1.0,)),)
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {f"0.{key}": value.detach().clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_inputs_that_do_not_vary_leave_the_weights(value: float) -> None:
    module = nn.Linear(4, 2).double()
    x = torch.full((10, 4), value).double()
    job, state = _operation(module, x), _state(module)
    with torch.no_grad():
        target = torch.randn(10, 2).double()
        fit(job, state, [Sample(x, module(x), [target])])
        assert torch.equal(state[job.weight], module.weight.detach())
        output = job.apply(x, state)
    torch.testing.assert_close(output.mean(0), target.mean(0))  # the bias still tells


@pytest.mark.parametrize("method", ["cca", "permutation"])
@pytest.mark.parametrize("name", CASES)
def test_the_merged_network_comes_closer_to_the_mean_of_the_models(name: str, method: str) -> None:
    build, shape = CASES[name]
    models, data = _models(build), _data(shape)
    errors = {}
    with torch.no_grad():
        wanted = torch.cat([(models[0].eval()(x) + models[1].eval()(x)) / 2 for x in data])
        for repair in ("variance", "regression"):
            result = merge(
                models,
                data,
                method=method,
                repair=repair,  # type: ignore[arg-type]
                progress=False,
            )
            output = torch.cat([result.model(x) for x in data])
            errors[repair] = float((output - wanted).pow(2).mean())
    assert errors["regression"] < 0.9 * errors["variance"], errors
    assert result.report.fitted
    assert all(f.error <= 1 + 1e-9 for f in result.report.fitted)
    assert "regression" in str(result.report)
    assert "regression" in result.report.to_markdown()


@pytest.mark.parametrize("name", CASES)
def test_merging_a_model_with_itself_changes_nothing(name: str) -> None:
    build, shape = CASES[name]
    model, data = _models(build, 1)[0].eval(), _data(shape)
    result = merge([model, model], data, repair="regression", progress=False)
    with torch.no_grad():
        torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-6, atol=1e-8)


def test_batch_norm_is_put_back_with_the_statistics_of_the_fitted_network() -> None:
    build, shape = CASES["vgg-bn"]
    data = _data(shape)
    result = merge(_models(build), data, repair="regression", progress=False)
    seen: list[Tensor] = []
    layer = result.model[0]
    layer[0].register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    with torch.no_grad():
        for leaves in result.statistics.inputs:
            result.model(leaves[0])
    turns = zip(seen, result.statistics.turns, strict=True)
    values = torch.cat([v[lattice(v.shape, 1, RESTORED, turn)] for v, turn in turns])
    torch.testing.assert_close(values.mean((0, 2, 3)), layer[1].running_mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        values.var((0, 2, 3), correction=0), layer[1].running_var, rtol=1e-6, atol=1e-8
    )


def test_weights_of_zero_leave_the_other_model() -> None:
    models, data = _models(M.MLP), _data((12,))
    result = merge(
        models, data, weights=[1.0, 0.0], repair="regression", progress=False, method="cca"
    )
    with torch.no_grad():
        torch.testing.assert_close(result.model(data[0]), models[0](data[0]), rtol=1e-6, atol=1e-8)


ALL_FITTED = ["odd", "grouped", "depthwise", "dense", "bottleneck", "one output"]


@pytest.mark.parametrize("name", [*ALL_FITTED, "one output, squeezed"])
def test_every_linear_operation_is_fitted(name: str) -> None:
    build, shape = CASES[name]
    result = merge(_models(build), _data(shape), repair="regression", progress=False)
    linear = {n.name for n in result.spaces.program.nodes if operation(n).linear}
    assert {f.tap for f in result.report.fitted} == linear
    assert result.report.skipped == {}
    assert not linear & {r.tap for r in result.report.repaired}


def test_a_shared_layer_is_not_fitted() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice = nn.Linear(6, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))

    result = merge(_models(Shared), _data((6,)), repair="regression", progress=False)
    state = folded_state(result.model.state_dict(), result.spaces.folds)
    assert len(state) == 6
    assert len(result.report.fitted) == 2
    assert list(result.report.skipped.values()) == [sites.SHARED] * 2
    assert f"2 not fitted: {sites.SHARED}" in str(result.report)


@pytest.mark.filterwarnings("ignore:aligned:RuntimeWarning")  # mixtures are left as they are
@pytest.mark.parametrize("repair", ["variance", "regression"])
@pytest.mark.parametrize("tokens", [6, 12])
def test_token_mixing_is_left_alone(tokens: int, repair: Any) -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
            self.mix1, self.mix2 = nn.Linear(tokens, 20), nn.Linear(20, tokens)
            self.last = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = torch.nn.functional.gelu(self.mix1(self.norm(x).transpose(1, 2)))
            return self.last((x + self.mix2(y).transpose(1, 2)).mean(1))

    result = merge(_models(Mixer), _data((tokens, 5)), repair=repair, progress=False)
    touched = {r.tap for r in result.report.repaired} | {f.tap for f in result.report.fitted}
    readers = {p.name: p for p in result.spaces.program.nodes if p.name in touched}
    mixing = {"mix1.weight", "mix2.weight"}
    keys = {result.spaces.program.parameters.get(r) for n in readers.values() for r in n.refs()}
    assert not keys & mixing


def test_an_operation_on_a_constant_is_not_fitted() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.embed, self.last = nn.Linear(5, 16), nn.Linear(4, 16), nn.Linear(16, 3)
            self.positions = torch.linspace(0, 1, 24).reshape(6, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x) + self.embed(self.positions)))

    result = merge(_models(Positions), _data((6, 5)), repair="regression", progress=False)
    assert len(result.report.fitted) == 2
    assert list(result.report.skipped.values()) == [sites.CONSTANT]


def test_large_operations_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "LARGEST", 12)
    result = merge(_models(M.MLP), _data((12,)), repair="regression", progress=False)
    assert not result.report.fitted
    assert result.report.repaired
    assert "16 inputs or outputs, more than 12" in " ".join(result.report.skipped.values())
    assert "not fitted" in result.report.to_markdown()


class _Block(nn.Module):
    """A residual block in a network whose shortcut is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shortcut = nn.Linear(6, 8), nn.Linear(8, 8)
        self.branch, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.shortcut(x) + self.branch(x)))


def test_sites() -> None:
    model = _Block()
    found = spaces(model, torch.randn(4, 6))
    program = found.program
    names = {program.parameters[n.args[1].name]: n for n in program.nodes if n.op == "aten.linear"}
    site = {key: sites._Sites(program).after(node) for key, node in names.items()}
    relu = [n for n in program.nodes if n.op == "aten.relu"]
    assert site["first.weight"] == (None, relu[0])
    assert site["shortcut.weight"] == (None, None)  # the branch is not there yet
    assert site["branch.weight"] == (names["shortcut.weight"].name, relu[1])
    assert site["last.weight"] == (None, None)


@pytest.mark.parametrize("turns", [0, 6])
def test_a_branch_mends_what_its_shortcut_got_wrong(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortcut cannot be fitted (it is shared); the branch alone reaches the target."""
    monkeypatch.setattr(rounds, "ROUNDS", turns)
    torch.manual_seed(0)
    branch = nn.Linear(8, 8).double()
    job, state = _operation(branch, torch.randn(4, 8).double()), _state(branch)
    node = next(n for n in spaces(_Block(), torch.randn(4, 6)).program.nodes if n.op == "aten.relu")
    job = dataclasses.replace(job, added="c", activation=node)
    x = torch.randn(500, 8).double()
    with torch.no_grad():
        wrong, right = nn.Linear(8, 8).double()(x), nn.Linear(8, 8).double()(x)
        sample = Sample(x, branch(x), [branch(x)], wrong, [right])
        done = fit(job, state, [sample])
        reached = torch.relu(wrong + job.apply(x, state))
        wanted = torch.relu(right + branch(x))
        before = torch.relu(wrong + branch(x))
    error = ((reached - wanted).norm() / (before - wanted).norm()).item()
    assert error < 0.02  # what the ridge leaves
    assert done.error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "hardtanh", "sigmoid"])
def test_rounds_bring_the_error_behind_the_activation_down(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    module = nn.Linear(10, 6).double()
    function = getattr(torch.ops.aten, name).default
    x, noise = torch.randn(800, 10).double(), torch.randn(800, 6).double()
    other = nn.Linear(10, 6).double()
    job = _operation(module, x)
    job = dataclasses.replace(job, activation=Node("f", function, (Ref("y"),), {}, (800, 6)))
    errors = []
    for turns in (0, 6):
        monkeypatch.setattr(rounds, "ROUNDS", turns)
        state = _state(module)
        with torch.no_grad():
            target = other(x) * 2 + noise
            done = fit(job, state, [Sample(x, module(x), [target])])
            missing = function(job.apply(x, state)) - function(target)
            before = function(module(x)) - function(target)
        errors.append((missing.norm() / before.norm()).item())
        assert done.error == pytest.approx(errors[-1], rel=1e-6)
    assert errors[1] < errors[0] - 1e-4, errors
