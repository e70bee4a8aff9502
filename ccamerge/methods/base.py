"""What a method receives and returns, and the table of methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ccamerge.apply import FeatureMap


@dataclasses.dataclass(frozen=True)
class AlignmentProblem:
    """One space of one model against the reference.

    Covariances are float64: ``reference`` (p, p) and ``own`` (q, q) of each side, ``cross`` (p, q)
    with rows of the reference. ``name`` is for messages.
    """

    name: str
    reference: np.ndarray[Any, Any]
    own: np.ndarray[Any, Any]
    cross: np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Solution:
    """A map of own features to the reference's, and what is worth reporting about it.

    ``correlations`` are those between matched features after the map, best first; ``details``
    goes into the report as it is.
    """

    feature_map: FeatureMap
    correlations: np.ndarray[Any, Any] | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class Method(Protocol):
    """Solves many problems in one call. ``ridge`` or ``gamma`` is given, or neither."""

    def __call__(
        self, problems: Sequence[AlignmentProblem], *, ridge: float | None, gamma: float | None
    ) -> list[Solution]:
        """Solve all problems; the result has their order."""
        ...


METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Make a method known under a name, in Python, YAML and on the command line."""

    def add(method: Method) -> Method:
        METHODS[name] = method
        return method

    return add


def matched_correlations(
    problem: AlignmentProblem, forward: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Correlations between each reference feature and the mapped own one, best first.

    A feature that is constant on either side counts as zero.
    """
    top = np.einsum("pq,qp->p", problem.cross, forward)
    mapped = np.einsum("qp,qr,rp->p", forward, problem.own, forward, optimize=True)
    scale = np.sqrt(np.maximum(mapped, 0.0) * np.maximum(problem.reference.diagonal(), 0.0))
    safe = np.divide(top, scale, out=np.zeros_like(top), where=scale > 0)
    return np.sort(safe)[::-1]
