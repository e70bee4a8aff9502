from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ccamerge.graph.program import trace
from tests import models as M


def _same_output(model: nn.Module, example: tuple[Any, ...], *calls: tuple[Any, ...]) -> None:
    """The program traced on ``example`` computes what the model does, on every call."""
    model = model.eval()
    program = trace(model, example)
    for call in (example, *calls):
        with torch.inference_mode():
            ours = pytree.tree_leaves(
                program.run(model.state_dict(), program.flatten_inputs(call, {}))
            )
            theirs = pytree.tree_leaves(model(*call))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (M.MLP, (12,)),
        (lambda: M.vgg11(True, size=16), (3, 16, 16)),
        (M.BottleneckResNet, (3, 8, 8)),
        (M.DepthwiseSeparable, (3, 8, 8)),
        (M.DenseBlockNet, (3, 8, 8)),
        (M.GroupedConv, (3, 8, 8)),
        (M.TiedAutoencoder, (10,)),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_is_the_model_at_any_batch_size(build: Any, shape: Any, batch: int) -> None:
    torch.set_num_threads(1)
    others = [(torch.randn(size, *shape),) for size in (1, 3, 7)]
    _same_output(M.randomise(build()), (torch.randn(batch, *shape),), *others)
    torch.set_num_threads(2)


class _Inplace(nn.Module):
    """The input of an in-place ReLU is used again: what is read is the changed value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = self.b(self.relu(h))
        y += h  # h is relu(h) by now
        y.mul_(2.0).add_(h)
        return self.relu(y) - h


def test_operations_in_place() -> None:
    model = _Inplace()
    _same_output(model, (torch.randn(3, 4),), (torch.randn(5, 4),))
    program = trace(model, (torch.randn(3, 4),))
    assert not any(node.target._schema.is_mutable for node in program.nodes)


class _ThroughView(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.how == "view changed":
            h[:, :3].mul_(2.0)
        elif self.how == "base changed":
            flat = h.view(-1)
            h.relu_()
            return self.b(flat.view(-1, 6))
        else:  # the view alone is used from then on
            return self.b(h.view(-1, 6).relu_())
        return self.b(h)


@pytest.mark.parametrize("how", ["view changed", "base changed"])
def test_a_change_seen_under_another_name_is_refused(how: str) -> None:
    """The functional form would lose it: the model must not be merged as something else."""
    with pytest.raises(ValueError, match=r"in place.*another name"):
        trace(_ThroughView(how), (torch.randn(3, 4),))


def test_a_change_of_a_view_that_replaces_its_base() -> None:
    _same_output(_ThroughView("view only"), (torch.randn(3, 4),), (torch.randn(5, 4),))


def test_values_are_released_and_never_changed() -> None:
    program = trace(_Inplace(), (torch.randn(3, 4),))
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(node: Any, value: Tensor) -> None:
        seen[node.name] = (value, value.clone())

    program.run(_Inplace().state_dict(), [torch.randn(3, 4)], watch)
    assert len(seen) == len(program.nodes)
    assert all(torch.equal(value, copy) for value, copy in seen.values())
    dead = [name for names in program.last_uses for name in names]
    assert len(dead) == len(set(dead))
    assert not set(dead) & set(program.outputs)


def test_a_replacement_takes_the_place_of_a_value() -> None:
    model = M.MLP().eval()
    program = trace(model, (torch.randn(2, 12),))
    last = program.nodes[-1].name
    out = program.run(
        model.state_dict(),
        [torch.randn(2, 12)],
        lambda node, value: torch.zeros_like(value) if node.name == last else None,
    )
    assert torch.equal(out, torch.zeros(2, 5))


def test_tied_parameters_appear_once() -> None:
    program = trace(M.TiedAutoencoder(), (torch.randn(2, 10),))
    keys = list(program.parameters.values())
    assert keys.count("encode.weight") == 1

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    program = trace(Two(), (torch.randn(2, 5),))
    weights = {k for k in program.parameters.values() if k.endswith("weight")}
    assert len(weights) == 1


class _Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("kept", torch.randn(4))
        self.register_buffer("dropped", torch.randn(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.kept) * self.dropped + torch.arange(4.0)


def test_buffers_and_constants() -> None:
    model = _Buffers()
    _same_output(model, (torch.randn(3, 4),))
    program = trace(model, (torch.randn(3, 4),))
    assert "kept" in program.parameters.values()
    assert "dropped" not in program.parameters.values()


class _Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Any]:
        h = self.a(x) if y is None else self.a(x) + self.a(y)
        return {"first": h, "rest": [self.b(x), None], "number": 3}


def test_outputs_of_any_structure() -> None:
    model, x = _Many(), torch.randn(3, 4)
    program = trace(model, (x,))
    out = program.run(model.state_dict(), [x])
    assert out.keys() == {"first", "rest", "number"}
    assert torch.equal(out["first"], model.a(x))
    assert torch.equal(out["rest"][0], model.b(x))
    assert out["rest"][1] is None
    assert out["number"] == 3


@pytest.mark.parametrize("order", [("x", "y"), ("y", "x")])
def test_keyword_inputs_in_any_order_at_any_batch_size(order: tuple[str, str]) -> None:
    model = _Many()
    example = {key: torch.randn(2, 4) for key in order}
    program = trace(model, (), example)
    call = {key: torch.randn(5, 4) for key in order}
    out = program.run(model.state_dict(), program.flatten_inputs((), call))
    torch.testing.assert_close(out["first"], model(**call)["first"])


def test_another_structure_of_inputs() -> None:
    program = trace(M.MLP(), (torch.randn(2, 12),))
    with pytest.raises(ValueError, match="structure"):
        program.flatten_inputs((), {"x": torch.randn(2, 12)})


def test_a_reshape_that_folds_the_batch() -> None:
    class Fold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, _ = x.shape
            h = F.relu(self.a(x.reshape(batch * length, 4)))
            return self.b(h).reshape(batch, length, 2).mean(1)

    for batch in (1, 2):
        _same_output(Fold(), (torch.randn(batch, 3, 4),), (torch.randn(5, 3, 4),))


def test_a_model_that_cannot_be_followed() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch\.export cannot follow Branching: "):
        trace(Branching(), (torch.randn(2, 3),))


def test_tracing_a_training_model_leaves_it_training() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    mean = model[1].running_mean.clone()
    program = trace(model, (torch.randn(5, 3),))
    assert all(m.training for m in model.modules())
    assert torch.equal(model[1].running_mean, mean)
    x = torch.randn(5, 3)
    expected = model.eval()(x)
    torch.testing.assert_close(program.run(model.state_dict(), [x]), expected)
