"""Merges along the way from the reference to the other models, and the barrier between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from ccamerge.collection.statistics import Statistics
from ccamerge.core import arguments
from ccamerge.core.renamed import renamed
from ccamerge.evaluation.evaluating import measure
from ccamerge.evaluation.metrics import Metric, metric_named
from ccamerge.merging.merging import merge
from ccamerge.reporting.results import Barrier

POINTS = 11
"""From the reference to the others, both included."""


@renamed(moments="statistics")
def barrier(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    *,
    statistics: Statistics,
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
    statistics : of the models, from `ccamerge.collect` or the result of a merge
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
    way = dict(path(models, points, **settings, statistics=statistics, progress=False))
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
    settings : of `ccamerge.merge`, with ``statistics``

    Raises
    ------
    ValueError
        As `barrier`.
    """
    points = check_points(points)
    for t in (index / (points - 1) for index in range(points)):
        result = merge(models, **{**settings, "select": "none", "t": t})
        settings["aligned"] = result.aligned
        yield t, result.model


def check_points(points: int) -> int:
    """The number that ``points`` is; ValueError unless there is one between the ends at least."""
    points = arguments.integer(points, "points")
    if points < 3:
        message = f"points must be at least 3, both ends and one between them; got {points}"
        raise ValueError(message)
    return points
