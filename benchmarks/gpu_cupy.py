"""The published statistics of features in CuPy; in NumPy on a CPU. Nothing here imports ccamerge.

What `baseline.Statistics` does, operation by operation, with the arrays of another library.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch


def library(device: torch.device) -> types.ModuleType:
    """CuPy, or NumPy for tensors on the CPU; ImportError without CuPy."""
    if device.type == "cuda":
        import cupy

        return cupy
    import numpy

    return numpy


class Statistics:
    """Running ``E[f f^T]``, ``E[f]``, standard deviation and mean absolute value."""

    def __init__(self, xp: types.ModuleType) -> None:
        self.xp = xp
        self.std: Any = 0.0
        self.mean: Any = 0.0
        self.outer: Any = 0.0
        self.absolute: Any = 0.0

    def update(self, batch: int, features: Sequence[torch.Tensor]) -> None:
        """Add a batch; features ``(C, n)`` float32 of each model, read where they lie."""
        xp = self.xp
        arrays = [xp.from_dlpack(x) for x in features]
        stacked = xp.nan_to_num(xp.concatenate(arrays), nan=0.0, posinf=0.0, neginf=0.0)
        self.std = self.std + stacked.std(axis=1) * batch
        self.mean = self.mean + stacked.mean(axis=1) * batch
        self.outer = self.outer + (stacked @ stacked.T) / stacked.shape[1] * batch
        self.absolute = self.absolute + xp.abs(xp.concatenate(arrays)).mean(axis=1) * batch

    def finalize(self, samples: int) -> Any:
        """``E[f f^T] - E[f] E[f]^T``."""
        mean = self.mean / samples
        return self.outer / samples - self.xp.outer(mean, mean)
