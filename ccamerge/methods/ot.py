"""OT Fusion (Singh & Jaggi, NeurIPS 2020) on activations: features matched by optimal transport."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Array,
    Solution,
    Solutions,
    matched_correlations,
    register,
)
from ccamerge.methods.orders import SAME

_ITERATIONS = 10_000
"""Of Sinkhorn's algorithm at most."""


def _pot() -> Any:
    """The package POT, imported when it is needed."""
    try:
        import ot as pot
    except ImportError as error:
        message = (
            "method 'ot' needs the package POT: pip install 'ccamerge[ot]', or pip install pot"
        )
        raise ImportError(message) from error
    return pot


def _not_negative(value: float, name: str) -> None:
    """Raise ValueError for a negative number, or one that is not finite."""
    if not (math.isfinite(value) and value >= 0):
        message = f"{name} must be a finite number >= 0, got {value}"
        raise ValueError(message)


@register("ot", rectangular=True, local=True, ready=_pot, limits={"entropy": _not_negative})
def ot(alignment: Alignment, *, entropy: float = 0.0, standardize: bool = False) -> Solutions:
    """Maps from the transport plan that moves features the shortest way, masses being equal.

    Parameters
    ----------
    entropy : regulariser of the plan over the mean cost; 0 gives the exact plan, which between
        equal widths is a permutation
    standardize : give features unit variance first, so that all count alike; as they are, those
        that vary most decide

    Raises
    ------
    ImportError
        Without the package POT.
    ValueError
        For an ``entropy`` that is negative or not finite.
    """
    _not_negative(entropy, "entropy")
    return alignment.each_pair(
        lambda problems: [transport(p, entropy, standardize) for p in problems]
    )


def transport(
    problem: AlignmentProblem, entropy: float = 0.0, standardize: bool = False
) -> Solution:
    """The map of one problem; widths may differ.

    With the plan ``P`` (p, q), reference feature ``a`` is read as the mean of own features weighted
    by row ``a`` (the barycentric projection), own feature ``b`` as that of the reference's weighted
    by column ``b``. Between equal widths the two are transposes of each other.
    """
    cost = distances(problem, standardize)
    if entropy == 0 or not cost.any():
        plan = _exact_plan(_in_place(problem, cost, _squares(problem, standardize)))
    else:
        plan = _entropic_plan(problem.name, cost, entropy)
    forward = (plan / plan.sum(1, keepdims=True)).T
    inverse = plan / plan.sum(0, keepdims=True)
    return Solution(
        FeatureMap(torch.from_numpy(forward.copy()), torch.from_numpy(inverse)),
        matched_correlations(problem, forward),
    )


def distances(problem: AlignmentProblem, standardize: bool = False) -> Array:
    """``E |x_a - y_b|^2`` (p, q) of centred features, never negative."""
    a, b, cross = problem.reference.diagonal(), problem.own.diagonal(), problem.cross
    if standardize:
        scale = np.sqrt(np.outer(np.maximum(a, 0.0), np.maximum(b, 0.0)))
        cross = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    squared: Array = _squares(problem, standardize) - 2 * cross
    return np.maximum(squared, 0.0)


def _squares(problem: AlignmentProblem, standardize: bool) -> Array:
    """``E |x_a|^2 + E |y_b|^2`` (p, q) of centred features."""
    a, b = (np.maximum(m.diagonal(), 0.0) for m in (problem.reference, problem.own))
    if standardize:  # a constant feature is zero then, at distance 1 from any other
        a, b = (np.asarray(v > 0, dtype=np.float64) for v in (a, b))
    return np.asarray(np.add.outer(a, b))


def _in_place(problem: AlignmentProblem, cost: Array, squares: Array) -> Array:
    """Costs that are a trifle higher the less two features are alike: that decides what is as good.

    So duplicated and dead features stay where they are. The trifle is relative to each pair's own
    ``squares``.
    """
    least = 1e-12 * float(squares.mean()) or 1.0
    alike = np.eye(*cost.shape) if problem.likeness is None else problem.likeness().numpy()
    moved: Array = cost + (SAME * squares + least) * (1 - alike)
    return moved


def _exact_plan(cost: Array) -> Array:
    """Masses (p, q) moved from reference features to own ones."""
    p, q = cost.shape
    # Whole numbers as masses: the simplex adds and subtracts them without rounding.
    exact: Array = _pot().emd(np.full(p, float(q)), np.full(q, float(p)), cost)
    return exact


def _entropic_plan(name: str, cost: Array, entropy: float) -> Array:
    """As `_exact_plan`, blurred."""
    pot = _pot()
    p, q = cost.shape
    plan, log = pot.sinkhorn(
        np.full(p, 1 / p),
        np.full(q, 1 / q),
        cost,
        entropy * cost.mean(),
        method="sinkhorn_log",  # small regularisers underflow otherwise
        numItermax=_ITERATIONS,
        warn=False,
        log=True,
    )
    if log["err"] and log["err"][-1] > 1e-6:
        message = (
            f"{name}: the transport plan still has an error of {log['err'][-1]:.0e} after "
            f"{_ITERATIONS} iterations; a larger entropy than {entropy} converges sooner"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    entropic: Array = np.asarray(plan)
    return entropic
