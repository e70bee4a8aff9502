"""Maps of a head's queries that have contrary maps of its keys: together they leave products."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, Group


@dataclasses.dataclass(frozen=True, repr=False)
class Pairing(Group):
    """What may be done to the queries of a head, if its keys get the inverse transposed.

    ``planes`` are pairs of features that positions rotate: each is multiplied by a complex number,
    which is all that commutes with rotations. Among the ``free`` ones ``inner`` maps will do. All
    other features keep their basis.
    """

    size: int
    planes: tuple[tuple[int, int], ...] = ()
    free: tuple[int, ...] = ()
    inner: Group = GENERAL

    @property
    def fixed(self) -> bool:
        """Whether nothing may be done."""
        return not self.planes and not self.free

    @property
    def name(self) -> str:  # type: ignore[override]
        """Short."""
        if not self.planes:
            return self.inner.name if self.free else FIXED.name
        return "complex" + (f" + {self.inner.name}" if self.free else "")

    @property
    def words(self) -> str:  # type: ignore[override]
        """What may be done."""
        parts = [f"a complex number for each of {len(self.planes)} planes"] if self.planes else []
        if self.free:
            some = f" of {len(self.free)} of {self.size} features"
            parts.append(self.inner.words + (some if len(self.free) < self.size else ""))
        return " and ".join(parts) or FIXED.words

    def within(self, other: Group) -> bool:
        """Of the groups that have names it lies in the largest only, or in its own."""
        return self.fixed or other == GENERAL or (not self.planes and self.inner <= other)

    def over(self, other: Group) -> bool:
        """Only the identity is known to lie in it."""
        return other == FIXED or (len(self.free) == self.size and other <= self.inner)

    def meet(self, other: Group) -> Group:
        """The identity, unless one lies in the other."""
        return FIXED

    def contains(self, matrix: Tensor) -> bool:
        """Whether planes are multiplied by complex numbers, and the rest is as it should be."""
        left = matrix.clone()
        for pair in self.planes:
            block = left[list(pair)][:, list(pair)]
            skew = (block[0, 0] - block[1, 1]).abs() + (block[0, 1] + block[1, 0]).abs()
            largest = block.abs().max()
            if not bool((largest > 0) & (skew <= 1e-9 * largest)):
                return False
            left[torch.tensor(pair)[:, None], torch.tensor(pair)] = torch.eye(2).to(left)
        own = torch.tensor(self.free, dtype=torch.long)
        if len(own):
            if not self.inner.contains(left[own][:, own]):
                return False
            left[own[:, None], own] = torch.eye(len(own)).to(left)
        return torch.equal(left, torch.eye(self.size).to(left))

    def project(self, matrix: Tensor) -> FeatureMap:
        """The nearest complex numbers, and the inner group's map near what is free."""
        result = torch.eye(self.size, dtype=matrix.dtype, device=matrix.device)
        inverse = result.clone()
        if self.free:
            own = torch.tensor(self.free, device=matrix.device)
            found = self.inner.project(matrix[own][:, own])
            result[own[:, None], own] = found.forward
            inverse[own[:, None], own] = found.inverse
        for one, two in self.planes:
            real = (matrix[one, one] + matrix[two, two]) / 2
            imaginary = (matrix[one, two] - matrix[two, one]) / 2
            self._multiply(result, inverse, (one, two), torch.complex(real, imaginary))
        return FeatureMap(result, inverse)

    def of_numbers(self, numbers: Tensor, free: FeatureMap | None) -> FeatureMap:
        """The map by complex numbers (planes,), and a map of the free features if there are any."""
        result = torch.eye(self.size, dtype=torch.float64, device=numbers.device)
        inverse = result.clone()
        for pair, number in zip(self.planes, numbers, strict=True):
            self._multiply(result, inverse, pair, number)
        if free is not None:
            own = torch.tensor(self.free, device=numbers.device)
            result[own[:, None], own] = free.forward
            inverse[own[:, None], own] = free.inverse
        return FeatureMap(result, inverse)

    @staticmethod
    def _multiply(result: Tensor, inverse: Tensor, pair: tuple[int, int], number: Tensor) -> None:
        """Write the multiplication of ``x1 + i x2`` by a number, and by its inverse."""
        if not bool(number.abs() > 0):
            number = torch.ones_like(number)
        for matrix, value in ((result, number), (inverse, 1 / number)):
            one, two = pair
            matrix[one, one] = matrix[two, two] = value.real
            matrix[one, two], matrix[two, one] = value.imag, -value.imag

    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A random map, well-conditioned."""
        if size != self.size:
            message = f"{size} features are not the {self.size} of the head"
            raise ValueError(message)
        draw = torch.rand(2, len(self.planes), generator=generator, dtype=torch.float64)
        numbers = torch.polar(torch.exp2(2 * draw[0] - 1), 2 * torch.pi * draw[1])
        free = self.inner.random(len(self.free), generator) if self.free else None
        return self.of_numbers(numbers, free)


def contrary(found: FeatureMap) -> FeatureMap:
    """The map of keys beside one of queries."""
    return FeatureMap(found.inverse.mT.contiguous(), found.forward.mT.contiguous())


def candidates(size: int, rotated: tuple[int, ...]) -> list[Pairing]:
    """What may be done to queries of a head, the largest first, down to nothing.

    ``rotated`` are the features that scales of their own do not leave alone.
    """
    every = tuple(range(size))
    free = tuple(j for j in every if j not in rotated)
    half = len(rotated) // 2
    halves = tuple(zip(rotated[:half], rotated[half:], strict=False))
    neighbours = tuple(zip(rotated[::2], rotated[1::2], strict=False))
    found = [Pairing(size, free=every)]
    if half and len(rotated) % 2 == 0:
        found += [Pairing(size, halves, free), Pairing(size, neighbours, free)]
    found.append(Pairing(size, free=every, inner=ORTHOGONAL))
    return [*found, Pairing(size)]
