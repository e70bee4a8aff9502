"""Parameters that hold several of a kind, as of experts, one after the other on their axis 0.

Each part that is taken out by its number is a parameter of its own to the spaces: nothing says that
the features of one expert have to do with those of another.
"""

from __future__ import annotations

import dataclasses

from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Program, Ref

IN_ORDER = "its parts are matched one by one, in the order in which they stand"
"""What becomes of the axis along which they lie."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The ``row`` of ``count`` in a parameter."""

    key: str
    row: int
    count: int


def parts_of(program: Program) -> dict[str, Part]:
    """By the name of the operation that takes it, each part of parameters that fall apart.

    Parameters of two and more axes of which each part is taken once, and nothing else read.
    """
    users = program.users()
    names: dict[str, list[str]] = {}
    for name, key in program.parameters.items():
        names.setdefault(key, []).append(name)
    found: dict[str, Part] = {}
    for key, own in names.items():
        count, *rest = program.shapes[own[0]] or (0,)
        if count < 2 or not rest or key in program.limits or set(own) & set(program.outputs):
            continue
        taken = [user for name in own for user in users.get(name, [])]
        taken = [user for user in taken if not operation(user).sizes]
        rows = [_row(user, own, count) for user in taken]
        if sorted(row for row in rows if row is not None) == [*range(count)] and None not in rows:
            for node, row in zip(taken, rows, strict=True):
                found[node.name] = Part(key, row or 0, count)
    return found


def _row(node: Node, own: list[str], count: int) -> int | None:
    """Which part an operation takes; None if it does anything else."""
    if node.op != "aten.select" or not isinstance(node.args[0], Ref):
        return None
    _, dim, index = node.args
    rank = len(node.shape or ()) + 1
    if node.args[0].name not in own or dim not in (0, -rank) or not isinstance(index, int):
        return None
    return index % count
