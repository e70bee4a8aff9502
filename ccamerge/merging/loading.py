"""Merged parameters in a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.core.device import Device
from ccamerge.graph.folds import BatchNormFold
from ccamerge.graph.operations import features_dim
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.modules import tensors_of
from ccamerge.repair.repairing import walked_statistics


def load_merged(
    model: nn.Module,
    merged: dict[str, Tensor],
    spaces: Spaces,
    statistics: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Put merged parameters into a module, with what was folded put back."""
    state = dict(merged)
    used = set(spaces.unfolded.parameters.values())
    for fold in reversed(spaces.folds):
        fold.unapply(state, statistics)
        used.update(fold.keys)
    targets = tensors_of(model, keep_vars=True)
    owner: dict[int, str] = {}  # a parameter tied under several names is aligned under one of them
    for key, target in targets.items():
        if id(target) not in owner or key in used:
            owner[id(target)] = key
    with torch.no_grad():
        for key in owner.values():
            targets[key].copy_(state[key])
    _forget(model)


def running_statistics(
    spaces: Spaces,
    state: Mapping[str, Tensor],
    inputs: Sequence[list[Any]],
    device: Device | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and variances (channels,) of what BatchNorms that were folded were folded into.

    By the names of the operations; of as many of the inputs as memory allows.
    """
    program = spaces.program
    names = {fold.node for fold in spaces.folds if isinstance(fold, BatchNormFold)}
    dims = {node.name: features_dim(node) for node in program.nodes if node.name in names}
    if not dims or not inputs:
        return {}
    with torch.inference_mode():
        walk = walked_statistics(program, state, inputs, dims, device)
        return {name: (mean, std**2) for name, mean, std in walk}


def _forget(model: nn.Module) -> None:
    """Let modules drop what they keep of parameters in evaluation, as timm's tables of biases."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.train(modes[0][1])
    for module, training in modes:
        module.training = training
