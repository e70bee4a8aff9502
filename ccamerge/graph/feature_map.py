"""A map from one model's features of a space to the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ccamerge.core.brief import Brief
from ccamerge.core.scratch import kept


@dataclasses.dataclass(frozen=True, repr=False)
class FeatureMap(Brief):
    """How one model's features of a space become the reference's: ``x T``.

    ``forward`` is T (own features, reference features), ``inverse`` (reference features, own
    features) its inverse; both float64. Between different widths one of their products is a
    projection and not the identity.
    """

    forward: Tensor
    inverse: Tensor

    def to(self, device: torch.device) -> FeatureMap:
        """The same map with its matrices on a device."""
        return FeatureMap(self.forward.to(device), self.inverse.to(device))

    def kept(self) -> FeatureMap:
        """The same map with its matrices where `ccamerge.core.scratch` has what is large."""
        forward = kept(self.forward)
        return FeatureMap(forward, forward if self.inverse is self.forward else kept(self.inverse))

    @classmethod
    def identity(cls, size: int, device: torch.device | None = None) -> FeatureMap:
        """The map that changes nothing."""
        eye = torch.eye(size, dtype=torch.float64, device=device)
        return cls(eye, eye)

    @classmethod
    def permutation(cls, order: Sequence[int] | Tensor) -> FeatureMap:
        """The map that takes own feature ``order[j]`` to reference feature ``j``."""
        matrix = torch.eye(len(order), dtype=torch.float64)[:, torch.as_tensor(order)]
        return cls(matrix, matrix.T.contiguous())
