"""Metrics of networks and of their ensembles, from one pass over labelled batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ccamerge.config.importing import current_folder_importable
from ccamerge.config.model import METRICS
from ccamerge.config.settings import Mean
from ccamerge.core import arguments
from ccamerge.evaluation.metrics import Metric, metric_named, title_of
from ccamerge.graph.tracing.batches import batch_size, labelled, model_device, moved, split_batch

Row = tuple[str, Sequence[nn.Module]]
"""A network, or the members of an ensemble, with its name for messages."""


def evaluate(
    models: nn.Module | Sequence[nn.Module],
    data: Iterable[Any],
    metric: str | Metric = "accuracy",
    *,
    ensemble: Mean = "probabilities",
) -> float:
    """A metric of a network or of the ensemble of several, over all samples of the data.

    Parameters
    ----------
    models : a module, or several, whose outputs are averaged; evaluated in evaluation mode and left
        as they were
    data : iterable of labelled batches, read once: ``(inputs, labels)`` or dicts with ``labels``;
        they are brought to where the models are
    metric : "accuracy", "cross_entropy", "package.module:function" or a function
        ``(outputs, batch) -> values`` (see `ccamerge.evaluation.metrics`)
    ensemble : what of several models is averaged: "probabilities" (softmax over the last axis), or
        "outputs", for networks that are no classifiers

    Returns
    -------
    The mean over the samples that count.

    Raises
    ------
    ValueError
        If there is no model or no data, or a metric fails; the message names the batch.
    """
    members = [models] if isinstance(models, nn.Module) else arguments.modules(models)
    [[value]], _ = measure([("", members)], data, [metric], ensemble)
    return value


def measure(
    rows: Sequence[Row],
    data: Iterable[Any],
    metrics: Sequence[str | Metric],
    ensemble: Mean = "probabilities",
) -> tuple[list[list[float]], int]:
    """Several metrics of several networks and ensembles, from one pass.

    Each network runs once a batch, also if it is on its own and a member of an ensemble.

    Parameters
    ----------
    rows : names and members; one member is a network of its own
    data, metrics, ensemble : as for `evaluate`

    Returns
    -------
    For each row a value of each metric, and the number of samples that the data has.

    Raises
    ------
    ValueError
        As `evaluate`.
    """
    if not all(members for _, members in rows):
        message = "models must hold at least one model, got 0"
        raise ValueError(message)
    data = arguments.batches(data)
    expected = "'probabilities' or 'outputs'"
    if arguments.string(ensemble, "ensemble", expected) not in get_args(Mean):
        message = f"ensemble must be {expected}, got {ensemble!r}"
        raise ValueError(message)
    functions = [(title_of(metric), metric_named(metric)) for metric in metrics]
    totals = [[[0.0, 0] for _ in functions] for _ in rows]
    uses = Counter(id(model) for _, members in rows for model in members)
    samples = 0
    named = any(isinstance(metric, str) and ":" in metric for metric in metrics)
    with (
        current_folder_importable() if named else nullcontext(),  # a metric may import as it runs
        _evaluating(model for _, members in rows for model in members),
        torch.inference_mode(),
    ):
        for index, batch in enumerate(data):
            kept: dict[int, Tensor] = {}  # outputs of networks that a later row needs again
            at: dict[torch.device, Any] = {}  # the batch, where networks are
            for (name, members), total in zip(rows, totals, strict=True):
                where = f"batch {index}, {name}: " if name else f"batch {index}: "
                outputs = []
                for model in members:
                    output = kept.get(id(model))
                    if output is None:
                        device = model_device(model)
                        at.setdefault(device, moved(batch, device))
                        args, kwargs = split_batch(at[device], model)
                        output = _tensor(model(*args, **kwargs))
                    if uses[id(model)] > 1:
                        kept[id(model)] = output
                    outputs.append(output)
                outputs = [output.to(outputs[0].device) for output in outputs]
                combined = _combined(outputs, ensemble, where)
                given = at[model_device(members[0])]
                known = labelled(given, members[0])  # metrics of our own look for labels there
                for pair, (title, function) in zip(total, functions, strict=True):
                    own = known if title in METRICS else given
                    values = _values(function, combined, own, f"{where}{title}")
                    pair[0] += float(values.sum())
                    pair[1] += values.numel()
            samples += batch_size(args, kwargs)
    if samples == 0:
        message = "data is empty: no labelled batch came from it"
        raise ValueError(message)
    for total in totals:
        for (title, _), (_, count) in zip(functions, total, strict=True):
            if count == 0:
                message = f"{title}: none of {samples} samples counts; are all labels ignored?"
                raise ValueError(message)
    return [[value / count for value, count in total] for total in totals], samples


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """In evaluation mode; afterwards each module as it was, with buffers that its calls changed."""
    models = list(models)
    modules = {id(module): module for model in models for module in model.modules()}.values()
    training = [module for module in modules if module.training]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True
        with torch.inference_mode():
            for module, name, buffer, before in buffers:
                if isinstance(module._buffers, dict):  # a compiled module's own cannot be replaced
                    module._buffers[name] = buffer
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _values(function: Metric, outputs: Tensor, batch: Any, where: str) -> Tensor:
    """What a metric gives, as float64; ValueError unless it is finite numbers."""
    try:
        values = function(outputs, batch)
    except ValueError as error:
        message = f"{where}: {error}"
        raise ValueError(message) from error
    except Exception as error:  # the user's function can raise anything
        message = f"{where} failed: {type(error).__name__}: {error}"
        raise ValueError(message) from error
    if not isinstance(values, Tensor) or values.dim() == 0 or values.is_complex():
        got = "a single number" if isinstance(values, Tensor) else type(values).__name__
        message = f"{where}: expected a tensor with one number for each sample, got {got}"
        raise ValueError(message)
    values = values.to(torch.float64)
    if not values.isfinite().all():
        message = f"{where}: gives values that are not finite"
        raise ValueError(message)
    return values


def _combined(outputs: Sequence[Tensor], ensemble: Mean, where: str) -> Tensor:
    """One network's output as it is; of several the mean, of probabilities its logarithm."""
    if len(outputs) == 1:
        return outputs[0]
    shapes = list(dict.fromkeys(tuple(output.shape) for output in outputs))
    if len(shapes) > 1:
        message = f"{where}outputs of shapes {', '.join(map(str, shapes))} cannot be averaged"
        raise ValueError(message)
    if ensemble == "outputs":
        return torch.stack(list(outputs)).mean(0)
    if outputs[0].dim() < 2 or outputs[0].shape[-1] < 2:
        message = (
            f"{where}outputs of shape {shapes[0]} are no scores of classes; use ensemble 'outputs'"
        )
        raise ValueError(message)
    # Through logarithms: a probability too small for floating point keeps its order and its loss.
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    logs = torch.stack([output.log_softmax(-1, dtype=dtype) for output in outputs])
    return logs.logsumexp(0) - math.log(len(outputs))


def _tensor(output: Any) -> Tensor:
    """The logits of what a model returned."""
    found = output["logits"] if isinstance(output, Mapping) and "logits" in output else output
    found = getattr(found, "logits", found)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        message = f"the model returns {type(output).__name__}, expected logits"
        raise TypeError(message)
    return found
