"""Batched float64 solves for all models at once: maps that agree however one goes round.

`cca` aligns one model with another; here all pairs of ``N`` models count, and the maps between them
lead through one space that none of them owns. They compose: ``T_ij @ T_jk = T_ik``. Input, devices
and regularisation are as in `ccamerge.core.canonical`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.solver import Array, Solver, prefixes_of, regularisers

if TYPE_CHECKING:
    from ccamerge.core.device import DeviceLike


__all__ = ["UniverseResult", "universe", "universe_batch"]


@dataclass(frozen=True, repr=False)
class UniverseResult(Brief):
    """One solved feature space of N models.

    Attributes
    ----------
    maps : for each model (d_i, d_r); its row features times it approximate the reference's
    inverses : for each model (d_r, d_i); from the reference's features to its own
    objectives : weighted sum of the pairs' agreement, before the first sweep of the ascent and
        after each
    conditions : estimated condition numbers of the regularised covariances, 1-norm; without
        whitening there are none
    rank : how many directions of every model are determined by the others; at most the least width
    spectral : whether the start was spectral, else the alignment with the first of the narrowest
    converged : whether the last sweep added no more than the tolerance; else max_sweeps ended the
        ascent
    """

    maps: list[Array]
    inverses: list[Array]
    objectives: list[float]
    conditions: list[float]
    rank: int
    spectral: bool
    converged: bool

    @property
    def sweeps(self) -> int:
        """Passes over the models that the ascent took."""
        return len(self.objectives) - 1


def universe(
    own: Sequence[Any],
    crosses: Sequence[Any],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    whitened: bool = True,
    weights: Sequence[float] | None = None,
    reference: int = 0,
    tolerance: float = 1e-9,
    max_sweeps: int = 200,
    device: DeviceLike | None = None,
) -> UniverseResult:
    """Align N models with each other and return the maps to one of them.

    Parameters
    ----------
    own : (d_i, d_i) symmetric second moments ``S_ii`` of each model's features, N >= 2
    crosses : (d_i, d_j) cross moments ``S_ij`` of every pair i < j, in the order of
        ``itertools.combinations``: (0, 1), (0, 2), ..., (N-2, N-1)
    ridge, gamma : regularisation, not negative; see `ccamerge.core.canonical`. Default none.
    whitened : if false the maps are rotations (generalised orthogonal Procrustes), and nothing is
        regularised
    weights : (N,) of the models, not negative, default equal; only their ratios count. A model of
        weight zero is aligned with the others and does not pull at them.
    reference : the model that the maps lead to; the solution is the same for all
    tolerance : the ascent ends when a sweep adds no more than this share of the objective
    max_sweeps : of the ascent
    device : as for `ccamerge.cca`

    Returns
    -------
    UniverseResult

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `cca` does; messages name the model.

    Notes
    -----
    With Cholesky factors ``C_i = L_i L_i^T`` and ``K_ij = L_i^-1 S_ij L_j^-T``, orthogonal ``Q_i``
    maximise ``sum_{i<j} w_i w_j tr(Q_i^T K_ij Q_j)``. That minimises the weighted squared distance
    of the models' whitened features from their weighted mean, since
    ``sum_i w_i |x_i - m|^2 = sum_{i<j} w_i w_j |x_i - x_j|^2`` for weights that sum to one.
    ``T_i = L_i^-T Q_i Q_r^T L_r^T``; for two models this is the map of `cca`. Models of unequal
    widths share a universe of the least width, and their maps have that rank.

    The problem has local maxima; the start is spectral (approximate leading eigenvectors of the
    matrix of all blocks) where that is determined and better than the alignment with one model.
    A sweep costs ``N (N - 1)`` products of d x d matrices and N polar factors.

    Sources: ten Berge, Psychometrika 42 (1977); Kettenring, Biometrika 58 (1971).
    """
    own = arguments.items(own, "own", "a list of matrices")
    crosses = arguments.items(crosses, "crosses", "a list of matrices")
    solver = Solver(device, [*own, *crosses])
    return _solve(
        solver,
        [(own, crosses)],
        [""],
        ridge,
        gamma,
        whitened,
        [weights],
        reference,
        tolerance,
        max_sweeps,
    )[0]


def universe_batch(
    problems: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    *,
    ridge: float | Sequence[float] | None = None,
    gamma: float | None = None,
    whitened: bool = True,
    weights: Sequence[Sequence[float] | None] | None = None,
    reference: int = 0,
    tolerance: float = 1e-9,
    max_sweeps: int = 200,
    device: DeviceLike | None = None,
) -> list[UniverseResult]:
    """Solve many feature spaces in one native call, on the core's threads.

    Parameters
    ----------
    problems : (own, crosses) each, as for `universe`; the number of models and widths may differ
    ridge : as for `universe`, or one for each problem
    weights : for each problem as for `universe`, default equal
    gamma, whitened, reference, tolerance, max_sweeps, device : as for `universe`

    Returns
    -------
    list of UniverseResult

    Raises
    ------
    As `universe` does; messages start with the problem, as in ``problems[3]: models[1]``.
    """
    problems = arguments.items(problems, "problems", "a list of tuples (own, crosses)")
    prefixes = prefixes_of("problems", problems, 2)
    each = "a list with the weights of each problem"
    given = [None] * len(problems) if weights is None else arguments.items(weights, "weights", each)
    if len(given) != len(problems):
        message = f"weights must be given for all {len(problems)} problems, got {len(given)}"
        raise ValueError(message)
    solver = Solver(device, (m for problem in problems for side in problem for m in side))
    return _solve(
        solver, problems, prefixes, ridge, gamma, whitened, given, reference, tolerance, max_sweeps
    )


def _solve(
    solver: Solver,
    problems: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    prefixes: list[str],
    ridge: float | Sequence[float] | None,
    gamma: float | None,
    whitened: bool,
    weights: Sequence[Sequence[float] | None],
    reference: int,
    tolerance: float,
    max_sweeps: int,
) -> list[UniverseResult]:
    whitened = arguments.flag(whitened, "whitened")
    reference = arguments.integer(reference, "reference")
    tolerance = arguments.number(tolerance, "tolerance")
    max_sweeps = arguments.integer(max_sweeps, "max_sweeps")
    values, absolute = _values(ridge, gamma, whitened, len(problems))
    if not (math.isfinite(tolerance) and tolerance >= 0):
        message = f"tolerance must be finite and not negative, got {tolerance}"
        raise ValueError(message)
    if max_sweeps < 1:
        message = f"max_sweeps must be at least 1, got {max_sweeps}"
        raise ValueError(message)
    arrays = [
        (*_matrices(solver, own, crosses, prefix), _model_weights(shares, len(own), prefix), value)
        for (own, crosses), prefix, shares, value in zip(
            problems, prefixes, weights, values, strict=True
        )
    ]
    for (own, *_), prefix in zip(arrays, prefixes, strict=True):
        if not 0 <= reference < len(own):
            message = f"{prefix}reference must be one of the {len(own)} models, got {reference}"
            raise ValueError(message)
    found = solver.run(
        "solve_universe_batch", arrays, prefixes, absolute, reference, tolerance, max_sweeps
    )
    return [UniverseResult(*fields) for fields in found]


def _values(
    ridge: float | Sequence[float] | None, gamma: float | None, whitened: bool, count: int
) -> tuple[list[float] | list[None], bool]:
    """The regulariser of each problem, None without whitening, and whether it is absolute."""
    if not whitened:
        if ridge is not None or gamma is not None:
            message = "ridge and gamma regularise the whitening: leave them out without it"
            raise ValueError(message)
        return [None] * count, False
    if np.ndim(gamma) > 0:  # type: ignore[arg-type]
        message = "gamma must be a number, got a sequence"
        raise TypeError(message)
    if count == 0:
        return [], False
    values, absolute, several = regularisers(ridge, gamma)
    if several and len(values) != count:
        message = f"ridge must be a number or one for each of {count} problems, got {len(values)}"
        raise ValueError(message)
    return (values if several else values * count), absolute


def _matrices(
    solver: Solver, own: Sequence[Any], crosses: Sequence[Any], prefix: str
) -> tuple[list[Array], list[Array]]:
    """Both as float64, with shapes that match."""
    if len(own) < 2:
        message = f"{prefix}own must hold at least 2 models, got {len(own)}"
        raise ValueError(message)
    pairs = list(itertools.combinations(range(len(own)), 2))
    if len(crosses) != len(pairs):
        message = f"{prefix}crosses must hold the {len(pairs)} pairs of models, got {len(crosses)}"
        raise ValueError(message)
    squares = [solver.square(s, f"{prefix}models[{i}]") for i, s in enumerate(own)]
    blocks = []
    for (i, j), cross in zip(pairs, crosses, strict=True):
        name = f"{prefix}models[{i}] with models[{j}]"
        block = solver.matrix(cross, name)
        if block.shape != (len(squares[i]), len(squares[j])):
            expected = (len(squares[i]), len(squares[j]))
            message = f"{name} must have shape {expected}, got {tuple(block.shape)}"
            raise ValueError(message)
        blocks.append(block)
    return squares, blocks


def _model_weights(weights: Sequence[float] | None, models: int, prefix: str) -> list[float]:
    if weights is None:
        return [1.0] * models
    expected = f"a list of {models} numbers, one for each model"
    every = arguments.items(weights, f"{prefix}weights", expected)
    found = [arguments.number(w, f"{prefix}weights[{i}]") for i, w in enumerate(every)]
    fine = len(found) == models and all(math.isfinite(w) and w >= 0 for w in found)
    if not fine or not sum(found) > 0:
        message = (
            f"{prefix}weights must be {models} numbers, finite and not negative, some positive; "
            f"got {found}"
        )
        raise ValueError(message)
    return found
