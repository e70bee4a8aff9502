"""Heads that share their weight with an embedding, given one of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.graph.tracing.modules import copied

_FLAG = "tie_word_embeddings"
"""Of a configuration of transformers: whether loading a file ties the head to the embedding."""


def tied_heads(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters, by name, that other modules share with an embedding."""
    owners: dict[int, list[tuple[str, nn.Parameter, nn.Module]]] = {}
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                key = f"{path}.{name}" if path else name
                owners.setdefault(id(value), []).append((key, value, module))
    found: dict[str, nn.Parameter] = {}
    for own in owners.values():
        if any(isinstance(module, nn.Embedding) for _, _, module in own):
            found.update(
                (key, value) for key, value, module in own if not isinstance(module, nn.Embedding)
            )
    return found


def untied(model: nn.Module, who: str) -> nn.Module:
    """A copy in which each has a parameter of its own; the model itself if there are none."""
    if not tied_heads(model):
        return model
    other = copied(model, who)
    for key, value in tied_heads(other).items():
        path, _, name = key.rpartition(".")
        own = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        other.get_submodule(path)._parameters[name] = own
    return other


def keep_untied(model: nn.Module, call: Callable[[nn.Module], Any]) -> bool:
    """Say in a model's configuration, if it has one, that its head is not tied; whether that held.

    A forward that does something else then (T5 scales the features before a tied head) keeps its
    configuration: its file would be tied again when it is loaded.
    """
    configs = [config for config in _configs(model) if getattr(config, _FLAG, False)]
    if not configs:
        return True
    with torch.inference_mode():
        before = call(model)
        for config in configs:
            setattr(config, _FLAG, False)
        after = call(model)
    one, two = (
        [x for x in pytree.tree_leaves(y) if isinstance(x, Tensor)] for y in (before, after)
    )
    if len(one) == len(two) and all(map(torch.equal, one, two)):
        return True
    for config in configs:
        setattr(config, _FLAG, True)
    return False


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return [own for own in (config, text() if callable(text) else None) if own is not None]
