from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ccamerge.graph.tracing.program import trace
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


def _slice_changed(h: Tensor) -> Tensor:
    h[:, :3].mul_(2.0)
    return h


def _base_changed(h: Tensor) -> Tensor:
    flat = h.view(-1)
    h.relu_()
    return flat.view(-1, 6)


def _columns_written(h: Tensor) -> Tensor:
    h[:, 0] = 1.0
    h[:, 1:3] = h[:, 3:5] * 2
    h[h < 0] = 0.5
    return h


def _sibling_read(h: Tensor) -> Tensor:
    second, rows = h[:, 1], h.view(-1, 2, 3)
    rows[:, 0].mul_(3.0)  # changes the column that ``second`` shows
    return h * second[:, None] + rows[:, 1, :1]


def _through_transposed(h: Tensor) -> Tensor:
    h.transpose(0, 1)[2:4] += 1
    h.permute(1, 0).unsqueeze(0).narrow(1, 4, 2).neg_()
    return h


def _changed_twice(h: Tensor) -> Tensor:
    part = h[:, 2:5]
    part.add_(1.0)
    h.mul_(2.0)
    part.sub_(0.5)
    return h + part[:, :1]


def _view_alone(h: Tensor) -> Tensor:
    return h.view(-1, 6).relu_()


class _Changing(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.a, self.b, self.change = nn.Linear(4, 6), nn.Linear(6, 3), change

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.change(self.a(x)))


@pytest.mark.parametrize(
    "change",
    [
        _slice_changed,
        _base_changed,
        _columns_written,
        _sibling_read,
        _through_transposed,
        _changed_twice,
        _view_alone,
    ],
)
def test_a_change_is_seen_under_every_name_for_the_memory(change: Any) -> None:
    model = _Changing(change)
    _same_output(model, (torch.randn(3, 4),), (torch.randn(5, 4),))
    program = trace(model, (torch.randn(3, 4),))
    assert not any(node.schema is not None and node.schema.is_mutable for node in program.nodes)


def _piece_changed(h: Tensor) -> Tensor:
    h.chunk(2, 1)[0].relu_()
    return h


def _copy_or_not(h: Tensor) -> Tensor:
    h.reshape(-1, 2, 3).relu_()  # a copy, if it must be
    return h


@pytest.mark.parametrize("change", [_piece_changed, _copy_or_not])
def test_a_change_that_cannot_be_followed_is_refused(change: Any) -> None:
    """Its functional form would lose it: the model must not be merged as something else."""
    with pytest.raises(ValueError, match=r"relu_.*in place.*another name"):
        trace(_Changing(change), (torch.randn(3, 4),))


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

    with pytest.raises(
        ValueError,
        match=r"^torch\.export cannot follow the model \(Branching\): .*by the values.*"
        r"test_program\.py:\d+ in forward; .*torch\.where",
    ):
        trace(Branching(), (torch.randn(2, 3),))


def test_what_torch_prints_of_a_failure_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.sum())]

    with pytest.raises(ValueError, match="by the values"):
        trace(Loop(), (torch.randn(2, 3),))
    assert capfd.readouterr() == ("", "")


def test_a_mask_whose_count_depends_on_values() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    with pytest.raises(ValueError, match=r"aten\.index.*size depends on the values"):
        trace(Masked(), (torch.randn(2, 3),))


def test_arguments_by_keyword_are_at_their_places() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.flatten(input=x, start_dim=1)
            h = torch.softmax(input=h, dim=1)
            return torch.add(input=h, other=h, alpha=2).amax(keepdim=True, dim=1)

    model = Named()
    _same_output(model, (torch.randn(3, 2, 4),), (torch.randn(5, 2, 4),))
    nodes = trace(model, (torch.randn(3, 2, 4),)).nodes
    given = {node.op: (node.args[1:], node.kwargs) for node in nodes}
    assert given["aten.flatten"] == ((1,), {})
    assert given["aten.softmax"] == ((1,), {})
    assert given["aten.add"][1] == {"alpha": 2}
    assert given["aten.amax"] == (([1], True), {})


def test_assertions_are_left_out() -> None:
    """A cast asserts its input's dtype: no other could be sent through."""
    model = nn.Sequential(nn.Linear(3, 4), _Cast())
    program = trace(model, (torch.randn(2, 3),))
    assert [n.op for n in program.nodes] == ["aten.linear", "aten.to"]
    state = {k: v.double() for k, v in model.state_dict().items()}
    program.run(state, [torch.randn(2, 3).double()])


class _Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float64)


def test_tracing_a_training_model_leaves_it_training() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    mean = model[1].running_mean.clone()
    program = trace(model, (torch.randn(5, 3),))
    assert all(m.training for m in model.modules())
    assert torch.equal(model[1].running_mean, mean)
    x = torch.randn(5, 3)
    expected = model.eval()(x)
    torch.testing.assert_close(program.run(model.state_dict(), [x]), expected)
