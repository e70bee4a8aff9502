"""What `ccamerge.merge` checks of its arguments: before any data, and at the first batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ccamerge.collection.statistics import Statistics
from ccamerge.config.patterns import by_pattern
from ccamerge.config.settings import DEFAULT_RIDGE, TABLE, Repair, Settings
from ccamerge.core import arguments
from ccamerge.graph.networks.fingerprints import program_fingerprint
from ccamerge.graph.networks.parameters import Parameters
from ccamerge.graph.space import Spaces
from ccamerge.methods.alignment import (
    Aligned,
    able_methods,
    check_methods,
    check_options,
    check_widths,
    methods_of,
    pairs_needed,
)
from ccamerge.methods.weights import check_t, shares_of

T = TypeVar("T")

Problem = tuple[str, Exception]
"""A setting's name, and what is wrong with it."""


def checked(settings: Settings, models: int, reference: int) -> Settings:
    """Settings of a merge as plain Python numbers, with the repair that they stand for.

    What depends on the networks' spaces is left to `check_spaces`.

    Raises
    ------
    ValueError, TypeError
        For what makes no sense; the message names the argument.
    ImportError
        For a method that lacks a package it needs.
    """
    found, problems = examined(settings, models, reference)
    for _, error in problems:
        raise error
    return found


def examined(settings: Settings, models: int, reference: int) -> tuple[Settings, list[Problem]]:
    """As `checked`, with all that is wrong instead of the first error raised."""
    problems: list[Problem] = []
    plain: dict[str, Any] = {
        name: _attempt(problems, name, own.check, getattr(settings, name), models)
        for name, own in TABLE.items()
    }
    if problems:  # what makes no sense by itself makes none with others
        return settings, problems
    found = Settings(**plain)
    if found.ridge is not None and found.gamma is not None:
        message = "give ridge (dimensionless) or gamma (absolute), not both"
        problems.append(("gamma", ValueError(message)))
    if found.norm == "paper" and found.repair == "regression":
        message = (
            "repair='regression' needs norm='fold': the paper's norm resets statistics instead"
        )
        problems.append(("repair", ValueError(message)))
    if found.refine and found.holdout == 0:
        message = "refine needs inputs that are held out to judge by: holdout must be above 0"
        problems.append(("refine", ValueError(message)))
    _attempt(problems, "weights", check_t, found.weights, found.t, reference)
    _attempt(problems, "method", check_methods, found.method, found.mode)
    options = found.options
    if options is not None and not any(name == "method" for name, _ in problems):
        options = _attempt(problems, "options", check_options, options, able_methods(found.method))
    usual: Repair = TABLE["repair"].usual if found.norm == "fold" else "none"
    repair = found.repair or usual
    # Who asks for the plain average wants that, to compare with, and nothing else.
    averaged = found.method == "average" and repair == "none"
    return (
        dataclasses.replace(
            found,
            options=options,
            repair=repair,
            select=found.select or ("none" if averaged else TABLE["select"].usual),
            holdout=TABLE["holdout"].usual if found.holdout is None else found.holdout,
        ),
        problems,
    )


def check_spaces(settings: Settings, every: Sequence[Spaces], reference: int) -> list[Problem]:
    """All that is wrong with checked settings for some spaces; ``every`` has each model's.

    Patterns that match nothing, options that no space's method knows, a mode or widths that one
    does not.
    """
    found = every[reference]
    names = [space.name for space in found.spaces]
    widths = {name: [own[name].size for own in every] for name in names}
    problems: list[Problem] = []
    methods = _attempt(problems, "method", methods_of, settings.method, found.spaces, settings.mode)
    if methods is not None:
        _attempt(problems, "options", check_options, settings.options, methods)
        _attempt(problems, "method", check_widths, methods, settings.mode, widths)
    if isinstance(settings.ridge, Mapping):
        _attempt(problems, "ridge", by_pattern, settings.ridge, names, DEFAULT_RIDGE, "ridge")
    given = (settings.weights, settings.t, len(every), reference, found)
    _attempt(problems, "weights", shares_of, *given)
    return problems


def _attempt(problems: list[Problem], name: str, check: Callable[..., T], *given: Any) -> T | None:
    """What a check returns; its error is kept under the setting's name."""
    try:
        return check(*given)
    except (ValueError, TypeError, ImportError) as error:
        problems.append((name, error))
        return None


def refuse_for_spaces(settings: Settings, every: Sequence[Spaces], reference: int) -> None:
    """Raise the first error that `check_spaces` finds."""
    for _, error in check_spaces(settings, every, reference):
        raise error


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
    collected: Statistics, models: Sequence[Parameters], reference: int, settings: Settings
) -> Statistics:
    """The statistics; ValueError unless they are of these models and suffice for the settings."""
    if collected.models != len(models):
        message = f"moments are of {collected.models} models, but {len(models)} were given"
        raise ValueError(message)
    if collected.pairs != "all" and collected.reference != reference:
        message = (
            f"moments were collected with reference {collected.reference}, not {reference}; "
            "collect with pairs='all' to be free in the choice"
        )
        raise ValueError(message)
    pairs = pairs_needed(settings.method, settings.mode)
    if pairs == "all" and collected.pairs != "all" and len(models) > 2:
        message = "this mode or method needs moments of all pairs; collect with pairs='all'"
        raise ValueError(message)
    every = []
    for index, model in enumerate(models):
        if model.fingerprint != collected.fingerprint["models"][index]:
            message = f"moments belong to other parameters than those of models[{index}]"
            raise ValueError(message)
        every.append(collected.spaces_of(model))
        if program_fingerprint(every[-1].program) != collected.fingerprint["programs"][index]:
            message = (
                f"moments belong to another architecture than that of models[{index}], or were "
                "collected by a merge with other ties"
            )
            raise ValueError(message)
    refuse_for_spaces(settings, every, reference)
    return collected
