"""The models, their ensemble and merges of them by several methods, side by side."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from torch import nn
from tqdm import tqdm

from ccamerge.collection.statistics import Statistics
from ccamerge.config.importing import did_you_mean
from ccamerge.config.model import METRICS, Ensemble
from ccamerge.config.settings import Settings
from ccamerge.core import arguments
from ccamerge.core.renamed import renamed
from ccamerge.evaluation.evaluating import Row, measure
from ccamerge.evaluation.interpolation import check_points, path
from ccamerge.evaluation.metrics import Metric, metric_named, title_of
from ccamerge.graph.networks.parameters import parameters_of
from ccamerge.merging.checking import check_results, checked, refuse_for_spaces
from ccamerge.merging.merging import merge
from ccamerge.methods.weights import check_t
from ccamerge.reporting.results import Barrier, Comparison, Score


@renamed(moments="statistics")
def compare(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    *,
    statistics: Statistics | None = None,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    points: int = 0,
    metric: str | Metric = "accuracy",
    better: str | None = None,
    loss: str | Metric = "cross_entropy",
    ensemble: Ensemble = "probabilities",
    names: Sequence[str] | None = None,
    others: Mapping[str, nn.Module] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Evaluate models, their ensemble and their merges by several methods on the same data.

    Parameters
    ----------
    models : of one architecture; never modified
    data : labelled batches as for `ccamerge.evaluate`, read once for the models and once for each
        method, so not a generator
    statistics : of the models, from `ccamerge.collect`, if ``methods`` are given; with pairs="all"
        if one of them needs these
    methods : names in `METHODS`, or keyword arguments of `ccamerge.merge` by names for the rows:
        ``{"CCA, regression": {"method": "cca", "repair": "regression"}}``
    points : of the path from the reference to the others, at which each method's loss is measured
        for its barrier (see `ccamerge.barrier`); 0 leaves it out
    metric, loss : as for `ccamerge.evaluate`
    better : whether "higher" or "lower" values of the metric are better; known of those in
        `METRICS`, "higher" for others
    ensemble : what of the models is averaged: "probabilities", "outputs" or "none" for no ensemble
    names : of the models; default their places, ``models[0]``
    others : more networks by names, such as merged ones
    progress : whether to show a progress bar
    **settings : of all merges, such as ``reference`` and ``repair``

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError, TypeError, ImportError, numpy.linalg.LinAlgError
        As `ccamerge.merge`, `ccamerge.evaluate` and `ccamerge.barrier`.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> def network():
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ...     )
    >>> models = [network(), network()]  # trained elsewhere
    >>> data = [(torch.randn(32, 4), torch.randint(3, (32,))) for _ in range(4)]
    >>> from ccamerge import collect
    >>> statistics = collect(models, data, progress=False)
    >>> found = compare(
    ...     models, data, statistics=statistics, methods=["cca", "permutation"], progress=False
    ... )
    >>> [score.name for score in (*found.models, found.ensemble, *found.merged)]
    ['models[0]', 'models[1]', 'ensemble of 2', 'cca', 'permutation']
    """
    models, data = arguments.modules(models), arguments.batches(data)
    if names is None:
        names = [f"models[{i}]" for i in range(len(models))]
    names = arguments.items(names, "names", f"a list of {len(models)} names, one for each model")
    if len(names) != len(models):
        message = f"names must be {len(models)}, one for each model, got {len(names)}"
        raise ValueError(message)
    rows: list[Row] = [(str(name), [model]) for name, model in zip(names, models, strict=True)]
    more = arguments.mapping({} if others is None else others, "others", "a dict of modules")
    rows += [(n, [arguments.module(model, f"others[{n!r}]")]) for n, model in more.items()]
    if arguments.choice(ensemble, "ensemble", get_args(Ensemble)) != "none":
        rows.append((f"ensemble of {len(models)}", models))
    if better is not None:
        arguments.choice(better, "better", ("higher", "lower"))
    for name, value in (("metric", metric), ("loss", loss)):
        metric_named(value, argument=name)
    progress = arguments.flag(progress, "progress")
    points = arguments.integer(points, "points") and check_points(points)
    merges = _settings(models, methods, statistics, points, settings)
    if merges and isinstance(data, Iterator):
        message = "data is read several times: pass a list or a DataLoader, not a generator"
        raise ValueError(message)
    wanted = [metric, loss]
    found, samples = measure(
        rows, data, wanted, "outputs" if ensemble == "outputs" else "probabilities"
    )
    scores = [Score(name, *pair) for (name, _), pair in zip(rows, found, strict=True)]
    together = scores.pop() if ensemble != "none" else None
    merged: list[Score] = []
    barriers: dict[str, Barrier] = {}
    total = len(merges) * (1 + points)
    with tqdm(total=total, desc="merge", unit="net", disable=not (progress and total)) as bar:
        for name, chosen in merges.items():
            own = [score.loss for score in scores[: len(models)]]
            score, way = _method(models, data, wanted, name, chosen, points, own, bar.update)
            merged.append(score)
            if way:
                barriers[name] = way
    return Comparison(
        title_of(metric),
        better or METRICS.get(title_of(metric), "higher"),
        title_of(loss),
        samples,
        scores[: len(models)],
        together,
        merged + scores[len(models) :],
        barriers,
    )


