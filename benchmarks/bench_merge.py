"""The whole merge of four trained ResNet20s, forward passes included, beside the baseline's."""

from __future__ import annotations

import baseline

import ccamerge

GROUP = "merge of 4 ResNet20, 1,000 images"
CHANCE = 10.0


def test_native(benchmark, zoo):
    benchmark.group = GROUP
    found = benchmark.pedantic(
        ccamerge.merge,
        (zoo.models, zoo.batches),
        {"gamma": baseline.GAMMA, "progress": False},
        rounds=3,
        warmup_rounds=1,
    )
    assert zoo.accuracy(found.model) > 4 * CHANCE


def test_native_as_published(benchmark, zoo):
    benchmark.group = GROUP
    found = benchmark.pedantic(
        ccamerge.merge,
        (zoo.models, zoo.batches),
        {"gamma": baseline.GAMMA, "norm": "paper", "progress": False},
        rounds=3,
    )
    assert zoo.accuracy(found.model) > 4 * CHANCE


def test_baseline(benchmark, zoo):
    benchmark.group = GROUP
    found = benchmark.pedantic(
        baseline.merge_resnet20, (zoo.models, zoo.batches), rounds=3, warmup_rounds=1
    )
    assert zoo.accuracy(found) > 3 * CHANCE
