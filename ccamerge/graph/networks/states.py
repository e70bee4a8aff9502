"""Parameters as the folded program wants them, and whether a model computes what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.core.scratch import kept
from ccamerge.graph.folds import Fold
from ccamerge.graph.space import Spaces


def placed(spaces: Spaces, device: torch.device) -> Spaces:
    """The spaces with programs that run on a device."""
    program, unfolded = spaces.program.to(device), spaces.unfolded.to(device)
    if program is spaces.program and unfolded is spaces.unfolded:
        return spaces
    return dataclasses.replace(spaces, program=program, unfolded=unfolded)


def folded_state(
    tensors: Mapping[str, Tensor], folds: Sequence[Fold], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Parameters and buffers as the folded program wants them, on a device if one is given.

    What folding and moving do not change is shared with what is given, and not to be written to.
    """
    state = {key: value.detach().to(device) for key, value in tensors.items()}
    for fold in folds:
        before = dict(state)
        fold.apply(state)
        for key, value in state.items():
            if value is not before.get(key):
                state[key] = kept(value)
    return state


def fast_layout(value: Any) -> Any:
    """Images and convolution kernels with channels last, which convolutions prefer.

    Moments read either layout in place. Anything else is returned as it is.
    """
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
