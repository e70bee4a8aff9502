"""CCA Merge (Horoi et al., "Harmony in Diversity", ICML 2024): match canonical directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccamerge.core.canonical import CCAResult, cca_batch
from ccamerge.core.device import Device
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, Solutions, register
from ccamerge.methods.composed import orthogonal_universe
from ccamerge.methods.orders import with_dead_units_paired


@register(
    "cca",
    modes=("reference", "universe"),
    rectangular=True,
    regularised=True,
    on_device=True,
    local=True,
)
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
    device = alignment.device
    return alignment.each_pair_of_tensors(
        lambda problems: with_dead_units_paired(problems, lambda some: _solutions(some, device))
    )


def _solutions(
    problems: Sequence[AlignmentProblem[Tensor]], device: Device | None
) -> list[tuple[Solution, int]]:
    solved = _solve(problems, device)
    wide = [
        i
        for i, (p, r) in enumerate(zip(problems, solved, strict=True))
        if r.rank < min(p.cross.shape) and p.cross.shape[0] != p.cross.shape[1]
    ]
    if wide:
        again = _solve([problems[i] for i in wide], device, weights=True)
        for i, result in zip(wide, again, strict=True):
            solved[i] = _without_completion(problems[i], result)
    return [
        (
            Solution(
                FeatureMap(torch.as_tensor(r.map), torch.as_tensor(r.inverse)),
                torch.as_tensor(r.correlations).cpu().numpy(),
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


def _without_completion(problem: AlignmentProblem[Tensor], result: CCAResult) -> CCAResult:
    """The map through the canonical directions that correlate: ``W_i W_r^T C_r``."""
    weights = (torch.as_tensor(w) for w in (result.x_weights, result.y_weights))
    x, y = (w[:, : result.rank] for w in weights)
    sides = []
    for own in (problem.reference, problem.own):
        gamma = problem.gamma
        if gamma is None:
            gamma = (problem.ridge or 0.0) * float(own.trace()) / len(own)
        sides.append(own + gamma * torch.eye(len(own), dtype=own.dtype, device=own.device))
    maps: dict[str, Any] = {"map": y @ (x.T @ sides[0]), "inverse": x @ (y.T @ sides[1])}
    return dataclasses.replace(result, **maps)


def _solve(
    problems: Sequence[AlignmentProblem[Tensor]], device: Device | None, weights: bool = False
) -> list[CCAResult]:
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
                device=device or "cpu",
            )
        except np.linalg.LinAlgError as error:
            names = "; ".join(f"problems[{n}] is {problems[i].name}" for n, i in enumerate(chosen))
            message = f"{error} ({names})"
            raise np.linalg.LinAlgError(message) from error
        solved.update(zip(chosen, results, strict=True))
    return [solved[i] for i in range(len(problems))]
