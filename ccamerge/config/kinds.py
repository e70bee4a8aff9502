"""What values a setting may take: a number, one of some words, a list of numbers by patterns.

A kind checks what Python is given, and tells the reader of the YAML its range and its words.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ccamerge.core import arguments


class Kind(Protocol):
    """What a setting may be."""

    def check(self, value: Any, name: str, models: int) -> Any:
        """The value as plain Python has it; ValueError or TypeError for what is none of the kind.

        ``name`` is for messages, ``models`` how many there are.
        """


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`."""
        return arguments.choice(value, name, self.words)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, value: Any, name: str, models: int) -> bool:
        """As `Kind`."""
        return arguments.flag(value, name)


@dataclasses.dataclass(frozen=True)
class Seed:
    """What random generators start from."""

    def check(self, value: Any, name: str, models: int) -> int:
        """As `Kind`."""
        return arguments.seed(value, name)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from 0 to ``most``.

    ``ends`` say what both ends are. ``word`` may stand in its place, and with ``patterns`` a dict
    of numbers.
    """

    most: float = math.inf
    ends: tuple[str, str] = ("", "")
    word: str = ""
    patterns: bool = False

    @property
    def _range(self) -> str:
        if self.most == math.inf:
            return "a finite number >= 0"
        return f"between 0 ({self.ends[0]}) and {self.most:g} ({self.ends[1]})"

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`."""
        number = self._range if self.most == math.inf else f"a number {self._range}"
        expected = number + (f", {self.word!r}" if self.word else "")
        expected += " or a dict by patterns" if self.patterns else ""
        if self.word and isinstance(value, str):
            if value == self.word:
                return value
            message = f"{name} must be {expected}, got {value!r}"
            raise ValueError(message)
        if self.patterns and isinstance(value, Mapping):
            return by_name(value, name, expected, lambda inner, of: self._number(inner, of, number))
        return self._number(value, name, expected)

    def _number(self, value: Any, name: str, expected: str) -> float:
        found = arguments.number(value, name, expected)
        if not (math.isfinite(found) and 0 <= found <= self.most):
            message = f"{name} must be {self._range}, got {found}"
            raise ValueError(message)
        return found


@dataclasses.dataclass(frozen=True)
class NumberForEachModel:
    """A list with a number >= 0 for each model, not all zero, or such lists by patterns."""

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`."""
        if not isinstance(value, Mapping):
            return self._numbers(value, name, models)
        expected = "a list of numbers or a dict by patterns"
        return by_name(value, name, expected, lambda own, of: self._numbers(own, of, models))

    def _numbers(self, value: Any, name: str, models: int) -> list[float]:
        given = arguments.items(value, name, f"a list of {models} numbers, one for each model")
        found = [arguments.number(w, f"{name}[{i}]") for i, w in enumerate(given)]
        if len(found) != models:
            message = f"{name} must hold one number a model ({models}), got {len(found)}"
            raise ValueError(message)
        if not all(math.isfinite(w) and w >= 0 for w in found) or not any(found):
            message = f"{name} must be finite, not negative and not all zero, got {found}"
            raise ValueError(message)
        return found


@dataclasses.dataclass(frozen=True)
class NameOrPatterns:
    """A name, or names by patterns. ``known`` are those that need no import."""

    known: tuple[str, ...]

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`; whether there is such a name is not looked at."""
        if isinstance(value, str):
            return value
        expected = "a name or a dict of names by patterns"
        return by_name(value, name, expected, lambda v, of: arguments.string(v, of, "a name"))


@dataclasses.dataclass(frozen=True)
class Keywords:
    """Values by names."""

    def check(self, value: Any, name: str, models: int) -> dict[str, Any]:
        """As `Kind`."""
        return dict(arguments.mapping(value, name, "a dict by names"))


@dataclasses.dataclass(frozen=True)
class Count:
    """A whole number of one or more."""

    def check(self, value: Any, name: str, models: int) -> int:
        """As `Kind`."""
        found = arguments.integer(value, name)
        if found < 1:
            message = f"{name} must be a whole number of 1 or more, got {found}"
            raise ValueError(message)
        return found


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A whole number of one or more, or two of them, height and width."""

    def check(self, value: Any, name: str, models: int) -> tuple[int, int]:
        """As `Kind`; one stands for both."""
        if isinstance(value, (list, tuple)):
            both = [Count().check(v, f"{name}[{i}]", models) for i, v in enumerate(value)]
            if len(both) != 2:
                message = f"{name} must be one number, or height and width, got {len(both)} numbers"
                raise ValueError(message)
            return both[0], both[1]
        one = Count().check(value, name, models)
        return one, one


