"""Orthogonal Procrustes: the rotation that best superposes the features (Schoenemann 1966)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ccamerge.core.decompositions import polar_batch
from ccamerge.core.device import Device
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Solution,
    Solutions,
    matched_correlations,
    register,
)
from ccamerge.methods.composed import orthogonal_universe
from ccamerge.methods.orders import with_dead_units_paired


@register(
    "procrustes", modes=("reference", "universe"), rectangular=True, on_device=True, local=True
)
def procrustes(alignment: Alignment) -> Solutions:
    """Transposed polar factors of the cross-covariances: CCA Merge's limit for a large ridge.

    Directions without covariance, such as those of dead units, leave the rotation undetermined
    there; see `with_dead_units_paired`.
    """
    if alignment.mode == "universe":
        return orthogonal_universe(alignment, whitened=False)
    device = alignment.device
    return alignment.each_pair_of_tensors(
        lambda problems: with_dead_units_paired(problems, lambda some: _rotate(some, device))
    )


def _rotate(
    problems: Sequence[AlignmentProblem[Tensor]], device: Device | None
) -> list[tuple[Solution, int]]:
    factors = polar_batch([p.cross for p in problems], device=device or "cpu")
    solutions = []
    for problem, factor in zip(problems, factors, strict=True):
        forward = torch.as_tensor(factor.q).T.contiguous()
        rho = matched_correlations(problem, forward)
        feature_map = FeatureMap(forward, forward.T.contiguous())
        solutions.append((Solution(feature_map, rho), factor.rank))
    return solutions
