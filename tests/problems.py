"""One space of features without a network, for tests of methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from ccamerge.core.moments import Moments
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.space import Space
from ccamerge.methods import METHODS, Alignment, Mode, Solution

Array = np.ndarray[Any, Any]


def features(n: int = 400, d: int = 12, seed: int = 0) -> Array:
    """Correlated features of various scales, in float64."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * np.geomspace(0.1, 10, d)


def related(
    count: int, n: int = 400, d: int = 12, seed: int = 0, noise: float = 1.0
) -> list[Array]:
    """Features of several models: each its own mixture of common ones, and noise."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, d))
    return [
        common @ rng.standard_normal((d, d)) + noise * rng.standard_normal((n, d))
        for _ in range(count)
    ]


def moments_of(*of_models: Array) -> Moments:
    moments = Moments([x.shape[1] for x in of_models], pairs="all")
    moments.update(list(of_models))
    return moments


def alignment_of(
    *of_models: Array,
    reference: int = 0,
    mode: Mode = "reference",
    ridge: float | None = None,
    gamma: float | None = None,
) -> Alignment:
    """One space, "test", of models without parameters."""
    space = Space("test", of_models[0].shape[1], GENERAL, GENERAL, (), (), ())
    states: list[dict[str, Any]] = [{} for _ in of_models]
    ridges = {} if ridge is None else {"test": ridge}
    moments = {"test": moments_of(*of_models)}
    return Alignment([space], moments, states, reference, mode, ridges, gamma)


def solve(
    method: str,
    x: Array,
    y: Array,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    **options: Any,
) -> Solution:
    """The second model's map to the first."""
    alignment = alignment_of(x, y, ridge=ridge, gamma=gamma)
    return METHODS[method].solve(alignment, **options)["test"][1]


def forward(solution: Solution) -> Array:
    matrix: Array = solution.feature_map.forward.numpy()
    return matrix


def correlation(x: Array, y: Array) -> Array:
    """Between columns (p, q)."""
    return np.asarray(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :])
