"""Merged parameters in a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.modules import tensors_of


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


def _forget(model: nn.Module) -> None:
    """Let modules drop what they keep of parameters in evaluation, as timm's tables of biases."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.train(modes[0][1])
    for module, training in modes:
        module.training = training
