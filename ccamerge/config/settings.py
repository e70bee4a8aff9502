"""How models are merged: what a configuration and `ccamerge.merge` both know, without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Mode = Literal["reference", "universe"]
Repair = Literal["variance", "regression", "none"]
Norm = Literal["fold", "paper"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Keyword arguments of `ccamerge.merge`, under its names and with its defaults.

    What depends on the files at hand is not among them: the models, their reference, the data and
    what was computed from them. ``merge(models, data, **vars(settings))`` passes them on. In a
    configuration ``method`` may also be "package.module:function", to be imported.
    """

    method: str | Mapping[str, str] = "cca"
    options: Mapping[str, Any] | None = None
    mode: Mode = "reference"
    ridge: float | Literal["auto"] | Mapping[str, float] | None = None
    gamma: float | None = None
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None
    t: float | None = None
    repair: Repair | None = None
    norm: Norm = "fold"
    seed: int = 0
    prove: bool = True

    @property
    def method_words(self) -> str:
        """The method, or the methods by patterns, for people."""
        if isinstance(self.method, str):
            return self.method
        return ", ".join(f"{pattern}: {name}" for pattern, name in self.method.items())


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights, some of them positive, that sum to one.

    They are divided by the largest first: the sum of numbers near either end of float64 would
    overflow or lose its digits.
    """
    largest = max(weights)
    scaled = [w / largest for w in weights]
    total = math.fsum(scaled)
    return tuple(w / total for w in scaled)
