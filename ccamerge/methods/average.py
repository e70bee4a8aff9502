"""No alignment: features are taken to correspond as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Solution,
    Solutions,
    matched_correlations,
    register,
)


@register("average", modes=("reference", "universe"), maps=FIXED, on_device=True, local=True)
def average(alignment: Alignment) -> Solutions:
    """Identity maps; a space with this method keeps its basis."""
    return alignment.each_pair_of_tensors(_identities)


def _identities(problems: Sequence[AlignmentProblem[Tensor]]) -> list[Solution]:
    solutions = []
    for problem in problems:
        feature_map = FeatureMap.identity(len(problem.own), problem.own.device)
        rho = matched_correlations(problem, feature_map.forward)
        solutions.append(Solution(feature_map, rho))
    return solutions
