"""Feature maps, and parameters with their features mapped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.space import Role, Slot, Space


@dataclasses.dataclass(frozen=True)
class _Factor:
    """What multiplies a parameter's axis from the right.

    A matrix with one entry in each column, as of a permutation, only picks and rescales: ``picks``
    says which (columns,), and ``scales`` by how much. That takes no products of matrices, and what
    is not finite stays where it is.
    """

    matrix: Tensor
    picks: Tensor | None
    scales: Tensor | None

    @classmethod
    def of(cls, role: Role, feature_map: FeatureMap, blocks: int | None = None) -> _Factor:
        matrix = feature_map.forward
        if blocks is not None:  # of blocks the order alone
            parts = matrix.reshape(blocks, len(matrix) // blocks, blocks, -1)
            matrix = (parts != 0).any(3).any(1).to(matrix.dtype)
        elif role is Role.READ:
            matrix = feature_map.inverse.T
        elif role is Role.VARIANCE:  # of features taken as uncorrelated: never negative
            matrix = matrix**2
        entries = matrix != 0
        if not bool((entries.sum(0) == 1).all()):
            return cls(matrix, None, None)
        picks = entries.byte().argmax(0)
        scales = matrix.gather(0, picks[None])[0]
        if role is Role.SCALE:  # features whose signs change are scaled as before
            scales = scales.abs()
        return cls(matrix, picks, scales)

    def applied(self, view: Tensor) -> Tensor:
        """``view @ matrix``, in the dtype of ``view``."""
        if self.picks is not None and self.scales is not None:
            return view[..., self.picks] * self.scales.to(view.dtype)
        # One product: many small ones, as of a kernel's positions, take far longer.
        rows = view.reshape(-1, view.shape[-1])
        return (rows @ self.matrix.to(view.dtype)).reshape(*view.shape[:-1], -1)


def slot_view(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """The part of a tensor that a slot names, a view with the space's axis (size,) last.

    Of a slot of blocks that axis has one element for each of them.
    """
    part = tensor if slot.rows is None else tensor[slice(*slot.rows)]
    part = part.narrow(slot.dim, slot.start, slot.extent(size))
    split = part.unflatten(slot.dim, (slot.outer, slot.count(size), slot.inner))
    return torch.movedim(split, slot.dim + 1, -1)


@dataclasses.dataclass(frozen=True)
class _Move:
    """A slot of ``size`` features, and where and how many they become when ``factor`` maps them."""

    slot: Slot
    size: int
    target: Slot
    target_size: int
    factor: _Factor


class MappedParameters(Mapping[str, Tensor]):
    """A model's parameters with its features mapped, each made when it is asked for.

    In the same dtypes; products are formed in float64.

    Parameters
    ----------
    state : parameters of the folded program; not modified
    spaces : the spaces to map
    maps : a map for each of them by name; a space without one is left alone
    roles : only slots with these roles are changed
    into : the reference's spaces, if its widths may differ: parameters then take its shapes
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        spaces: Sequence[Space],
        maps: Mapping[str, FeatureMap],
        roles: frozenset[Role] = frozenset(Role),
        into: Sequence[Space] | None = None,
    ) -> None:
        self._state = state
        self._moves: dict[str, list[_Move]] = {}
        for move in _moves(spaces, maps, roles, spaces if into is None else into):
            self._moves.setdefault(move.slot.parameter, []).append(move)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __getitem__(self, key: str) -> Tensor:
        value = self._state[key]
        moves = self._moves.get(key, [])
        if not moves:
            return value
        changed = value.to(torch.complex128 if value.is_complex() else torch.float64, copy=True)
        resized = {m.slot.dim for m in moves if m.size != m.target_size}
        done: set[int] = set()
        for move in moves:
            slot, target_rows = move.slot, 0 in done  # ranges of axis 0 are the reference's by now
            if slot.dim not in resized:
                if target_rows:
                    slot = dataclasses.replace(slot, rows=move.target.rows)
                view = slot_view(changed, slot, move.size)
                view.copy_(move.factor.applied(view))
            elif slot.dim not in done:
                done.add(slot.dim)
                together = [m for m in moves if m.slot.dim == slot.dim]
                changed = _resized(changed, slot.dim, together, target_rows)
        return changed.to(value.dtype)


def transform(
    state: Mapping[str, Tensor],
    spaces: Sequence[Space],
    maps: Mapping[str, FeatureMap],
    roles: frozenset[Role] = frozenset(Role),
    into: Sequence[Space] | None = None,
) -> dict[str, Tensor]:
    """All of `MappedParameters` at once."""
    return dict(MappedParameters(state, spaces, maps, roles, into))


def _moves(
    spaces: Sequence[Space],
    maps: Mapping[str, FeatureMap],
    roles: frozenset[Role],
    into: Sequence[Space],
) -> Iterator[_Move]:
    targets = {space.name: space for space in into}
    for space in spaces:
        if space.name not in maps:
            continue
        target = targets[space.name]
        done: set[Slot] = set()
        factors: dict[tuple[Role, int | None], _Factor] = {}
        for slot, there in zip(space.slots, target.slots, strict=True):
            place = dataclasses.replace(slot, role=Role.WRITE)
            if slot.role not in roles or place in done:  # a tied parameter: once
                continue
            done.add(place)
            kind = (slot.role, slot.blocks)
            if kind not in factors:
                factors[kind] = _Factor.of(slot.role, maps[space.name], slot.blocks)
            yield _Move(slot, space.size, there, target.size, factors[kind])


def _resized(tensor: Tensor, dim: int, moves: Sequence[_Move], target_rows: bool) -> Tensor:
    """The tensor with all that spaces hold of an axis mapped to the reference's number of features.

    What lies between is copied. ``target_rows`` says that axis 0 is the reference's already.
    """
    by_rows: dict[tuple[int, int] | None, list[_Move]] = {}
    for move in sorted(moves, key=lambda m: m.slot.start):
        rows = move.target.rows if target_rows else move.slot.rows
        by_rows.setdefault(rows, []).append(move)
    shape = list(tensor.shape)
    shape[dim] += sum(
        m.target.extent(m.target_size) - m.slot.extent(m.size) for m in next(iter(by_rows.values()))
    )
    result = tensor.new_empty(shape)
    for rows, own in by_rows.items():
        old, new = (t if rows is None else t[slice(*rows)] for t in (tensor, result))
        here = there = 0
        for move in own:
            a, b = (dataclasses.replace(s, rows=None) for s in (move.slot, move.target))
            gap = a.start - here
            new.narrow(dim, there, gap).copy_(old.narrow(dim, here, gap))
            view = slot_view(old, a, move.size)
            slot_view(new, b, move.target_size).copy_(move.factor.applied(view))
            here = a.start + a.extent(move.size)
            there = b.start + b.extent(move.target_size)
        rest = old.shape[dim] - here
        new.narrow(dim, there, rest).copy_(old.narrow(dim, here, rest))
    return result
