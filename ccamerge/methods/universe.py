"""All models aligned with each other: maps through one space that no model owns.

Whitened cross-covariances ``K_ij`` of all pairs are matched by orthogonal ``Q_i`` that maximise
``sum_{i<j} tr(Q_i^T K_ij Q_j)``, the MAXBET problem (ten Berge 1977). The start is spectral, the
top eigenvectors of the matrix of all blocks (MAXVAR, Kettenring 1971) rounded to orthogonal blocks;
then ``Q_i <- polar(sum_{j != i} K_ij Q_j)``, block by block, never lowers the objective. The map to
model ``r`` is ``T_i = W_i Q_i Q_r^T W_r^{-1}`` with the whitening ``W``, so that maps compose:
``T_ij T_jk = T_ik``. For two models it is CCA Merge's map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ccamerge.apply import FeatureMap
from ccamerge.graph.spaces import Space
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Array,
    Solution,
    Solutions,
    matched_correlations,
)
from ccamerge.methods.orders import best_order
from ccamerge.solve import generalized_eigh_batch, polar_batch, whiten

SPECTRAL = 4096
"""Order of the matrix of all blocks up to which the start is spectral; beyond it is the alignment
with the reference, which needs no more memory than the blocks."""

SWEEPS = 200
"""Of the ascent at most."""

_RISE = 1e-11
"""The ascent ends when a sweep adds less than this share of the objective."""


@dataclasses.dataclass
class Blocks:
    """One space of all models: ``cross(i, j)`` (d, d) for ``i < j``, and what the ascent found.

    ``turns`` are the orthogonal ``Q_i``, ``objectives`` those before the first and after each
    sweep.
    """

    cross: dict[tuple[int, int], Array]
    models: int
    reference: int
    turns: list[Array] = dataclasses.field(default_factory=list)
    objectives: list[float] = dataclasses.field(default_factory=list)

    def pull(self, i: int) -> Array:
        """What the other models want ``Q_i`` to be: ``sum_{j != i} K_ij Q_j``."""
        total = np.zeros_like(self.turns[i])
        for j in range(self.models):
            if j != i:
                block = self.cross[i, j] if i < j else self.cross[j, i].T
                total += block @ self.turns[j]
        return total

    def objective(self) -> float:
        """The sum over all pairs."""
        return float(
            sum(((self.turns[i].T @ k) * self.turns[j].T).sum() for (i, j), k in self.cross.items())
        )


def orthogonal_universe(alignment: Alignment, *, whitened: bool) -> Solutions:
    """Maps by the module's head; without whitening they are rotations (Procrustes)."""
    orders = {s.name: matched_orders(alignment, s) for s in alignment.spaces}
    sides: dict[str, list[tuple[Array, Array, float]]] = {}
    problems: list[Blocks] = []
    for space in alignment.spaces:
        moments, order = alignment.moments[space.name], orders[space.name]
        count = range(len(alignment.states))
        own = [moments.cov(i)[np.ix_(order[i], order[i])] for i in count]
        sides[space.name] = [_whitening(alignment, space, i, own[i], whitened) for i in count]
        whitenings = [w for w, _, _ in sides[space.name]]
        cross = {
            (i, j): whitenings[i].T @ moments.cov(i, j)[np.ix_(order[i], order[j])] @ whitenings[j]
            for i in count
            for j in count
            if i < j
        }
        problems.append(Blocks(cross, len(count), alignment.reference))
    start(problems)
    ascend(problems)
    solutions: Solutions = {}
    for space, problem in zip(alignment.spaces, problems, strict=True):
        row, order = sides[space.name], orders[space.name]
        r = alignment.reference
        solutions[space.name] = []
        for i, turn in enumerate(problem.turns):
            to = turn @ problem.turns[r].T
            forward, inverse = row[i][0] @ to @ row[r][1], row[r][0] @ to.T @ row[i][1]
            undone, undone_r = np.argsort(order[i]), np.argsort(order[r])
            feature_map = FeatureMap.identity(space.size)
            if i != r:
                feature_map = FeatureMap(
                    torch.from_numpy(forward[np.ix_(undone, undone_r)]),
                    torch.from_numpy(inverse[np.ix_(undone_r, undone)]),
                )
            details = {
                "objective": problem.objectives[-1],
                "sweeps": len(problem.objectives) - 1,
            }
            if whitened:
                details["condition"] = max(row[i][2], row[r][2])
            solutions[space.name].append(_solution(alignment, space, i, feature_map, details))
    return solutions


