"""What a merge will cost, before any data is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import get_args

from ccamerge.collection.collecting import FOLDS
from ccamerge.collection.positions import MATCHED, RESTORED, lattice
from ccamerge.collection.statistics import Pairs
from ccamerge.collection.taps import alignment_taps, repair_taps
from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.graph.space import Spaces, Tap


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Brief):
    """Costs of a merge. ``str`` is a table of the reference's ``spaces``.

    ``moments_bytes`` stay allocated while data is read; ``flops`` are those of the moments for one
    input sample, all models together, forward passes not included.
    """

    spaces: Spaces
    models: int
    pairs: Pairs
    folds: int
    moments_bytes: int
    flops: int

    def __str__(self) -> str:
        size = f"{self.moments_bytes / 2**20:.1f} MiB (folds: {self.folds})"
        lines = [
            str(self.spaces),
            "",
            f"{self.models} models, {len(self.spaces)} spaces, pairs: {self.pairs}",
            f"moments: {size}, {self.flops / 1e6:.1f} Mflop a sample",
        ]
        if self.spaces.pinned:
            lines.append("pinned axes (kept in their basis):")
            lines += [
                f"  {key}, axis {dim}: {why}"
                for (key, dim), why in sorted(self.spaces.pinned.items())
                if why != "position in the kernel"
            ]
        return "\n".join(lines)


def plan(
    spaces: Spaces | Sequence[Spaces],
    models: int | None = None,
    pairs: Pairs = "reference",
    folds: int = FOLDS,
    *,
    reference: int = 0,
) -> Plan:
    """Memory and arithmetic that the moments of several models need.

    Parameters
    ----------
    spaces : that all models have, or each model's if their widths differ
    models : how many there are, if they all have the same spaces
    pairs, folds, reference : as for `ccamerge.collect`

    Raises
    ------
    ValueError
        For fewer than two models, unknown ``pairs``, no fold or no such reference.
    """
    every: list[Spaces]
    if isinstance(spaces, Spaces):
        count = 1 if models is None else arguments.integer(models, "models")
        every = [spaces] * count
    else:
        every = arguments.items(spaces, "spaces", "Spaces, or a list with each model's")
        for index, one in enumerate(every):
            arguments.instance(one, Spaces, f"spaces[{index}]", "Spaces")
    if models is not None and arguments.integer(models, "models") != len(every):
        message = f"models must be the number of spaces given, {len(every)}, got {models}"
        raise ValueError(message)
    if len(every) < 2:
        message = f"models must be at least 2, got {len(every)}"
        raise ValueError(message)
    expected = "'reference' or 'all'"
    if arguments.string(pairs, "pairs", expected) not in get_args(Pairs):
        message = f"pairs must be {expected}, got {pairs!r}"
        raise ValueError(message)
    folds = arguments.integer(folds, "folds")
    if folds < 1:
        message = f"folds must be at least 1, got {folds}"
        raise ValueError(message)
    reference = arguments.index(reference, "reference", len(every))
    crosses = [
        (i, j)
        for i in range(len(every))
        for j in range(i + 1, len(every))
        if pairs == "all" or reference in (i, j)
    ]
    size = flops = 0
    for own in zip(*(found.spaces for found in every), strict=True):  # one space of each model
        widths = [space.size for space in own]
        squares, vectors = sum(w**2 for w in widths), sum(widths)
        products = sum(widths[i] * widths[j] for i, j in crosses)
        matched, kept = alignment_taps(own[0]), repair_taps(own[0])
        size += 8 * folds * (squares + products + vectors)
        size += 8 * len(kept) * (squares + vectors)
        flops += sum(_rows(every[0], t, MATCHED) * (squares + 2 * products) for t in matched)
        flops += sum(_rows(every[0], t, RESTORED) * squares for t in kept)
    return Plan(every[reference], len(every), pairs, folds, size, flops)


def _rows(spaces: Spaces, tap: Tap, enough: int) -> int:
    """Feature vectors of one input that are counted at a tap."""
    program = spaces.program
    shape = program.shapes.get(tap.node, (1,))
    counted = [
        len(range(n)[i]) for n, i in zip(shape, lattice(shape, tap.dim, enough), strict=True)
    ]
    return math.prod(n for dim, n in enumerate(counted) if dim != tap.dim) // program.samples
