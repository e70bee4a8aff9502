"""Merges along the way from the reference to the other models, and the barrier between them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from ccamerge.collection.statistics import Collected
from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.evaluation.evaluating import measure
from ccamerge.evaluation.metrics import Metric, metric_named
from ccamerge.merging.merging import merge

POINTS = 11
"""From the reference to the others, both included."""


@dataclasses.dataclass(frozen=True, repr=False)
class Barrier(Brief):
    """A metric and a loss of the merges at each ``t``, the way from the reference (0) to the rest.

    Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020);
    Ainsworth et al., "Git Re-Basin" (ICLR 2023), for the loss after alignment. ``ends`` are the
    losses of the models themselves: the reference's, and the mean of the others'.
    """

    t: tuple[float, ...]
    metric: tuple[float, ...]
    loss: tuple[float, ...]
    ends: tuple[float, float]

    @classmethod
    def of(
        cls, t: Iterable[float], values: Sequence[Sequence[float]], own: Sequence[float], first: int
    ) -> Barrier:
        """From a pair (metric, loss) for each ``t``, and the models' losses.

        ``first`` is the reference among the models.
        """
        metric, loss = zip(*values, strict=True)
        others = [value for index, value in enumerate(own) if index != first]
        return cls(tuple(t), metric, loss, (own[first], statistics.fmean(others)))

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between the models' own: 0 or more.

        ``max_t loss(t) - ((1 - t) loss_reference + t loss_others)``, in the loss's unit. The line
        ends in the models and not in the merges at t = 0 and 1: where maps are not exact (CCA
        through a ReLU) these may be far worse, and a line between them would hide what lies below.
        """
        first, last = self.ends
        lines = [(1 - t) * first + t * last for t in self.t]
        return max(0.0, *(loss - line for loss, line in zip(self.loss, lines, strict=True)))


def barrier(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    *,
    moments: Collected,
    metric: str | Metric = "accuracy",
    loss: str | Metric = "cross_entropy",
    points: int = POINTS,
    **settings: Any,
) -> Barrier:
    """The loss along the straight line between aligned models, and the barrier on it.

    All merges on the way are held at once, so that the data is read once.

    Parameters
    ----------
    models : as for `ccamerge.merge`
    data : labelled batches, as for `ccamerge.evaluate`
    moments : of the models, from `ccamerge.collect` or the result of a merge
    metric, loss : as for `ccamerge.evaluate`; the barrier is that of the loss
    points : merges from t = 0 to t = 1, equally far apart
    **settings : of `ccamerge.merge`. t = 0 is the reference itself and t = 1, of two models of
        equal widths, the other one; repair acts on every merge between.

    Returns
    -------
    Barrier

    Raises
    ------
    ValueError
        For fewer than 3 points, and as `ccamerge.merge` and `ccamerge.evaluate`.
    """
    models, data = arguments.modules(models), arguments.batches(data)
    for name, value in (("metric", metric), ("loss", loss)):
        metric_named(value, argument=name)
    way = dict(path(models, points, **settings, moments=moments, progress=False))
    rows = [(f"t = {t:g}", [model]) for t, model in way.items()]
    rows += [(f"models[{i}]", [model]) for i, model in enumerate(models)]
    values, _ = measure(rows, data, [metric, loss])
    own = [value for _, value in values[len(way) :]]
    return Barrier.of(way, values[: len(way)], own, settings.get("reference", 0))


def path(
    models: Sequence[nn.Module], points: int, **settings: Any
) -> Iterator[tuple[float, nn.Module]]:
    """Each ``t`` with the merge there; what is aligned is aligned once.

    Parameters
    ----------
    models, points : as for `barrier`
    settings : of `ccamerge.merge`, with ``moments``

    Raises
    ------
    ValueError
        As `barrier`.
    """
    points = check_points(points)
    for t in (index / (points - 1) for index in range(points)):
        result = merge(models, **{**settings, "t": t})
        settings["aligned"] = result.aligned
        yield t, result.model


def check_points(points: int) -> int:
    """The number that ``points`` is; ValueError unless there is one between the ends at least."""
    points = arguments.integer(points, "points")
    if points < 3:
        message = f"points must be at least 3, both ends and one between them; got {points}"
        raise ValueError(message)
    return points
