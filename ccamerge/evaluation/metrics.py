"""What is measured on labelled batches: one value for each sample, or token, that counts.

A metric of yours is a function of the same form, ``metric(outputs, batch) -> values``:

- ``outputs``: the network's output as one tensor (its ``logits`` or its first item if it returns
  several things); of an ensemble the logarithm of the mean probabilities, which works as logits, or
  the mean of the outputs;
- ``batch``: as it came from the data;
- ``values``: a tensor with one number for each sample that counts, of any shape. The metric of a
  data set is the mean over all of them, whatever the sizes of the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ccamerge.config.importing import did_you_mean, import_function
from ccamerge.config.model import METRICS
from ccamerge.core import arguments
from ccamerge.graph.tracing.batches import LABELS, fields_of

Metric = Callable[[Tensor, Any], Tensor]

IGNORED = -100
"""The label of what does not count, such as padding; torch's own default."""


def accuracy(outputs: Tensor, batch: Any) -> Tensor:
    """Whether the class with the largest output is the label's.

    Parameters
    ----------
    outputs : (..., classes)
    batch : ``(inputs, labels)`` or a dict with ``labels``: whole numbers of the shape of
        ``outputs`` without its last axis. -100 does not count. Labels of tokens belong to the
        output at their own position: shift them first if a model predicts the next token.

    Returns
    -------
    (n,) bool for the n labels that count.

    Raises
    ------
    ValueError
        If there are no labels, they do not fit the outputs, or outputs are not numbers (NaN).
    """
    scores, labels = _classification(outputs, batch)
    return scores.argmax(-1) == labels


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    """Minus the logarithm, to base e, of the probability that the softmax gives to the label.

    Parameters, errors : see `accuracy`.

    Returns
    -------
    (n,) float32 (or float64, if the outputs are) for the n labels that count.
    """
    scores, labels = _classification(outputs, batch)
    precise = scores if scores.dtype == torch.float64 else scores.float()
    return F.cross_entropy(precise, labels, reduction="none")


def labels_of(batch: Any) -> Tensor:
    """The labels in a batch ``(inputs, labels)``, or the ``labels`` of a dict or dataclass.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = None
    fields = fields_of(batch) or {}
    if any(key in fields for key in LABELS):
        found = next(fields[key] for key in LABELS if key in fields)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    if not isinstance(found, Tensor):
        message = "the batch has no labels: expected (inputs, labels) or a dict with 'labels'"
        raise ValueError(message)
    return found


def metric_named(given: str | Metric, source: str = "", argument: str = "metric") -> Metric:
    """The function of a name in `METRICS` or of "package.module:function", which is imported.

    Parameters
    ----------
    given : a name, or the function itself
    source : with which messages about the import begin, such as "merge.yml:9: evaluation.metric"
    argument : what other messages call it

    Raises
    ------
    ValueError, TypeError
        If there is no such metric, or it does not take ``(outputs, batch)``.
    """
    if not isinstance(given, str):
        if not callable(given):
            expected = "a name or a function (outputs, batch)"
            raise arguments.wrong(argument, expected, given)
        return given
    if given in METRICS:
        found: Metric = globals()[given]
        return found
    if ":" not in given:
        known = ", ".join(map(repr, METRICS))
        hint = did_you_mean(given, METRICS)
        message = (
            f'{argument} must be one of {known} or "package.module:function"; got {given!r}{hint}'
        )
        raise ValueError(message)
    return import_function(given, source, "the outputs", "the batch")


def title_of(metric: str | Metric) -> str:
    """What a metric is called in tables and messages."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))


def _classification(outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """Outputs (n, classes) and int64 labels (n,) of what counts."""
    labels = labels_of(batch)
    if outputs.dim() == 0 or outputs.shape[:-1] != labels.shape:  # would broadcast: count too much
        wanted = tuple(outputs.shape[:-1])
        message = (
            f"labels have shape {tuple(labels.shape)}, expected {wanted} for outputs "
            f"{tuple(outputs.shape)}, whose last axis are the classes"
        )
        raise ValueError(message)
    if labels.is_floating_point() or labels.is_complex():
        message = f"labels must be whole numbers, the classes' indices; got {labels.dtype}"
        raise ValueError(message)
    labels = labels.to(outputs.device, torch.int64)
    counts = labels != IGNORED
    scores, labels = outputs[counts], labels[counts]
    classes = outputs.shape[-1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        message = (
            f"labels must be in 0..{classes - 1}, or {IGNORED} for what does not count; "
            f"got {int(wrong[0])}"
        )
        raise ValueError(message)
    if scores.isnan().any():
        message = "outputs are not numbers (NaN)"
        raise ValueError(message)
    return scores, labels
