"""Short ``repr`` for results that hold arrays, programs or long lists: what a notebook shows."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

_PART = 160  # characters of one part
_WHOLE = 1200  # of all of them
_ITEMS = 4  # of a list or a mapping


class Brief:
    """Gives a dataclass, declared with ``repr=False``, a short one; it may say what is in it."""

    def _parts(self) -> Mapping[str, Any]:
        """What is shown, by names; by default all fields."""
        assert dataclasses.is_dataclass(self)
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return named(self, self._parts())


def named(value: object, parts: Mapping[str, Any]) -> str:
    """An object's class and some parts of it by names."""
    shown = [f"{name}={_cut(brief(part), _PART)}" for name, part in parts.items()]
    return f"{type(value).__name__}({_cut(', '.join(shown), _WHOLE)})"


def brief(value: Any, depth: int = 2) -> str:
    """A value in few characters: arrays by shape and dtype, the first items of what is long."""
    if value is None or isinstance(value, (bool, int)):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (str, Brief)):
        return repr(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"<{'x'.join(map(str, value.shape)) or 'scalar'} {dtype}>"
    if not isinstance(value, (list, tuple, dict)):
        return f"<{type(value).__name__}>"
    if depth == 0:
        return f"<{len(value)} items>"
    if isinstance(value, dict):
        items = [f"{k!r}: {brief(v, depth - 1)}" for k, v in list(value.items())[:_ITEMS]]
    else:
        items = [brief(v, depth - 1) for v in value[:_ITEMS]]
    if len(value) > _ITEMS:
        items.append(f"... {len(value)} in all")
    if isinstance(value, tuple) and len(value) == 1:
        return f"({items[0]},)"
    left, right = "{}" if isinstance(value, dict) else "[]" if isinstance(value, list) else "()"
    return left + ", ".join(items) + right


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
