"""Applying feature maps to parameters, and averaging what results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

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
    def of(cls, role: Role, feature_map: FeatureMap) -> _Factor:
        matrix = feature_map.forward
        if role is Role.READ:
            matrix = feature_map.inverse.T
        elif role is Role.VARIANCE:  # of features taken as uncorrelated: never negative
            matrix = matrix**2
        entries = matrix != 0
        if not bool((entries.sum(0) == 1).all()):
            return cls(matrix, None, None)
        picks = entries.byte().argmax(0)
        return cls(matrix, picks, matrix.gather(0, picks[None])[0])

    def applied(self, view: Tensor) -> Tensor:
        """``view @ matrix``, in the dtype of ``view``."""
        if self.picks is not None and self.scales is not None:
            return view[..., self.picks] * self.scales.to(view.dtype)
        # One product: many small ones, as of a kernel's positions, take far longer.
        rows = view.reshape(-1, view.shape[-1])
        return (rows @ self.matrix.to(view.dtype)).reshape(*view.shape[:-1], -1)


def slot_view(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """The part of a tensor that a slot names, a view with the space's axis (size,) last."""
    part = tensor if slot.rows is None else tensor[slice(*slot.rows)]
    part = part.narrow(slot.dim, slot.start, slot.outer * size * slot.inner)
    split = part.unflatten(slot.dim, (slot.outer, size, slot.inner))
    return torch.movedim(split, slot.dim + 1, -1)


@dataclasses.dataclass(frozen=True)
class _Move:
    """A slot of ``size`` features, and where and how many they become when ``factor`` maps them."""

    slot: Slot
    size: int
    target: Slot
    target_size: int
    factor: _Factor

    @property
    def axis(self) -> tuple[str, int]:
        return self.slot.parameter, self.slot.dim


def transform(
    state: Mapping[str, Tensor],
    spaces: Sequence[Space],
    maps: Mapping[str, FeatureMap],
    roles: frozenset[Role] = frozenset(Role),
    into: Sequence[Space] | None = None,
) -> dict[str, Tensor]:
    """A model's parameters with its features mapped.

    Parameters
    ----------
    state : parameters of the folded program; not modified
    spaces : the spaces to map
    maps : a map for each of them by name; a space without one is left alone
    roles : only slots with these roles are changed
    into : the reference's spaces, if its widths may differ: parameters then take its shapes

    Returns
    -------
    New parameters in the same dtypes; products are formed in float64.
    """
    moves = list(_moves(spaces, maps, roles, spaces if into is None else into))
    resized = dict.fromkeys(m.axis for m in moves if m.size != m.target_size)
    done: set[tuple[str, int]] = set()
    changed: dict[str, Tensor] = {}
    for move in moves:
        key, dim = move.axis
        if key not in changed:
            wide = torch.complex128 if state[key].is_complex() else torch.float64
            changed[key] = state[key].to(wide, copy=True)
        target_rows = (key, 0) in done  # ranges of axis 0 are the reference's by now
        if move.axis not in resized:
            slot = move.slot
            if target_rows:
                slot = dataclasses.replace(slot, rows=move.target.rows)
            view = slot_view(changed[key], slot, move.size)
            view.copy_(move.factor.applied(view))
        elif move.axis not in done:
            done.add(move.axis)
            together = [m for m in moves if m.axis == move.axis]
            changed[key] = _resized(changed[key], dim, together, target_rows)
    return {**state, **{k: v.to(state[k].dtype) for k, v in changed.items()}}


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
        factors: dict[Role, _Factor] = {}
        for slot, there in zip(space.slots, target.slots, strict=True):
            place = dataclasses.replace(slot, role=Role.WRITE)
            if slot.role not in roles or place in done:  # a tied parameter: once
                continue
            done.add(place)
            if slot.role not in factors:
                factors[slot.role] = _Factor.of(slot.role, maps[space.name])
            yield _Move(slot, space.size, there, target.size, factors[slot.role])


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
        m.slot.outer * m.slot.inner * (m.target_size - m.size) for m in next(iter(by_rows.values()))
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
            here = a.start + a.outer * move.size * a.inner
            there = b.start + b.outer * move.target_size * b.inner
        rest = old.shape[dim] - here
        new.narrow(dim, there, rest).copy_(old.narrow(dim, here, rest))
    return result


def average(
    states: Sequence[Mapping[str, Tensor]],
    weights: Callable[[str], Sequence[float]],
    used: Collection[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weighted mean of parameters, and what was taken from the first of the models instead.

    Parameters
    ----------
    states : the models' parameters, in one set of features
    weights : the models' shares for a parameter, summing to one; models without any do not count
    used : parameters that the traced network uses, all if None; features that other ones read or
        write are not known, so that a mean over models would mix them

    Returns
    -------
    Parameters, whose sums are in double precision, and for each that the models do not agree in and
    that is not, or not everywhere, their mean, why that is so.
    """
    result: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for key, value in states[0].items():
        shares = [(state[key], w) for state, w in zip(states, weights(key), strict=True) if w != 0]
        numbers = value.is_floating_point() or value.is_complex()
        if all(_same(value, other) for other, _ in shares):
            result[key] = value.clone()
        elif not numbers:
            result[key] = value.clone()
            reasons[key] = f"it is of {str(value.dtype).removeprefix('torch.')}, and differs"
        elif used is not None and key not in used:
            result[key] = value.clone()
            reasons[key] = "the traced call does not use it"
        else:
            result[key], whole = _mean(value, shares)
            if not whole:
                reasons[key] = "it has entries that are not finite, and differ"
    return result, reasons


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _mean(first: Tensor, shares: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, bool]:
    """A weighted mean of finite entries; others are kept where all agree, else the first's.

    Whether all entries are either is the second result.
    """
    wide = torch.complex128 if first.is_complex() else torch.float64
    total = torch.zeros_like(first, dtype=wide)
    for value, weight in shares:
        total.add_(value.to(wide), alpha=weight)
    mean = total.to(first.dtype)
    if bool(torch.isfinite(total).all()):
        return mean, True
    finite = torch.stack([value.isfinite() for value, _ in shares]).all(0)
    one = shares[0][0]
    same = torch.stack([(value == one) | ((value != value) & (one != one)) for value, _ in shares])
    agreed = same.all(0)
    mean = torch.where(finite, mean, torch.where(agreed, one, first))
    return mean, bool((finite | agreed).all())
