"""A BatchNorm folded into the linear operation before it, and how it is put back.

Multiplying a BatchNorm's parameters by a general matrix is wrong: variances turn negative. Folded
into its convolution it is a weight and a bias, which transform exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Fold:
    """A linear operation and the BatchNorm folded into it, by the names of the ``state_dict``.

    ``node`` is the operation's name in the folded program and ``folded`` the key of its new bias.
    A BatchNorm without affine parameters has None for ``gamma`` and ``beta``.
    """

    node: str
    weight: str
    bias: str | None
    folded: str
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float

    def _scale(self, state: Mapping[str, Tensor]) -> Tensor:
        scale = (state[self.variance].double() + self.eps).rsqrt()
        return scale * state[self.gamma].double() if self.gamma else scale

    def apply(self, state: dict[str, Tensor]) -> None:
        """Replace, in place of the mapping, weight and BatchNorm by a weight and a bias."""
        weight = state[self.weight]
        scale = self._scale(state)
        shift = -state[self.mean].double()
        if self.bias:
            shift = shift + state[self.bias].double()
        bias = scale * shift
        if self.beta:
            bias = bias + state[self.beta].double()
        shape = (-1,) + (1,) * (weight.dim() - 1)
        state[self.weight] = (weight.double() * scale.reshape(shape)).to(weight.dtype)
        state[self.folded] = bias.to(weight.dtype)
        for key in (self.bias, self.gamma, self.beta, self.mean, self.variance):
            state.pop(key or "", None)

    def unapply(
        self, state: dict[str, Tensor], mean: Tensor | None = None, variance: Tensor | None = None
    ) -> None:
        """Put a BatchNorm back so that the function stays the same.

        ``mean`` and ``variance`` (out channels,) are those of the operation's output without its
        folded bias. They become the running statistics, which matters to whoever trains the model
        further; without them they are 0 and 1. A BatchNorm that has no affine parameters takes
        them from the statistics instead, and must have no negative scale to represent.
        """
        weight, bias = state[self.weight], state.pop(self.folded)
        if mean is None or variance is None:
            mean, variance = torch.zeros_like(bias), torch.ones_like(bias)
        mean, variance = mean.to(bias), variance.to(bias)
        if self.bias:
            state[self.bias] = torch.zeros_like(bias)
        if self.gamma is None or self.beta is None:
            # Without an affine part: output = (Wx - m) / sqrt(v + eps) with v + eps = 1, m = -b.
            mean, variance = -bias, torch.full_like(bias, 1.0 - self.eps)
        else:
            state[self.gamma] = (variance + self.eps).sqrt()
            state[self.beta] = bias + mean
        state[self.weight] = weight
        state[self.mean], state[self.variance] = mean, variance
