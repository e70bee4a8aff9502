"""What is counted of the models' values while they run, and by which moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.collection.positions import MATCHED, RESTORED, lattice
from ccamerge.collection.statistics import Pairs
from ccamerge.collection.taps import alignment_taps, repair_taps
from ccamerge.collection.tokens import Tokens
from ccamerge.core.device import Device
from ccamerge.core.moments import Moments, check_many, update_many
from ccamerge.core.side_stream import SideStream
from ccamerge.graph.space import Spaces, Tap
from ccamerge.graph.tracing.lockstep import Run, lockstep


@dataclasses.dataclass(frozen=True)
class Counted:
    """What is to be counted of a node's values, features on axis ``dim``, in one native call.

    ``parts`` say where it is in each model's value, by which moments, and how many rows and columns
    of a feature map are enough. ``title`` is for messages.
    """

    dim: int
    title: str
    parts: list[tuple[Sequence[Tap], Moments, int]]


Watched = dict[str, list[Counted]]
"""By nodes."""


Matched = dict[str, list[Moments]]
Outputs = dict[str, dict[str, Moments]]
"""As `Statistics` has them."""


def nothing_counted(
    found: Sequence[Spaces], pairs: Pairs, reference: int, folds: int, device: Device | None
) -> tuple[Matched, Outputs]:
    """Moments of which nothing is counted yet."""
    options: Any = {"reference": reference, "device": device}
    matched: Matched = {}
    outputs: Outputs = {}
    for space in zip(*(own.spaces for own in found), strict=True):  # each model's
        name, sizes = space[0].name, [own.size for own in space]
        matched[name] = [Moments(sizes, pairs=pairs, **options) for _ in range(folds)]
        outputs[name] = {
            tap.name: Moments(sizes, pairs="none", **options) for tap in repair_taps(space[0])
        }
    return matched, outputs


def watched_for(
    found: Sequence[Spaces], matched: Matched, outputs: Outputs, folds: int
) -> list[Watched]:
    """What to watch in the batches of each fold, and which moments count it."""
    watched: list[Watched] = [{} for _ in range(folds)]
    for space in zip(*(own.spaces for own in found), strict=True):  # each model's
        name = space[0].name
        for fold, moments in zip(watched, matched[name], strict=True):
            for taps in zip(*map(alignment_taps, space), strict=True):
                _watch(fold, name, taps, moments, MATCHED)
            for taps in zip(*map(repair_taps, space), strict=True):
                _watch(fold, name, taps, outputs[name][taps[0].name], RESTORED)
    return watched


def _watch(
    watched: Watched, space: str, taps: Sequence[Tap], moments: Moments, enough: int
) -> None:
    """Add a tap, by each model's, to what is watched; one call counts a node's along an axis."""
    counted = watched.setdefault(taps[0].node, [])
    title = f"space {space!r}, tap {taps[0].name!r}"
    for index, known in enumerate(counted):
        # The same moments twice in one call would be two updates of one object at a time.
        if known.dim == taps[0].dim and all(m is not moments for _, m, _ in known.parts):
            both = f"{known.title}; {title}"
            counted[index] = Counted(known.dim, both, [*known.parts, (taps, moments, enough)])
            return
    counted.append(Counted(taps[0].dim, title, [(taps, moments, enough)]))


def accumulate(
    runs: Sequence[Run],
    watched: Watched,
    index: int,
    turn: int,
    overlap: SideStream,
    tokens: Tokens | None = None,
) -> None:
    """Run all models side by side, so that a tap's features live only until they are counted.

    Of values of tokens those count that ``tokens`` says, all if it is None.
    """
    with torch.inference_mode():
        for name, values in lockstep(runs):
            for counted in watched.get(name, ()):
                dim = counted.dim
                every = list(values)
                if tokens is not None:
                    pairs = [tokens.among(value, dim) for value in values]
                    every, dim = [value for value, _ in pairs], pairs[0][1]
                updates = [
                    (
                        moments,
                        [
                            _features(value, tap, dim, enough, turn)
                            for value, tap in zip(every, taps, strict=True)
                        ],
                    )
                    for taps, moments, enough in counted.parts
                ]
                with overlap.counting([values, every]):
                    update_many(updates, axis=dim, label=f"{counted.title}, batch {index}")


def _features(value: Tensor, tap: Tap, dim: int, enough: int, turn: int) -> Tensor:
    """A tap's features, on axis ``dim``, at the positions that count: a view."""
    value = value.narrow(dim, tap.start, tap.size)
    return value[lattice(value.shape, dim, enough, turn)]


def check_finite(watched: Sequence[Watched]) -> None:
    """Wait for all that is counted; ValueError for the first value that is not finite."""
    every = (c for fold in watched for node in fold.values() for c in node)
    check_many(list({id(m): m for counted in every for _, m, _ in counted.parts}.values()))
