"""Several programs side by side, operation by operation."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

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
