"""Permutation by linear assignment on correlations (Li et al. 2016; Git Re-Basin, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import PERMUTATION
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Solution,
    Solutions,
    matched_correlations,
    register,
)
from ccamerge.methods.orders import best_order
from ccamerge.methods.permutation_universe import permutation_universe


@register("permutation", modes=("reference", "universe"), maps=PERMUTATION)
def permutation(alignment: Alignment) -> Solutions:
    """The one-to-one matching of features with the largest sum of correlations."""
    if alignment.mode == "universe":
        return permutation_universe(alignment)
    return alignment.each_pair(_assign)


def _assign(problems: Sequence[AlignmentProblem]) -> list[Solution]:
    solutions = []
    for problem in problems:
        feature_map = FeatureMap.permutation(best_order(problem).tolist())
        rho = matched_correlations(problem, feature_map.forward.numpy())
        solutions.append(Solution(feature_map, rho))
    return solutions