@dataclasses.dataclass(frozen=True)
class NumberForEachChannel:
    """A list with a finite number for each of 1 or 3 channels; ``positive`` if none may be 0."""

    positive: bool = False

    def check(self, value: Any, name: str, models: int) -> tuple[float, ...]:
        """As `Kind`."""
        given = arguments.items(value, name, "a list of numbers, one for each channel")
        found = tuple(arguments.number(v, f"{name}[{i}]") for i, v in enumerate(given))
        if len(found) not in (1, 3) or not all(map(math.isfinite, found)):
            message = f"{name} must hold 1 number (grey) or 3 (red, green, blue), got {list(found)}"
            raise ValueError(message)
        if self.positive and min(found) <= 0:
            message = f"{name} must be positive, got {list(found)}"
            raise ValueError(message)
        return found


@dataclasses.dataclass(frozen=True)
class Name:
    """Text of one character or more; with ``several`` a list of such, too."""

    several: bool = False

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`."""
        if self.several and not isinstance(value, str):
            given = arguments.items(value, name, "a name or a list of names")
            if not given:
                message = f"{name} must hold one name at least, got none"
                raise ValueError(message)
            return tuple(Name().check(v, f"{name}[{i}]", models) for i, v in enumerate(given))
        if not arguments.string(value, name, "a name"):
            message = f"{name} must not be empty"
            raise ValueError(message)
        return value


@dataclasses.dataclass(frozen=True)
class Folder:
    """A path; in a configuration one that is relative to its file."""

    def check(self, value: Any, name: str, models: int) -> Path:
        """As `Kind`; whether there is such a file is not looked at."""
        return arguments.path(value, name)


@dataclasses.dataclass(frozen=True)
class ChoiceOrFunction:
    """One of some words, or a function of the user's."""

    words: tuple[str, ...]

    def check(self, value: Any, name: str, models: int) -> Any:
        """As `Kind`."""
        if callable(value):
            return value
        expected = f"one of {', '.join(map(repr, self.words))} or a function"
        return arguments.choice(arguments.string(value, name, expected), name, self.words)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Whether to do something at all, or for how long: ``"60s"`` or ``"5 epochs"``."""

    def check(self, value: Any, name: str, models: int) -> bool | str:
        """As `Kind`; texts come back as they are read by `limit_of`."""
        if isinstance(value, str):
            if limit_of(value) is None:
                message = (
                    f'{name} must be True, False, or such as "60s" or "5 epochs", got {value!r}'
                )
                raise ValueError(message)
            return value
        return arguments.flag(value, name)


def limit_of(text: str) -> tuple[float, str] | None:
    """Number and unit ("seconds" or "epochs") of a budget; None if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|seconds?|min|minutes?|epochs?)\s*", text)
    if found is None or float(found[1]) == 0:
        return None
    if found[2].startswith("epoch"):
        return (float(found[1]), "epochs") if float(found[1]).is_integer() else None
    return float(found[1]) * (60 if found[2].startswith("min") else 1), "seconds"


def by_name(
    value: Any, name: str, expected: str, check: Callable[[Any, str], Any]
) -> dict[str, Any]:
    """A dict whose values are what ``check`` makes of them under a name for messages."""
    given = arguments.mapping(value, name, expected)
    return {key: check(inner, f"{name} of {key!r}") for key, inner in given.items()}
