"""CCA Merge (Horoi et al., "Harmony in Diversity", ICML 2024): match canonical directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, Solutions, register
from ccamerge.methods.orders import with_dead_units_paired
from ccamerge.methods.universe import orthogonal_universe
from ccamerge.solve import CCAResult, cca_batch


@register("cca", modes=("reference", "universe"), rectangular=True, regularised=True)
def cca(alignment: Alignment) -> Solutions:
    """Maps ``C_i^{-1/2} V U^T C_r^{1/2}``, all problems of one ridge in one native call.

    Directions that do not vary, such as dead units, leave the map undetermined there; see
    `with_dead_units_paired`. Between different widths no order pairs them: the map of the canonical
    directions is left without completion, zero in all others.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a regularised covariance is too ill-conditioned; the message names the space and cure.
    """
    if alignment.mode == "universe":
        return orthogonal_universe(alignment, whitened=True)
    return alignment.each_pair(lambda problems: with_dead_units_paired(problems, _solutions))


def _solutions(problems: Sequence[AlignmentProblem]) -> list[tuple[Solution, int]]:
    solved = _solve(problems)
    wide = [
        i
        for i, (p, r) in enumerate(zip(problems, solved, strict=True))
        if r.rank < min(p.cross.shape) and p.cross.shape[0] != p.cross.shape[1]
    ]
    if wide:
        again = _solve([problems[i] for i in wide], weights=True)
        for i, result in zip(wide, again, strict=True):
            solved[i] = _without_completion(problems[i], result)
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
        for r in solved
    ]


def _without_completion(problem: AlignmentProblem, result: CCAResult) -> CCAResult:
    """The map through the canonical directions that correlate: ``W_i W_r^T C_r``."""
    assert result.x_weights is not None
    assert result.y_weights is not None
    x, y = result.x_weights[:, : result.rank], result.y_weights[:, : result.rank]
    sides = []
    for own in (problem.reference, problem.own):
        gamma = problem.gamma
        if gamma is None:
            gamma = (problem.ridge or 0.0) * own.trace() / len(own)
        sides.append(own + gamma * np.eye(len(own)))
    return dataclasses.replace(result, map=y @ (x.T @ sides[0]), inverse=x @ (y.T @ sides[1]))


def _solve(problems: Sequence[AlignmentProblem], weights: bool = False) -> list[CCAResult]:
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
                weights=weights,
            )
        except np.linalg.LinAlgError as error:
            names = "; ".join(f"problems[{n}] is {problems[i].name}" for n, i in enumerate(chosen))
            message = f"{error} ({names})"
            raise np.linalg.LinAlgError(message) from error
        solved.update(zip(chosen, results, strict=True))
    return [solved[i] for i in range(len(problems))]
