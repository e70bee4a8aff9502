"""The sample is the beginning of one random order of all passages."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccamerge.data.local import choice, spans
from ccamerge.data.sampling import sample

DOCUMENTS = st.lists(st.lists(st.sampled_from(["a", "bb", "cccc", " ", "d e\n"]), max_size=4))


@given(documents=DOCUMENTS, wanted=st.integers(1, 60), seed=st.integers(0, 9), first=st.booleans())
def test_as_if_all_were_sorted(
    documents: list[list[str]], wanted: int, seed: int, first: bool
) -> None:
    generator = random.Random(seed)
    rows = [[p for p in document if p.strip()][: 1 if first else None] for document in documents]
    drawn = sorted((generator.random(), p) for row in rows for p in row)
    expected: list[str] = []
    while drawn[len(expected) :] and sum(map(len, expected)) < wanted:
        expected.append(drawn[len(expected)][1])
    found = sample(map(iter, documents), wanted, len, random.Random(seed), first)
    assert found == (expected, len(expected) == len(drawn))


def test_each_is_as_likely_as_any_other() -> None:
    tries, texts = 3000, [f"{number}" for number in range(8)]
    counts: Counter[str] = Counter()
    places: Counter[str] = Counter()
    generator = random.Random(0)
    for _ in range(tries):
        kept, _ = sample((iter([t]) for t in texts), 3, len, generator, False)
        counts.update(kept)
        places.update(kept[:1])
    error = 5 * (tries * 3 / 8 * 5 / 8) ** 0.5  # five standard errors of a binomial
    assert all(abs(counts[t] - tries * 3 / 8) < error for t in texts)
    error = 5 * (tries / 8 * 7 / 8) ** 0.5
    assert all(abs(places[t] - tries / 8) < error for t in texts)


@given(count=st.integers(1, 40), size=st.integers(1, 9))
def test_batches_have_every_sample_once_and_none_has_a_single_one(count: int, size: int) -> None:
    found = spans(count, size)
    assert [place for span in found for place in span] == list(range(count))
    assert all(len(span) == size for span in found[:-1])
    assert len(found[-1]) <= size + 1
    assert len(found) == 1 or size == 1 or len(found[-1]) > 1


def test_a_choice_tells_of_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    assert sorted(choice(5, None, 0, "rows", 9)) == [0, 1, 2, 3, 4]
    assert len(choice(5, None, 0, "rows", 3)) == len(choice(5, 3, 1, "rows", None)) == 3
    assert choice(50, 9, 0, "rows", 3) != choice(50, 9, 1, "rows", 3)
    assert caplog.messages == []
    assert len(choice(5, 7, 0, "rows", 3)) == 5
    assert caplog.messages == ["7 rows were asked for, but there are 5: all are used"]
