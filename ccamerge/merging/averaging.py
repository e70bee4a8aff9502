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
        if all(_same(value, other) for other, _ in shares):
            result[key] = kept(value.clone())
        elif not numbers:
            result[key] = value.clone()
            reasons[key] = f"it is of {str(value.dtype).removeprefix('torch.')}, and differs"
        elif used is not None and key not in used:
            result[key] = value.clone()
            reasons[key] = "the traced call does not use it"
        else:
            mean, whole = _mean(value, shares)
            result[key] = kept(mean)
            if not whole:
                reasons[key] = "it has entries that are not finite, and differ"
    return result, reasons


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _mean(first: Tensor, shares: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, bool]:
    """A weighted mean of finite entries; others are kept where all agree, else the first's.

    Whether all entries are either is the second result.
    """
    wide = torch.complex128 if first.is_complex() else torch.float64
    total = torch.zeros_like(first, dtype=wide)
    for value, weight in shares:
        total.add_(value.to(wide), alpha=weight)
    mean = total.to(first.dtype)
    if bool(torch.isfinite(total).all()):
        return mean, True
    finite = torch.stack([value.isfinite() for value, _ in shares]).all(0)
    one = shares[0][0]
    same = torch.stack([(value == one) | ((value != value) & (one != one)) for value, _ in shares])
    agreed = same.all(0)
    mean = torch.where(finite, mean, torch.where(agreed, one, first))
    return mean, bool((finite | agreed).all())
