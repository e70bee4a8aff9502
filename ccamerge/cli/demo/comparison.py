"""Merging one set of networks by every method, and testing what comes out."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccamerge.cli.demo.refinement import refined_member
from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Mean
from ccamerge.merging.merging import MergeResult, merge
from ccamerge.reporting.report import Report

Rows = dict[str, dict[str, Any]]

PLAIN: Rows = {
    "average": {"method": "average", "repair": "none", "select": "none"},
    "permutation": {"method": "permutation", "select": "none"},
    "CCA": {"method": "cca", "select": "none"},
    "default": {},
}
"""Columns of the table and their `merge` options; "average" is what plain averaging gives."""

WITH_NORM: Rows = {
    "average": {"method": "average", "select": "none"},
    "permutation": {"method": "permutation", "select": "none"},
    "CCA": {"method": "cca", "select": "none"},
    "default": {},
    "average, paper": {"method": "average", "norm": "paper", "select": "none"},
    "permutation, paper": {"method": "permutation", "norm": "paper", "select": "none"},
    "CCA, paper": {"method": "cca", "norm": "paper", "gamma": 0.1, "select": "none"},
}
"""For networks with BatchNorm: our defaults, and the published treatment with its gamma."""

REFINED, MEMBER = "refined", "member refined"


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1]: of all samples, and of those of each class."""

    accuracy: float
    classes: list[float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores and seconds of one set of networks under each method."""

    title: str
    models: int
    base: list[Score]
    ensemble: Score
    merged: dict[str, Score]
    seconds: dict[str, float]
    report: Report


def compare(
    title: str,
    networks: Sequence[nn.Module],
    statistics: Statistics,
    held_out: Sequence[tuple[Tensor, Tensor]],
    seconds: Mapping[str, float],
    outputs: Sequence[Tensor],
    ensemble: Mean = "probabilities",
    refine: str | None = None,
) -> Comparison:
    """Merge networks by every method from statistics already collected, and test each result.

    Parameters
    ----------
    title : of the comparison
    networks : one of them is the reference of ``statistics``
    statistics : of ``networks``
    held_out : labelled batches that nothing but the test sees
    seconds : of earlier stages; they go into the record
    outputs : the networks' own logits (samples, classes) on ``held_out``
    ensemble : what their ensemble averages
    refine : for how long a merge is refined; then a member is, too, on the same inputs for as long
        as collecting, merging and refining took. None to leave both out
    """
    rows = WITH_NORM if statistics.spaces_of(networks[0]).folds else PLAIN
    labels = torch.cat([y for _, y in held_out])
    results: dict[str, MergeResult] = {}
    seconds = dict(seconds)

    def merged(label: str, **options: Any) -> None:
        start = time.perf_counter()
        with warnings.catch_warnings():  # that some merges are far off is what the table shows
            warnings.simplefilter("ignore", RuntimeWarning)
            results[label] = merge(
                networks,
                statistics=statistics,
                reference=statistics.reference,
                ensemble=ensemble,
                progress=False,
                **options,
            )
        seconds[label] = time.perf_counter() - start

    for label, options in rows.items():
        merged(label, **options)
    found = {label: result.model for label, result in results.items()}
    if refine is not None:
        nearest = min(("CCA", "permutation"), key=lambda label: _distance(results[label]))
        merged(REFINED, method=rows[nearest]["method"], refine=refine)
        found[REFINED] = results[REFINED].model
        budget = seconds["collect"] + seconds[REFINED]
        found[MEMBER] = refined_member(networks, statistics, ensemble, budget)
    return Comparison(
        title,
        len(networks),
        [score(output, labels) for output in outputs],
        score(_mean(outputs, ensemble), labels),
        {label: score(logits(model, held_out), labels) for label, model in found.items()},
        seconds,
        results["CCA"].report,
    )


def mean_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean over repetitions; the report is that of the first."""
    first = comparisons[0]

    def scores(every: Sequence[Score]) -> Score:
        classes = np.mean([s.classes for s in every], axis=0).tolist()
        return Score(float(np.mean([s.accuracy for s in every])), classes)

    return dataclasses.replace(
        first,
        base=[scores(own) for own in zip(*(c.base for c in comparisons), strict=True)],
        ensemble=scores([c.ensemble for c in comparisons]),
        merged={x: scores([c.merged[x] for c in comparisons]) for x in first.merged},
        seconds={x: float(np.mean([c.seconds[x] for c in comparisons])) for x in first.seconds},
    )


def logits(network: nn.Module, held_out: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Outputs (samples, classes) of a network on labelled batches."""
    with torch.inference_mode():
        return torch.cat([network(x) for x, _ in held_out])


def score(outputs: Tensor, labels: Tensor) -> Score:
    """Accuracy of outputs (samples, classes)."""
    classes = outputs.shape[1]
    right = labels[outputs.argmax(-1) == labels].bincount(minlength=classes)
    every = labels.bincount(minlength=classes)
    return Score(float(right.sum() / every.sum()), (right / every.clamp_min(1)).tolist())


def _mean(outputs: Sequence[Tensor], ensemble: Mean) -> Tensor:
    """The ensemble's prediction."""
    every = torch.stack(list(outputs))
    return (every if ensemble == "outputs" else every.softmax(-1)).mean(0)


def _distance(result: MergeResult) -> float:
    """Of a merged network from the ensemble, on inputs held out of the merge."""
    assert result.report.fidelity is not None
    return result.report.fidelity.merged
