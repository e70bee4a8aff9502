"""Values out of PyYAML's nodes, which know the line that each stands on; every problem is kept."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml

from ccamerge.config.importing import did_you_mean
from ccamerge.core.arguments import MOST_SEED


class Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-3 as a number: YAML 1.1 wants 1.0e-3."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+\Z"),
    list("-+0123456789"),
)

_SHOWN = 200  # characters of a value in a message

MISSING: Any = object()
"""Stands for a value that could not be read; the problem has been reported."""

Node: TypeAlias = yaml.nodes.Node
T = TypeVar("T")


class NodeReader:
    """Collects problems while it reads, so that all can be shown at once.

    ``where`` is the path to a value inside the file ("models[1].model"); ``lines`` has the line of
    each key that was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}

    def mapping(self, node: Node, where: str, known: Iterable[str]) -> dict[str, Node]:
        """Return a mapping's known keys; duplicate and unknown ones are reported."""
        if not isinstance(node, yaml.MappingNode):
            text = f"expected a mapping with {', '.join(known)}; got {self.shown(node)}"
            self.report(node, where, text)
            return {}
        found: dict[str, Node] = {}
        self._duplicates(node, where)
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else self.shown(key)
            inside = f"{where}.{name}" if where else str(name)
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; known: {', '.join(known)}"
                self.report(key, inside, f"unknown key{hint}")
            elif is_null(value) and name not in ("arguments", "options"):
                if name not in found:
                    self.report(key, inside, "has no value")
            elif name not in found:
                found[name] = value
                self.lines[inside] = key.start_mark.line + 1
        return found

    def patterns(
        self, node: yaml.MappingNode, where: str, read: Callable[[Node, str], T | None]
    ) -> dict[str, T]:
        """Return what ``read`` makes of each value of a mapping by patterns, wrong ones left out.

        Patterns are kept as they are written: 0 is as good a name of a space as any.
        """
        if not node.value:
            self.report(node, where, 'expected patterns with values, such as "layer1*"; got none')
        self._duplicates(node, where)
        found: dict[str, T] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, where, f"expected a pattern, got {self.shown(key)}")
                continue
            inside = f"{where}.{key.value}"
            self.lines[inside] = key.start_mark.line + 1
            item = read(value, inside)
            if item is not None:
                found.setdefault(key.value, item)
        return found

    def names(self, node: Node, where: str) -> dict[str, Any]:
        """Return a mapping of names to any values, such as a function's arguments."""
        value = self.value(node, where)
        if value is None or value is MISSING:  # a key with nothing below it; or reported
            return {}
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            self.report(node, where, f"expected names with values, got {self.shown(node)}")
            return {}
        return value

    def value(self, node: Node, where: str) -> Any:
        """Return a node as plain data; `MISSING` if it has none, which is then reported."""
        self._inner_duplicates(node, where, set())
        try:
            return yaml.constructor.SafeConstructor().construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date such as 2020-99-99
            problem = getattr(error, "problem", None) or str(error)
            self.report(node, where, f"cannot be read: {problem}")
            return MISSING

    def number(
        self, node: Node, where: str, *, most: float = math.inf, instead: str = ""
    ) -> float | None:
        """Return a number from 0 to ``most``; ``instead`` says what else the value could be."""
        value = self.value(node, where)
        if value is MISSING:
            return None
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            value = float(value) if good else math.nan
        except OverflowError:  # a whole number beyond float64
            value = math.inf
        if not math.isfinite(value) or not 0 <= value <= most:
            bounds = ">= 0" if most == math.inf else f"from 0 to {most:g}"
            wanted = f"expected a number {bounds}{instead}"
            self.report(node, where, f"{wanted}{';' if instead else ','} got {self.shown(node)}")
            return None
        return value

    def seed(self, node: Node, where: str) -> int | None:
        """Return what random generators can start from."""
        value = self.value(node, where)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SEED:
            return value
        if value is not MISSING:
            self.report(node, where, f"expected an integer >= 0, got {self.shown(node)}")
        return None

    def flag(self, node: Node, where: str) -> bool | None:
        """Return true or false."""
        value = self.value(node, where)
        if isinstance(value, bool):
            return value
        if value is not MISSING:
            self.report(node, where, f"expected true or false, got {self.shown(node)}")
        return None

    def choice(self, node: Node | None, where: str, choices: tuple[str, ...], default: Any) -> Any:
        """Return one of the words, or None if it is another."""
        if node is None:
            return default
        value = self.value(node, where)
        if isinstance(value, str) and value in choices:
            return value
        hint = did_you_mean(str(value).lower(), choices)
        text = f"expected one of {', '.join(choices)}; got {self.shown(node)}{hint}"
        self.report(node, where, text)
        return None

    def file(self, node: Node, where: str) -> Path | None:
        """Return an absolute path; what is written is relative to the configuration's folder."""
        value = self.value(node, where)
        if not isinstance(value, str) or not value:
            self.report(node, where, f"expected a file's path, got {self.shown(node)}")
            return None
        return Path(os.path.abspath(self.path.parent / Path(value).expanduser()))

    def report(self, node: Node, where: str, text: str) -> None:
        """Keep a problem."""
        line = node.start_mark.line + 1
        problem = (line, f"{where}: {text}" if where else text)
        if problem not in self.problems:
            self.problems.append(problem)

    def shown(self, node: Node) -> str:
        """Return a value as a message shows it."""
        if isinstance(node, yaml.SequenceNode):
            return "a list"
        if isinstance(node, yaml.MappingNode):
            return "a mapping"
        if is_null(node):
            return "nothing"
        text = repr(node.value) if node.tag.endswith(":str") else str(node.value)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def _duplicates(self, node: yaml.MappingNode, where: str) -> None:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            identity = (key.tag, key.value)
            if identity in first:
                inside = f"{where}.{key.value}" if where else key.value
                self.report(key, inside, f"given twice, first in line {first[identity]}")
            first.setdefault(identity, line)

    def _inner_duplicates(self, node: Node, where: str, seen: set[int]) -> None:
        if id(node) in seen:  # an alias; it may even contain itself
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._duplicates(node, where)
            for key, value in node.value:
                self._inner_duplicates(value, f"{where}.{getattr(key, 'value', '?')}", seen)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._inner_duplicates(item, f"{where}[{index}]", seen)


def is_null(node: Node) -> bool:
    """Whether a key has nothing behind it."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
