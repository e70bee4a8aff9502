"""Maps of what attention divides into heads: heads matched, then what lies within them.

Heads are matched by what the output projection reads: of a head of the reference and one of another
model by ``|| C_r^{-1/2} S C_i^{-1/2} ||_F^2``, which no map within heads changes, by one assignment
over heads of keys and values and, for each pair, one over the heads of queries that read them.
Values are then aligned head by head by the method that was asked for. Queries and keys are seen
only as products: of all maps that leave these, the one is taken that makes the covariances of both
alike (balanced), and turned to agree with the reference's (Procrustes); where positions rotate
planes, it is one complex number for each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ccamerge.core.moments import Moments
from ccamerge.graph.attention.heads import Choice, Heads, Part
from ccamerge.graph.attention.pairing import Pairing
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, PERMUTATION, assigned
from ccamerge.graph.space import Space
from ccamerge.methods.base import (
    Alignment,
    AlignmentProblem,
    Array,
    Method,
    Solution,
    Solutions,
    matched_correlations,
    over_deviations,
)
from ccamerge.methods.orders import SAME

_FLOOR = 0.1
"""Share of the mean variance that is added to all in the similarity of heads: of few samples every
head would look like every other."""


_DEAD = 1e-30
"""Variance of queries or keys that are nothing: no scale makes those of another model of them, and
the one that comes nearest is infinite in single precision."""


class HeadMoments:
    """Means over some heads of the covariances of their features, as `Moments` has them.

    Parameters
    ----------
    whole : of all features of a space
    rows : by models, the features of their heads: (heads, size)
    """

    def __init__(self, whole: Covariances, rows: Mapping[int, Tensor]) -> None:
        self._whole, self._rows = whole, {model: own.tolist() for model, own in rows.items()}
        self.dims = tuple(own.shape[1] for own in rows.values())
        heads = len(next(iter(self._rows.values())))
        self.count, self.device = whole.count * heads, whole.device

    def cov_tensor(self, i: int, j: int | None = None) -> Tensor:
        """Covariance of a model's features, or cross-covariance of two models'."""
        cov = self._whole.cov_tensor(i, j)
        pairs = zip(self._rows[i], self._rows[i if j is None else j], strict=True)
        return torch.stack([cov[one][:, two] for one, two in pairs]).mean(0)

    def cov(self, i: int, j: int | None = None) -> Array:
        """As `cov_tensor`, a NumPy array."""
        return np.asarray(self.cov_tensor(i, j).cpu().numpy())


class Covariances:
    """Those of a space's moments, each read once, since every head asks for them."""

    def __init__(self, moments: Moments) -> None:
        self.count, self.device = moments.count, moments.device
        self._read = functools.cache(moments.cov_tensor)

    def cov_tensor(self, i: int, j: int | None = None) -> Tensor:
        """As of `Moments`; not to be written to."""
        return self._read(i, i if j is None else j)


def solve_heads(
    heads: Heads, alignment: Alignment, methods: tuple[Method, Method], options: Mapping[str, Any]
) -> Solutions:
    """Every model's maps in all spaces of an attention.

    Parameters
    ----------
    heads : of the reference
    alignment : with its spaces and their moments
    methods : for queries and keys, and for values
    options : of the latter
    """
    known = {name: Covariances(own) for name, own in alignment.moments.items()}
    models, r = range(len(alignment.states)), alignment.reference
    still = any(method.maps == FIXED for method in methods)
    matched = [
        heads.identity() if i == r or still else _matched(heads, known, r, i) for i in models
    ]
    values = _values(heads, alignment, known, matched, methods[1], options)
    found: Solutions = {space.name: [] for space in alignment.spaces}
    sizes = {space.name: space.size for space in alignment.spaces}
    for i in models:
        pairs = matched[i].pairs
        if i != r and not still:
            ridge = 0.1 * alignment.ridges.get(heads.queries.space, 0.0)
            pairs = _pairs(heads, known, (r, i), matched[i], methods[0], ridge)
        choice = dataclasses.replace(matched[i], values=[row[i] for row in values], pairs=pairs)
        for name, feature_map in heads.maps(choice, sizes).items():
            found[name].append(_solution(name, known[name], (r, i), feature_map, choice))
    return found


def _solution(
    name: str,
    known: Covariances,
    models: tuple[int, int],
    feature_map: FeatureMap,
    choice: Choice,
) -> Solution:
    r, i = models
    reference, own, cross = known.cov_tensor(r), known.cov_tensor(i), known.cov_tensor(r, i)
    feature_map = feature_map.to(reference.device)
    if i == r:
        return Solution(feature_map)
    problem = AlignmentProblem(name, reference, own, cross)
    details = {"heads": " ".join(map(str, choice.heads))}
    return Solution(feature_map, matched_correlations(problem, feature_map.forward), details)


def _rows(part: Part, heads: Sequence[int]) -> Tensor:
    return torch.tensor([part.features[head] for head in heads])


