"""Applying feature maps to parameters, and averaging what results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ccamerge.graph.rules import Role
from ccamerge.graph.spaces import Slot, Space


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """How one model's features of a space become the reference's: ``x T``.

    ``forward`` is T (own features, reference features), ``inverse`` its inverse; both float64.
    """

    forward: Tensor
    inverse: Tensor

    @classmethod
    def identity(cls, size: int) -> FeatureMap:
        """The map that changes nothing."""
        eye = torch.eye(size, dtype=torch.float64)
        return cls(eye, eye)

    @classmethod
    def permutation(cls, order: Sequence[int] | Tensor) -> FeatureMap:
        """The map that takes own feature ``order[j]`` to reference feature ``j``."""
        matrix = torch.eye(len(order), dtype=torch.float64)[:, torch.as_tensor(order)]
        return cls(matrix, matrix.T.contiguous())


def _matrix(role: Role, feature_map: FeatureMap) -> Tensor:
    """What multiplies a parameter's axis from the right."""
    if role is Role.READ:
        return feature_map.inverse.T
    if role is Role.VARIANCE:  # of features taken as uncorrelated: never negative
        return feature_map.forward**2
    return feature_map.forward


def slot_view(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """The part of a tensor that a slot names, a view with the space's axis (size,) last."""
    part = tensor if slot.rows is None else tensor[slice(*slot.rows)]
    part = part.narrow(slot.dim, slot.start, slot.outer * size * slot.inner)
    split = part.unflatten(slot.dim, (slot.outer, size, slot.inner))
    return torch.movedim(split, slot.dim + 1, -1)


def transform(
    state: Mapping[str, Tensor],
    spaces: Sequence[Space],
    maps: Mapping[str, FeatureMap],
    roles: frozenset[Role] = frozenset(Role),
) -> dict[str, Tensor]:
    """A model's parameters with its features mapped.

    Parameters
    ----------
    state : parameters of the folded program; not modified
    spaces : the spaces to map
    maps : a map for each of them by name; a space without one is left alone
    roles : only slots with these roles are changed

    Returns
    -------
    New parameters in the same dtypes; products are formed in float64.
    """
    changed: dict[str, Tensor] = {}
    for space in spaces:
        if space.name not in maps:
            continue
        done: set[tuple[str, int, int, tuple[int, int] | None]] = set()
        for slot in space.slots:
            place = (slot.parameter, slot.dim, slot.start, slot.rows)
            if slot.role not in roles or place in done:  # a tied parameter: once
                continue
            done.add(place)
            if slot.parameter not in changed:
                changed[slot.parameter] = state[slot.parameter].to(torch.float64, copy=True)
            view = slot_view(changed[slot.parameter], slot, space.size)
            view.copy_(view @ _matrix(slot.role, maps[space.name]))
    return {**state, **{k: v.to(state[k].dtype) for k, v in changed.items()}}


def average(
    states: Sequence[Mapping[str, Tensor]], weights: Callable[[str], Sequence[float]]
) -> dict[str, Tensor]:
    """The weighted mean of parameters; what is not floating point comes from the first.

    ``weights`` gives the models' shares for a parameter, summing to one. Sums are in float64.
    """
    first = states[0]
    result = {}
    for key, value in first.items():
        if not value.is_floating_point():
            result[key] = value.clone()
            continue
        total = torch.zeros_like(value, dtype=torch.float64)
        for state, weight in zip(states, weights(key), strict=True):
            total.add_(state[key], alpha=weight)
        result[key] = total.to(value.dtype)
    return result
