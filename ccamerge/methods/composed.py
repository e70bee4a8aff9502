"""All models aligned with each other: maps through one space that no model owns.

The solver is `ccamerge.universe_batch`; for two models its map is that of `cca`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ccamerge.core.determined import determined, projected
from ccamerge.core.moments import Moments
from ccamerge.core.scratch import most
from ccamerge.core.universes import UniverseResult, universe_batch
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.space import Space
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Solution,
    Solutions,
    matched_correlations,
)
from ccamerge.methods.orders import matched_orders, models_in_order

Order = np.ndarray[tuple[int], np.dtype[np.intp]]

_BYTES = 2**30
"""Spaces are solved together as long as their moments take no more than this."""


def orthogonal_universe(alignment: Alignment, *, whitened: bool) -> Solutions:
    """Maps by the module's head; without whitening they are rotations (Procrustes).

    Directions that do not vary leave maps undetermined; the solver completes them as near the
    identity as it can, which pairs dead units with dead ones once all models' features are in the
    order that matches one model's. That model is the one that correlates the most with all others,
    and not the reference, so that the merged network is the same for every reference and in
    whatever order the models are given. Where a model's features are constant, all models keep
    their basis.
    """
    solutions: Solutions = {}
    batch: list[Space] = []
    size = 0
    turns = models_in_order(alignment)
    for space in alignment.spaces:
        own = 8 * (len(alignment.states) * space.size) ** 2 // 2
        if batch and size + own > most(_BYTES, 1 / 8):
            solutions |= _solve(alignment, batch, turns, whitened)
            batch, size = [], 0
        batch.append(space)
        size += own
    if batch:
        solutions |= _solve(alignment, batch, turns, whitened)
    return solutions


def _solve(
    alignment: Alignment, spaces: list[Space], turns: list[int], whitened: bool
) -> Solutions:
    """The maps of some spaces, from the models in the order ``turns``."""
    constant = [space for space in spaces if _constant(alignment.moments[space.name])]
    if constant:
        unmoved = dataclasses.replace(alignment, spaces=constant).identities()
        others = [space for space in spaces if space.name not in unmoved]
        return unmoved | (_solve(alignment, others, turns, whitened) if others else {})
    orders = {s.name: matched_orders(alignment, s, turns[0]) for s in spaces}
    problems, weights = [], []
    for space in spaces:
        moments, order = alignment.moments[space.name], orders[space.name]
        covs = [moments.cov_tensor(i) for i in range(len(turns))]
        parts = [determined(cov, moments.count, alignment.rounding) for cov in covs]
        own = [_at(covs[i], order[i], order[i]) for i in turns]
        crosses = []
        for i, j in itertools.combinations(turns, 2):
            # Laid out alike whichever of the two came first: rounding is the same then, too.
            cross = moments.cov_tensor(i, j).contiguous()
            crosses.append(_at(projected(cross, parts[i], parts[j]), order[i], order[j]))
        problems.append((own, crosses))
        given = alignment.weights.get(space.name)
        weights.append(None if given is None else [given[i] for i in turns])
    by_gamma = alignment.gamma is not None or not alignment.ridges
    ridges = None if by_gamma or not whitened else [alignment.ridges[s.name] for s in spaces]
    try:
        found = universe_batch(
            problems,
            ridge=ridges,
            gamma=alignment.gamma if by_gamma and whitened else None,
            whitened=whitened,
            weights=weights,
            reference=turns.index(alignment.reference),
            device=alignment.device or "cpu",
        )
    except np.linalg.LinAlgError as error:
        names = "; ".join(f"problems[{i}] is space {s.name!r}" for i, s in enumerate(spaces))
        message = f"{error} ({names}; models in the order {', '.join(map(str, turns))})"
        raise np.linalg.LinAlgError(message) from error
    return {
        space.name: _solutions(alignment, space, orders[space.name], turns, result)
        for space, result in zip(spaces, found, strict=True)
    }


def _constant(moments: Moments) -> bool:
    """Whether the features of a model do not vary at all: nothing then says how to map them."""
    return any(not moments.cov_tensor(i).trace() > 0 for i in range(len(moments.dims)))


def _solutions(
    alignment: Alignment,
    space: Space,
    order: list[Order],
    turns: list[int],
    result: UniverseResult,
) -> list[Solution]:
    """Each model's map, with features and models back in their own order."""
    r, back = alignment.reference, [np.argsort(o) for o in order]
    row = []
    for i in range(len(order)):
        turn = turns.index(i)
        feature_map = FeatureMap(
            _at(torch.as_tensor(result.maps[turn]), back[i], back[r]),
            _at(torch.as_tensor(result.inverses[turn]), back[r], back[i]),
        )
        details = {
            "objective": result.objectives[-1],
            "sweeps": result.sweeps,
            "converged": "yes" if result.converged else "no: the sweeps ran out",
            "rank": result.rank,
            "start": "spectral" if result.spectral else f"aligned with models[{turns[0]}]",
        }
        if result.conditions:
            conditions = (result.conditions[turns.index(k)] for k in (i, r))
            details["condition"] = max(conditions)
        row.append(universe_solution(alignment, space, i, feature_map, details))
    return row


def _at(matrix: Tensor, rows: Order, columns: Order) -> Tensor:
    """The matrix with rows and columns in some order."""
    first, second = (torch.from_numpy(o).to(matrix.device) for o in (rows, columns))
    return matrix[first][:, second]


def universe_solution(
    alignment: Alignment,
    space: Space,
    model: int,
    feature_map: FeatureMap,
    details: Mapping[str, float | int | str],
) -> Solution:
    """A map with its correlations to the reference; the reference's own is the identity."""
    if model == alignment.reference:
        return Solution(FeatureMap.identity(space.size, feature_map.forward.device))
    moments, r = alignment.moments[space.name], alignment.reference
    own, cross = moments.cov_tensor(model), moments.cov_tensor(r, model)
    problem = AlignmentProblem("", moments.cov_tensor(r), own, cross)
    rho = matched_correlations(problem, feature_map.forward)
    return Solution(feature_map, rho, dict(details))
