"""Which values of an exported graph share memory, so that a change in place is not lost."""

from __future__ import annotations

from typing import Any

import torch

_MAYBE = frozenset({"reshape", "flatten", "contiguous", "to", "dropout", "feature_dropout"})
"""Operations that return their input's memory in some cases, without saying so in their schema."""


def _is_view(target: Any) -> bool:
    if getattr(target, "__name__", "") == "getitem":
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    declared = any(r.alias_info is not None for r in target._schema.returns)
    return declared or target.overloadpacket.__name__ in _MAYBE


def check_changes_in_place(graph: torch.fx.Graph) -> None:
    """Raise ValueError if a value changed in place is read later under another name.

    Changes become new values of the same name. A view of the value, or the value it is a view of,
    would not see them.
    """
    memory: dict[str, str] = {}  # name -> whose memory it is in
    same: dict[str, str] = {}  # name -> the name under which it was before changes in place
    position = {item.name: index for index, item in enumerate(graph.nodes)}
    items = {item.name: item for item in graph.nodes}
    for now, item in enumerate(graph.nodes):
        source = item.args[0] if item.args else None
        if item.op != "call_function" or not isinstance(source, torch.fx.Node):
            continue
        mutates = isinstance(item.target, torch._ops.OpOverload) and item.target._schema.is_mutable
        if mutates or _is_view(item.target):
            memory[item.name] = memory.get(source.name, source.name)
        if not mutates:
            continue
        same[item.name] = own = same.get(source.name, source.name)
        root = memory[item.name]
        for other in [root, *(n for n, owner in memory.items() if owner == root)]:
            if same.get(other, other) == own or position[other] > now:
                continue
            if any(position[user.name] > now for user in items[other].users):
                message = (
                    f"{item.target} changes {source.name!r} in place, and {other!r}, another name "
                    "for the same memory, is read after; use an operation that returns a new tensor"
                )
                raise ValueError(message)
