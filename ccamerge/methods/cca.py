"""CCA Merge (Horoi et al., "Harmony in Diversity", ICML 2024): match canonical directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, Solutions, register
from ccamerge.methods.orders import best_order
from ccamerge.methods.universe import orthogonal_universe
from ccamerge.solve import CCAResult, cca_batch


@register("cca", modes=("reference", "universe"))
def cca(alignment: Alignment) -> Solutions:
    """Maps ``C_i^{-1/2} V U^T C_r^{1/2}``, all problems of one ridge in one native call.

    Directions that do not vary, such as dead units, leave the map undetermined there. Those
    problems are solved again in the order of the best permutation: the solver completes a map as
    near the identity as it can, which then pairs dead units with dead ones. A mixture of
    them with signs could wake them up behind a ReLU.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a regularised covariance is too ill-conditioned; the message names the space and cure.
    """
    if alignment.mode == "universe":
        return orthogonal_universe(alignment, whitened=True)
    return alignment.each_pair(_solutions)


def _solutions(problems: Sequence[AlignmentProblem]) -> list[Solution]:
    solved = _solve(problems)
    deficient = [
        i
        for i, (p, r) in enumerate(zip(problems, solved, strict=True))
        if r.rank < min(p.cross.shape) and p.cross.shape[0] == p.cross.shape[1]
    ]
    if deficient:
        orders = [best_order(problems[i]) for i in deficient]
        again = _solve([_reordered(problems[i], o) for i, o in zip(deficient, orders, strict=True)])
        for i, order, result in zip(deficient, orders, again, strict=True):
            forward, inverse = np.empty_like(result.map), np.empty_like(result.inverse)
            forward[order], inverse[:, order] = result.map, result.inverse
            solved[i] = dataclasses.replace(result, map=forward, inverse=inverse)
    return [
        Solution(
            FeatureMap(torch.from_numpy(r.map), torch.from_numpy(r.inverse)),
            r.correlations,
            {
                "rank": r.rank,
                "condition": max(r.x_condition, r.y_condition),
                "polar": r.method,
            },
        )
        for r in solved
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


def _reordered(problem: AlignmentProblem, order: np.ndarray[Any, Any]) -> AlignmentProblem:
    return dataclasses.replace(
        problem, own=problem.own[np.ix_(order, order)], cross=problem.cross[:, order]
    )
