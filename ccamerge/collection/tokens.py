"""Which tokens of a batch count: those that its attention mask keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.tracing.program import Program

MASK = "attention_mask"
"""The input of a forward that says of each token (samples, positions) whether it is one: 1, or
padding: 0."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a batch that are not padding.

    ``shape`` is (samples, positions), ``rows`` are the places that count, counted through.
    """

    shape: tuple[int, ...]
    rows: Tensor

    @classmethod
    def of(cls, program: Program, leaves: Sequence[Any], device: torch.device) -> Tokens | None:
        """Of a program's inputs; None if every token counts, or nothing says which do not."""
        if MASK not in program.inputs:
            return None
        mask = leaves[program.inputs.index(MASK)]
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        kept = mask != 0
        if bool(kept.all()) or not bool(kept.any()) or not bool((kept == mask).all()):
            return None  # none is padding, all are, or it says something else
        return cls(tuple(mask.shape), kept.flatten().nonzero().squeeze(1).to(device))

    def among(self, value: Tensor, dim: int) -> tuple[Tensor, int]:
        """The tokens that count of a value, and its axis of features then.

        Samples and positions are its first two axes, or, sample after sample, the first of two.
        A value that has neither before its features is left as it is.
        """
        if dim >= 2 and tuple(value.shape[:2]) == self.shape:
            return value.flatten(0, 1).index_select(0, self.rows), dim - 1
        if dim == 1 and value.dim() == 2 and len(value) == math.prod(self.shape):
            return value.index_select(0, self.rows), dim
        return value, dim
