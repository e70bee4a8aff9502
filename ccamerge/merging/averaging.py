"""The weighted mean of parameters in one set of features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ccamerge.core.scratch import kept


def average(
    states: Sequence[Mapping[str, Tensor]],
    weights: Callable[[str], Sequence[float]],
    used: Collection[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weighted mean of parameters, and what was taken from the first of the models instead.

    Parameters
    ----------
    states : the models' parameters, in one set of features
    weights : the models' shares for a parameter, summing to one; models without any do not count
    used : parameters that the traced network uses, all if None; features that other ones read or
        write are not known, so that a mean over models would mix them

    Returns
    -------
    Parameters, whose sums are in double precision, and for each that the models do not agree in and
    that is not, or not everywhere, their mean, why that is so.
    """
    result: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for key, value in states[0].items():
        shares = [(state[key], w) for state, w in zip(states, weights(key), strict=True) if w != 0]
        numbers = value.is_floating_point() or value.is_complex()
        if numbers and used is not None and key not in used:
            mean = value.clone()
            same = all(_same(value, other) for other, _ in shares)
            why = "" if same else "the traced call does not use it"
        else:
            mean, why = mean_of(value, shares)
        result[key] = kept(mean)
        if why:
            reasons[key] = why
    return result, reasons


def mean_of(
    first: Tensor, shares: Sequence[tuple[Tensor, float]], into: torch.dtype | None = None
) -> tuple[Tensor, str]:
    """The weighted mean of one parameter of several models, or of the same part of it in each.

    Parameters
    ----------
    first : what is taken where there is no mean
    shares : of one shape, with the models' weights, which sum to one; none of them is zero
    into : the result's dtype, if the parameter is of floating-point numbers; default the first's

    Returns
    -------
    The mean, whose sums are in double precision, of entries that are finite in all models; of
    others what all agree in, else the first's; the first's, too, of what is no floating-point
    number. And why it is not the mean, or not everywhere; empty if it is, or all models agree.

    Raises
    ------
    OverflowError
        If there are finite numbers that ``into`` cannot hold.
    """
    if not (first.is_floating_point() or first.is_complex()):
        if all(_same(first, value) for value, _ in shares):
            return first.clone(), ""
        return first.clone(), f"it is of {str(first.dtype).removeprefix('torch.')}, and differs"
    into = into if into is not None and first.is_floating_point() else first.dtype
    if all(value.dtype == first.dtype and torch.equal(first, value) for value, _ in shares):
        return _in(into, first).clone(), ""
    wide = torch.complex128 if first.is_complex() else torch.float64
    total = torch.zeros_like(first, dtype=wide)
    for value, weight in shares:
        total.add_(value.to(wide), alpha=weight)
    whole = _all_finite(total)
    if not whole:
        total, whole = _where_finite(total, first, [value for value, _ in shares])
    mean = total.to(into) if into == first.dtype else _in(into, total)
    return mean, "" if whole else "it has entries that are not finite, and differ"


def _where_finite(total: Tensor, first: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """A mean where all values are finite, else what they agree in, else the first's.

    Whether that is never the first's is the second result.
    """
    finite = torch.stack([value.isfinite() for value in values]).all(0)
    agreed = torch.stack([_alike(value, values[0]) for value in values]).all(0)
    kept = torch.where(agreed, values[0], first).to(total.dtype)
    return torch.where(finite & ~agreed, total, kept), bool((finite | agreed).all())


def _in(dtype: torch.dtype, value: Tensor) -> Tensor:
    """Floating-point numbers in a dtype; OverflowError if it cannot hold what is finite there."""
    found = value.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(value.dtype).max and bool(
        (found.isinf() & value.isfinite()).any()
    ):
        message = f"numbers too large for {str(dtype).removeprefix('torch.')}"
        raise OverflowError(message)
    return found


def _all_finite(value: Tensor) -> bool:
    """Whether there is neither an infinity nor a NaN; the extremes tell in one pass."""
    real = torch.view_as_real(value) if value.is_complex() else value
    if not real.numel():
        return True
    least, most = real.aminmax()
    return bool(least.isfinite() & most.isfinite())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(_alike(a, b).all())


def _alike(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors hold the same, NaN included."""
    return (a == b) | ((a != a) & (b != b))
