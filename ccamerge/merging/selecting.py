"""Choosing among a merge, points on the way to it and the models, by what the ensemble says."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import torch

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Settings, normalised
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.fidelity.judging import Judge, closer, predicted
from ccamerge.fidelity.reading import reading_of
from ccamerge.fidelity.refining import STARTS, Refined, Start, Trainer
from ccamerge.graph.networks.network import Network
from ccamerge.merging.assembling import Merged, member
from ccamerge.merging.candidates import ASKED, AVERAGE, Candidates, Option
from ccamerge.methods.weights import Shares
from ccamerge.reporting.fidelity import Candidate, Fidelity, is_model

_FEW = 8
"""Inputs of which none is held out if they are fewer: nothing can be told of a merge then."""

_SAME = 1e-6
"""Difference of distances below which a merge is as near as the reference: of equal models."""

_TELLING = 30
"""Held-out inputs below which a merge says that they are few."""


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
    if reading is None or settings.holdout == 0 or not statistics.held:
        few = reading is not None and settings.holdout != 0 and statistics.samples < _FEW
        return _unjudged(networks, statistics, merged, settings, reference, choose and few), None
    weights, own = _weights(settings, len(networks)), f"models[{reference}]"
    with watch("judge"):
        judge = Judge(networks, statistics.held, reading, weights)
        candidates = Candidates(networks, reference, statistics, merged, judge)
        options = candidates.options(shares, settings)
        doubt, chosen = judge.alike() if choose else "", options[ASKED]
        if choose:
            chosen = options[own] if doubt else _closest(options, own)
    steps, inputs = list[tuple[float, float, float]](), 0
    if settings.refine and not merged.alone and not doubt:
        starts = list(options.values()) if choose else [options[ASKED]]
        with watch("refine"):
            trained = _trained(candidates, starts, weights, settings, progress)
            better, steps = _refined(candidates, trained), trained.progress
            inputs = trained.inputs
        if trained.closer:
            options[better.name] = better
        # It was looked at more often than the others, but it is one, and was asked for.
        sure = not choose or _is_closer(better, options[own], 1)
        if better.mean < chosen.mean and sure:
            chosen = better
    with watch("judge the result"):
        result = chosen.made()
        fidelity = _fidelity(candidates, result, options, chosen)
    if choose and not doubt and judge.size < _TELLING:
        doubt = f"only {judge.size} inputs are held out of {statistics.samples + judge.size}"
        doubt += ", which tell little: give more"
    return result, dataclasses.replace(fidelity, doubt=doubt, progress=steps, trained=inputs)


def _unjudged(
    networks: Sequence[Network],
    statistics: Statistics,
    merged: Merged,
    settings: Settings,
    reference: int,
    few: bool,
) -> Merged:
    """What is handed over where no inputs, or no outputs, are there to judge by."""
    if settings.refine and not merged.alone:
        why = "no inputs are held out" if not statistics.held else "its outputs are no numbers"
        message = f"the merged network is not refined: {why}, by which that could be judged"
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    if not few:
        return merged
    message = (
        f"{statistics.samples} inputs are too few to hold any out and tell whether a merge is "
        f"closer to the ensemble: models[{reference}] itself is handed over"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=5)
    return member(networks, reference)


def _is_closer(option: Option, other: Option, trials: int) -> bool:
    return closer(option.distances, other.distances, trials)


def _closest(options: Mapping[str, Option], reference: str) -> Option:
    """The closest of those that are closer than the reference, else that.

    A merge that is as near as the reference, as those of equal models are, is preferred to it.
    """
    own, asked = options[reference], options[ASKED]
    others = [option for option in options.values() if option is not own]
    better = [option for option in others if _is_closer(option, own, len(others))]
    if not better and torch.allclose(asked.distances, own.distances, _SAME, _SAME):
        return asked
    return min([*better, own], key=lambda option: option.mean)


def _trained(
    candidates: Candidates,
    options: Sequence[Option],
    weights: Sequence[float],
    settings: Settings,
    progress: bool,
) -> Refined:
    """The best that training makes of the options that are closest."""
    judge, inputs = candidates.judge, candidates.statistics.inputs
    examples = [e for e, _ in predicted(candidates.networks, inputs, judge.reading, weights)]
    trainer = Trainer(candidates.first, examples, judge, settings.seed, progress)
    able = sorted((o for o in options if o.state is not None), key=lambda option: option.mean)
    # A member that is distilled is what users would do instead: the closest is always tried.
    own = next((o for o in able if is_model(o.name)), None)
    if own is not None and able.index(own) > STARTS - 1:
        able.insert(STARTS - 1, own)
    return trainer.train([Start(o.name, o.state or {}) for o in able], settings.refine)


def _refined(candidates: Candidates, trained: Refined) -> Option:
    """What training came to, judged as users have it; infinitely far if that is nothing."""
    name = f"{trained.name}, refined"
    if not trained.closer:
        nothing = torch.full((1,), torch.inf, dtype=torch.float64)
        return Option(name, nothing, lambda: candidates.merged)
    of_merge = trained.name == ASKED or trained.name.startswith("t = ")
    made = candidates.made(trained.state, merged=of_merge)
    return Option(name, candidates.of_module(made), lambda: made)


def _weights(settings: Settings, count: int) -> tuple[float, ...]:
    """Of the models in their ensemble."""
    given = settings.weights
    return normalised([1.0] * count if given is None or isinstance(given, Mapping) else given)


def _fidelity(
    candidates: Candidates, result: Merged, options: Mapping[str, Option], chosen: Option
) -> Fidelity:
    """What is told of all candidates, and of the network that is handed over as it is."""
    judge = candidates.judge
    members = [float(own.mean()) for own in judge.members]
    best = min(range(len(members)), key=members.__getitem__)
    own = candidates.of_module(result)
    difference = own - judge.members[best]
    count = len(difference)
    error = float(difference.std()) / count**0.5 if count > 1 else float("inf")
    average = options.get(AVERAGE)
    return Fidelity(
        unit=judge.reading.unit,
        reading=f"{judge.reading.mean}, {judge.reading.why}",
        inputs=judge.size,
        members=members,
        average=None if average is None else average.mean,
        merged=float(own.mean()),
        error=error,
        reference=candidates.reference,
        chosen=chosen.name,
        candidates=[Candidate(o.name, o.mean, o.t) for o in options.values()],
    )
