"""Permutations of all models that agree with each other, however one goes round."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from ccamerge.apply import FeatureMap
from ccamerge.methods.base import Alignment, Solutions
from ccamerge.methods.orders import SAME, matched_orders, models_in_order
from ccamerge.methods.universe import universe_solution

SWEEPS = 200
"""Of the ascent at most."""

_RISE = 1e-11
"""The ascent ends when a sweep adds less than this share of the objective."""


def permutation_universe(alignment: Alignment) -> Solutions:
    """Cycle-consistent permutations, in the spirit of C2M3 (Crisostomi et al., NeurIPS 2024).

    ``P_i <- `` the assignment that maximises ``tr(P_i^T sum_{j != i} R_ij P_j)`` with correlations
    ``R``, from the matching with the model that correlates the most with all others, until no sweep
    adds to the sum of all pairs. The result is the same for every reference, and in whatever order
    the models are given.
    """
    solutions: Solutions = {}
    turns = models_in_order(alignment)
    for space in alignment.spaces:
        moments = alignment.moments[space.name]
        count = len(alignment.states)
        orders = matched_orders(alignment, space, turns[0])
        std = [np.sqrt(np.maximum(moments.cov(i).diagonal(), 0.0)) for i in range(count)]
        correlation = {}
        for i in range(count):
            for j in range(i + 1, count):
                scale, block = np.outer(std[i], std[j]), moments.cov(i, j)
                zero = np.zeros_like(block)
                correlation[i, j] = np.divide(block, scale, out=zero, where=scale > 0)
        objectives: list[float] = []
        while True:
            objectives.append(
                float(sum(r[orders[i], orders[j]].sum() for (i, j), r in correlation.items()))
            )
            if len(objectives) > SWEEPS or (
                len(objectives) > 1 and objectives[-1] <= objectives[-2] * (1 + _RISE)
            ):
                break
            for i in turns:
                pull = sum(
                    (correlation[i, j] if i < j else correlation[j, i].T)[:, orders[j]]
                    for j in turns
                    if j != i
                )
                gains = np.asarray(pull).T.copy()
                gains[np.arange(space.size), orders[i]] += SAME  # what is as good stays
                orders[i] = linear_sum_assignment(gains, maximize=True)[1]
        back = np.argsort(orders[alignment.reference])
        details = {"objective": objectives[-1], "sweeps": len(objectives) - 1}
        solutions[space.name] = [
            universe_solution(
                alignment, space, i, FeatureMap.permutation(orders[i][back].tolist()), details
            )
            for i in range(count)
        ]
    return solutions
