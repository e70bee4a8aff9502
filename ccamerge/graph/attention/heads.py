"""Features that attention divides into heads, and the maps of all of them together.

Queries, keys, values and what attention makes of these lie in spaces of their own (or in one, where
one linear operation writes several); their maps depend on each other. Heads of keys and values are
exchanged with all heads of queries that read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ccamerge.graph.attention.pairing import Pairing, contrary
from ccamerge.graph.blocks import Blocks
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED, GENERAL, PERMUTATION, Group


@dataclasses.dataclass(frozen=True)
class Part:
    """Where heads lie: their features (heads, size) in the space of a name."""

    space: str
    features: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A value that attention reads with something for each head along ``axis``: head after head.

    ``heads`` is their number: of the heads of queries, or of those of keys and values.
    """

    value: str
    axis: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """An element: the model's own heads and maps that become the reference's, one by one.

    ``groups`` (heads of keys) and ``heads`` (of queries) are the own ones, ``values`` and ``pairs``
    the maps of each head of values and of queries of a group, whose keys get the contrary one.
    """

    groups: Sequence[int]
    heads: Sequence[int]
    values: Sequence[FeatureMap]
    pairs: Sequence[FeatureMap]


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of an attention, and what may be done to them.

    ``pairing`` is for queries, ``within`` for values. ``exchanged`` says that heads of keys and
    values may be permuted, with those of queries that read them; ``shuffled`` that the latter may
    be permuted among those that read the same; ``tables`` are then permuted along. ``why`` has the
    reasons for what may not, ``reasons`` those why other values that attention reads stay, by their
    names, and ``nodes`` are the operations in between.
    """

    name: str
    queries: Part
    keys: Part
    values: Part
    outputs: Part
    pairing: Pairing
    within: Group
    exchanged: bool
    shuffled: bool
    why: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()
    tables: tuple[Table, ...] = ()
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the spaces, each once."""
        parts = (self.queries, self.keys, self.values, self.outputs)
        return tuple(dict.fromkeys(part.space for part in parts))

    @property
    def share(self) -> int:
        """The number of heads of queries that read the same keys."""
        return len(self.queries.features) // len(self.keys.features)

    @property
    def fixed(self) -> bool:
        """Whether nothing may be done."""
        nothing = self.pairing.fixed and self.within == FIXED
        return nothing and not self.exchanged and not self.shuffled

    def ordered(self, why: str) -> Heads:
        """The same whose heads keep their order, and the reason."""
        return dataclasses.replace(
            self, exchanged=False, shuffled=False, tables=(), why=(*self.why, why)
        )

    def members(self, group: int) -> range:
        """The heads of queries that read a head of keys."""
        return range(group * self.share, (group + 1) * self.share)

    def maps(self, choice: Choice, sizes: Mapping[str, int]) -> dict[str, FeatureMap]:
        """The map of each space."""
        found = {
            space: [torch.zeros(sizes[space], sizes[space], dtype=torch.float64) for _ in range(2)]
            for space in self.spaces
        }

        def put(part: Part, own: int, there: int, feature_map: FeatureMap) -> None:
            rows, columns = (torch.tensor(part.features[at]) for at in (own, there))
            forward, inverse = found[part.space]
            forward[rows[:, None], columns] = feature_map.forward.cpu()
            inverse[columns[:, None], rows] = feature_map.inverse.cpu()

        for there, own in enumerate(choice.groups):
            put(self.keys, own, there, contrary(choice.pairs[there]))
            put(self.values, own, there, choice.values[there])
            for head in self.members(there):
                put(self.queries, choice.heads[head], head, choice.pairs[there])
                put(self.outputs, choice.heads[head], head, choice.values[there])
        return {space: FeatureMap(*sides) for space, sides in found.items()}

    def random(self, generator: torch.Generator) -> Choice:
        """A random element."""
        count, share = len(self.keys.features), self.share
        groups = list(range(count))
        if self.exchanged:
            groups = torch.randperm(count, generator=generator).tolist()
        heads = []
        for own in groups:
            order = list(range(share))
            if self.shuffled:
                order = torch.randperm(share, generator=generator).tolist()
            heads += [own * share + place for place in order]
        size, wide = len(self.queries.features[0]), len(self.values.features[0])
        values = [self.within.random(wide, generator) for _ in groups]
        pairs = [self.pairing.random(size, generator) for _ in groups]
        return Choice(groups, heads, values, pairs)

    def permuting(self) -> Heads:
        """The same with no more than permutations: of heads, and within them."""
        size, free = self.pairing.size, self.pairing.free
        pairing = Pairing(size)
        if len(free) == size:
            pairing = Pairing(size, free=free, inner=self.pairing.inner & PERMUTATION)
        return dataclasses.replace(self, pairing=pairing, within=self.within & PERMUTATION)

    def identity(self) -> Choice:
        """The element that changes nothing."""
        size, wide = len(self.queries.features[0]), len(self.values.features[0])
        groups = range(len(self.keys.features))
        return Choice(
            groups,
            range(len(self.queries.features)),
            [FeatureMap.identity(wide) for _ in groups],
            [FeatureMap.identity(size) for _ in groups],
        )