def permutation_universe(alignment: Alignment) -> Solutions:
    """Cycle-consistent permutations, in the spirit of C2M3 (Crisostomi et al., NeurIPS 2024).

    ``P_i <- `` the assignment that maximises ``tr(P_i^T sum_{j != i} R_ij P_j)`` with correlations
    ``R``, from the matching with the reference, until no sweep adds to the sum over all pairs.
    """
    solutions: Solutions = {}
    for space in alignment.spaces:
        moments = alignment.moments[space.name]
        count = len(alignment.states)
        orders = matched_orders(alignment, space)
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
            for i in range(count):
                pull = sum(
                    (correlation[i, j] if i < j else correlation[j, i].T)[:, orders[j]]
                    for j in range(count)
                    if j != i
                )
                orders[i] = linear_sum_assignment(np.asarray(pull).T, maximize=True)[1]
        back = np.argsort(orders[alignment.reference])
        details = {"objective": objectives[-1], "sweeps": len(objectives) - 1}
        solutions[space.name] = [
            _solution(
                alignment, space, i, FeatureMap.permutation(orders[i][back].tolist()), details
            )
            for i in range(count)
        ]
    return solutions


def matched_orders(
    alignment: Alignment, space: Space
) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """For each model, the feature that matches each one of the reference by correlation.

    Directions that do not vary leave maps undetermined; the solver completes them as near the
    identity as it can, which pairs dead units with dead ones only in this order.
    """
    moments, r = alignment.moments[space.name], alignment.reference
    orders = [np.arange(space.size) for _ in alignment.states]
    for i in range(len(orders)):
        if i != r:
            problem = AlignmentProblem("", moments.cov(r), moments.cov(i), moments.cov(r, i))
            orders[i] = best_order(problem)
    return orders


def start(problems: Sequence[Blocks]) -> None:
    """Set the ``turns`` of each problem: spectral where that determines them, else the reference's.

    The matrix of all blocks says nothing of directions that correlate with no other model's, such
    as dead units; the alignment with the reference leaves them where they are.
    """
    for problem in problems:
        r, size = problem.reference, len(next(iter(problem.cross.values())))
        problem.turns = [np.eye(size) for _ in range(problem.models)]
        others = [i for i in range(problem.models) if i != r]
        blocks = [problem.cross[i, r] if i < r else problem.cross[r, i].T for i in others]
        factors = polar_batch(blocks)
        for i, factor in zip(others, factors, strict=True):
            problem.turns[i] = factor.q
        full = all(factor.rank == size for factor in factors)
        if problem.models == 2 or not full or problem.models * size > SPECTRAL:
            continue
        order = problem.models * size
        joint = np.zeros((order, order))
        for (i, j), block in problem.cross.items():
            rows, columns = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
            joint[rows, columns], joint[columns, rows] = block, block.T
        ((_, vectors),) = generalized_eigh_batch([(joint, np.eye(order))], k=size)
        rounded = polar_batch(np.split(vectors, problem.models))
        by_reference, reached = problem.turns, problem.objective()
        problem.turns = [factor.q for factor in rounded]
        if problem.objective() < reached or any(f.rank < size for f in rounded):
            problem.turns = by_reference


def ascend(problems: Sequence[Blocks]) -> None:
    """Block polar ascent of all problems together, a native call for each model in turn."""
    active = list(problems)
    for problem in active:
        problem.objectives = [problem.objective()]
    for _ in range(SWEEPS):
        for i in range(max((p.models for p in active), default=0)):
            own = [p for p in active if i < p.models]
            for problem, factor in zip(own, polar_batch([p.pull(i) for p in own]), strict=True):
                problem.turns[i] = factor.q
        for problem in active:
            problem.objectives.append(problem.objective())
        active = [
            p for p in active if p.objectives[-1] - p.objectives[-2] > _RISE * abs(p.objectives[-1])
        ]
        if not active:
            return


def _whitening(
    alignment: Alignment, space: Space, model: int, own: Array, whitened: bool
) -> tuple[Array, Array, float]:
    """``W`` with ``W^T C W = I``, its inverse and the condition of ``C``."""
    size = len(own)
    if not whitened:
        return np.eye(size), np.eye(size), 1.0
    ridge = alignment.ridges.get(space.name)
    gamma = alignment.gamma if ridge is None else ridge * own.trace() / size
    regularised = own + (gamma or 0.0) * np.eye(size)
    try:
        result = whiten(regularised)
    except np.linalg.LinAlgError as error:
        message = f"space {space.name!r}, models[{model}]: {error}"
        raise np.linalg.LinAlgError(message) from error
    return result.w, result.w.T @ regularised, result.condition


def _solution(
    alignment: Alignment,
    space: Space,
    model: int,
    feature_map: FeatureMap,
    details: dict[str, float | int],
) -> Solution:
    if model == alignment.reference:
        return Solution(FeatureMap.identity(space.size))
    moments, r = alignment.moments[space.name], alignment.reference
    problem = AlignmentProblem("", moments.cov(r), moments.cov(model), moments.cov(r, model))
    rho = matched_correlations(problem, feature_map.forward.numpy())
    return Solution(feature_map, rho, dict(details))
