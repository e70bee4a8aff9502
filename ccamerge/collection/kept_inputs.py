"""A few of many inputs, chosen as they go by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Reservoir:
    """A uniform sample of whole batches: at most ``limit`` inputs, and ``most_bytes`` of memory.

    Each batch draws a number, and those with the smallest are kept as long as they fit: so the
    bounds hold whatever the sizes of the batches. One batch is kept at least.
    """

    def __init__(self, limit: int, most_bytes: int, seed: int) -> None:
        self._kept: list[_Batch] = []  # by ascending numbers
        self._most = (limit, most_bytes)
        self._random = random.Random(seed)

    @property
    def batches(self) -> list[list[Any]]:
        """Leaves of the batches kept."""
        return [batch.leaves for batch in self._kept]

    @property
    def labels(self) -> list[int]:
        """What the batches kept were offered with."""
        return [batch.label for batch in self._kept]

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside `batches`, as JSON has it."""
        return {
            "random": self._random.getstate(),
            "batches": [[batch.drawn, batch.takes, batch.label] for batch in self._kept],
        }

    def restore(self, state: Mapping[str, Any], batches: Sequence[list[Any]]) -> None:
        """Go on from what another one was when it gave ``state`` and ``batches``."""
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._kept = [
            _Batch(drawn, tuple(takes), leaves, label)
            for (drawn, takes, label), leaves in zip(state["batches"], batches, strict=True)
        ]

    def offer(self, leaves: list[Any], size: int, label: int = 0) -> None:
        """Show a batch of ``size`` inputs; if it is kept, a copy is."""
        taken = sum(x.nbytes for x in leaves if isinstance(x, Tensor))
        batch = _Batch(self._random.random(), (size, taken), leaves, label)
        ahead = [b for b in self._kept if b.drawn < batch.drawn]
        if ahead and not self._fit([*ahead, batch]):
            return
        copied = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
        behind = self._kept[len(ahead) :]
        self._kept = [*ahead, dataclasses.replace(batch, leaves=copied), *behind]
        while len(self._kept) > 1 and not self._fit(self._kept):
            self._kept.pop()

    def _fit(self, batches: list[_Batch]) -> bool:
        return all(sum(b.takes[i] for b in batches) <= self._most[i] for i in range(2))


@dataclasses.dataclass(frozen=True)
class _Batch:
    """``drawn`` number, what it ``takes`` (inputs, bytes), and the inputs."""

    drawn: float
    takes: tuple[int, int]
    leaves: list[Any]
    label: int
