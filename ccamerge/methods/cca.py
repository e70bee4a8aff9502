"""CCA Merge (Horoi et al., "Harmony in Diversity", ICML 2024): match canonical directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, Solutions, register
from ccamerge.methods.orders import with_dead_units_paired
from ccamerge.methods.universe import orthogonal_universe
from ccamerge.solve import CCAResult, cca_batch


@register("cca", modes=("reference", "universe"), rectangular=True)
def cca(alignment: Alignment) -> Solutions:
    """Maps ``C_i^{-1/2} V U^T C_r^{1/2}``, all problems of one ridge in one native call.

    Directions that do not vary, such as dead units, leave the map undetermined there; see
    `with_dead_units_paired`.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a regularised covariance is too ill-conditioned; the message names the space and cure.
    """
    if alignment.mode == "universe":
        return orthogonal_universe(alignment, whitened=True)
    return alignment.each_pair(lambda problems: with_dead_units_paired(problems, _solutions))


def _solutions(problems: Sequence[AlignmentProblem]) -> list[tuple[Solution, int]]:
    return [
        (
            Solution(
                FeatureMap(torch.from_numpy(r.map), torch.from_numpy(r.inverse)),
                r.correlations,
                {
                    "rank": r.rank,
                    "condition": max(r.x_condition, r.y_condition),
                    "polar": r.method,
                },
            ),
            r.rank,
        )
        for r in _solve(problems)
    ]


def _solve(problems: Sequence[AlignmentProblem]) -> list[CCAResult]:
    """One native call for each regulariser that occurs."""
    solved: dict[int, CCAResult] = {}
    for ridge, gamma in dict.fromkeys((p.ridge, p.gamma) for p in problems):
        chosen = [i for i, p in enumerate(problems) if (p.ridge, p.gamma) == (ridge, gamma)]
        try:
            results = cca_batch(
                [(problems[i].reference, problems[i].own, problems[i].cross) for i in chosen],
                ridge=ridge,
                gamma=gamma,
                correlations=True,
            )
        except np.linalg.LinAlgError as error:
            names = "; ".join(f"problems[{n}] is {problems[i].name}" for n, i in enumerate(chosen))
            message = f"{error} ({names})"
            raise np.linalg.LinAlgError(message) from error
        solved.update(zip(chosen, results, strict=True))
    return [solved[i] for i in range(len(problems))]
