"""How alike models are: the share of the reference's variance that another's features explain.

Canonical correlations count every direction alike, however little features vary in it, and fall
with the ridge. What a merged network can keep of a model's features is told by their variance: the
coefficient of determination R2 of the reference's features, all together, from the model's. It
follows from moments, so that no data is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ccamerge.collection.statistics import Statistics
from ccamerge.core.moments import Moments
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.space import Space

RIDGES = (1e-4, 1e-2, 1.0)
"""Of the linear map, relative to the mean variance of the model's features; the best one counts.
The first is above the rounding of float32 products for any width below 40,000."""

_FREEDOM = 0.9
"""Degrees of freedom per sample up to which one fold says what others would."""


@dataclasses.dataclass(frozen=True)
class Explained:
    """R2 of the reference's features in a space from another model's.

    ``by_best`` is that of the best linear map on data that it was not made from, 0 or more, and
    ``by_map`` that of the map which the model is aligned by, on all data: 1 where the two agree,
    below 0 where zeros would be nearer. NaN where nothing can be said.
    """

    by_best: float
    by_map: float


def explained_variance(
    space: Space, collected: Statistics, maps: Sequence[FeatureMap], reference: int
) -> list[Explained]:
    """How much of the reference's features in a space each other model's explain.

    Parameters
    ----------
    space : of the reference
    collected : statistics of the models
    maps : of each model's features to the reference's, where the moments are
    reference : the model whose features are to be explained

    Returns
    -------
    One for each model but the reference, in their order.
    """
    whole = collected.pooled(space)
    others = [model for model in range(collected.models) if model != reference]
    if not whole.count:
        return [Explained(math.nan, math.nan) for _ in others]
    best = linear_r2(space, collected, reference)
    return [
        Explained(value, _by_map(whole, maps, model, reference))
        for model, value in zip(others, best, strict=True)
    ]


def linear_r2(
    space: Space, collected: Statistics, reference: int, ridges: Sequence[float] = RIDGES
) -> list[float]:
    """R2 of the reference's features from each other model's by the best linear map.

    The map is fitted to all folds but one, by ridge regression, and judged on that one; errors of
    all folds are added. Where only one fold holds data its own errors count, divided by
    ``(1 - freedom / samples)^2`` (generalised cross-validation: Golub, Heath & Wahba,
    Technometrics 21, 1979), which takes samples for independent. The zero map is among those that
    are tried.

    Parameters
    ----------
    space : of the reference
    collected : statistics of the models
    reference : the model whose features are to be explained
    ridges : to try, each times the mean variance of the model's features

    Returns
    -------
    One for each model but the reference: from 0 to 1; NaN where the reference's features are
    constant, or one fold has too few samples.

    Notes
    -----
    A Cholesky factor and two products for each model, fold and ridge: some ``4.3 d^3`` operations.
    """
    folds = [fold for fold in collected.matched[space.name] if fold.count]
    others = [model for model in range(collected.models) if model != reference]
    if len(folds) == 1:
        variance = float(folds[0].cov_tensor(reference).trace())
        errors = [_cross_validated(folds[0], reference, model, ridges) for model in others]
    else:
        variance, errors = _held_out(space, collected, reference, others, ridges)
    return [
        max(0.0, 1 - min(row) / variance) if row and variance > 0 else math.nan for row in errors
    ]


def squared_error(wanted: Tensor, own: Tensor, cross: Tensor, forward: Tensor) -> Tensor:
    """``E |x - y T|^2`` of centred x and y from covariances; ``cross`` (p, q) with rows of x."""
    explained = 2 * (cross * forward.T).sum()
    mapped = (forward * (own @ forward)).sum()
    return wanted.trace() + mapped - explained


def _held_out(
    space: Space,
    collected: Statistics,
    reference: int,
    others: Sequence[int],
    ridges: Sequence[float],
) -> tuple[float, list[list[float]]]:
    """The variance on folds left out in turn, and for each model and ridge the error there."""
    variance: Tensor | float = 0.0
    errors: list[list[Tensor | float]] = [[0.0] * len(ridges) for _ in others]
    for k, test in enumerate(collected.matched[space.name]):
        if not test.count:
            continue
        train = collected.pooled(space, without=k)
        wanted = test.cov_tensor(reference)
        variance += test.count * wanted.trace()
        for row, model in zip(errors, others, strict=True):
            own, cross = train.cov_tensor(model), train.cov_tensor(reference, model)
            there, across = test.cov_tensor(model), test.cov_tensor(reference, model)
            for place, factor in enumerate(_factors(own, ridges)):
                error = squared_error(wanted, there, across, _solved(factor, cross))
                row[place] += test.count * error
    found = torch.as_tensor([variance, *(error for row in errors for error in row)])
    return float(found[0]), found[1:].reshape(len(others), -1).tolist()


def _cross_validated(
    fold: Moments, reference: int, model: int, ridges: Sequence[float]
) -> list[float]:
    """Errors that data beside a fold would show, for ridges that leave enough to judge by."""
    wanted, own = fold.cov_tensor(reference), fold.cov_tensor(model)
    cross = fold.cov_tensor(reference, model)
    errors = []
    for factor in _factors(own, ridges):
        freedom = 1 + float(torch.cholesky_solve(own, factor).trace())
        left = 1 - freedom / fold.count
        if left >= 1 - _FREEDOM:
            error = squared_error(wanted, own, cross, _solved(factor, cross))
            errors.append(float(error) / left**2)
    return errors


def _factors(own: Tensor, ridges: Sequence[float]) -> list[Tensor]:
    """Cholesky factors of a covariance with each ridge; of one that is zero with any."""
    mean = own.trace() / len(own)
    mean = torch.where(mean > 0, mean, 1.0)
    eye = torch.eye(len(own), dtype=own.dtype, device=own.device)
    return [torch.linalg.cholesky(own + ridge * mean * eye) for ridge in ridges]


def _solved(factor: Tensor, cross: Tensor) -> Tensor:
    """The map (q, p) of ridge regression."""
    return torch.cholesky_solve(cross.T, factor)


def _by_map(whole: Moments, maps: Sequence[FeatureMap], model: int, reference: int) -> float:
    """R2 by the maps that are used; the reference is mapped, too, by methods such as ZipIt!."""
    wanted, cross = whole.cov_tensor(reference), whole.cov_tensor(reference, model)
    target = maps[reference].forward
    if not torch.equal(target, torch.eye(len(target), dtype=target.dtype, device=target.device)):
        wanted, cross = target.T @ wanted @ target, target.T @ cross
    variance = float(wanted.trace())
    if not variance > 0:
        return math.nan
    own = whole.cov_tensor(model)
    return 1 - float(squared_error(wanted, own, cross, maps[model].forward)) / variance
