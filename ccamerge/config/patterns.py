"""Settings by name: shell patterns over the names of spaces and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")

_SHOWN = 20
"""Names that a message lists."""


def by_pattern(
    settings: Mapping[str, T],
    names: Sequence[str],
    default: T,
    argument: str,
    kind: str = "space",
) -> dict[str, T]:
    """For each name the setting of the first pattern that matches it, or the default.

    Patterns are those of the shell (``*``, ``?``, ``[...]``).

    Raises
    ------
    ValueError
        If a pattern matches no name at all; the message names ``argument``, and the ``kind`` of
        what has names.
    """
    for pattern in settings:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, n=1)
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            there = f"; there are {', '.join(names[:_SHOWN])}{more}"
            hint = f"; did you mean {close[0]!r}?" if close else there
            message = f"{argument}: {pattern!r} matches no {kind}{hint}"
            raise ValueError(message)
    chosen = {}
    for name in names:
        found = (value for pattern, value in settings.items() if fnmatchcase(name, pattern))
        chosen[name] = next(found, default)
    return chosen
