"""No alignment: features are taken to correspond as they are."""

from __future__ import annotations

from collections.abc import Sequence

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import AlignmentProblem, Solution, matched_correlations, register


@register("average")
def average(
    problems: Sequence[AlignmentProblem],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
) -> list[Solution]:
    """Identity maps; the ridge has no meaning here and is ignored."""
    solutions = []
    for problem in problems:
        feature_map = FeatureMap.identity(len(problem.own))
        rho = matched_correlations(problem, feature_map.forward.numpy())
        solutions.append(Solution(feature_map, rho))
    return solutions
