from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ccamerge
from ccamerge.collection.cost import plan
from tests import models as M


@pytest.mark.parametrize("pairs", ["reference", "all"])
@pytest.mark.parametrize("count", [2, 4])
def test_planned_memory_is_what_the_moments_take(pairs: Any, count: int) -> None:
    models = [M.randomise(M.BottleneckResNet(), s) for s in range(count)]
    data = [torch.randn(4, 3, 8, 8)]
    collected = ccamerge.collect(models, data, pairs=pairs, progress=False)
    planned = plan(collected.spaces_of(models[0]), count, pairs)
    every = [m for folds in collected.matched.values() for m in folds]
    every += [m for taps in collected.outputs.values() for m in taps.values()]
    taken = sum(
        value.nbytes
        for moments in every
        for key, value in moments.state_dict().items()
        if key.startswith(("m2", "mean"))
    )
    assert planned.moments_bytes == taken


def test_planned_arithmetic_by_hand() -> None:
    """MLP 12-16-16-5: each hidden space has its ReLU (matched) and its linear output (repair)."""
    found = ccamerge.spaces(M.MLP(), torch.randn(4, 12))
    two = plan(found, 2)
    # An own product costs d^2 (symmetric), a cross 2 d^2; crosses for the ReLU only.
    assert two.flops == 2 * (16**2 * (2 + 2) + 16**2 * 2)
    assert plan(found, 5, "all").flops == 2 * (16**2 * (5 + 2 * 10) + 16**2 * 5)


def test_arithmetic_is_for_one_sample_whatever_the_batch() -> None:
    plans = [
        plan(ccamerge.spaces(M.GroupedConv(), torch.randn(batch, 3, 8, 8)), 3)
        for batch in (1, 2, 8)
    ]
    assert len({p.flops for p in plans}) == 1
    assert len({p.moments_bytes for p in plans}) == 1


def test_arithmetic_is_that_of_the_positions_that_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    found = ccamerge.spaces(net, torch.randn(2, 3, 32, 17))
    # Of the ReLU's map every fourth row and every second column; of the convolution's twice as far.
    assert plan(found, 2).flops == 8 * 9 * 5**2 * (2 + 2) + 4 * 5 * 5**2 * 2


def test_the_table_names_costs_and_reasons() -> None:
    found = ccamerge.spaces(M.UnknownOp(), torch.randn(4, 6))
    text = str(plan(found, 3, "all"))
    assert "3 models, 1 spaces, pairs: all" in text
    assert "MiB" in text
    assert "a.weight, axis 0: no rule for aten.logcumsumexp" in text


def test_wrong_arguments() -> None:
    found = ccamerge.spaces(M.MLP(), torch.randn(4, 12))
    with pytest.raises(ValueError, match="models must be at least 2, got 1"):
        plan(found, 1)
    with pytest.raises(ValueError, match="pairs must be 'reference' or 'all', got 'some'"):
        plan(found, 2, "some")  # type: ignore[arg-type]
