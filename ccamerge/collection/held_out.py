"""Which inputs of a stream are held out of all that is counted, so that merges can be judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.collection.kept_inputs import Reservoir
from ccamerge.core.scratch import most
from ccamerge.graph.tracing.batches import batch_size, moved
from ccamerge.graph.tracing.program import Program

_EARLY = 200
"""Inputs that are held out as soon as there are four times as many."""

_MOST = 1024
"""Inputs held out at most, however many there are: more tell little more."""

_BYTES = 128 << 20

_SAME = 1e-3
"""Relative difference of outputs up to which a batch's parts are taken for what the whole gives."""

_ROUNDING = 4
"""The same in units of the coarsest precision of the values, where that is more."""


class HeldOut:
    """Takes some inputs out of batches as they go by.

    Of a batch whose samples do not depend on each other, which is tried, some samples are taken,
    spread over it, two at least, since a forward may do other things with one; of others whole
    batches, but never the first.

    Parameters
    ----------
    share : of the inputs; of few inputs more are taken, up to a quarter, of very many fewer
    seed : of the choice among them if they take too much memory
    device : where networks run, for a trial; inputs stay where they are
    """

    def __init__(self, share: float, seed: int, device: torch.device) -> None:
        self._share, self._device = share, device
        self._seen = self._taken = self._batches = 0
        self._apart: bool | None = None
        self._reservoir = Reservoir(_MOST, most(_BYTES, 1 / 32), seed)

    @property
    def batches(self) -> list[list[Any]]:
        """What was held out, as lists of leaves."""
        return self._reservoir.batches

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside `batches`, as JSON has it."""
        counted = [self._seen, self._taken, self._batches]
        return {"counted": counted, "apart": self._apart, "reservoir": self._reservoir.state()}

    def restore(self, state: Mapping[str, Any], batches: Sequence[list[Any]]) -> None:
        """Go on from what another one was when it gave ``state`` and ``batches``."""
        self._seen, self._taken, self._batches = state["counted"]
        self._apart = state["apart"]
        self._reservoir.restore(state["reservoir"], batches)

    def split(
        self, program: Program, state: Mapping[str, Tensor], leaves: list[Any]
    ) -> list[Any] | None:
        """What of a batch is to be counted; None if all of it is held out.

        ``program`` and ``state`` are a network's.
        """
        size = batch_size(leaves)
        self._seen, self._batches = self._seen + size, self._batches + 1
        if not self._share:
            return leaves
        early = min(_EARLY, self._seen // 4)
        due = min(_MOST, max(int(self._share * self._seen), early)) - self._taken
        if due < 1 or not size:
            return leaves
        if self._apart is None and size > 1:
            self._apart = are_apart(program, state, moved(leaves, self._device))
        take = min(due, size // 2)
        if self._apart and take > 1 and size - take > 1:
            places = [(2 * k + 1) * size // (2 * take) for k in range(take)]
            held = rows(leaves, places)
            rest = rows(leaves, sorted(set(range(size)) - set(places)))
            if program.accepts(held) and program.accepts(rest):
                self._keep(held, take)
                return rest
        if due >= size and self._batches > 1:
            self._keep(leaves, size)
            return None
        return leaves

    def _keep(self, leaves: list[Any], size: int) -> None:
        self._reservoir.offer(leaves, size)
        self._taken += size


def are_apart(
    program: Program,
    state: Mapping[str, Tensor],
    leaves: Sequence[Any],
    read: Callable[[Any], Any] | None = None,
) -> bool:
    """Whether a network makes of some samples what it makes of them among others.

    ``read`` makes of its outputs what is looked at instead.
    """
    if not program.samples_first(leaves):
        return False
    size = batch_size(leaves)
    places = list(range(0, size, 2))
    some = rows(leaves, places)
    if not program.accepts(some):
        return False
    with torch.inference_mode():
        outputs = [program.run(state, x) for x in (list(leaves), some)]
        seen = outputs if read is None else [read(output) for output in outputs]
    whole, part = map(pytree.tree_leaves, seen)
    close = max(_SAME, _ROUNDING * program.eps)
    for one, other in zip(whole, part, strict=True):
        if not isinstance(one, Tensor):
            continue
        if one.dim() < 1 or len(one) != size:
            return False
        own = one[torch.tensor(places, device=one.device)]
        if own.shape != other.shape or not _alike(own, other, close):
            return False
    return True


def _alike(one: Tensor, other: Tensor, close: float) -> bool:
    """Whether two outputs are the same but for rounding; what is infinite must be so in both."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    difference = torch.where(one == other, 0.0, one - other).double().norm()
    size = torch.where(one.isfinite(), one, 0.0).double().norm()
    return bool(difference <= close * size)


def rows(leaves: Sequence[Any], places: Sequence[int]) -> list[Any]:
    """Some samples of inputs that have them on their first axis."""
    return [
        x[torch.tensor(places, device=x.device)] if isinstance(x, Tensor) and x.dim() else x
        for x in leaves
    ]
