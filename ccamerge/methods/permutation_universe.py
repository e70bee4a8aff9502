"""Permutations of all models that agree with each other, however one goes round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from ccamerge.core.moments import Moments
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.methods.base import Alignment, Array, Solutions
from ccamerge.methods.composed import universe_solution
from ccamerge.methods.orders import SAME, matched_orders, models_in_order

SWEEPS = 200
"""Of the ascent at most."""

_RISE = 1e-11
"""The ascent ends when a sweep adds less than this share of the objective."""


def permutation_universe(alignment: Alignment) -> Solutions:
    """Cycle-consistent permutations, in the spirit of C2M3 (Crisostomi et al., NeurIPS 2024).

    ``P_i <- `` the assignment that maximises ``tr(P_i^T sum_{j != i} R_ij P_j)`` with correlations
    ``R``, until no sweep adds to the sum of all pairs. The start is the best of the matchings with
    one model. The result is the same for every reference, and in whatever order the models are
    given.
    """
    solutions: Solutions = {}
    turns = models_in_order(alignment)
    for space in alignment.spaces:
        correlation = _correlations(alignment.moments[space.name])
        starts = [matched_orders(alignment, space, anchor) for anchor in turns]
        reached = [_objective(correlation, start) for start in starts]
        enough = max(reached) - _RISE * abs(max(reached))
        best = next(k for k, value in enumerate(reached) if value >= enough)
        orders, objectives = starts[best], [reached[best]]
        while len(objectives) <= SWEEPS:
            for i in turns:
                pull = sum(correlation[i, j][:, orders[j]] for j in turns if j != i)
                gains = np.asarray(pull).T.copy()
                gains[np.arange(space.size), orders[i]] += SAME  # what is as good stays
                orders[i] = linear_sum_assignment(gains, maximize=True)[1]
            objectives.append(_objective(correlation, orders))
            if objectives[-1] - objectives[-2] <= _RISE * abs(objectives[-2]):
                break
        back = np.argsort(orders[alignment.reference])
        details = {"objective": objectives[-1], "sweeps": len(objectives) - 1}
        solutions[space.name] = [
            universe_solution(
                alignment, space, i, FeatureMap.permutation(orders[i][back].tolist()), details
            )
            for i in range(len(orders))
        ]
    return solutions


def _correlations(moments: Moments) -> dict[tuple[int, int], Array]:
    """Between any two models, both ways; zero where a feature is constant."""
    models = range(len(moments.dims))
    std = [np.sqrt(np.maximum(moments.cov(i).diagonal(), 0.0)) for i in models]
    found: dict[tuple[int, int], Array] = {}
    for i, j in itertools.combinations(models, 2):
        scale, block = np.outer(std[i], std[j]), moments.cov(i, j)
        found[i, j] = np.divide(block, scale, out=np.zeros_like(block), where=scale > 0)
        found[j, i] = found[i, j].T
    return found


def _objective(correlation: Mapping[tuple[int, int], Array], orders: Sequence[Array]) -> float:
    """The sum over all pairs of models of the correlations of what is matched."""
    pairs = itertools.combinations(range(len(orders)), 2)
    return float(sum(correlation[i, j][orders[i], orders[j]].sum() for i, j in pairs))
