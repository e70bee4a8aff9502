"""What `ccamerge.merge` checks of its arguments before it looks at any data."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from ccamerge.collection.statistics import Collected
from ccamerge.config.settings import Mode, Norm, Repair, Settings
from ccamerge.core import arguments
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


def check_results(moments: Any, aligned: Any) -> None:
    """Raise TypeError unless these are what `merge` and `collect` return under their names."""
    for name, value, kind, home in (
        ("moments", moments, Collected, "ccamerge.collect"),
        ("aligned", aligned, Aligned, "the `aligned` of a result"),
    ):
        if value is None or isinstance(value, kind):
            continue
        hint = ""
        if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
            hint = f": load the file first, {name}=ccamerge.Collected.load({value!r:.100})"
        elif isinstance(getattr(value, name, None), kind):
            hint = f": pass its {name}, {name}=result.{name}"
        expected = f"what {home} returns" if name == "moments" else home
        raise arguments.wrong(name, f"{expected} ({kind.__name__})", value, hint)
