"""Positions that are counted: enough of them, and in turn all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccamerge.collection.positions import lattice


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    enough=st.integers(1, 9),
    first=st.integers(0, 50),
    dim=st.sampled_from([1, 3]),
)
def test_turns_that_follow_one_another_count_each_position_once(
    size: tuple[int, int], enough: int, first: int, dim: int
) -> None:
    shape = [2, *size]
    shape.insert(dim, 3)
    counted = np.zeros(shape, int)
    steps = [max(1, n // enough) for n in size]
    for turn in range(first, first + math.prod(steps)):
        part = counted[lattice(shape, dim, enough, turn)]
        spatial = [n for axis, n in enumerate(part.shape) if axis not in (0, dim)]
        for found, whole in zip(spatial, size, strict=True):
            assert min(enough, whole) <= found < 2 * enough
        assert (part.shape[0], part.shape[dim]) == (2, 3)
        part += 1
    assert (counted == 1).all()


@pytest.mark.parametrize("length", [1, 100, 255, 256, 511, 700, 15_000])
def test_of_long_sequences_of_convolutions_some_positions_count(length: int) -> None:
    counted = np.zeros((2, 3, length), int)
    step = max(1, length // 256)
    for turn in range(7, 7 + step):
        part = counted[lattice(counted.shape, 1, 8, turn)]
        assert part.shape[:2] == (2, 3)
        assert min(256, length) <= part.shape[2] < 512
        part += 1
    assert (counted == 1).all()


def test_of_tokens_every_one_counts() -> None:
    assert np.zeros((2, 3000, 5))[lattice((2, 3000, 5), 2, 8)].shape == (2, 3000, 5)


@pytest.mark.parametrize("shape", [(50,), (50, 40), (50, 40, 30), (9, 50, 40, 30, 20)])
def test_of_what_is_no_map_everything_counts(shape: tuple[int, ...]) -> None:
    for turn in (0, 5):
        assert np.zeros(shape)[lattice(shape, 1, 4, turn)].shape == shape
