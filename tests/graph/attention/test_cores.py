"""Where a program attends: from what writes queries, keys and values to where its result is read.

The heads are told from where numbers of features arrive.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge.graph.attention.cores import Core, cores_of
from ccamerge.graph.attention.layout import Layout, layout_of
from ccamerge.graph.tracing.program import Program, trace
from tests import attending as A


def _program(model: nn.Module, *call: Tensor) -> Program:
    return trace(model.double().eval(), call or (torch.randn(3, 5, 10).double(),), {})


def _only(program: Program) -> Core:
    (core,) = cores_of(program)
    return core


def _heads(start: int, size: int, step: int, count: int = 2) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(start + step * h, start + step * h + size)) for h in range(count))


def _layout(program: Program) -> Layout:
    found = layout_of(_only(program), program)
    assert found is not None
    return found


def test_a_core_goes_from_its_writers_to_what_is_read() -> None:
    program = _program(A.Attention(4, 4, groups=2, wide=3, prepare=lambda x: A.halves(x, 4)))
    core = _only(program)
    nodes = {node.name: node for node in program.nodes}
    weights = [nodes[name].args[1].name for name in core.writers]
    assert [program.parameters[name] for name in weights] == [f"{x}.weight" for x in "qkv"]
    (reader,) = [node for node in program.nodes if core.out in node.refs() and not node.scalar]
    assert program.parameters[reader.args[1].name] == "out.weight"
    assert not {*core.writers, reader.name} & {node.name for node in core.nodes}
    assert core.mixed in {node.name for node in core.nodes}
    inside = {node.name for node in core.nodes} | set(core.writers) | set(core.sides)
    assert all(ref in inside for node in core.nodes for ref in node.refs())
    layout = _layout(program)
    assert layout.queries == _heads(0, 4, 4, 4)
    assert layout.keys == _heads(0, 4, 4)
    assert layout.values == _heads(0, 3, 3)
    assert layout.outputs == _heads(0, 3, 3, 4)
    assert [layout.group(head) for head in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("interleaved", "starts", "step"), [(False, (0, 8, 16), 4), (True, (0, 4, 8), 12)]
)
def test_one_layer_may_write_all(
    interleaved: bool, starts: tuple[int, int, int], step: int
) -> None:
    program = _program(A.Fused(interleaved=interleaved))
    core = _only(program)
    assert core.queries == core.keys == core.values
    layout = _layout(program)
    expected = [_heads(start, 4, step) for start in starts]
    assert [layout.queries, layout.keys, layout.values] == expected
    assert layout.outputs == _heads(0, 4, 4)


def test_heads_that_are_chosen_by_a_list() -> None:
    layout = _layout(_program(A.Chosen()))
    assert layout.queries == layout.outputs == _heads(0, 4, 4, 3)
    assert layout.keys == _heads(12, 4, 4, 1)
    assert layout.values == _heads(16, 4, 4, 1)


def test_heads_of_queries_that_were_normalised_together() -> None:
    layout = _layout(_program(A.Whole()))
    assert layout.queries == layout.keys == layout.values == _heads(0, 4, 4)


class _Read(A.Attention):
    """Its queries, or what is within, are read by something else, too."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        q, k, v = (self.split(layer(x), 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.mT).softmax(-1)
        out = self.out((weights @ v).transpose(1, 2).flatten(2))
        if self.what == "queries":
            return out + q.mean()
        return (out, weights) if self.what == "weights" else (out, k)


@pytest.mark.parametrize("what", ["queries", "weights", "keys"])
def test_what_is_read_elsewhere_is_no_core(what: str) -> None:
    assert not cores_of(_program(_Read(what)))


@pytest.mark.parametrize(
    "mix",
    [
        lambda q, k, v: (q @ k.mT).relu() @ v,
        lambda q, k, v: (q @ k.mT + k @ q.mT).softmax(-1) @ v,
        lambda q, k, v: (q @ k.mT).softmax(-1).square() @ v,
    ],
    ids=["no softmax", "two products", "function of weights"],
)
def test_other_things_are_no_core(mix: Any) -> None:
    assert not cores_of(_program(A.Attention(mix=mix)))


def test_queries_without_a_linear_operation_are_no_core() -> None:
    assert not cores_of(_program(A.Latents()))


def test_keys_of_another_sequence() -> None:
    x, context = torch.randn(3, 5, 10).double(), torch.randn(3, 7, 10).double()
    layout = _layout(_program(A.Attention(), x, context))
    assert layout.keys == layout.queries == _heads(0, 4, 4)
