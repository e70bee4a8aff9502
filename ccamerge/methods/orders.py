"""The best one-to-one matching of models' features, and what it does where data say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.apply import FeatureMap
from ccamerge.determined import determined, projected
from ccamerge.graph.spaces import Space
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, over_deviations

SAME = 1e-5
"""Correlations that differ by less are the same: of such, features of one number are preferred.
Duplicated and dead units so stay where they are, and float32 products do not decide."""


def best_order(problem: AlignmentProblem[Any]) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0.

    Where several matchings are as good, the one nearest the identity is taken. The assignment
    itself is solved on the CPU.
    """
    a, b, cross = (torch.as_tensor(m) for m in (problem.reference, problem.own, problem.cross))
    deviations = torch.outer(a.diagonal().clamp_min(0), b.diagonal().clamp_min(0))
    correlation = over_deviations(cross, deviations).cpu().numpy()
    correlation = correlation + SAME * np.eye(*correlation.shape)
    return np.asarray(linear_sum_assignment(correlation, maximize=True)[1])


def with_dead_units_paired(
    problems: Sequence[AlignmentProblem[Tensor]],
    solve: Callable[[Sequence[AlignmentProblem[Tensor]]], list[tuple[Solution, int]]],
) -> list[Solution]:
    """Solve problems whose maps the data may leave undetermined in some directions.

    ``solve`` gives a solution for each problem, and the rank of what determined it. Directions that
    do not vary, such as dead units or those beyond the samples' number, are completed by the core
    as near the identity as it can. Those problems are solved again in the order of the best
    matching, where this pairs dead units with dead ones: a mixture of them with signs could wake
    them up behind a ReLU. Features that do not vary at all keep their basis.
    """
    constant = [not (p.reference.trace() > 0 and p.own.trace() > 0) for p in problems]
    given = [p for p, alone in zip(problems, constant, strict=True) if not alone]
    found = iter(_paired(_determined(given), solve) if given else [])
    return [
        _unmoved(p) if alone else next(found) for p, alone in zip(problems, constant, strict=True)
    ]


def _unmoved(problem: AlignmentProblem[Tensor]) -> Solution:
    """The identity, of any shape: of features that say nothing."""
    eye = torch.eye(*problem.cross.shape, dtype=torch.float64, device=problem.cross.device)
    return Solution(FeatureMap(eye.T.contiguous(), eye), np.zeros(min(eye.shape)), {"rank": 0})


def _determined(
    problems: Sequence[AlignmentProblem[Tensor]],
) -> list[AlignmentProblem[Tensor]]:
    """The problems without covariances that only rounding errors make."""
    known: dict[int, Tensor | None] = {}  # a reference is the same object in several problems
    result = []
    for p in problems:
        for cov in (p.reference, p.own):
            if id(cov) not in known:
                known[id(cov)] = determined(cov, p.samples, p.rounding)
        cross = projected(p.cross, known[id(p.reference)], known[id(p.own)])
        result.append(dataclasses.replace(p, cross=cross))
    return result


def _paired(
    problems: Sequence[AlignmentProblem[Tensor]],
    solve: Callable[[Sequence[AlignmentProblem[Tensor]]], list[tuple[Solution, int]]],
) -> list[Solution]:
    solved = solve(problems)
    deficient = [
        i
        for i, (problem, (_, rank)) in enumerate(zip(problems, solved, strict=True))
        if rank < min(problem.cross.shape) and problem.cross.shape[0] == problem.cross.shape[1]
    ]
    solutions = [solution for solution, _ in solved]
    if not deficient:
        return solutions
    orders = [torch.from_numpy(best_order(problems[i])) for i in deficient]
    orders = [o.to(problems[i].own.device) for i, o in zip(deficient, orders, strict=True)]
    again = solve([_reordered(problems[i], o) for i, o in zip(deficient, orders, strict=True)])
    for i, order, (solution, _) in zip(deficient, orders, again, strict=True):
        back = order.argsort()
        feature_map = solution.feature_map
        restored = FeatureMap(feature_map.forward[back], feature_map.inverse[:, back])
        solutions[i] = dataclasses.replace(solution, feature_map=restored)
    return solutions


def _reordered(problem: AlignmentProblem[Tensor], order: Tensor) -> AlignmentProblem[Tensor]:
    return dataclasses.replace(
        problem, own=problem.own[order][:, order], cross=problem.cross[:, order]
    )


def matched_orders(
    alignment: Alignment, space: Space, anchor: int
) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """For each model, the feature that matches each one of the anchor by correlation."""
    moments = alignment.moments[space.name]
    orders = [np.arange(space.size) for _ in alignment.states]
    for i in range(len(orders)):
        if i != anchor:
            own, cross = moments.cov_tensor(i), moments.cov_tensor(anchor, i)
            problem = AlignmentProblem("", moments.cov_tensor(anchor), own, cross)
            orders[i] = best_order(problem)
    return orders
