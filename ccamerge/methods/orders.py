"""The best one-to-one matching of models' features, and what it does for dead units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ccamerge.apply import FeatureMap
from ccamerge.graph.spaces import Space
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution


def best_order(problem: AlignmentProblem) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0."""
    a = np.sqrt(np.maximum(problem.reference.diagonal(), 0.0))
    b = np.sqrt(np.maximum(problem.own.diagonal(), 0.0))
    scale = np.outer(a, b)
    correlation = np.divide(problem.cross, scale, out=np.zeros_like(problem.cross), where=scale > 0)
    return np.asarray(linear_sum_assignment(correlation, maximize=True)[1])


def with_dead_units_paired(
    problems: Sequence[AlignmentProblem],
    solve: Callable[[Sequence[AlignmentProblem]], list[tuple[Solution, int]]],
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
    orders = [best_order(problems[i]) for i in deficient]
    again = solve([_reordered(problems[i], o) for i, o in zip(deficient, orders, strict=True)])
    for i, order, (solution, _) in zip(deficient, orders, again, strict=True):
        back = torch.from_numpy(np.argsort(order))
        feature_map = solution.feature_map
        restored = FeatureMap(feature_map.forward[back], feature_map.inverse[:, back])
        solutions[i] = dataclasses.replace(solution, feature_map=restored)
    return solutions


def _reordered(problem: AlignmentProblem, order: np.ndarray[Any, Any]) -> AlignmentProblem:
    return dataclasses.replace(
        problem, own=problem.own[np.ix_(order, order)], cross=problem.cross[:, order]
    )


def matched_orders(
    alignment: Alignment, space: Space, anchor: int
) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """For each model, the feature that matches each one of the anchor by correlation."""
    moments = alignment.moments[space.name]
    orders = [np.arange(space.size) for _ in alignment.states]
    for i in range(len(orders)):
        if i != anchor:
            problem = AlignmentProblem(
                "", moments.cov(anchor), moments.cov(i), moments.cov(anchor, i)
            )
            orders[i] = best_order(problem)
    return orders
