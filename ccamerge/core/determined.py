"""What data determine of the covariances between two models' features.

Maps that come from polar factors follow every direction in which features covary, however little:
of those in which they do not vary at all, rounding errors would decide. Fewer samples than
features, duplicated units and constant combinations of features all leave such directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = torch.finfo(torch.float32).eps
"""Relative error of covariances of features below float64, whose products are in float32."""

_ERRORS = 4.0
"""Spectral norm of rounding errors in a covariance, over that of random ones of the same size: the
trace over the square root of the order, times the unit of rounding."""


def varying(cov: Tensor, samples: int, rounding: float) -> Tensor | None:
    """Directions in which features vary by more than rounding errors; None if all do.

    Parameters
    ----------
    cov : (d, d) float64 covariance
    samples : that it is of; centred, they span one direction less
    rounding : relative error of its entries

    Returns
    -------
    (d, r) with orthonormal columns, r >= 0
    """
    size = len(cov)
    floor = _ERRORS * rounding * float(cov.trace()) / math.sqrt(size)
    if not floor > 0:
        return cov[:, :0]
    if samples > size:
        shifted = cov - floor * torch.eye(size, dtype=cov.dtype, device=cov.device)
        if not int(torch.linalg.cholesky_ex(shifted).info):
            return None
    values, vectors = torch.linalg.eigh(cov)
    count = min(int((values > floor).sum()), max(samples - 1, 0))
    kept: Tensor = vectors[:, size - count :]
    return kept


def determined(cov: Tensor, samples: int, rounding: float) -> Tensor | None:
    """The projection (d, d) onto what `varying` finds; None if it leaves covariances as they are.

    Dead units, whose covariances are exactly zero, need none.
    """
    alive = cov.diagonal() > 0
    if not bool(alive.any()):
        return None
    some = cov if bool(alive.all()) else cov[alive][:, alive]
    basis = varying(some, samples, rounding)
    if basis is None:
        return None
    whole = cov.new_zeros(len(cov), basis.shape[1])
    whole[alive] = basis
    projection: Tensor = whole @ whole.T
    return projection


def projected(cross: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """A cross-covariance (p, q) between what both sides' projections leave."""
    if left is not None:
        cross = left @ cross
    return cross if right is None else cross @ right
