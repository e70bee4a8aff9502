"""ZipIt! (Stoica et al., ICLR 2024): features merged wherever they correlate, also within a model.

Greedily, the two most correlated features of all models become one, until as many are left as the
reference has. A merged feature is the mean of its members, and what reads a member reads the merged
feature. So model ``i``'s weights enter the merged ones as ``M_i W_i U_i``, with column ``j`` of
``M_i^T`` the share ``1 / members(j)`` of each of its features in group ``j``, and ``U_i`` the
membership; they are summed. Merging here is the mean over N models of ``T_i^T W_i T_i^{-T}``, so
that ``T_i = N M_i^T``, and ``U_i^T`` stands for its inverse, which it is only where every group has
one feature of each model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ccamerge.core.moments import Moments
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.space import Space
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Array,
    Solution,
    Solutions,
    matched_correlations,
    register,
)
from ccamerge.methods.orders import SAME, models_in_order


def _fraction(value: float, name: str) -> None:
    """Raise ValueError for what is no part of a whole."""
    if not 0 <= value <= 1:
        message = f"{name} must be between 0 and 1, got {value}"
        raise ValueError(message)


@register("zipit", pairs="all", rectangular=True, limits={"alpha": _fraction, "beta": _fraction})
def zipit(alignment: Alignment, *, alpha: float = 0.3, beta: float = 0.125) -> Solutions:
    """Maps that merge groups of features, found greedily on the correlations of all models at once.

    No model is a reference: every one's map changes its features. The defaults are those of the
    published code. Weights other than equal ones scale merged features by what their members
    count, as there; repair gives them their variance back.

    Zipping up to a layer is a choice by spaces: ``{"layer1*": "zipit", "*": "average"}``. The
    paper's partial zip keeps the networks apart after that layer, as heads of one larger network.
    Here the result has the size of one: spaces that are not zipped are aligned by another method,
    or keep their basis ("average"), and their weights are averaged all the same.

    Parameters
    ----------
    alpha : factor on a feature's correlations each time that it is merged, unless it is merged with
        the same feature again; at 0, a merged feature takes no other feature of the models that it
        already has
    beta : budget of merges within each model, over the number of its features that have to go; at
        0 there are none, where the published code still allows one

    Raises
    ------
    ValueError
        If ``alpha`` or ``beta`` is not in 0..1.
    """
    _fraction(alpha, "alpha")
    _fraction(beta, "beta")
    # A merged feature counts as that of its first member's model: this must not hang on how the
    # models were given.
    order = models_in_order(alignment, first=alignment.reference)
    solutions = {}
    for space in alignment.spaces:
        moments = alignment.moments[space.name].subset(order)
        owners = np.repeat(np.arange(len(order)), moments.dims)
        # What is as similar stays where it is: so do duplicated and dead features.
        similarity = correlations(moments) + SAME * _alike(alignment, space, order)
        groups = zipped(similarity, owners, space.size, alpha, beta)
        row = _solutions(moments, owners, groups)
        solutions[space.name] = [row[order.index(i)] for i in range(len(order))]
    return solutions


def _alike(alignment: Alignment, space: Space, order: Sequence[int]) -> Array:
    """`Alignment.likeness` of the features of all models in an order; zero within each."""
    dims = [alignment.moments[space.name].dims[i] for i in order]
    blocks = [[np.zeros((a, b)) for b in dims] for a in dims]
    for i, j in itertools.combinations(range(len(order)), 2):
        blocks[i][j] = alignment.likeness(space, order[i], order[j]).numpy()
        blocks[j][i] = blocks[i][j].T
    return np.block(blocks)


def correlations(moments: Moments) -> Array:
    """Of the features of all models, one after the other.

    A constant feature correlates with none but other constant ones, with which it can be merged at
    no loss: there it is 1.
    """
    models = range(len(moments.dims))
    joint = np.block([[moments.cov(i, j) for j in models] for i in models])
    std = np.sqrt(np.maximum(joint.diagonal(), 0.0))
    scale = np.outer(std, std)
    constant = std == 0
    alike = np.outer(constant, constant).astype(np.float64)
    return np.asarray(np.divide(joint, scale, out=alike, where=scale > 0))


def zipped(
    correlation: Array, owners: np.ndarray[Any, Any], count: int, alpha: float, beta: float
) -> np.ndarray[Any, Any]:
    """Merge features greedily until ``count`` are left.

    Parameters
    ----------
    correlation : (n, n), symmetric
    owners : (n,) the model of each feature, ascending
    count : of groups wanted
    alpha, beta : see `zipit`

    Returns
    -------
    For each feature its group in 0..count - 1, by first members.

    Notes
    -----
    The similarity of two groups is the least of their features' (complete linkage), times ``alpha``
    for each merge that formed them and cost something: features that correlate fully, as copies of
    a network do, are one, and stay so however many there are. A merge counts as within a model if
    both groups' first members are of that model; once its budget is spent, none of these is
    allowed. If nothing allowed is
    left, what is nearest is merged.
    """
    n = len(correlation)
    similarity = correlation.copy()
    np.fill_diagonal(similarity, -np.inf)
    group = np.arange(n)  # first member of each feature's group
    models = int(owners[-1]) + 1
    budget = np.full(models, int((n - count) // models * beta + 1e-4))
    for model in np.flatnonzero(budget == 0):
        _forbid(similarity, owners == model)
    partner = similarity.argmax(1)
    best = similarity[np.arange(n), partner]
    for left in range(n, count, -1):
        a = int(best.argmax())
        if best[a] == -np.inf:
            return _nearest(correlation, group, left, count)
        keep, gone = sorted((a, int(partner[a])))
        group[group == gone] = keep
        joined = np.minimum(similarity[keep], similarity[gone])
        if alpha > 0:
            joined = np.where(joined < 1 - SAME, alpha * joined, joined)
        else:
            # By first members: the least of the similarities remembers the models of the others.
            joined[(owners == owners[keep]) | (owners == owners[gone])] = -np.inf
        joined[[keep, gone]] = -np.inf
        similarity[keep] = similarity[:, keep] = joined
        similarity[gone] = similarity[:, gone] = -np.inf
        # Rows keep their best partner unless it changed: no search of the whole matrix.
        stale = (partner == keep) | (partner == gone)
        better = (joined > best) | ((joined == best) & (keep < partner))
        partner[better], best[better] = keep, joined[better]
        stale[[keep, gone]] = True
        if owners[keep] == owners[gone]:
            budget[owners[keep]] -= 1
            if budget[owners[keep]] == 0:
                own = owners == owners[keep]
                _forbid(similarity, own)
                stale |= own
        rows = np.flatnonzero(stale)
        partner[rows] = similarity[rows].argmax(1)
        best[rows] = similarity[rows, partner[rows]]
    return np.unique(group, return_inverse=True)[1]


def _forbid(similarity: Array, chosen: np.ndarray[Any, Any]) -> None:
    similarity[np.ix_(chosen, chosen)] = -np.inf


def _nearest(
    correlation: Array, group: np.ndarray[Any, Any], left: int, count: int
) -> np.ndarray[Any, Any]:
    """Go on from ``left`` groups with nothing forbidden and no discount."""
    names, index = np.unique(group, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(left))
    linkage = correlation[np.ix_(order, order)]
    for axis in (0, 1):
        linkage = np.minimum.reduceat(linkage, starts, axis=axis)
    single = np.zeros(len(names), dtype=np.int64)  # as if of one model that may merge all it has
    return zipped(linkage, single, count, 1.0, 1.0)[index]


def _solutions(
    moments: Moments,
    owners: np.ndarray[Any, Any],
    groups: np.ndarray[Any, Any],
) -> list[Solution]:
    """Maps from groups; correlations are those of what the first and each contribute to a group."""
    models = len(moments.dims)
    member = np.equal.outer(groups, np.arange(groups.max() + 1)).astype(np.float64)
    share = models * member / member.sum(0)
    forwards = [np.ascontiguousarray(share[owners == i]) for i in range(models)]
    present = np.array([member[owners == i].any(0) for i in range(models)])
    base = forwards[0]
    own = base.T @ moments.cov(0) @ base
    solutions = []
    for i, forward in enumerate(forwards):
        feature_map = FeatureMap(
            torch.from_numpy(forward),
            torch.from_numpy(np.ascontiguousarray(member[owners == i].T)),
        )
        cross = base.T @ moments.cov(0, i)
        problem = AlignmentProblem("", own, moments.cov(i), cross)
        details = {
            "shared": int((present[i] & (present.sum(0) > 1)).sum()),
            "within": int(moments.dims[i] - present[i].sum()),
        }
        solutions.append(Solution(feature_map, matched_correlations(problem, forward), details))
    return solutions
