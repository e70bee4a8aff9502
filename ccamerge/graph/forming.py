"""Spaces formed from what a walk over a program found out: bases with their slots and taps."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.attention.facts import Attended, groups_within, named, settled
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.facts import Facts, Use
from ccamerge.graph.folds import Fold
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, Group
from ccamerge.graph.rules import operation
from ccamerge.graph.space import Role, Slot, Space, Spaces, Tap
from ccamerge.graph.tracing.program import Node, Program


def formed(
    facts: Facts, attended: Sequence[Attended], folds: tuple[Fold, ...], unfolded: Program
) -> Spaces:
    """The spaces of a program once every equation between its axes is known.

    Parameters
    ----------
    facts : of the program
    attended : heads of its attention, whose outputs are features, too
    folds, unfolded : see `Spaces`
    """
    return _Forming(facts, attended).spaces(folds, unfolded)


class _Forming:
    """Bases in the order of the program, and for each its taps, slots, limits and effects."""

    def __init__(self, facts: Facts, attended: Sequence[Attended]) -> None:
        self.facts, self.program = facts, facts.program
        self._outs = {own.out for own in attended}
        self._order: dict[Basis, None] = {}
        self._taps: dict[Basis, list[Tap]] = {}
        self._slots: dict[Basis, dict[Slot, None]] = {}
        self._collect()
        self._limits = self._table(facts.limits)
        self._remarks = self._table(facts.remarks)
        self._effects = self._table(facts.effects)
        others = {
            basis: [limit.group for limit in self._limits.get(basis, {})]
            + list(self._effects.get(basis, {}))
            for basis in self._order
        }
        pins = {basis: basis.pins for basis in self._order}
        moving = _of_inputs(self.program)
        computed = {
            basis
            for basis, taps in self._taps.items()
            if any(tap.kind in ("write", "norm") and tap.node in moving for tap in taps)
        }
        found = settled(attended, others, pins, computed)
        self._attention, self._closed = found.heads, found.closed
        self._within = groups_within(self._attention)
        for table, features in found.tables.items():
            self._follow(table, features)

    def _collect(self) -> None:
        users = self.program.users()
        for node in self.program.nodes:
            for basis, tap in self._taps_of(node, users.get(node.name, [])):
                self._order.setdefault(basis)
                self._taps.setdefault(basis, []).append(tap)
        for basis, tap in self._views_of_parts():
            if basis not in self._taps:
                self._order.setdefault(basis)
                self._taps[basis] = [tap]
        for use in self.facts.uses:
            for basis, slot in self._slots_of(use):
                self._order.setdefault(basis)
                self._slots.setdefault(basis, {}).setdefault(slot)

    def _follow(self, table: Basis, features: Basis) -> None:
        """Let a basis of one element for each block of features be no space of its own.

        No parameter has it where all elements are alike, as in zeros that stand for a table.
        """
        self._order.pop(table, None)
        held = self._slots.setdefault(features, {})
        for slot in self._slots.pop(table, {}):
            held[dataclasses.replace(slot, blocks=table.size)] = None

    def spaces(self, folds: tuple[Fold, ...], unfolded: Program) -> Spaces:
        """All of them, open and fixed."""
        names: dict[Basis, str] = {}
        open_spaces: list[Space] = []
        fixed: list[Space] = []
        for basis in self._order:
            own = tuple(self._slots.get(basis, {}))
            if basis.idle and not own:
                continue  # repetitions of one element
            names[basis] = _name(own, self._taps.get(basis, []), set(names.values()))
            space = self._space(basis, own, names[basis])
            (fixed if space.group == FIXED else open_spaces).append(space)
        pinned = self._explained((*open_spaces, *fixed), fixed)
        heads = tuple(
            named(own, [names[basis] for basis in key]) for key, own in self._attention.items()
        )
        found = tuple(open_spaces)
        return Spaces(self.program, unfolded, folds, found, tuple(fixed), pinned, heads)

    def _space(self, basis: Basis, own: tuple[Slot, ...], name: str) -> Space:
        limited = self._limits.get(basis, {})
        tied = _tied(own)
        notes = [*dict.fromkeys([limit.why for limit in limited] + tied)]
        notes += self._remarks.get(basis, {})
        groups = [limit.group for limit in limited] + [ORTHOGONAL] * len(tied)
        group = _meet(GENERAL, groups)
        exact = _meet(group, self._effects.get(basis, {}))
        if basis in self._within:
            group = exact = self._within[basis]
            notes += [why for key, h in self._attention.items() if basis in key for why in h.why]
        if reasons := self._reasons(basis, own):
            group, exact, notes = FIXED, FIXED, reasons
        taps = tuple(self._taps.get(basis, []))
        return Space(name, basis.size, group, exact, tuple(notes), own, taps)

    def _reasons(self, basis: Basis, own: tuple[Slot, ...]) -> list[str]:
        """Why a basis must stay as it is; none if it need not."""
        reasons = list(dict.fromkeys(basis.pins))
        if basis in self._closed:
            reasons.append(self._closed[basis])
        if reasons or basis in self._within:
            return reasons
        roles = {slot.role for slot in own}
        if Role.WRITE not in roles:
            return ["written by no parameter"]
        taps = self._taps.get(basis)
        if not taps:
            return ["its features are never computed: it lies between parameters"]
        if all(tap.beside for tap in taps):
            return ["its features are seen only beside others that have another order in a model"]
        return []

    def _table(self, records: Sequence[tuple[list[Axis], Any]]) -> dict[Basis, dict[Any, None]]:
        table: dict[Basis, dict[Any, None]] = {}
        for axes, value in records:
            for axis in axes:
                for basis in ax.bases(axis):
                    table.setdefault(basis, {}).setdefault(value)
        return table

    def _views_of_parts(self) -> Iterator[tuple[Basis, Tap]]:
        """Taps of features that stand alone only where a view shows a product of them as axes."""
        for node in self.program.nodes:
            if operation(node).move and node.name not in self.facts.static and node.real:
                yield from self._alone(node, "activation")

    def _taps_of(self, node: Node, users: list[Node]) -> list[tuple[Basis, Tap]]:
        moved = operation(node).move and node.name not in self._outs
        if node.shape is None or moved or node.name in self.facts.static:
            return []
        if node.op == "getitem" and not users and node.name not in self.program.outputs:
            return []  # one of several results, which nobody wants
        kind = self._kind(node) if node.real else None
        reduced = bool(users) and all(operation(user).reduces for user in users)
        statistic = operation(node).magnitude and reduced
        if kind is None or statistic:  # squares of which only a mean is taken: nobody's features
            return []
        return list(self._alone(node, kind))

    def _alone(self, node: Node, kind: str) -> Iterator[tuple[Basis, Tap]]:
        """Bases that are a whole segment of an axis of a tensor, and where.

        Where features that may be reordered lie along several axes, each stands ``beside`` others.
        """
        axes = self.facts.axes.get(node.name, []) if node.shape is not None else []
        live = [
            any(not b.pins and not b.idle for b in ax.bases(axis))  # type: ignore[arg-type]
            for axis in axes
        ]
        for dim, axis in enumerate(axes):
            start = 0
            for part, segment in enumerate(ax.resolve(axis)):  # type: ignore[arg-type]
                if len(segment) == 1 and isinstance(segment[0], Basis):
                    beside = any(live[:dim]) or any(live[dim + 1 :])
                    size = segment[0].size
                    tap = Tap(node.name, kind, dim, start, size, part, beside)
                    yield segment[0], tap
                start += ax.segment_size(segment)

    def _kind(self, node: Node) -> str | None:
        if node.name in self._outs:
            return "activation"
        return operation(node).tap or ("activation" if node.name in self.facts.active else None)

    def _slots_of(self, use: Use) -> list[tuple[Basis, Slot]]:
        found, start = [], 0
        axis = self.facts.own[use.parameter][use.dim] if use.axis is None else use.axis
        for segment in ax.resolve(axis):
            sizes = [f.size if isinstance(f, Basis) else f for f in segment]
            for i, factor in enumerate(segment):
                if isinstance(factor, Basis):
                    outer, inner = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
                    slot = Slot(use.parameter, use.dim, use.role, start, outer, inner, use.rows)
                    found.append((factor, slot))
            start += math.prod(sizes)
        return found

    def _explained(
        self, spaces: tuple[Space, ...], fixed: list[Space]
    ) -> dict[tuple[str, int], str]:
        """A reason for every axis of every parameter that no open space holds."""
        closed = {s.name for s in fixed}
        held: dict[tuple[str, int], list[Space]] = {}
        for space in spaces:
            for slot in space.slots:
                held.setdefault((slot.parameter, slot.dim), []).append(space)
        pinned = dict(self.facts.kept)
        for key, axes in self.facts.own.items():
            for dim, axis in enumerate(axes):
                owners = held.get((key, dim), [])
                if any(s.name not in closed for s in owners) or (key, dim) in pinned:
                    continue
                reasons = [n for s in owners for n in s.notes]
                reasons += ax.reasons(axis)
                if ax.axis_size(axis) == 1:
                    reasons.append("a single element")
                if reasons:
                    pinned[key, dim] = "; ".join(dict.fromkeys(reasons))
        return pinned


def _of_inputs(program: Program) -> set[str]:
    """Values that depend on the inputs by more than their sizes, and these."""
    found = set(program.inputs)
    for node in program.nodes:
        if not (node.scalar or operation(node).sizes) and not found.isdisjoint(node.refs()):
            found.add(node.name)
    return found


def _meet(largest: Group, groups: Iterable[Group]) -> Group:
    """What all of some groups allow."""
    return functools.reduce(operator.and_, groups, largest)


def _tied(slots: tuple[Slot, ...]) -> list[str]:
    """A tied parameter that writes and reads along an axis: T^T W = W T^{-T} makes T orthogonal."""
    roles: dict[tuple[str, int], set[Role]] = {}
    for slot in slots:
        roles.setdefault((slot.parameter, slot.dim), set()).add(slot.role)
    return [
        f"{parameter} (tied) writes and reads it along axis {dim}"
        for (parameter, dim), found in roles.items()
        if {Role.WRITE, Role.READ} <= found
    ]


def _name(slots: tuple[Slot, ...], taps: list[Tap], taken: set[str]) -> str:
    """After the first parameter that writes the space, else after its first tap."""
    slots = tuple(slot for slot in slots if slot.blocks is None)
    owners = [s.parameter for s in slots if s.role is Role.WRITE] or [s.parameter for s in slots]
    base = owners[0].split(":")[0] if owners else taps[0].node
    for suffix in (".weight", ".bias"):
        base = base.removesuffix(suffix)
    if owners and all(s.role is Role.READ for s in slots):
        base += ".input"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}#{count}"
    return name
