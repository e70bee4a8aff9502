"""Groups of maps: what may act on a space's features, ordered by what holds what.

A group is a value that answers four questions: may a map act, which of its maps is near a matrix,
what is a random one, and what is it called. Whoever needs to know asks it; nobody asks which it is.
The groups that are named here are those of single features; `ccamerge.graph.blocks` composes others
of them. A new one says which known groups it lies between.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap

_TOLERANCE = 1e-9
"""Relative error of products of matrices that hold in exact arithmetic."""


class Group(abc.ABC):
    """A group of invertible maps ``x -> x T``; ``a <= b`` says that all maps of a are in b.

    ``name`` is short, ``words`` say which maps these are. ``a & b`` is the largest group known to
    lie in both. ``blockwise`` says that a map of blocks is in the group just if each block is, and
    with every map its inverse transposed. ``joint`` says that a map depends on those of other
    spaces, so that no method finds it alone.
    """

    name: str
    words: str
    blockwise: bool = False
    joint: bool = False

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __eq__(self, other: object) -> bool:
        """Whether it is the same, or its words: groups were text before."""
        return self is other or (isinstance(other, str) and other == self.words)

    def __hash__(self) -> int:
        return hash(self.words)

    def __str__(self) -> str:
        return self.words

    def __le__(self, other: Group) -> bool:
        return self == other or self.within(other) or other.over(self)

    def __and__(self, other: Group) -> Group:
        if self <= other:
            return self
        return other if other <= self else self.meet(other)

    @abc.abstractmethod
    def within(self, other: Group) -> bool:
        """Whether this one knows that it lies in another."""

    @abc.abstractmethod
    def over(self, other: Group) -> bool:
        """Whether this one knows that another lies in it."""

    @abc.abstractmethod
    def meet(self, other: Group) -> Group:
        """What it shares with a group that is neither smaller nor larger."""

    @abc.abstractmethod
    def contains(self, matrix: Tensor) -> bool:
        """Whether the map ``x -> x matrix`` is in the group, ``matrix`` being square."""

    @abc.abstractmethod
    def project(self, matrix: Tensor) -> FeatureMap:
        """A map of the group near a square matrix; the matrix itself if it is of the group."""

    @abc.abstractmethod
    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A random map of so many features, well-conditioned."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Plain(Group):
    """A group of maps of any number of features, by what it does.

    ``holds``, ``nearest`` and ``draw`` are what `contains`, `project` and `random` do. It lies over
    the groups ``smaller`` and within those ``larger``.
    """

    name: str
    words: str
    holds: Callable[[Tensor], bool]
    nearest: Callable[[Tensor], FeatureMap]
    draw: Callable[[int, torch.Generator], FeatureMap]
    smaller: tuple[Group, ...] = ()
    larger: tuple[Group, ...] = ()
    blockwise: bool = True

    def __reduce__(self) -> tuple[Callable[[str], Group], tuple[str]]:
        return named, (self.name,)  # there is one of each

    def within(self, other: Group) -> bool:
        """Whether a larger one is, or lies in, another."""
        return any(group <= other for group in self.larger)

    def over(self, other: Group) -> bool:
        """Whether another lies in a smaller one."""
        return any(other <= group for group in self.smaller)

    def meet(self, other: Group) -> Group:
        """The largest of the known groups that lie in both."""
        if not isinstance(other, Plain):
            return other.meet(self)
        common = [group for group in KNOWN.values() if group <= self and group <= other]
        return max(common, key=lambda group: sum(one <= group for one in common))

    def contains(self, matrix: Tensor) -> bool:
        """Whether a map is in the group."""
        return self.holds(matrix)

    def project(self, matrix: Tensor) -> FeatureMap:
        """A map of the group near a matrix."""
        return self.nearest(matrix)

    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A random map of so many features."""
        return self.draw(size, generator)


KNOWN: dict[str, Plain] = {}
"""The groups of single features, by name."""


def known(group: Plain) -> Plain:
    """Make a group known under its name."""
    KNOWN[group.name] = group
    return group


def named(name: str) -> Plain:
    """The group known under a name."""
    return KNOWN[name]


