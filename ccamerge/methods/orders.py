"""The best one-to-one matching of models' features, and what it does where data say nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.core.determined import determined, projected
from ccamerge.core.device import memory_of
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.space import Space
from ccamerge.methods.base import Alignment, AlignmentProblem, Solution, over_deviations

SAME = 1e-5
"""Correlations that differ by less are the same: of such, features of like weights are preferred,
and of these, of one number. Duplicated and dead units so stay where they are, or go where a
permuted copy has them, and float32 products do not decide."""


def best_order(problem: AlignmentProblem[Any]) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0.

    Of several matchings that are as good, the one of the most alike is taken, the identity where
    nothing tells. The assignment itself is solved on the CPU.
    """
    a, b, cross = (torch.as_tensor(m) for m in (problem.reference, problem.own, problem.cross))
    deviations = torch.outer(a.diagonal().clamp_min(0), b.diagonal().clamp_min(0))
    correlation = over_deviations(cross, deviations).cpu().numpy()
    if problem.likeness is None:
        alike = np.eye(*correlation.shape)
    else:
        alike = problem.likeness().cpu().numpy()
    correlation = correlation + SAME * alike
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
    them up behind a ReLU. Features that do not vary at all are put in the order of like weights.
    """
    constant = [not (p.reference.trace() > 0 and p.own.trace() > 0) for p in problems]
    given = [p for p, alone in zip(problems, constant, strict=True) if not alone]
    found = iter(_paired(_determined(given), solve) if given else [])
    return [
        _reordered_alone(p) if alone else next(found)
        for p, alone in zip(problems, constant, strict=True)
    ]


def _reordered_alone(problem: AlignmentProblem[Tensor]) -> Solution:
    """Of features that say nothing: the order of like weights, or the identity of any shape."""
    device = problem.cross.device
    eye = torch.eye(*problem.cross.shape, dtype=torch.float64, device=device)
    unmoved = FeatureMap(eye.T.contiguous(), eye)
    if len(eye) == len(eye.T):
        unmoved = FeatureMap.permutation(torch.from_numpy(best_order(problem))).to(device)
    return Solution(unmoved, np.zeros(min(eye.shape)), {"rank": 0})


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
        problem, own=problem.own[order][:, order], cross=problem.cross[:, order], likeness=None
    )


def models_in_order(alignment: Alignment, first: int | None = None) -> list[int]:
    """The models, those first that correlate the most with all others as they are weighted.

    What is found from one model after another depends on their order: it is to be a matter of what
    they are, not of how they were given. ``first`` is put at the head.
    """
    models = range(len(alignment.states))
    shared = torch.zeros(len(models), dtype=torch.float64, device=memory_of(alignment.device))
    for space in alignment.spaces:
        moments = alignment.moments[space.name]
        weights = alignment.weights.get(space.name) or [1.0] * len(models)
        variances = [moments.cov_tensor(i).diagonal().clamp_min(0) for i in models]
        for i, j in itertools.combinations(models, 2):
            scale = torch.outer(variances[i], variances[j])
            square = over_deviations(moments.cov_tensor(i, j), scale).square().sum()
            shared[[i, j]] += weights[i] * weights[j] / space.size * square
    central = shared.tolist()
    return sorted(models, key=lambda i: (i != first, -central[i]))


def matched_orders(
    alignment: Alignment, space: Space, anchor: int
) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """For each model, the feature that matches each one of the anchor by correlation."""
    moments = alignment.moments[space.name]
    orders = [np.arange(space.size) for _ in alignment.states]
    for i in range(len(orders)):
        if i != anchor:
            own, cross = moments.cov_tensor(i), moments.cov_tensor(anchor, i)
            alike = functools.partial(alignment.likeness, space, anchor, i)
            problem = AlignmentProblem("", moments.cov_tensor(anchor), own, cross, likeness=alike)
            orders[i] = best_order(problem)
    return orders
