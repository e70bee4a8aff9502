"""What a batch of calibration data may look like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

LABELS = ("labels", "label", "label_ids")
"""Keys of a batch that hold the answer; passed to a model only if it cannot do without."""


def split_batch(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs of a model in a batch; labels are left out.

    Parameters
    ----------
    batch : a tensor; a tuple or list ``(inputs, ...)`` of which the first item counts, itself a
        tensor, a tuple of positional inputs or a dict; or a mapping of keyword inputs, of which
        labels and those that ``model.forward`` does not take are left out
    model : the module the batch is for

    Raises
    ------
    TypeError
        If the batch is none of these.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        parameters = inspect.signature(model.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        # A model that takes labels computes a loss from them, which is no concern of ours.
        needed = {k for k, p in parameters.items() if p.default is p.empty}
        kept = {
            k: v
            for k, v in batch.items()
            if (anything or k in parameters) and (k not in LABELS or k in needed)
        }
        if not kept:
            message = f"batch has keys {list(batch)}, none of which the model's forward takes"
            raise TypeError(message)
        return (), kept
    if isinstance(batch, (tuple, list)) and batch:
        first = batch[0]
        if isinstance(first, tuple):
            return first, {}
        if isinstance(first, (Tensor, Mapping)):
            return split_batch(first, model)
    message = (
        "a batch must be a tensor, a tuple or list whose first item is the input, "
        f"or a dict of keyword inputs; got {type(batch).__name__}"
    )
    raise TypeError(message)


def batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the first axis of the first tensor."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    message = "a batch holds no tensor with a batch axis"
    raise TypeError(message)