def _matched(heads: Heads, known: Mapping[str, Covariances], r: int, i: int) -> Choice:
    """A model's heads in the order of the reference's that they are most like."""
    same = heads.identity()
    if not (heads.exchanged or heads.shuffled):
        return same
    alike = _similarity(heads.outputs, known[heads.outputs.space], r, i)
    alike = alike + SAME * np.eye(len(alike))
    count, share = len(heads.keys.features), heads.share
    gains = np.full((count, count), -np.inf)
    orders: dict[tuple[int, int], list[int]] = {}
    for there in range(count):
        for own in range(count) if heads.exchanged else (there,):
            block = alike[np.ix_(heads.members(there), heads.members(own))]
            order = np.arange(share)
            if heads.shuffled:
                order = linear_sum_assignment(block, maximize=True)[1]
            orders[there, own] = [own * share + int(place) for place in order]
            gains[there, own] = block[np.arange(share), order].sum()
    groups = list(range(count))
    if heads.exchanged:
        groups = linear_sum_assignment(gains, maximize=True)[1].tolist()
    queries = [head for there, own in enumerate(groups) for head in orders[there, own]]
    return dataclasses.replace(same, groups=groups, heads=queries)


def _similarity(part: Part, known: Covariances, r: int, i: int) -> Array:
    """Of each head of the reference (rows) and each of another model."""
    places = _rows(part, range(len(part.features)))

    def blocks(cov: Tensor) -> Tensor:
        """Of each head with each other: (heads, heads, size, size)."""
        own = places.to(cov.device)
        divided: Tensor = cov[own][:, :, own].permute(0, 2, 1, 3)
        return divided

    def whitened(cov: Tensor) -> Tensor:
        own = blocks(cov).diagonal(dim1=0, dim2=1).movedim(-1, 0)
        mean = own.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
        floor = torch.where(mean > 0, _FLOOR * mean, 1.0)
        values, vectors = torch.linalg.eigh(own + floor[:, None, None] * eye)
        back: Tensor = (vectors * values.rsqrt()[:, None]) @ vectors.mT
        return back

    left, right = whitened(known.cov_tensor(r)), whitened(known.cov_tensor(i))
    cross = blocks(known.cov_tensor(r, i))
    alike = left[:, None] @ cross @ right[None]
    return np.asarray(alike.square().sum((2, 3)).cpu().numpy())


def _values(
    heads: Heads,
    alignment: Alignment,
    known: Mapping[str, Covariances],
    matched: Sequence[Choice],
    method: Method,
    options: Mapping[str, Any],
) -> list[list[FeatureMap]]:
    """For each head of values of the reference each model's map."""
    size = len(heads.values.features[0])
    unmoved = [FeatureMap.identity(size) for _ in alignment.states]
    if FIXED in (heads.within, method.maps):
        return [unmoved for _ in heads.values.features]
    whole = known[heads.outputs.space]
    home = next(space for space in alignment.spaces if space.name == heads.outputs.space)
    spaces: list[Space] = []
    moments: dict[str, Any] = {}
    for group in range(len(heads.values.features)):
        name = f"{home.name}, head {group}"
        spaces.append(
            dataclasses.replace(
                home, name=name, size=size, group=heads.within, exact=heads.within, slots=()
            )
        )
        rows = {
            model: _rows(heads.outputs, [own.heads[head] for head in heads.members(group)])
            for model, own in enumerate(matched)
        }
        moments[name] = HeadMoments(whole, rows)
    ridge = alignment.ridges.get(heads.values.space)
    inner = dataclasses.replace(
        alignment,
        spaces=spaces,
        moments=moments,
        ridges={} if ridge is None else {space.name: ridge for space in spaces},
        weights={},
    )
    solved = method.solve(inner, **options)
    return [[solution.feature_map for solution in solved[space.name]] for space in spaces]


def _pairs(
    heads: Heads,
    known: Mapping[str, Covariances],
    models: tuple[int, int],
    matched: Choice,
    method: Method,
    ridge: float,
) -> list[FeatureMap]:
    """For each head of keys of the reference the map of a model's queries."""
    r, i = models
    pairs = []
    for group, own in enumerate(matched.groups):
        members = heads.members(group)
        queries = {r: members, i: [matched.heads[head] for head in members]}
        sides = [
            _Side.of(known[part.space], {model: _rows(part, some) for model, some in both.items()})
            for part, both in ((heads.queries, queries), (heads.keys, {r: [group], i: [own]}))
        ]
        pairs.append(_paired(heads.pairing, sides[0], sides[1], method, ridge))
    return pairs


