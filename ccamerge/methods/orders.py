"""The best one-to-one matching of models' features, and what it does for dead units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.apply import FeatureMap
from ccamerge.graph.spaces import Space
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, over_deviations


def best_order(problem: AlignmentProblem[Any]) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0.

    The assignment itself is solved on the CPU.
    """
    a, b, cross = (torch.as_tensor(m) for m in (problem.reference, problem.own, problem.cross))
    deviations = torch.outer(a.diagonal().clamp_min(0), b.diagonal().clamp_min(0))
    correlation = over_deviations(cross, deviations).cpu().numpy()
    return np.asarray(linear_sum_assignment(correlation, maximize=True)[1])


def with_dead_units_paired(
    problems: Sequence[AlignmentProblem[Tensor]],
    solve: Callable[[Sequence[AlignmentProblem[Tensor]]], list[tuple[Solution, int]]],
) -> list[Solution]:
    """Solve problems whose maps the data may leave undetermined in some directions.

    ``solve`` gives a solution for each problem, and the rank of what determined it. Directions that
    do not vary, such as dead units, are completed by the core as near the identity as it can.
    Those problems are solved again in the order of the best matching, where this pairs dead units
    with dead ones: a mixture of them with signs could wake them up behind a ReLU.
    """
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
