"""Accuracy of classifiers and of their ensemble, from labelled batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.graph.batches import split_batch


def evaluate(models: nn.Module | Sequence[nn.Module], data: Iterable[Any]) -> float:
    """The share of samples that a classifier, or the ensemble of several, gets right.

    Parameters
    ----------
    models : a module that gives logits (batch, classes), or several, whose softmax outputs are
        averaged; evaluated in evaluation mode and left as they were
    data : iterable of batches ``(inputs, labels)``, or dicts with a ``labels`` entry

    Returns
    -------
    Accuracy in [0, 1].

    Raises
    ------
    ValueError
        If there is no model or no data, a batch has no labels, or they do not fit the logits.
    """
    members = [models] if isinstance(models, nn.Module) else list(models)
    if not members:
        message = "models must hold at least one model, got 0"
        raise ValueError(message)
    training = [module for model in members for module in model.modules() if module.training]
    right = total = 0
    try:
        for model in members:
            model.eval()
        with torch.inference_mode():
            for index, batch in enumerate(data):
                labels = _labels(batch, index)
                args, kwargs = split_batch(batch, members[0])
                outputs = [_logits(model(*args, **kwargs)) for model in members]
                scores = outputs[0]
                if len(outputs) > 1:
                    scores = torch.stack([o.softmax(-1) for o in outputs]).mean(0)
                if scores.shape[:-1] != labels.shape:  # would broadcast, and count too much
                    message = (
                        f"batch {index}: labels have shape {tuple(labels.shape)}, "
                        f"expected {tuple(scores.shape[:-1])} for logits {tuple(scores.shape)}"
                    )
                    raise ValueError(message)
                right += int((scores.argmax(-1) == labels).sum())
                total += labels.numel()
    finally:
        for module in training:
            module.training = True
    if total == 0:
        message = "data is empty: no labelled batch came from it"
        raise ValueError(message)
    return right / total


def _labels(batch: Any, index: int) -> Tensor:
    labels = None
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        labels = batch[1]
    if not isinstance(labels, Tensor):
        message = f"batch {index} has no labels: expected (inputs, labels) or a dict with 'labels'"
        raise ValueError(message)
    return labels


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)):
        found = found[0]
    if not isinstance(found, Tensor):
        message = f"the model returns {type(output).__name__}, expected logits"
        raise TypeError(message)
    return found