def _method(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    metrics: Sequence[str | Metric],
    name: str,
    settings: Mapping[str, Any],
    points: int,
    own: Sequence[float],
    tick: Callable[[], object],
) -> tuple[Score, Barrier | None]:
    """Merge, and merge along the path, then evaluate all of it in one pass.

    ``own`` are the models' losses.
    """
    start = time.perf_counter()
    try:
        result = merge(models, **settings)
    except np.linalg.LinAlgError as error:
        message = f"{name}: {error}"
        raise np.linalg.LinAlgError(message) from error
    seconds = time.perf_counter() - start
    tick()
    way: dict[float, nn.Module] = {}
    if points:
        for t, network in path(models, points, **{**settings, "aligned": result.aligned}):
            way[t] = network
            tick()
    rows: list[Row] = [(name, [result.model])]
    rows += [(f"{name}, t = {t:g}", [network]) for t, network in way.items()]
    ((metric, loss), *along), _ = measure(rows, data, metrics)
    found = Barrier.of(way, along, own, settings.get("reference", 0)) if way else None
    return Score(name, metric, loss, seconds), found


def _settings(
    models: Sequence[nn.Module],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    statistics: Statistics | None,
    points: int,
    settings: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Keyword arguments of `merge` by names; ValueError for what cannot run."""
    expected = "a list of names, or a dict of settings by names"
    if isinstance(methods, Mapping):
        for name, own in arguments.mapping(methods, "methods", expected).items():
            arguments.mapping(own, f"methods[{name!r}]", "a dict of settings")
    else:
        given = arguments.items(methods, "methods", expected)
        methods = {arguments.string(name, "methods", expected): {"method": name} for name in given}
    if methods and statistics is None:
        message = "statistics are needed to merge by methods: pass ccamerge.collect(models, data)"
        raise ValueError(message)
    # Rows are methods: each is what its settings ask for, whatever would be handed over.
    common = {"select": "none", **settings, "statistics": statistics, "progress": False}
    found = {name: {**common, **own} for name, own in methods.items()}
    known = inspect.signature(merge).parameters
    parameters = [parameters_of(m, f"models[{i}]") for i, m in enumerate(models) if found]
    for name, chosen in found.items():
        if unknown := sorted(set(chosen) - set(known)):
            hint = did_you_mean(unknown[0], known)
            message = f"methods[{name!r}]: {unknown[0]!r} is no argument of merge{hint}"
            raise TypeError(message)
        check_results(chosen["statistics"], chosen.get("aligned"))
        reference = arguments.index(chosen.get("reference", 0), "reference", len(models))
        names = [field.name for field in dataclasses.fields(Settings)]
        how = Settings(**{key: chosen[key] for key in names if key in chosen})
        how = checked(how, len(models), reference)
        every = [chosen["statistics"].spaces_of(own) for own in parameters]
        refuse_for_spaces(how, every, reference)
        if points:
            check_t(how.weights, 0.5, reference)
    return found
