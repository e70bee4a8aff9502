"""Several programs side by side, operation by operation."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.tracing.program import Program

Run = tuple[Program, Mapping[str, Tensor], list[Any]]
"""A program, its parameters and its inputs."""


def lockstep(
    runs: Sequence[Run],
) -> Generator[tuple[str, list[Any]], list[Any] | None, None]:
    """Advance several runs together, yielding each node's name and values.

    Their programs have the same operations by the same names; widths and the sizes of inputs may
    differ. As with `Program.steps`, the receiver may ``send`` a list of replacements.
    """
    steps = [program.steps(state, leaves) for program, state, leaves in runs]
    replies: list[Any] = [None] * len(steps)
    for _ in runs[0][0].operations:
        moved = [s.send(reply) for s, reply in zip(steps, replies, strict=True)]
        sent = yield moved[0][0].name, [value for _, value in moved]
        replies = [None] * len(steps) if sent is None else sent


def live_bytes(programs: Sequence[Program], fitted: Collection[str] = ()) -> int:
    """Bytes of values that programs side by side keep alive at once, of their example inputs.

    At an operation of the first that is ``fitted``, sums, targets and new outputs come on top.
    """
    sizes = [_activation_bytes(program) for program in programs]
    alive = peak = 0
    for node, dead in zip(programs[0].nodes, programs[0].last_uses, strict=True):
        alive += sum(own.get(node.name, 0) for own in sizes)
        extra = 3 * sizes[0].get(node.name, 0) if node.name in fitted else 0
        peak = max(peak, alive + extra)
        alive -= sum(own.get(name, 0) for own in sizes for name in dead)
    return peak


def _activation_bytes(program: Program) -> dict[str, int]:
    """For each node, what its value takes for the example inputs."""
    return {
        node.name: 4 * torch.Size(node.shape).numel()
        for node in program.nodes
        if node.shape is not None
    }


def scaled(amount: int, program: Program, leaves: Sequence[Any]) -> int:
    """What is so much for a program's example inputs, for other ones."""
    return -(-amount * _elements(leaves) // _example_elements(program))


def _elements(leaves: Sequence[Any]) -> int:
    return sum(x.numel() for x in leaves if isinstance(x, Tensor))


def _example_elements(program: Program) -> int:
    shapes = (program.shapes[name] for name in program.inputs if name in program.shapes)
    return max(1, sum(torch.Size(shape).numel() for shape in shapes))