def assigned(gains: Tensor) -> Tensor:
    """For each column the row that it gets, so that the gains of all sum up to the most."""
    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    return torch.as_tensor(rows[np.argsort(columns)])


def _monomial(matrix: Tensor) -> bool:
    """Whether there is one entry in each row and each column."""
    return all(bool(((matrix != 0).sum(dim) == 1).all()) for dim in (0, 1))


def _scaled(order: Tensor, scales: Tensor) -> FeatureMap:
    """Own feature ``order[j]`` times ``scales[j]`` becomes feature ``j``."""
    permutation = FeatureMap.permutation(order)
    return FeatureMap(permutation.forward * scales, permutation.inverse / scales[:, None])


def _signs(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (size,), generator=generator).double() * 2 - 1


def _stretch(size: int, generator: torch.Generator) -> Tensor:
    """Factors in [1/2, 2]."""
    return torch.exp2(2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)


def _reflected(matrix: Tensor, direction: Tensor) -> Tensor:
    """The matrix from the left by a Householder reflection at a unit vector."""
    return matrix - 2 * torch.outer(direction, direction @ matrix)


def _mixing(
    order: Tensor, scales: Tensor, generator: torch.Generator, centred: bool = False
) -> FeatureMap:
    """A map with given singular values between reflections at random directions.

    They mix all features and cost no factorisation of a matrix. ``centred`` ones fix the vector of
    ones.
    """
    directions = torch.randn(2, len(order), generator=generator, dtype=torch.float64)
    if centred:
        directions = directions - directions.mean(1, keepdim=True)  # of one feature nothing is left
    left, right = directions / directions.square().sum(1, keepdim=True).sqrt().clamp_min(1e-30)
    forward = _reflected(_reflected(torch.diag(scales), left).T, right).T[:, order]
    inverse = _reflected(_reflected(torch.diag(1 / scales), right).T, left).T[order]
    return FeatureMap(forward.contiguous(), inverse.contiguous())


def _is_identity(matrix: Tensor) -> bool:
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


FIXED = known(
    Plain(
        "fixed",
        "identity",
        holds=_is_identity,
        nearest=lambda matrix: FeatureMap.identity(len(matrix), matrix.device),
        draw=lambda size, _: FeatureMap.identity(size),
    )
)
"""Features that keep their basis."""


PERMUTATION = known(
    Plain(
        "permutation",
        "permutation",
        holds=lambda matrix: _monomial(matrix) and bool((matrix[matrix != 0] == 1).all()),
        nearest=lambda matrix: FeatureMap.permutation(assigned(matrix)),
        draw=lambda size, generator: FeatureMap.permutation(
            torch.randperm(size, generator=generator)
        ),
        smaller=(FIXED,),
    )
)
"""What commutes with any function of single features."""


def _nearest_signed(matrix: Tensor) -> FeatureMap:
    order = assigned(matrix.abs())
    chosen = matrix[order, torch.arange(len(order))]
    return _scaled(order, torch.where(chosen < 0, -1.0, 1.0).double())


SIGNED_PERMUTATION = known(
    Plain(
        "signed permutation",
        "change of signs and permutation",
        holds=lambda matrix: _monomial(matrix) and bool((matrix[matrix != 0].abs() == 1).all()),
        nearest=_nearest_signed,
        draw=lambda size, generator: _scaled(
            torch.randperm(size, generator=generator), _signs(size, generator)
        ),
        smaller=(PERMUTATION,),
    )
)
"""What commutes with an odd function of single features."""


def _nearest_positive(matrix: Tensor) -> FeatureMap:
    """The positive entries to be kept; where all of a feature's are negative its scale is one."""
    order = assigned(matrix.clamp_min(0).square())
    chosen = matrix[order, torch.arange(len(order))]
    return _scaled(order, torch.where(chosen > 0, chosen, 1.0).double())


