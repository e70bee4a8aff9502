"""A random sample of the passages of documents, from one pass over all of them.

A reservoir: each passage draws a number, and those with the smallest are kept, as many as have the
characters that are wanted. So each is as likely as any other, none is taken twice, memory holds
what is kept and nothing else, and all kinds of files are treated alike, compressed ones and Parquet
among them. Seeded offsets into the files would read less of large ones, but only where a file can
be entered anywhere, and would favour documents that are long or follow long ones.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable

from ccamerge.data.documents import Document


def sample(
    documents: Iterable[Document],
    wanted: int,
    weight: Callable[[str], int],
    generator: random.Random,
    first: bool,
) -> tuple[list[str], bool]:
    """Passages in a random order, whose weights come to ``wanted`` at least if there are so many.

    What is white space alone is left out.

    Parameters
    ----------
    documents : in an order that is always the same
    wanted : sum of the weights, or somewhat more
    weight : of a passage
    generator : of random numbers
    first : whether to take only what documents begin with

    Returns
    -------
    The passages, and whether these are all that there are.
    """
    kept: list[tuple[float, int, str]] = []  # largest number first: a heap of their negatives
    total, count = 0, 0
    for document in documents:
        for passage in document:
            if not passage.strip():
                continue
            number = generator.random()
            count += 1
            if total < wanted or number < -kept[0][0]:
                heapq.heappush(kept, (-number, count, passage))
                total += weight(passage)
                while total - weight(kept[0][2]) >= wanted:
                    total -= weight(heapq.heappop(kept)[2])
            if first:
                break
    return [passage for *_, passage in sorted(kept, reverse=True)], len(kept) == count
