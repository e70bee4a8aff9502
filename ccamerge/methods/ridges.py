"""The ridge of each space: given, or chosen where maps found on one part of the data fit another.

The error of a map T on held-out data is ``E |x_ref - x T|^2 / E |x_ref|^2``, features centred, and
the same the other way with its inverse, which is what layers that read the space are multiplied by.
It follows from the moments of each fold, so that no data is read, and every ridge of a space is
solved from one eigendecomposition.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ccamerge.collection.statistics import Statistics
from ccamerge.config.patterns import by_pattern
from ccamerge.config.settings import DEFAULT_RIDGE, RidgeChoice
from ccamerge.core.canonical import cca_batch
from ccamerge.core.determined import ROUNDING, determined, projected
from ccamerge.graph.space import Space, Spaces
from ccamerge.methods.explained_variance import squared_error

Array = np.ndarray[Any, Any]

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 10.0)
"""Ridges that "auto" chooses from."""


def ridges_of(
    ridge: RidgeChoice | None,
    found: Spaces,
    collected: Statistics,
    reference: int,
    regularised: Collection[str],
) -> dict[str, float]:
    """The ridge of each space that is to be ``regularised``, by name."""
    names = [space.name for space in found.spaces]
    if isinstance(ridge, Mapping):
        chosen = by_pattern(ridge, names, DEFAULT_RIDGE, "ridge")
        return {name: value for name, value in chosen.items() if name in regularised}
    wanted = [space for space in found.spaces if space.name in regularised]
    if ridge == "auto":
        return {space.name: best_ridge(space, collected, reference) for space in wanted}
    return dict.fromkeys(
        (space.name for space in wanted), DEFAULT_RIDGE if ridge is None else float(ridge)
    )


def best_ridge(space: Space, collected: Statistics, reference: int) -> float:
    """The ridge with the least held-out error in a space.

    Raises
    ------
    ValueError
        If fewer than two folds hold data.
    """
    errors = held_out_errors(space, collected, reference)
    return GRID[int(errors.mean(0).argmin())] if len(errors) else DEFAULT_RIDGE


def held_out_errors(space: Space, collected: Statistics, reference: int) -> Array:
    """Relative errors (folds times other models, ridges), both ways added; see the module's head.

    A fold and model are left out if features that all are constant leave nothing to learn or judge.
    """
    folds = collected.matched[space.name]
    used = [k for k, fold in enumerate(folds) if fold.count]
    if len(used) < 2:
        message = (
            "ridge='auto' needs moments in two folds or more: collect with folds=2 or more, from "
            "at least so many batches"
        )
        raise ValueError(message)
    others = [i for i in range(collected.models) if i != reference]
    errors: list[list[float]] = []
    for k in used:
        train, test = collected.pooled(space, without=k), folds[k]
        own, wanted = train.cov_tensor(reference), test.cov_tensor(reference)
        if not (own.trace() > 0 and wanted.trace() > 0):
            continue
        varying = [
            i for i in others if train.cov_tensor(i).trace() > 0 and test.cov_tensor(i).trace() > 0
        ]
        part = determined(own, train.count, ROUNDING)
        problems = []
        for i in varying:
            other, cross = train.cov_tensor(i), train.cov_tensor(reference, i)
            cross = projected(cross, part, determined(other, train.count, ROUNDING))
            problems.append((own, other, cross))
        solved = cca_batch(problems, ridge=list(GRID), device=collected.device)
        for i, sweep in zip(varying, solved, strict=True):
            cross, square = test.cov_tensor(reference, i), test.cov_tensor(i)
            errors.append([])
            for result in sweep:
                forward, inverse = torch.as_tensor(result.map), torch.as_tensor(result.inverse)
                there = squared_error(wanted, square, cross, forward) / wanted.trace()
                back = squared_error(square, wanted, cross.T, inverse) / square.trace()
                errors[-1].append(float(there) + float(back))
    return np.array(errors).reshape(-1, len(GRID))
