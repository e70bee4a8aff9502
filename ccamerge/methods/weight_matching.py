"""Weight matching of Git Re-Basin (Ainsworth et al., ICLR 2023): permutations without data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import PERMUTATION
from ccamerge.graph.maps import slot_view, transform
from ccamerge.graph.space import Role, Slot, Space
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Solution,
    Solutions,
    matched_correlations,
    register,
)

_WEIGHTS = frozenset(Role) - {Role.VARIANCE}
"""All that learned parameters do. A running variance is a statistic in other units."""

_RISE = 1e-12
"""Relative to the weights' norms: what a step must add to the objective to be more than rounding.
"""


@dataclasses.dataclass(frozen=True)
class Matching:
    """A permutation of each space, by name: own feature ``orders[name][j]`` becomes feature ``j``.

    ``objectives`` has the sum of inner products before the first and after each step taken,
    ``sweeps`` how often the spaces were gone through.
    """

    orders: dict[str, np.ndarray[Any, Any]]
    objectives: list[float]
    sweeps: int


def _not_negative(value: int, name: str) -> None:
    """Raise ValueError for a negative number."""
    if value < 0:
        message = f"{name} must be a whole number >= 0, got {value}"
        raise ValueError(message)


@register("weight_matching", maps=PERMUTATION, limits={"seed": _not_negative})
def weight_matching(alignment: Alignment, *, seed: int = 0) -> Solutions:
    """The permutations with the largest inner product of weights, found by coordinate ascent.

    One space at a time, in random order, is matched optimally given the others, until no space
    changes: a local optimum that depends on ``seed``. It is the better one of two: from the models
    as they are, and from features matched by the norms of their weights, which permutations of
    other spaces leave alone; so a permuted copy is undone, however many spaces it has. Spaces that
    another method aligns count as they are. Each model is matched with the reference. The moments
    only serve the report.

    Raises
    ------
    ValueError
        If ``seed`` is negative, or a parameter's shape differs between the models.
    """
    _not_negative(seed, "seed")
    reference = alignment.states[alignment.reference]
    for model, state in enumerate(alignment.states):
        for key in {slot.parameter for space in alignment.spaces for slot in space.slots}:
            if state[key].shape != reference[key].shape:
                message = (
                    f"models[{model}] has {key!r} in another shape than the reference: weight "
                    "matching needs equal widths also in the spaces beside those it aligns"
                )
                raise ValueError(message)
    matchings = [
        _better(alignment, model, seed)
        for model in range(len(alignment.states))
        if model != alignment.reference
    ]

    def solve(problems: Sequence[AlignmentProblem]) -> list[Solution]:
        found = [
            (matching.orders[space.name], matching.sweeps)
            for space in alignment.spaces
            for matching in matchings
        ]
        solutions = []
        for problem, (order, sweeps) in zip(problems, found, strict=True):
            feature_map = FeatureMap.permutation(order.tolist())
            rho = matched_correlations(problem, feature_map.forward.numpy())
            solutions.append(Solution(feature_map, rho, {"sweeps": sweeps}))
        return solutions

    return alignment.each_pair(solve)


def _better(alignment: Alignment, model: int, seed: int) -> Matching:
    """The better of the matchings from both starts; see `weight_matching`."""
    reference, own = (alignment.states[i] for i in (alignment.reference, model))
    start = {}
    for space in alignment.spaces:
        alike = alignment.likeness(space, alignment.reference, model)
        start[space.name] = linear_sum_assignment(alike.numpy(), maximize=True)[1]
    found = [match(alignment.spaces, reference, own, seed, first) for first in (None, start)]
    return max(found, key=lambda matching: matching.objectives[-1])  # the first of equal ones


def match(
    spaces: Sequence[Space],
    reference: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    seed: int = 0,
    start: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Matching:
    """Permute a model's features so that its parameters resemble the reference's.

    Parameters
    ----------
    spaces : to be permuted
    reference, own : parameters of the folded program; not modified
    seed : of the order in which spaces are visited
    start : an order of each space's features to begin with, by name; as they are by default
    """
    slots = {space.name: _places(space) for space in spaces}
    keys = {slot.parameter for found in slots.values() for slot in found}
    target = {key: reference[key].double() for key in keys}
    current = {key: own[key].double() for key in keys}
    orders = {space.name: np.arange(space.size) for space in spaces}
    if start is not None:
        orders |= start
        begun = {name: FeatureMap.permutation(order.tolist()) for name, order in orders.items()}
        current = transform(current, spaces, begun, _WEIGHTS)
    objectives = [_inner(target, current, keys)]
    random = np.random.default_rng(seed)
    sweeps, changed = 0, True
    while changed:
        sweeps, changed = sweeps + 1, False
        for index in random.permutation(len(spaces)):
            space = spaces[index]
            gains = torch.zeros(space.size, space.size, dtype=torch.float64)
            for slot in slots[space.name]:
                a, b = (slot_view(x[slot.parameter], slot, space.size) for x in (target, current))
                gains += a.reshape(-1, space.size).T @ b.reshape(-1, space.size)
            step = linear_sum_assignment(gains.numpy(), maximize=True)[1]
            maps = {space.name: FeatureMap.permutation(step.tolist())}
            moved = transform(current, [space], maps, _WEIGHTS)
            # Where a parameter writes and reads one space the gains are only linear in a step that
            # counts twice: what it adds is computed and not taken from them.
            touched = {slot.parameter for slot in slots[space.name]}
            rise = _inner(target, moved, touched) - _inner(target, current, touched)
            scale = sum(float(target[k].norm() * current[k].norm()) for k in touched)
            if rise > _RISE * scale:
                current, changed = moved, True
                orders[space.name] = orders[space.name][step]
                objectives.append(_inner(target, current, keys))
    return Matching(orders, objectives, sweeps)


def _places(space: Space) -> list[Slot]:
    """Slots of weights; a tied parameter is one place with several roles."""
    places = {
        (slot.parameter, slot.dim, slot.start, slot.rows): slot
        for slot in space.slots
        if slot.role in _WEIGHTS
    }
    return list(places.values())


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: set[str]) -> float:
    return float(sum((a[key] * b[key]).sum() for key in sorted(keys)))