POSITIVE = known(
    Plain(
        "positive scaled permutation",
        "positive scaling and permutation",
        holds=lambda matrix: _monomial(matrix) and bool((matrix >= 0).all()),
        nearest=_nearest_positive,
        draw=lambda size, generator: _scaled(
            torch.randperm(size, generator=generator), _stretch(size, generator)
        ),
        smaller=(PERMUTATION,),
    )
)
"""What commutes with a function such as ReLU: ``relu(a x) = a relu(x)`` for ``a > 0``."""


def _is_orthogonal(matrix: Tensor) -> bool:
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return bool(((matrix.mT @ matrix - eye).abs() <= _TOLERANCE).all())


def _nearest_orthogonal(matrix: Tensor) -> FeatureMap:
    left, _, right = torch.linalg.svd(matrix)
    turn = left @ right
    return FeatureMap(turn, turn.mT.contiguous())


def _fixes_ones(matrix: Tensor) -> bool:
    error = (matrix.sum(0) - 1).abs()  # of as many rounded terms as there are features
    return _is_orthogonal(matrix) and bool((error <= _TOLERANCE * len(matrix) ** 0.5).all())


def _nearest_fixing_ones(matrix: Tensor) -> FeatureMap:
    """The orthogonal map nearest to the matrix on what is orthogonal to the vector of ones."""
    size = len(matrix)
    normal = torch.full((size,), -(size**-0.5), dtype=matrix.dtype, device=matrix.device)
    normal[0] += 1  # the reflection at it exchanges the first feature and the vector of ones
    normal = normal / normal.square().sum().sqrt().clamp_min(1e-30)
    turned = _reflected(_reflected(matrix, normal).mT, normal).mT
    left, _, right = torch.linalg.svd(turned[1:, 1:])
    one = torch.ones(1, 1, dtype=matrix.dtype, device=matrix.device)
    turn = torch.block_diag(one, left @ right)
    turn = _reflected(_reflected(turn, normal).mT, normal).mT.contiguous()
    return FeatureMap(turn, turn.mT.contiguous())


ORTHOGONAL_FIXING_ONES = known(
    Plain(
        "orthogonal fixing ones",
        "any orthogonal map that fixes the vector of ones",
        holds=_fixes_ones,
        nearest=_nearest_fixing_ones,
        draw=lambda size, generator: _mixing(
            torch.randperm(size, generator=generator),
            torch.ones(size, dtype=torch.float64),
            generator,
            centred=True,
        ),
        smaller=(PERMUTATION,),
    )
)
"""What keeps the mean of all features beside their lengths and angles, and so what centres them.

A norm that adds a small number under its root is not indifferent to a scale: there is none here.
"""


ORTHOGONAL = known(
    Plain(
        "orthogonal",
        "any orthogonal map",
        holds=_is_orthogonal,
        nearest=_nearest_orthogonal,
        draw=lambda size, generator: _mixing(
            torch.randperm(size, generator=generator), _signs(size, generator), generator
        ),
        smaller=(SIGNED_PERMUTATION, ORTHOGONAL_FIXING_ONES),
    )
)
"""What keeps lengths and angles, and so a norm of all features."""


def _is_invertible(matrix: Tensor) -> bool:
    if not bool(matrix.isfinite().all()):
        return False
    values = torch.linalg.svdvals(matrix)
    return bool(values[-1] > len(values) * torch.finfo(matrix.dtype).eps * values[0])


def _nearest_invertible(matrix: Tensor) -> FeatureMap:
    """The matrix, but with no direction scaled by less than a millionth of the largest scale."""
    left, values, right = torch.linalg.svd(matrix)
    floor = 1e-6 * values[0] if values[0] > 0 else torch.ones_like(values[0])
    raised = values.clamp_min(floor)
    forward = matrix if torch.equal(raised, values) else (left * raised) @ right
    return FeatureMap(forward, (right.mT / raised) @ left.mT)


GENERAL = known(
    Plain(
        "general",
        "any invertible map",
        holds=_is_invertible,
        nearest=_nearest_invertible,
        draw=lambda size, generator: _mixing(
            torch.randperm(size, generator=generator), _stretch(size, generator), generator
        ),
        smaller=(POSITIVE, ORTHOGONAL),
    )
)
"""Of features that are only read and written by linear operations."""
