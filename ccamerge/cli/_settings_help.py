"""What ``ccamerge merge --help`` says of settings, out of their table."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ccamerge.config.settings import TABLE


def usual() -> str:
    """Those that are something by default, with what that is."""
    rows = ((s.name, s.usual, s.words) for s in TABLE.values() if s.usual is not None)
    return _lines(4, (row for row in rows if row[0] != "method"))


def others() -> str:
    """Those that are nothing by default, with an example."""
    return _lines(2, ((s.name, s.example, s.words) for s in TABLE.values() if s.usual is None))


def by_patterns() -> str:
    """Those that may differ between spaces, with an example and what spaces get otherwise."""
    able = ((s.where.removeprefix("parameters."), s.by_patterns) for s in TABLE.values())
    return _lines(2, ((name, p[0], f"others: {p[1]}") for name, p in able if p is not None))


def _lines(indent: int, rows: Iterable[tuple[str, object, str]]) -> str:
    """Keys with values in YAML, and in a column beside them what is said of each."""
    found = [
        (f"{name}: {value if isinstance(value, str) else json.dumps(value)}", words)
        for name, value, words in rows
    ]
    width = max(len(text) for text, _ in found)
    return "\n".join(f"{'':{indent}}{text:{width}} # {words}" for text, words in found)
