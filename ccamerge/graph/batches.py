"""What a batch of calibration data may look like, and bringing one to where a model is."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LABELS = ("labels", "label", "label_ids")
"""Keys of a batch that hold the answer; passed to a model only if it cannot do without."""


def split_batch(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword inputs of a model in a batch; labels are left out.

    Parameters
    ----------
    batch : a tensor; a tuple or list ``(inputs, ...)`` of which the first item counts, itself a
        tensor, a tuple or list of positional inputs or a dict; or a mapping of keyword inputs, of
        which labels and those that ``model.forward`` does not take are left out
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
        if isinstance(first, (tuple, list)):  # as torch's default collation makes of a tuple
            return tuple(first), {}
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


def model_device(model: nn.Module) -> torch.device:
    """Where a model's parameters and buffers are; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def moved(value: Any, device: torch.device) -> Any:
    """A batch, or a part of one, with its tensors on a device; itself if they are there.

    Copies from the CPU to a GPU go through pinned memory and are not waited for: what is put on
    the current stream later finds them done.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and device.type == "cuda":
            pinned = value if value.is_pinned() else value.pin_memory()
            return pinned.to(device, non_blocking=True)
        return value.to(device)
    if isinstance(value, Mapping):
        there: Any = {key: moved(item, device) for key, item in value.items()}
        return value if all(there[key] is item for key, item in value.items()) else there
    if isinstance(value, (tuple, list)):
        items = [moved(item, device) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
