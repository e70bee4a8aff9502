"""Tensors of a module that share memory: what loading one of them does to the others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16  # bytes; the largest element, complex128


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its storage, in bytes from ``start`` to ``stop``."""

    tensor: Tensor
    start: int
    stop: int

    def within(self, memory: Tensor, first: int) -> Tensor:
        """The same view of other memory, uint8, that stands for the storage from byte ``first``."""
        t = self.tensor
        offset = (self.start - first) // t.element_size()
        return memory.view(t.dtype).as_strided(t.shape, t.stride(), offset)

    def marked(self, memory: Tensor, first: int) -> Tensor:
        """Its bytes in such memory, whatever the type."""
        t, size = self.tensor, self.tensor.element_size()
        strides = [s * size for s in t.stride()]
        return memory.as_strided((*t.shape, size), (*strides, 1), self.start - first)


def tied_pairs(own: Mapping[str, Tensor], names: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs among some names of a module's state whose memory may overlap."""
    return [
        (a, b)
        for group in _groups({name: own[name] for name in names})
        for (a, left), (b, right) in itertools.combinations(group.items(), 2)
        if left.start < right.stop and right.start < left.stop
    ]


def conflicts(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The pairs of tied names for which other values are given, so that one would be lost.

    Parameters
    ----------
    own : the module's state; tensors tied by any view count, slices and transposes too
    values : to be written to it, of the same shapes
    """
    found = []
    for a, b in tied_pairs(own, values):
        left, right = _place(own[a]), _place(own[b])
        assert left is not None
        assert right is not None
        first, memory = _memory([left, right])
        try:
            left.within(memory, first).copy_(values[a].cpu())
            before = left.within(memory, first).clone()
            right.within(memory, first).copy_(values[b].cpu())
        except RuntimeError:  # a tensor that overlaps itself: nothing can be written to it anyway
            continue
        if not _same(before, left.within(memory, first)):
            found.append((a, b))
    return found


def written(own: Mapping[str, Tensor], names: Collection[str]) -> set[str]:
    """The names of a module's state of which every element is written with some of them."""
    found = set(names)
    for group in _groups(own):
        given = [place for name, place in group.items() if name in names]
        others = {name: place for name, place in group.items() if name not in names}
        if not given or not others:
            continue
        first, memory = _memory(group.values())
        for place in given:
            place.marked(memory, first).fill_(1)
        found |= {n for n, place in others.items() if place.marked(memory, first).all()}
    return found


def _groups(own: Mapping[str, Tensor]) -> list[dict[str, _Place]]:
    """By name, the places of tensors in one storage each; tensors alone in theirs are left out."""
    groups: dict[Any, dict[str, _Place]] = {}
    for name, tensor in own.items():
        place = _place(tensor)
        if place is not None:
            key = (tensor.device, tensor.untyped_storage().data_ptr())
            groups.setdefault(key, {})[name] = place
    return [group for group in groups.values() if len(group) > 1]


def _place(tensor: Tensor) -> _Place | None:
    """None for a tensor without memory of its own that could be looked at."""
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return None
    try:
        if tensor.untyped_storage().data_ptr() == 0:
            return None
    except (RuntimeError, NotImplementedError):  # a subclass that wraps others
        return None
    size = tensor.element_size()
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * size
    return _Place(tensor, start, start + (int(steps) + 1) * size)


def _memory(places: Iterable[_Place]) -> tuple[int, Tensor]:
    """The first byte, and zeroed memory for all bytes that some places cover."""
    places = list(places)
    first = min(p.start for p in places) // _ALIGNED * _ALIGNED
    length = max(p.stop for p in places) - first
    return first, torch.zeros(-(-length // _ALIGNED) * _ALIGNED, dtype=torch.uint8)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are equal; NaN equals itself here."""
    if a.is_floating_point() and a.element_size() == 1:  # float8 has no comparison
        a, b = a.float(), b.float()
    return bool(((a == b) | ((a != a) & (b != b))).all())
