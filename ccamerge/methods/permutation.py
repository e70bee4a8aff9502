"""Permutation by linear assignment on correlations (Li et al. 2016; Git Re-Basin, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import AlignmentProblem, Solution, matched_correlations, register


@register("permutation")
def permutation(
    problems: Sequence[AlignmentProblem],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
) -> list[Solution]:
    """The one-to-one matching of features with the largest sum of correlations."""
    solutions = []
    for problem in problems:
        feature_map = FeatureMap.permutation(best_order(problem).tolist())
        rho = matched_correlations(problem, feature_map.forward.numpy())
        solutions.append(Solution(feature_map, rho))
    return solutions


def best_order(problem: AlignmentProblem) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0."""
    a = np.sqrt(np.maximum(problem.reference.diagonal(), 0.0))
    b = np.sqrt(np.maximum(problem.own.diagonal(), 0.0))
    scale = np.outer(a, b)
    correlation = np.divide(problem.cross, scale, out=np.zeros_like(problem.cross), where=scale > 0)
    return np.asarray(linear_sum_assignment(correlation, maximize=True)[1])
