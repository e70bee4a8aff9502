"""Merging one set of networks by every method."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.collection.statistics import Statistics
from ccamerge.evaluation.evaluating import evaluate
from ccamerge.merging.merging import merge
from ccamerge.reporting.report import Report

Rows = dict[str, dict[str, Any]]

PLAIN: Rows = {
    "average": {"method": "average", "repair": "none"},
    "permutation": {"method": "permutation"},
    "CCA": {"method": "cca"},
}
"""Columns of the table and their `merge` options; "average" is what plain averaging gives."""

WITH_NORM: Rows = {
    "average": {"method": "average"},
    "permutation": {"method": "permutation"},
    "CCA": {"method": "cca"},
    "average, paper": {"method": "average", "norm": "paper"},
    "permutation, paper": {"method": "permutation", "norm": "paper"},
    "CCA, paper": {"method": "cca", "norm": "paper", "gamma": 0.1},
}
"""For networks with BatchNorm: our defaults, and the published treatment with its gamma."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Accuracies in [0, 1] and seconds of one set of networks under each method."""

    title: str
    models: int
    base: list[float]
    ensemble: float
    merged: dict[str, float]
    seconds: dict[str, float]
    report: Report


def compare(
    title: str,
    networks: Sequence[nn.Module],
    moments: Statistics,
    held_out: Sequence[tuple[Tensor, Tensor]],
    seconds: dict[str, float],
    outputs: Sequence[Tensor],
) -> Comparison:
    """Merge networks by every method from moments already collected, and test each result.

    ``outputs`` are the networks' own class probabilities on ``held_out``; ``seconds`` of earlier
    stages go into the record.
    """
    rows = WITH_NORM if moments.spaces_of(networks[0]).folds else PLAIN
    labels = torch.cat([y for _, y in held_out])
    merged, reports = {}, {}
    seconds = dict(seconds)
    for label, options in rows.items():
        start = time.perf_counter()
        result = merge(networks, statistics=moments, reference=moments.reference, **options)
        seconds[label] = time.perf_counter() - start
        merged[label] = evaluate(result.model, held_out)
        reports[label] = result.report
    return Comparison(
        title,
        len(networks),
        [_accuracy(output, labels) for output in outputs],
        _accuracy(torch.stack(list(outputs)).mean(0), labels),
        merged,
        seconds,
        reports["CCA"],
    )


def probabilities(network: nn.Module, held_out: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Class probabilities (samples, classes) of a network on labelled batches."""
    with torch.inference_mode():
        return torch.cat([network(x).softmax(-1) for x, _ in held_out])


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(-1) == labels).float().mean())
