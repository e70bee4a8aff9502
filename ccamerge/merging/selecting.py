"""Choosing among a merge, points on the way to it and the models, by what the ensemble says."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Settings, normalised
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.fidelity.judging import Judge, closer, predicted
from ccamerge.fidelity.reading import Reading, reading_of
from ccamerge.fidelity.refining import Refined, Start, Trainer
from ccamerge.graph.networks.network import Network
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.exporting import results_of
from ccamerge.merging.assembling import Merged, loaded, member, plain_average
from ccamerge.methods.weights import Shares
from ccamerge.reporting.fidelity import Candidate, Fidelity

POINTS = (0.25, 0.5, 0.75)
"""Where between the reference and the merge candidates lie."""

_FEW = 8
"""Inputs of which none is held out if they are fewer: nothing can be told of a merge then."""


Made = Callable[[], Merged]


_SAME = 1e-6
"""Difference of distances below which a merge is as near as the reference: of equal models."""


_TELLING = 30
"""Held-out inputs below which a merge says that they are few."""


@dataclasses.dataclass(frozen=True)
class _Option:
    """A network that might be handed over: its distances (units,), and how it is made.

    ``state`` are its parameters of the reference's program, where that is known.
    """

    name: str
    distances: Tensor
    made: Made
    state: Mapping[str, Tensor] | None = None
    t: float | None = None

    @property
    def mean(self) -> float:
        """The mean distance."""
        return float(self.distances.mean())


def selected(
    networks: Sequence[Network],
    statistics: Statistics,
    merged: Merged,
    shares: Shares,
    settings: Settings,
    reference: int,
    watch: Stopwatch,
    progress: bool,
) -> tuple[Merged, Fidelity | None]:
    """The candidate that is closest to the ensemble, and how far all of them are.

    The reference is handed over unless something is closer to the ensemble than it by more than
    chance. Nothing is chosen where the settings say so, or one model has all the weight.
    """
    choose = settings.select == "fidelity" and not merged.alone
    reading = reading_of(networks[reference].program, settings.ensemble)
    if reading is None or settings.holdout == 0:
        return merged, None
    if not statistics.held:
        if choose and statistics.samples < _FEW:
            message = (
                f"{statistics.samples} inputs are too few to hold any out and tell whether a merge "
                f"is closer to the ensemble: models[{reference}] itself is handed over"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            return member(networks, reference), None
        return merged, None
    with watch("judge"):
        judge = Judge(networks, statistics.held, reading, _weights(settings, len(networks)))
        options = _options(networks, merged, shares, settings, reference, judge)
        asked = options[_ASKED]
        few = ""
        doubt, chosen, steps = (
            judge.alike() if choose else "",
            asked,
            list[tuple[float, float, float]](),
        )
        if choose:
            chosen = options[f"models[{reference}]"]
            if not doubt:
                others = [o for o in options.values() if o is not chosen]
                trials = len(others)
                better = [o for o in others if closer(o.distances, chosen.distances, trials)]
                chosen = min([*better, chosen], key=lambda o: o.mean)
                if not better and torch.allclose(asked.distances, chosen.distances, _SAME, _SAME):
                    chosen = asked
            if not doubt and judge.size < _TELLING:
                few = f"only {judge.size} inputs are held out of {statistics.samples + judge.size}"
                few += ", which tell little: give more"
    if settings.refine and not merged.alone and not (choose and doubt):
        with watch("refine"):
            trained = _refined(networks, statistics, options, settings, reference, judge, progress)
        steps = trained.progress
        made = functools.partial(loaded, networks, reference, trained.state)
        own = judge.distances(networks[reference].program, trained.state)
        if own.mean() < chosen.mean:
            chosen = _Option(f"{trained.name}, refined", own, made)
            options[chosen.name] = chosen
    with watch("judge the result"):
        result = merged if chosen is asked else chosen.made()
        found = _fidelity(networks, result, reading, judge, reference, options, chosen)
    return result, dataclasses.replace(found, doubt=doubt or few, progress=steps)


def _refined(
    networks: Sequence[Network],
    statistics: Statistics,
    options: Mapping[str, _Option],
    settings: Settings,
    reference: int,
    judge: Judge,
    progress: bool,
) -> Refined:
    """The best that training makes of the candidates that are closest."""
    weights = _weights(settings, len(networks))
    examples = [e for e, _ in predicted(networks, statistics.inputs, judge.reading, weights)]
    trainer = Trainer(networks[reference], examples, judge, settings.seed, progress)
    able = [option for option in options.values() if option.state is not None]
    starts = [Start(o.name, o.state or {}) for o in sorted(able, key=lambda o: o.mean)]
    return trainer.train(starts, settings.refine)


def _weights(settings: Settings, count: int) -> tuple[float, ...]:
    """Of the models in their ensemble."""
    given = settings.weights
    return normalised([1.0] * count if given is None or isinstance(given, Mapping) else given)


_ASKED = "merge"
_AVERAGE = "plain average"


def _options(
    networks: Sequence[Network],
    merged: Merged,
    shares: Shares,
    settings: Settings,
    reference: int,
    judge: Judge,
) -> dict[str, _Option]:
    """All candidates by name; models of other widths than the reference are none."""
    first = networks[reference]
    found: dict[str, _Option] = {}

    def add(name: str, distances: Tensor, made: Made, *more: Any) -> None:
        found[name] = _Option(name, distances, made, *more)

    for index, network in enumerate(networks):
        if network.parameters.shapes == first.parameters.shapes:
            own = judge.members[index]
            add(f"models[{index}]", own, functools.partial(member, networks, index), network.state)
    if merged.alone:
        add(_ASKED, _of_module(judge, merged, first), lambda: merged)
        return found
    if len(found) == len(networks):
        mean, taken = plain_average(networks, reference, shares)

        def averaged() -> Merged:
            made = loaded(networks, reference, mean)
            made.from_reference |= taken
            return made

        add(_AVERAGE, judge.distances(first.program, mean), averaged, mean)
    if merged.state is None:
        add(_ASKED, _of_module(judge, merged, first), lambda: merged)
        return found
    state = merged.state
    add(_ASKED, judge.distances(first.program, state), lambda: merged, state)
    if settings.t is None and settings.select == "fidelity" and not first.program.limits:
        for t in POINTS:
            between = _between(first.state, state, t)
            made = functools.partial(loaded, networks, reference, between)
            add(f"t = {t:g}", judge.distances(first.program, between), made, between, t)
    return found


def _between(one: Mapping[str, Tensor], other: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """The point of the way from one network's parameters to another's."""
    return {
        key: value
        if torch.equal(value, one[key]) or not value.is_floating_point()
        else torch.lerp(one[key].double(), value.double(), t).to(value.dtype)
        for key, value in other.items()
    }


def _of_module(judge: Judge, merged: Merged, network: Network) -> Tensor:
    """The distances of a network as users have it."""
    device = model_device(merged.model)
    outputs = []
    with torch.inference_mode():
        for leaves in judge.inputs:
            copies = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(moved(copies, device), network.program.input_spec)
            outputs.append(results_of(merged.model(*args, **kwargs)))
    return judge.of_outputs(outputs)


def _fidelity(
    networks: Sequence[Network],
    result: Merged,
    reading: Reading,
    judge: Judge,
    reference: int,
    options: Mapping[str, _Option],
    chosen: _Option,
) -> Fidelity:
    """What is told of all candidates, and of the network that is handed over as it is."""
    members = [float(own.mean()) for own in judge.members]
    best = min(range(len(members)), key=members.__getitem__)
    own = _of_module(judge, result, networks[reference])
    difference = own - judge.members[best]
    count = len(difference)
    error = float(difference.std()) / count**0.5 if count > 1 else float("inf")
    average = options.get(_AVERAGE)
    return Fidelity(
        unit=reading.unit,
        reading=f"{reading.mean}, {reading.why}",
        inputs=judge.size,
        members=members,
        average=None if average is None else average.mean,
        merged=float(own.mean()),
        error=error,
        reference=reference,
        chosen=chosen.name,
        candidates=[Candidate(o.name, o.mean, o.t) for o in options.values()],
    )
