"""What `ccamerge.merge` checks of its arguments before it looks at any data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Mode, Norm, Repair, Settings
from ccamerge.core import arguments
from ccamerge.graph.networks.fingerprints import program_fingerprint
from ccamerge.graph.networks.parameters import Parameters
from ccamerge.methods.alignment import Aligned, check_choice
from ccamerge.methods.ridges import check_regularisers
from ccamerge.methods.weights import check_weights, checked_t


def checked(settings: Settings, models: int, reference: int) -> Settings:
    """Settings of a merge as plain Python numbers, with the repair that they stand for.

    What depends on the networks' spaces (patterns that match nothing, a method that cannot do with
    some space) is checked where they are known.

    Raises
    ------
    ValueError, TypeError
        For what makes no sense; the message names the argument.
    ImportError
        For a method that lacks a package it needs.
    """
    mode = arguments.choice(settings.mode, "mode", get_args(Mode))
    norm = arguments.choice(settings.norm, "norm", get_args(Norm))
    repair = settings.repair
    if repair is None:
        repair = "regression" if norm == "fold" else "none"
    arguments.choice(repair, "repair", get_args(Repair))
    if norm == "paper" and repair == "regression":
        message = (
            "repair='regression' needs norm='fold': the paper's norm resets statistics instead"
        )
        raise ValueError(message)
    ridge, gamma = check_regularisers(settings.ridge, settings.gamma)
    t = checked_t(settings.t)
    weights = check_weights(settings.weights, models, t, reference)
    options = check_choice(settings.method, settings.options, settings.mode)
    return dataclasses.replace(
        settings,
        options=options,
        mode=mode,
        ridge=ridge,
        gamma=gamma,
        weights=weights,
        t=t,
        repair=repair,
        norm=norm,
        seed=arguments.seed(settings.seed),
        prove=arguments.flag(settings.prove, "prove"),
    )


def check_results(statistics: Any, aligned: Any) -> None:
    """Raise TypeError unless these are what `merge` and `collect` return under their names."""
    for name, value, kind, home in (
        ("statistics", statistics, Statistics, "ccamerge.collect"),
        ("aligned", aligned, Aligned, "the `aligned` of a result"),
    ):
        if value is None or isinstance(value, kind):
            continue
        hint = ""
        if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
            hint = f": load the file first, {name}=ccamerge.Statistics.load({value!r:.100})"
        elif isinstance(getattr(value, name, None), kind):
            hint = f": pass its {name}, {name}=result.{name}"
        expected = f"what {home} returns" if name == "statistics" else home
        raise arguments.wrong(name, f"{expected} ({kind.__name__})", value, hint)


def check_statistics(
    collected: Statistics, models: Sequence[Parameters], reference: int, pairs: str
) -> Statistics:
    """The statistics; ValueError unless they are of these models and suffice."""
    if collected.models != len(models):
        message = f"moments are of {collected.models} models, but {len(models)} were given"
        raise ValueError(message)
    if collected.pairs != "all" and collected.reference != reference:
        message = (
            f"moments were collected with reference {collected.reference}, not {reference}; "
            "collect with pairs='all' to be free in the choice"
        )
        raise ValueError(message)
    if pairs == "all" and collected.pairs != "all" and len(models) > 2:
        message = "this mode or method needs moments of all pairs; collect with pairs='all'"
        raise ValueError(message)
    for index, model in enumerate(models):
        if model.fingerprint != collected.fingerprint["models"][index]:
            message = f"moments belong to other parameters than those of models[{index}]"
            raise ValueError(message)
        program = collected.spaces_of(model).program
        if program_fingerprint(program) != collected.fingerprint["programs"][index]:
            message = f"moments belong to another architecture than that of models[{index}]"
            raise ValueError(message)
    return collected
