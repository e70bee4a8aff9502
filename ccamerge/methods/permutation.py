"""Permutation by linear assignment on correlations (Li et al. 2016; Git Re-Basin, ICLR 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import PERMUTATION, SIGNED_PERMUTATION
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


@register("permutation", modes=("reference", "universe"), maps=PERMUTATION, local=True)
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


@register("signed_permutation", maps=SIGNED_PERMUTATION, local=True)
def signed_permutation(alignment: Alignment) -> Solutions:
    """As "permutation", by the sizes of correlations; features that move contrarily change sign.

    Sources: Chen, Lu & Hecht-Nielsen (1993), for networks of odd functions.
    """
    return alignment.each_pair(_assign_signed)


def _assign_signed(problems: Sequence[AlignmentProblem]) -> list[Solution]:
    solutions = []
    for problem in problems:
        order = best_order(dataclasses.replace(problem, cross=abs(problem.cross)))
        matched = torch.as_tensor(problem.cross)[torch.arange(len(order)), torch.as_tensor(order)]
        signs = torch.where(matched < 0, -1.0, 1.0).double()
        permutation = FeatureMap.permutation(order.tolist())
        forward = permutation.forward * signs
        feature_map = FeatureMap(forward, forward.T.contiguous())
        solutions.append(Solution(feature_map, matched_correlations(problem, forward.numpy())))
    return solutions
