"""Groups made of others: the same in each of several blocks, and pairs that move contrarily."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED, PERMUTATION, Group, assigned


@dataclasses.dataclass(frozen=True, repr=False)
class Blocks(Group):
    """A map of ``inner`` for each of ``count`` equal blocks of features, such as heads.

    ``exchanged`` says that whole blocks may be permuted, too. If neither is anything but the
    identity, the group is `FIXED`, and not this one.
    """

    inner: Group
    count: int
    exchanged: bool = False

    def __post_init__(self) -> None:
        if self.count < 2 or (self.inner == FIXED and not self.exchanged):
            message = f"{self.words}: the same group goes by a simpler name"
            raise ValueError(message)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Of the inner group, and how many times."""
        return f"{self.count} x {self.inner.name}{', exchanged' * self.exchanged}"

    @property
    def words(self) -> str:  # type: ignore[override]
        """What may be done."""
        own = f"{self.inner.words} within each of {self.count} blocks"
        return f"{own}, and permutation of these" if self.exchanged else own

    def within(self, other: Group) -> bool:
        """Whether the other one allows what is done to blocks, and their exchange."""
        if isinstance(other, Blocks):
            same = self.count == other.count and self.exchanged <= other.exchanged
            return same and self.inner <= other.inner
        return other.blockwise and self.inner <= other and self._exchange <= other

    def over(self, other: Group) -> bool:
        """Whether the other one changes nothing."""
        return other == FIXED

    @property
    def _exchange(self) -> Group:
        return PERMUTATION if self.exchanged else FIXED

    def meet(self, other: Group) -> Group:
        """What both allow within blocks; blocks that lie otherwise share the identity alone."""
        if isinstance(other, Contravariant):
            return other.meet(self)
        both = self.exchanged
        if isinstance(other, Blocks) and self.count == other.count:
            inner, both = self.inner & other.inner, both and other.exchanged
        elif other.blockwise:
            inner, both = self.inner & other, both and other >= PERMUTATION
        else:
            return FIXED
        return Blocks(inner, self.count, both) if both or inner != FIXED else FIXED

    def contains(self, matrix: Tensor) -> bool:
        """Whether each block goes to one, by a map of the inner group."""
        if len(matrix) % self.count:
            return False
        blocks = _cut(matrix, self.count)
        used = (blocks != 0).flatten(2).any(2)
        if not all(bool((used.sum(dim) == 1).all()) for dim in (0, 1)):
            return False
        order = used.byte().argmax(0)
        straight = torch.equal(order.cpu(), torch.arange(self.count))
        return (straight or self.exchanged) and all(
            self.inner.contains(blocks[row, column]) for column, row in enumerate(order.tolist())
        )

    def project(self, matrix: Tensor) -> FeatureMap:
        """The inner group's maps near the blocks, in the order that leaves the least error."""
        blocks = _cut(matrix, self.count)
        if not self.exchanged:
            found = [self.inner.project(blocks[index, index]) for index in range(self.count)]
            return _joined(found, torch.arange(self.count))
        near = [[self.inner.project(block) for block in row] for row in blocks]
        gains = [
            [
                float(block.square().sum() - (block - own.forward).square().sum())
                for block, own in zip(row, own_row, strict=True)
            ]
            for row, own_row in zip(blocks, near, strict=True)
        ]
        order = assigned(torch.tensor(gains, dtype=torch.float64))
        return _joined([near[row][column] for column, row in enumerate(order.tolist())], order)

    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A random map of each block, and a random order of them if they may be exchanged."""
        if size % self.count:
            message = f"{size} features are no {self.count} equal blocks"
            raise ValueError(message)
        order = torch.arange(self.count)
        if self.exchanged:
            order = torch.randperm(self.count, generator=generator)
        each = [self.inner.random(size // self.count, generator) for _ in range(self.count)]
        return _joined(each, order)


@dataclasses.dataclass(frozen=True, repr=False)
class Contravariant(Group):
    """A map of ``inner`` on one half of the features, and its inverse transposed on the other.

    So queries and keys may be mapped, of which only products ``q k'`` are seen.
    """

    inner: Group

    def __post_init__(self) -> None:
        if self.inner == FIXED:
            message = f"{self.words}: the same group goes by a simpler name"
            raise ValueError(message)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Of the inner group."""
        return f"contravariant {self.inner.name}"

    @property
    def words(self) -> str:  # type: ignore[override]
        """What may be done."""
        return f"{self.inner.words} on one half, its inverse transposed on the other"

    def within(self, other: Group) -> bool:
        """Whether the other one allows what is done to both halves."""
        return self.inner <= _on_halves(other)

    def over(self, other: Group) -> bool:
        """Whether the other one changes nothing."""
        return other == FIXED

    def meet(self, other: Group) -> Group:
        """What both allow on a half."""
        inner = self.inner & _on_halves(other)
        return Contravariant(inner) if inner != FIXED else FIXED

    def contains(self, matrix: Tensor) -> bool:
        """Whether the halves are mapped apart, so that products of features stay."""
        if len(matrix) % 2:
            return False
        (first, right), (left, second) = _cut(matrix, 2)
        if bool(right.any()) or bool(left.any()) or not self.inner.contains(first):
            return False
        eye = torch.eye(len(first), dtype=first.dtype, device=first.device)
        scale = first.abs().max() * second.abs().max() * len(first)
        return bool(((first.mT @ second - eye).abs() <= 1e-9 * scale.clamp_min(1)).all())

    def project(self, matrix: Tensor) -> FeatureMap:
        """The inner group's map near what the first half and the second say of it."""
        (first, _), (_, second) = _cut(matrix, 2)
        contrary = torch.linalg.pinv(second).mT
        return _contrary(self.inner.project((first + contrary) / 2))

    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A random map of one half, from which the other's follows."""
        if size % 2:
            message = f"{size} features have no two halves"
            raise ValueError(message)
        return _contrary(self.inner.random(size // 2, generator))


def _on_halves(group: Group) -> Group:
    """What a group allows on a half of the features beside the contrary on the other."""
    if isinstance(group, Contravariant):
        return group.inner
    if isinstance(group, Blocks):
        return group.inner if group.count == 2 and group.inner.blockwise else FIXED
    return group if group.blockwise else FIXED


def _cut(matrix: Tensor, count: int) -> Tensor:
    """The blocks of a square matrix: (count, count, size, size)."""
    size = len(matrix) // count
    return matrix.reshape(count, size, count, size).transpose(1, 2)


def _joined(maps: list[FeatureMap], order: Tensor) -> FeatureMap:
    """The map that takes block ``order[j]`` to block ``j`` by the map ``j``."""
    exchange = torch.eye(len(order), dtype=torch.float64)[:, order].to(maps[0].forward.device)
    size = len(maps[0].forward)
    blocks = exchange.repeat_interleave(size, 0).repeat_interleave(size, 1)
    forward, inverse = (
        torch.cat([getattr(own, side) for own in maps], dim)
        for side, dim in (("forward", 1), ("inverse", 0))
    )
    count = len(order)
    return FeatureMap(forward.repeat(count, 1) * blocks, inverse.repeat(1, count) * blocks.mT)


def _contrary(found: FeatureMap) -> FeatureMap:
    """A map of one half, and its inverse transposed of the other."""
    return FeatureMap(
        torch.block_diag(found.forward, found.inverse.mT),
        torch.block_diag(found.inverse, found.forward.mT),
    )
