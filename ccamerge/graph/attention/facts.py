"""What a walk over a program finds out about its attention: where heads lie in which axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

from ccamerge.graph import axes as ax
from ccamerge.graph.attention.cores import Core
from ccamerge.graph.attention.heads import Heads, InHeads, Part, Table, groups_of
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import GENERAL, PERMUTATION, Group
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Ref

SHARED = "several attentions share a table, so that their heads keep their order"
"""Why its axis of heads keeps its basis."""


@dataclasses.dataclass(frozen=True)
class Attended:
    """Heads whose parts lie along ``axes``: of queries, keys, values and of the value ``out``.

    ``tables`` are axes of one element for each head, of each table of the heads in turn.
    """

    out: str
    heads: Heads
    axes: tuple[Axis, Axis, Axis, Axis]
    tables: tuple[Axis, ...] = ()

    def bases(self) -> list[Basis] | None:
        """The basis of each part, if each has one that is whole and its own."""
        found = [_single(axis) for axis in self.axes]
        return None if None in found else found  # type: ignore[return-value]


def _single(axis: Axis) -> Basis | None:
    """The basis that an axis is, if it is one and no more."""
    resolved = ax.resolve(axis)
    if len(resolved) != 1 or len(resolved[0]) != 1:
        return None
    factor = resolved[0][0]
    return factor if isinstance(factor, Basis) else None


def visit(core: Core, heads: Heads, node: Node, facts: Facts) -> Attended | None:
    """Give a core's output, ``node``, axes of its features; its queries, keys and values too.

    What enters otherwise keeps its basis, but for tables of heads. None if the writers' features
    have a structure already.
    """
    assert node.shape is not None
    facts.axes[node.name] = [ax.inert(size) for size in node.shape]
    tables = [_divided_by_heads(table, node, facts) for table in heads.tables]
    divided = {(table.value, table.axis) for table in heads.tables}
    for name in core.sides:
        if facts.is_tensor(Ref(name)) and facts.axes_of(Ref(name)):
            why = heads.reasons.get(name, f"it enters attention in {core.mixed}")
            for dim, own in enumerate(facts.axes_of(Ref(name))):
                if isinstance(own, tuple) and (name, dim) not in divided:
                    ax.pin(own, why)
                    facts.use(Ref(name), dim, None, own, node, why)
    parts = (heads.queries, heads.keys, heads.values)
    found: dict[str, tuple[Axis, Part]] = {}
    constant = not facts.static.isdisjoint(core.writers)
    for writer in core.writers:
        axis_of = _writer_axis(facts, writer)
        if axis_of is None:
            return None
        if constant:  # as of queries that are made of parameters alone: there are no features
            why = f"{core.mixed}: queries, keys or values are the same for all inputs"
            dim = max(i for i, axis in enumerate(facts.axes_of(Ref(writer))) if axis == axis_of)
            ax.pin(axis_of, why)
            facts.use(Ref(writer), dim, None, axis_of, node, why)
            continue
        found |= _divided(axis_of, writer, parts)
    if constant:
        return None
    out = facts.axes[node.name]
    out[core.axis] = ax.fresh(node.shape[core.axis])  # type: ignore[call-overload]
    keys = [_key(part) for part in parts]
    placed = [found[key] for key in keys]
    joint = dataclasses.replace(heads, queries=placed[0][1], keys=placed[1][1], values=placed[2][1])
    axes = (placed[0][0], placed[1][0], placed[2][0], out[core.axis])
    return Attended(node.name, joint, axes, tuple(tables))  # type: ignore[arg-type]


def _divided_by_heads(table: Table, node: Node, facts: Facts) -> Axis:
    """Take a table's axis apart, and give the part that has one element for each head."""
    heads, value = ax.fresh(table.heads), Ref(table.value)
    own = facts.axes_of(value)[table.axis]
    ((basis,),) = heads
    ax.unify(own, ((basis, ax.axis_size(own) // table.heads),), node.name)
    facts.use(value, table.axis, Role.WRITE, own, node)  # of sums with a mask their rules told
    return heads


def _key(part: Part) -> str:
    return f"{part.space} {min(feature for head in part.features for feature in head)}"


def _writer_axis(facts: Facts, writer: str) -> Axis | None:
    """The features of what a linear operation writes."""
    live = [axis for axis in facts.axes_of(Ref(writer)) if not ax.is_inert(axis)]
    return live[-1] if live else None


def _divided(axis: Axis, writer: str, parts: Sequence[Part]) -> dict[str, tuple[Axis, Part]]:
    """Axes of what one operation writes: one for each part if they lie one after the other."""
    own = [part for part in parts if part.space == writer]
    extents = {_key(part): sorted(f for head in part.features for f in head) for part in own}
    apart = all(e == list(range(e[0], e[-1] + 1)) for e in extents.values())
    starts = sorted({(e[0], len(e)) for e in extents.values()})
    tiled = [start for start, _ in starts] == [
        sum(size for _, size in starts[:at]) for at in range(len(starts))
    ]
    total = sum(size for _, size in starts)
    if not (apart and tiled and total == ax.axis_size(axis)):
        return {_key(part): (axis, part) for part in own}
    pieces = {start: ax.fresh(size) for start, size in starts}
    ax.unify(axis, tuple(segment for piece in pieces.values() for segment in piece), writer)
    found = {}
    for part in own:
        start = extents[_key(part)][0]
        features = tuple(tuple(feature - start for feature in head) for head in part.features)
        found[_key(part)] = (pieces[start], Part(part.space, features))
    return found


@dataclasses.dataclass(frozen=True)
class Settled:
    """What becomes of attention once every equation between axes is known.

    ``heads`` by the bases of their parts; ``closed`` says why other bases that attention reads stay
    fixed; ``tables`` has, for each basis of one element for each head, that of the features which
    heads make: its blocks move with these.
    """

    heads: dict[tuple[Basis, ...], Heads]
    closed: dict[Basis, str]
    tables: dict[Basis, Basis]


def settled(
    every: Sequence[Attended],
    limits: Mapping[Basis, Collection[Group]],
    pinned: Mapping[Basis, Sequence[str]],
    computed: Collection[Basis],
) -> Settled:
    """Heads that may be mapped, and tables that move with them.

    Parameters
    ----------
    every : attention of the program
    limits : groups that whatever else happens to a basis allows
    pinned : reasons why bases must stay as they are
    computed : bases of features that a linear operation or a norm makes of others
    """
    found: dict[tuple[Basis, ...], Heads] = {}
    closed: dict[Basis, str] = {}
    every = _in_order(every, limits, computed, closed)
    for own in every:
        bases = own.bases()
        if bases is None or not _whole(own.heads, bases):
            why = f"{own.heads.name}: its heads have another structure elsewhere"
            closed.update((basis, why) for axis in own.axes for basis in ax.bases(axis))
            continue
        heads = _limited(own.heads, [list(limits.get(basis, ())) for basis in bases])
        key = tuple(bases)
        known = found.get(key, heads)
        if _nameless(known) != _nameless(heads):
            closed.update((basis, f"{heads.name}: it is used in two ways") for basis in bases)
        found[key] = dataclasses.replace(known, nodes=known.nodes | heads.nodes)
    for key, heads in found.items():
        reasons = [reason for basis in key for reason in pinned.get(basis, ())]
        if reasons or heads.fixed:
            said = [f"{heads.name}: {reason}" for reason in (*reasons, "no map leaves it")]
            why = said[0] if reasons else (*heads.why, *said)[0]
            closed.update((basis, why) for basis in key if not pinned.get(basis))
    for one, two in _overlapping(list(found)):
        closed.update((basis, "two attentions read it in different ways") for basis in one + two)
    # Once through: attentions that share a basis are all closed by now.
    for key in [key for key in found if any(basis in closed for basis in key)]:
        why = next(closed[basis] for basis in key if basis in closed)
        for basis in key:
            closed.setdefault(basis, why)
        del found[key]
    tables: dict[Basis, Basis] = {}
    for own in every:
        places = tuple(own.bases() or ())
        for basis in filter(None, map(_single, own.tables)):
            if places in found:
                tables[basis] = places[-1]
            else:
                why = f"{own.heads.name}: its heads have another structure elsewhere"
                closed[basis] = closed[places[-1]] if places else why
    return Settled(found, closed, tables)


def _in_order(
    every: Sequence[Attended],
    limits: Mapping[Basis, Collection[Group]],
    computed: Collection[Basis],
    closed: dict[Basis, str],
) -> list[Attended]:
    """Attention whose heads keep their order where a table cannot move with them.

    Such tables are ``closed`` then, and why.
    """
    readers: dict[Basis, set[tuple[Basis, ...]]] = {}
    for own in every:
        for basis in filter(None, map(_single, own.tables)):
            readers.setdefault(basis, set()).add(tuple(own.bases() or ()))
    found = []
    for own in every:
        bases = [_single(axis) for axis in own.tables]
        why = [_kept(basis, readers, limits, computed) for basis in bases]
        features = [feature for head in own.heads.outputs.features for feature in head]
        if own.tables and features != list(range(len(features))):
            why.append("what heads make lies in another order")
        if said := next(filter(None, why), ""):
            closed.update((basis, said) for basis in bases if basis and not basis.pins)
            heads = own.heads.ordered(f"{own.heads.name}: its heads stay in order: {said}")
            own = dataclasses.replace(own, heads=heads, tables=())
        found.append(own)
    return found


def _kept(
    basis: Basis | None,
    readers: Mapping[Basis, Collection[tuple[Basis, ...]]],
    limits: Mapping[Basis, Collection[Group]],
    computed: Collection[Basis],
) -> str:
    """Why a table's axis of heads cannot be permuted with the heads of the one that reads it."""
    if basis is None:
        return "a table of theirs has another structure elsewhere"
    if basis.pins:
        return basis.pins[0]
    if len(readers[basis]) > 1:
        return SHARED
    if basis in computed:
        return "what tells them apart is computed of features"
    if not all(group >= PERMUTATION for group in limits.get(basis, ())):
        return "a table of theirs is used otherwise, too"
    return ""


def _overlapping(
    keys: Sequence[tuple[Basis, ...]],
) -> Iterator[tuple[tuple[Basis, ...], tuple[Basis, ...]]]:
    owners: dict[Basis, tuple[Basis, ...]] = {}
    for key in keys:
        for basis in dict.fromkeys(key):
            if owners.setdefault(basis, key) is not key:
                yield owners[basis], key


def _whole(heads: Heads, bases: Sequence[Basis]) -> bool:
    """Whether each feature of some bases is in a head, and in one alone."""
    every: dict[Basis, list[int]] = {basis: [] for basis in bases}
    for basis, part in zip(bases, _parts(heads), strict=True):
        every[basis] += [feature for head in part.features for feature in head]
    return all(sorted(own) == list(range(basis.size)) for basis, own in every.items())


def _nameless(heads: Heads) -> Heads:
    """Heads as they are, wherever it is that they are read."""
    return dataclasses.replace(
        named(heads, [""] * 4), name="", why=(), nodes=frozenset(), tables=(), reasons={}
    )


def _parts(heads: Heads) -> tuple[Part, Part, Part, Part]:
    return heads.queries, heads.keys, heads.values, heads.outputs


def _limited(heads: Heads, groups: Sequence[Sequence[Group]]) -> Heads:
    """With what else happens to queries, keys, values and outputs taken into account."""
    queries, keys, values, outputs = groups
    for group in (*queries, *keys):
        if group != GENERAL:
            heads = dataclasses.replace(
                heads, pairing=dataclasses.replace(heads.pairing, planes=(), free=())
            )
    for group in (*values, *outputs):
        heads = dataclasses.replace(heads, within=heads.within & group)
    return heads


def named(heads: Heads, names: Sequence[str]) -> Heads:
    """Heads whose parts lie in the spaces of some names."""
    parts = [
        dataclasses.replace(part, space=name)
        for part, name in zip(_parts(heads), names, strict=True)
    ]
    return dataclasses.replace(
        heads, queries=parts[0], keys=parts[1], values=parts[2], outputs=parts[3]
    )


def groups_within(found: Mapping[tuple[Basis, ...], Heads]) -> dict[Basis, InHeads]:
    """For each basis what may be done to it."""
    groups: dict[Basis, InHeads] = {}
    for key, heads in found.items():
        numbers = {basis: str(number) for number, basis in enumerate(dict.fromkeys(key))}
        own = groups_of(named(heads, [numbers[basis] for basis in key]))
        groups.update((basis, own[number]) for basis, number in numbers.items())
    return groups
