from __future__ import annotations

import math
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from ccamerge.evaluation.metrics import accuracy, cross_entropy, labels_of, metric_named, title_of


def _case(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(shape[-1], shape[:-1], generator=generator)


def _reference(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Hits and losses one by one, in float64."""
    table = logits.double().numpy().reshape(-1, logits.shape[-1])
    flat = labels.numpy().reshape(-1)
    kept = [i for i, label in enumerate(flat) if label != -100]
    hits = np.array([np.argmax(table[i]) == flat[i] for i in kept])
    losses = np.array([-log_softmax(table[i])[flat[i]] for i in kept])
    return hits, losses


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 5), st.integers(1, 7))
def test_tokens_against_a_loop(seed: int, batch: int, length: int, classes: int) -> None:
    logits, labels = _case(seed, batch, length, classes)
    ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    labels[ignored] = -100
    hits, losses = _reference(logits, labels)
    data = {"input_ids": labels, "labels": labels}
    assert accuracy(logits, data).tolist() == hits.tolist()
    np.testing.assert_allclose(cross_entropy(logits, data), losses, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("labels_dtype", [torch.uint8, torch.int32, torch.int64])
def test_narrow_types(dtype: torch.dtype, labels_dtype: torch.dtype) -> None:
    logits, labels = _case(0, 50, 10)
    logits = logits.to(dtype)
    hits, losses = _reference(logits, labels)  # of the rounded logits
    batch = [None, labels.to(labels_dtype)]
    assert accuracy(logits, batch).tolist() == hits.tolist()
    found = cross_entropy(logits, batch)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, losses, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_a_probability_too_small_to_write() -> None:
    found = cross_entropy(torch.tensor([[0.0, 1e4]]), (None, torch.tensor([0])))
    assert found.tolist() == [1e4]


def test_impossible_classes_may_have_no_score_at_all() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0]])
    assert cross_entropy(logits, (None, torch.tensor([1]))).item() == pytest.approx(math.log(2))


def test_nothing_that_counts() -> None:
    batch = (None, torch.full((3,), -100))
    assert accuracy(torch.eye(3), batch).shape == cross_entropy(torch.eye(3), batch).shape == (0,)


def test_numbers_that_are_none_where_nothing_counts() -> None:
    outputs = torch.eye(3)
    outputs[2] = math.nan
    assert accuracy(outputs, (None, torch.tensor([0, 0, -100]))).tolist() == [True, False]


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
@pytest.mark.parametrize(
    ("outputs", "batch", "message"),
    [
        (torch.eye(3), torch.arange(3), r"no labels: expected \(inputs, labels\) or a dict"),
        (torch.eye(3), (torch.eye(3),), "no labels"),
        (torch.eye(3), (torch.eye(3), [0, 1, 2]), "no labels"),
        (torch.eye(3), {"inputs": torch.eye(3)}, "no labels"),
        (torch.eye(3), (0, torch.arange(2)), r"shape \(2,\), expected \(3,\) for outputs \(3, 3\)"),
        (torch.eye(3), (0, torch.zeros(3, 1).long()), r"shape \(3, 1\), expected \(3,\)"),
        (torch.tensor(1.0), (0, torch.tensor(0)), r"expected \(\) for outputs \(\)"),
        (torch.eye(3), (0, torch.tensor([0, 1, 3])), "must be in 0..2, or -100 .*; got 3"),
        (torch.eye(3), (0, torch.tensor([0, -1, 2])), "must be in 0..2.*; got -1"),
        (torch.eye(3), (0, torch.rand(3)), "whole numbers, .*; got torch.float32"),
        (torch.full((3, 3), math.nan), (0, torch.arange(3)), r"not numbers \(NaN\)"),
    ],
)
def test_errors(metric: Any, outputs: torch.Tensor, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(outputs, batch)


@pytest.mark.parametrize("key", ["labels", "label", "label_ids"])
def test_labels_of_mappings(key: str) -> None:
    labels = torch.arange(3)
    assert labels_of({"inputs": torch.eye(3), key: labels}) is labels
    assert labels_of(UserDict({key: labels})) is labels


def test_metrics_by_name() -> None:
    assert metric_named("accuracy") is accuracy
    assert metric_named("ccamerge.evaluation.metrics:cross_entropy") is cross_entropy
    assert metric_named(len) is len
    assert title_of("accuracy") == title_of(accuracy) == "accuracy"
    with pytest.raises(ValueError, match="got 'acuracy'; did you mean 'accuracy'"):
        metric_named("acuracy")
    with pytest.raises(
        ValueError, match=r"x\.yml:3: metric: ccamerge\.evaluation\.metrics has no 'acuracy'"
    ):
        metric_named("ccamerge.evaluation.metrics:acuracy", "x.yml:3: metric")
    with pytest.raises(ValueError, match="cannot be called so: too many positional"):
        metric_named("ccamerge.evaluation.metrics:labels_of")