@dataclasses.dataclass(frozen=True, repr=False)
class InHeads(Group):
    """What may be done to one space of an attention, maps of the others permitting.

    ``parts`` are the heads of queries, keys, values or outputs that lie in the space, each with its
    features, the group within a head, and whether heads may be exchanged.
    """

    parts: tuple[tuple[tuple[tuple[int, ...], ...], Group, bool], ...]
    joint = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """Short."""
        return "heads"

    @property
    def words(self) -> str:  # type: ignore[override]
        """What may be done."""
        said = []
        for features, inner, exchanged in self.parts:
            text = f"{inner.words} within each of {len(features)} heads"
            said.append(text + (", which may be exchanged" if exchanged else ""))
        return "; ".join(dict.fromkeys(said))

    def within(self, other: Group) -> bool:
        """Only in all maps."""
        return other == GENERAL

    def over(self, other: Group) -> bool:
        """Over nothing but the identity."""
        return other == FIXED

    def meet(self, other: Group) -> Group:
        """The identity."""
        return FIXED

    def contains(self, matrix: Tensor) -> bool:
        """Whether heads go to heads, by maps of the groups within them."""
        left = matrix.clone()
        for places, group in self._laid_out(matrix.device):
            if not group.contains(matrix[places][:, places]):
                return False
            left[places[:, None], places] = 0
        return not bool(left.any())

    def project(self, matrix: Tensor) -> FeatureMap:
        """The groups' maps near the blocks of heads, in the order that leaves the least error."""
        found = [
            (places, group.project(matrix[places][:, places]))
            for places, group in self._laid_out(matrix.device)
        ]
        return _placed(len(matrix), found)

    def random(self, size: int, generator: torch.Generator) -> FeatureMap:
        """A map that the other spaces of the attention need not allow; see `Heads.random`."""
        found = [
            (places, group.random(len(places), generator))
            for places, group in self._laid_out(torch.device("cpu"))
        ]
        return _placed(size, found)

    def _laid_out(self, device: torch.device) -> Iterator[tuple[Tensor, Group]]:
        """For each part its features, head after head, and what may be done to them so."""
        for features, inner, exchanged in self.parts:
            places = torch.tensor([f for head in features for f in head], device=device)
            alone = len(features) == 1 or (inner == FIXED and not exchanged)
            yield places, inner if alone else Blocks(inner, len(features), exchanged)


def _placed(size: int, parts: Sequence[tuple[Tensor, FeatureMap]]) -> FeatureMap:
    """Maps of some features each, as one of all."""
    forward = parts[0][1].forward.new_zeros(size, size)
    inverse = forward.clone()
    for places, found in parts:
        forward[places[:, None], places] = found.forward
        inverse[places[:, None], places] = found.inverse
    return FeatureMap(forward, inverse)


def groups_of(heads: Heads) -> dict[str, InHeads]:
    """For each space what may be done to it."""
    moved = heads.exchanged or heads.shuffled
    parts: dict[str, list[tuple[tuple[tuple[int, ...], ...], Group, bool]]] = {}
    for part, inner, exchanged in (
        (heads.queries, heads.pairing, moved),
        (heads.keys, heads.pairing, heads.exchanged),
        (heads.values, heads.within, heads.exchanged),
        (heads.outputs, heads.within, moved),
    ):
        parts.setdefault(part.space, []).append((part.features, inner, exchanged))
    return {space: InHeads(tuple(own)) for space, own in parts.items()}
