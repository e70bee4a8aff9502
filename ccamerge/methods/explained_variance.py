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
"""Of the linear map, relative to the mean variance of the model's features, the best one counts.
The first is above the rounding of float32 products for any width below 40,000."""

_TARGETS = 64
"""Features of the reference, evenly spread, by which a ridge is chosen."""

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
    A Cholesky factor for each model, fold and ridge, and two products with the best: for three
    ridges and two folds of wide spaces some ``10 d^3`` operations.
    """
    folds = collected.matched[space.name]
    used = [k for k, fold in enumerate(folds) if fold.count]
    tests = [folds[k] for k in used]
    trains = [collected.pooled(space, without=k) for k in used] if len(used) > 1 else []
    variance = float(sum(test.count * test.cov_tensor(reference).trace() for test in tests))
    found = []
    for model in range(collected.models):
        if model == reference:
            continue
        if trains:
            error = _held_out(trains, tests, reference, model, ridges)
        else:
            error = _cross_validated(tests[0], reference, model, ridges)
        known = variance > 0 and math.isfinite(error)
        found.append(max(0.0, 1 - error / variance) if known else math.nan)
    return found


def squared_error(wanted: Tensor, own: Tensor, cross: Tensor, forward: Tensor) -> Tensor:
    """``E |x - y T|^2`` of centred x and y from covariances; ``cross`` (p, q) with rows of x."""
    explained = 2 * (cross * forward.T).sum()
    mapped = (forward * (own @ forward)).sum()
    return wanted.trace() + mapped - explained


def _held_out(
    trains: Sequence[Moments],
    tests: Sequence[Moments],
    reference: int,
    model: int,
    ridges: Sequence[float],
) -> float:
    """The sum of squared errors on folds, of maps from the others with the best ridge.

    Infinite where no ridge outweighs rounding errors.
    """
    folds = [
        (
            *(train.cov_tensor(model), train.cov_tensor(reference, model)),
            *(test.cov_tensor(reference), test.cov_tensor(model)),
            *(test.cov_tensor(reference, model), test.count),
        )
        for train, test in zip(trains, tests, strict=True)
    ]

    def error(factors: Sequence[Tensor], step: int) -> float:
        total = 0.0
        for factor, (_, cross, wanted, own, across, count) in zip(factors, folds, strict=True):
            forward = torch.cholesky_solve(cross[::step].T, factor)
            part = squared_error(wanted[::step, ::step], own, across[::step], forward)
            total += count * float(part)
        return total

    step = -(-tests[0].dims[reference] // _TARGETS)
    least, best = math.inf, None
    for ridge in ridges:
        factors = _factors([fold[0] for fold in folds], ridge)
        if factors is not None and (found := error(factors, step)) < least:
            least, best = found, factors
    return least if step == 1 or best is None else error(best, 1)


def _cross_validated(fold: Moments, reference: int, model: int, ridges: Sequence[float]) -> float:
    """The least sum of squared errors that as many other samples would show.

    Of ridges that leave enough of the samples to judge by; infinite without any.
    """
    wanted, own = fold.cov_tensor(reference), fold.cov_tensor(model)
    cross = fold.cov_tensor(reference, model)
    errors = []
    for ridge in ridges:
        factors = _factors([own], ridge)
        if factors is None:
            continue
        (factor,) = factors
        freedom = 1 + float(torch.cholesky_solve(own, factor).trace())
        left = 1 - freedom / fold.count
        if left >= 1 - _FREEDOM:
            forward = torch.cholesky_solve(cross.T, factor)
            errors.append(float(squared_error(wanted, own, cross, forward)) / left**2)
    return fold.count * min(errors, default=math.inf)


def _factors(every: Sequence[Tensor], ridge: float) -> list[Tensor] | None:
    """Cholesky factors of covariances with a ridge, relative unless all of one is zero.

    None where it does not outweigh rounding errors, as may be of wide 16-bit features on a device.
    """
    found = []
    for own in every:
        mean = own.trace() / len(own)
        regularised = own.clone()
        regularised.diagonal().add_(ridge * torch.where(mean > 0, mean, 1.0))
        factor, info = torch.linalg.cholesky_ex(regularised)
        if int(info):
            return None
        found.append(factor)
    return found


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