@dataclasses.dataclass(frozen=True)
class _Side:
    """Covariances of queries, or of keys: the reference's, the own ones, and the cross (r, own)."""

    reference: Tensor
    own: Tensor
    cross: Tensor

    @classmethod
    def of(cls, whole: Covariances, rows: Mapping[int, Tensor]) -> _Side:
        """Of the heads of the reference and of another model, in this order."""
        r, i = rows
        some = HeadMoments(whole, rows)
        return cls(some.cov_tensor(r), some.cov_tensor(i), some.cov_tensor(r, i))

    def among(self, features: Sequence[int]) -> _Side:
        """Of some features."""
        own = torch.tensor(features, device=self.own.device)
        return _Side(*(cov[own][:, own] for cov in (self.reference, self.own, self.cross)))

    @property
    def variances(self) -> tuple[Tensor, Tensor]:
        """The reference's covariance and the own one."""
        return self.reference, self.own

    @functools.cached_property
    def correlation(self) -> Tensor:
        """Of each feature of the reference and each own one."""
        variances = torch.outer(self.reference.diagonal(), self.own.diagonal())
        return over_deviations(self.cross, variances)


def _paired(
    pairing: Pairing, queries: _Side, keys: _Side, method: Method, ridge: float
) -> FeatureMap:
    """The map of a head's queries, whose keys get the contrary one."""
    device = queries.own.device
    ordered = method.maps <= PERMUTATION
    free = None
    if pairing.free:
        free = _free(
            pairing, queries.among(pairing.free), keys.among(pairing.free), ordered, method, ridge
        )
    numbers = torch.ones(len(pairing.planes), dtype=torch.complex128, device=device)
    if pairing.planes and not ordered:
        numbers = _numbers(pairing.planes, queries, keys)
    return pairing.of_numbers(numbers, free)


def _free(
    pairing: Pairing, queries: _Side, keys: _Side, ordered: bool, method: Method, ridge: float
) -> FeatureMap:
    """The map of features that no position rotates."""
    if ordered:
        gains = (queries.correlation + keys.correlation).T
        return FeatureMap.permutation(assigned(gains.cpu())).to(gains.device)
    alive = all(float(cov.trace()) > _DEAD for side in (queries, keys) for cov in side.variances)
    if pairing.inner == GENERAL and method.regularised and alive:
        return _balanced(queries, keys, ridge)
    scales = [
        (side.reference.trace() * side.own.trace()).sqrt().clamp_min(1e-300)
        for side in (queries, keys)
    ]
    return ORTHOGONAL.project((queries.cross / scales[0] + keys.cross / scales[1]).T)


def _balanced(queries: _Side, keys: _Side, ridge: float) -> FeatureMap:
    """Both models' queries and keys brought to equal covariances, and turned to each other."""
    there, there_back = _balance(queries.reference, keys.reference, ridge)
    here, here_back = _balance(queries.own, keys.own, ridge)
    cross = there @ queries.cross @ here + there_back @ keys.cross @ here_back
    turn = ORTHOGONAL.project(cross.T)
    return FeatureMap(here @ turn.forward @ there_back, there @ turn.inverse @ here_back)


def _balance(queries: Tensor, keys: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Symmetric ``B`` and its inverse with ``B C_q B = B^{-1} C_k B^{-1}``.

    ``B^2`` is the geometric mean of ``C_q^{-1}`` and ``C_k`` (Pusz & Woronowicz 1975).
    """

    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        floor = 1e-12 * values.amax().clamp_min(1e-300)
        result: Tensor = (vectors * values.clamp_min(floor) ** exponent) @ vectors.T
        return result

    eye = torch.eye(len(queries), dtype=queries.dtype, device=queries.device)
    least = max(ridge, 1e-9)
    queries, keys = (
        cov + (least * cov.diagonal().mean()).clamp_min(1e-300) * eye for cov in (queries, keys)
    )
    root, back = power(queries, 0.5), power(queries, -0.5)
    mean = back @ power(root @ keys @ root, 0.5) @ back
    return power(mean, 0.5), power(mean, -0.5)


def _numbers(planes: Sequence[tuple[int, int]], queries: _Side, keys: _Side) -> Tensor:
    """For each plane the number that turns and scales own queries to the reference's."""
    one, two = torch.tensor(planes, device=queries.own.device).unbind(1)

    def size(cov: Tensor) -> Tensor:
        return cov[one, one] + cov[two, two]

    sizes = torch.stack([size(cov) for side in (queries, keys) for cov in side.variances])
    alive = (sizes > _DEAD).all(0)
    there, here, keys_there, keys_here = torch.where(alive, sizes, 1.0)
    pull = torch.zeros(len(planes), dtype=torch.complex128, device=queries.own.device)
    for side, scale in ((queries, there * here), (keys, keys_there * keys_here)):
        real = side.cross[one, one] + side.cross[two, two]
        imaginary = side.cross[two, one] - side.cross[one, two]
        pull = pull + torch.complex(real, imaginary) / scale.sqrt()
    ratio = keys_here / here * there / keys_there
    turn = torch.where(pull.abs() > 0, pull / pull.abs(), torch.ones_like(pull))
    numbers: Tensor = turn * ratio.sqrt().sqrt()
    return numbers
