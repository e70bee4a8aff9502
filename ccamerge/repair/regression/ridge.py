"""Ridge regression from streamed moments, for each group of an operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ccamerge.core.device import Device
from ccamerge.core.moments import Moments

_OUTPUTS = 64
"""Outputs whose products with one another are formed, for nothing but their squares."""


def empty_moments(ins: int, outs: int, device: Device | None = None) -> Moments:
    """For the second moments of inputs, and their products with outputs, on a device."""
    pieces = [min(_OUTPUTS, outs - start) for start in range(0, outs, _OUTPUTS)]
    return Moments([ins, *pieces], pairs="reference", device=device)


def output_pieces(outputs: Tensor) -> list[Tensor]:
    """Outputs (..., outs) as `empty_moments` wants them."""
    return list(outputs.split(_OUTPUTS, -1))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Normal equations of one regression for each group, all float64.

    ``second`` (groups, ins, ins) and ``cross`` (groups, ins, outs) are about the means ``centre``
    (groups, ins) and ``mean`` (groups, outs), or about zero if there is no bias to absorb these;
    the means are zero then. ``left`` is the mean square of the outputs, summed.
    """

    second: Tensor
    cross: Tensor
    centre: Tensor
    mean: Tensor
    left: float

    @classmethod
    def of(cls, moments: Sequence[Moments], bias: bool) -> Problem:
        """From the moments of each group."""
        outs = range(1, len(moments[0].dims))
        second = torch.stack([m.cov_tensor(0) for m in moments])
        cross = torch.stack([torch.cat([m.cov_tensor(0, j) for j in outs], 1) for m in moments])
        centre = torch.stack([m.mean_tensor(0) for m in moments])
        mean = torch.stack([torch.cat([m.mean_tensor(j) for j in outs]) for m in moments])
        traces = [m.cov_tensor(j).trace() for m in moments for j in outs]
        left = float(torch.stack(traces).sum() + (mean**2).sum())
        if not bias:
            second += centre[:, :, None] * centre[:, None]
            cross += centre[:, :, None] * mean[:, None]
            centre, mean = torch.zeros_like(centre), torch.zeros_like(mean)
        return cls(second, cross, centre, mean, left)

    def factor(self, damping: float) -> Tensor | None:
        """Cholesky factors of ``second + lambda``; None if no input varies.

        ``lambda`` is ``damping`` times the mean eigenvalue of ``second``, group by group.
        """
        scale = self.second.diagonal(dim1=1, dim2=2).mean(1)
        if not bool((scale > 0).any()):
            return None
        ridge = damping * torch.where(scale > 0, scale, scale.max())
        diagonal = torch.eye(self.second.shape[1], dtype=torch.float64, device=scale.device)
        factor: Tensor = torch.linalg.cholesky(self.second + ridge[:, None, None] * diagonal)
        return factor

    def solve(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Change of the weights (groups, ins, outs) and of the bias (groups, outs)."""
        change = torch.zeros_like(self.cross)
        if factor is not None:
            change = torch.cholesky_solve(self.cross, factor)
        return change, self.mean - (self.centre[:, None] @ change)[:, 0]

    def error(self, change: Tensor, shift: Tensor) -> float:
        """The mean square that a change leaves, summed over the outputs."""
        after = self.left - float((self.mean**2).sum())
        after += float((change * (self.second @ change - 2 * self.cross)).sum())
        missing = self.mean - (self.centre[:, None] @ change)[:, 0] - shift
        return after + float((missing**2).sum())
