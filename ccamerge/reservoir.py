"""A few of many inputs, chosen as they go by."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor


class Reservoir:
    """A uniform sample of whole batches, at most ``limit`` inputs in all, but one batch at least.

    Each batch draws a number, and those with the smallest are kept as long as they fit: so the
    bound holds whatever the sizes of the batches.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self._kept: list[tuple[float, int, list[Any]]] = []  # number, inputs, leaves; ascending
        self._limit = limit
        self._random = random.Random(seed)

    @property
    def batches(self) -> list[list[Any]]:
        """Leaves of the batches kept."""
        return [leaves for _, _, leaves in self._kept]

    def offer(self, leaves: list[Any], size: int) -> None:
        """Show a batch of ``size`` inputs; if it is kept, a copy is."""
        drawn = self._random.random()
        ahead = sum(n for other, n, _ in self._kept if other < drawn)
        if self._kept and drawn > self._kept[0][0] and ahead + size > self._limit:
            return
        self._kept.append((drawn, size, _copied(leaves)))
        self._kept.sort(key=lambda item: item[0])
        while len(self._kept) > 1 and sum(n for _, n, _ in self._kept) > self._limit:
            self._kept.pop()


def _copied(leaves: list[Any]) -> list[Any]:
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
