"""What is worked on at once, and so lies in memory even where results lie in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ccamerge.core.scratch import check_memory
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.lockstep import live_bytes, scaled

_SOLVING = 16
"""Matrices, beside its three covariances and two maps of each model, of a space that is solved:
measured."""


def check_working_set(every: Sequence[Spaces], leaves: Sequence[Any]) -> None:
    """ValueError if the memory limit is too small for these spaces, each model's, and this batch.

    The message says what takes most, and how much would do.
    """
    check_memory(*working_set(every, leaves))


def working_set(every: Sequence[Spaces], leaves: Sequence[Any]) -> tuple[int, str]:
    """Bytes that are worked on at once, estimated, and what takes most of them.

    Parameters
    ----------
    every : each model's spaces
    leaves : inputs of a batch
    """
    programs = [own.program.variant(leaves) for own in every]
    batch = 2 * scaled(live_bytes(programs), programs[0], leaves)
    shapes = every[0].program.parameter_shapes
    key = max(shapes, key=lambda name: math.prod(shapes[name]), default="")
    parameter = 8 * 3 * math.prod(shapes.get(key, (0,)))
    space = max(every[0].spaces, key=lambda own: own.size, default=None)
    solving = 0
    if space is not None:
        solving = 8 * space.size**2 * (5 * (len(every) - 1) + _SOLVING)
    largest = max(
        (batch, "a batch's values in all models take {}: give smaller batches"),
        (solving, f"to solve space {space.name if space else ''!r} takes {{}}"),
        (parameter, f"to average {key!r} takes {{}}"),
    )
    return largest[0], largest[1].format(f"{largest[0] / 2**20:.0f} MiB")
