"""CCA Merge (Horoi et al., "Harmony in Diversity", ICML 2024): match canonical directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import AlignmentProblem, Solution, register
from ccamerge.methods.permutation import best_order
from ccamerge.solve import CCAResult, cca_batch


@register("cca")
def cca(
    problems: Sequence[AlignmentProblem], *, ridge: float | None = None, gamma: float | None = None
) -> list[Solution]:
    """Maps ``C_i^{-1/2} V U^T C_r^{1/2}``, all problems in one native call.

    Directions that do not vary, such as dead units, leave the map undetermined there. Those
    problems are solved again in the order of the best permutation: the solver completes a map as
    near the identity as it can, which then pairs dead units with dead ones. A mixture of
    them with signs could wake them up behind a ReLU.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a regularised covariance is too ill-conditioned; the message names the space and cure.
    """
    solved = _solve(problems, ridge, gamma)
    deficient = [
        i
        for i, (p, r) in enumerate(zip(problems, solved, strict=True))
        if r.rank < min(p.cross.shape) and p.cross.shape[0] == p.cross.shape[1]
    ]
    if deficient:
        orders = [best_order(problems[i]) for i in deficient]
        again = _solve(
            [_reordered(problems[i], o) for i, o in zip(deficient, orders, strict=True)],
            ridge,
            gamma,
        )
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


def _solve(
    problems: Sequence[AlignmentProblem], ridge: float | None, gamma: float | None
) -> list[CCAResult]:
    try:
        return cca_batch(
            [(p.reference, p.own, p.cross) for p in problems],
            ridge=ridge,
            gamma=gamma,
            correlations=True,
        )
    except np.linalg.LinAlgError as error:
        names = "; ".join(f"problems[{i}] is {p.name}" for i, p in enumerate(problems))
        message = f"{error} ({names})"
        raise np.linalg.LinAlgError(message) from error


def _reordered(problem: AlignmentProblem, order: np.ndarray[Any, Any]) -> AlignmentProblem:
    return dataclasses.replace(
        problem, own=problem.own[np.ix_(order, order)], cross=problem.cross[:, order]
    )
