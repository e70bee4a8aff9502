"""The derivation of a model's feature spaces from its program, by the rules of its operations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.folds import LINEAR_OPS, Fold
from ccamerge.graph.rules import CONTRACTIONS, MOVES, REDUCTIONS, RULES, SHAPE_ONLY
from ccamerge.graph.space import ANY_MAP, Effect, Group, Role, Slot, Space, Spaces, Tap
from ccamerge.graph.tracing.program import Node, Program, Ref


@dataclasses.dataclass(frozen=True)
class _Use:
    """A role of a parameter's axis; of ``axis`` in a range of rows, if ``rows`` are given."""

    parameter: str
    dim: int
    role: Role
    axis: Axis | None = None
    rows: tuple[int, int] | None = None


class Derivation:
    """Axes of every value, filled in by the rules as the program is walked once.

    What is computed from parameters alone is *static*. A static value has, beside its axes, its
    *sources*: for each parameter in it axes of the same shape, whose bases stand for the axes of
    that parameter. They go through the same moves as the value does, so that a gain that was
    reshaped, expanded, sliced or joined to others is still known for what it is where it is used.

    Parameters
    ----------
    program : the operations
    frozen : parameters and buffers that no map may touch (whole numbers), and why
    """

    def __init__(self, program: Program, frozen: Mapping[str, str] | None = None) -> None:
        self.program = program
        self._uses: dict[_Use, None] = {}
        self._kept: dict[tuple[str, int], str] = {}  # axes of parameters that no map may touch
        self._axes: dict[str, list[Axis] | list[list[Axis]]] = {}
        self._static: set[str] = set()
        self._sources: dict[str, list[list[Axis]] | list[list[list[Axis]]]] = {}
        self._effects: list[tuple[list[Axis], Effect, str]] = []
        self._restrictions: list[tuple[list[Axis], str]] = []
        self._remarks: list[tuple[list[Axis], str]] = []
        self._norms: set[str] = set()
        self._products: set[str] = set()
        self._own: dict[str, list[Axis]] = {}  # of each parameter, whatever names it has
        for name, shape in program.shapes.items():
            key = program.parameters.get(name)
            if key is not None:
                if key not in self._own:
                    fixed = (frozen or {}).get(key)
                    self._own[key] = [
                        ax.inert(size) if fixed or size == 1 else ax.fresh(size) for size in shape
                    ]
                    if fixed:
                        self._kept.update(
                            {(key, i): (frozen or {})[key] for i in range(len(shape))}
                        )
                self._axes[name] = self._own[key]
                self._sources[name] = [[ax.fresh(n, (key, i)) for i, n in enumerate(shape)]]
                self._static.add(name)
            elif name in program.inputs or name in program.constants:
                self._axes[name] = [ax.inert(size) for size in shape]
                if name in program.constants:
                    self._static.add(name)
        for key, limit in program.limits.items():
            if key not in self._own:
                continue
            why = f"{key}: {limit.why}"
            if limit.movable:
                self._restrictions.append((list(self._own[key]), why))
            for axis in () if limit.movable else self._own[key]:
                ax.pin(axis, why)
        for node in program.nodes:
            self._visit(node)
        for name in program.outputs:
            for axis in self._leaves(name):
                ax.pin(axis, "network output")
        self._pin_unknown_uses()

    # What rules call -----------------------------------------------------------------------

    def is_tensor(self, argument: Any) -> bool:
        """Whether an argument is a value with axes."""
        return isinstance(argument, Ref) and argument.name in self._axes

    def is_static(self, argument: Any) -> bool:
        """Whether an argument does not depend on the network's inputs."""
        return not isinstance(argument, Ref) or argument.name in self._static

    def is_weight(self, argument: Any) -> bool:
        """Whether an argument is a parameter, or computed from parameters alone."""
        return bool(self.sources_of(argument))

    def axes_of(self, argument: Any) -> list[Axis]:
        """The axes of a tensor argument."""
        found = self._axes[argument.name]
        return list(found)  # type: ignore[arg-type]

    def sources_of(self, argument: Any) -> list[list[Axis]]:
        """For each parameter in a static argument its axes; nothing for any other argument."""
        if not isinstance(argument, Ref) or argument.name not in self._static:
            return []
        return list(self._sources.get(argument.name, []))  # type: ignore[arg-type]

    def features_of(self, argument: Any, dim: int) -> Axis:
        """The axis of a weight that holds features, be it a single one."""
        axes = self._axes[argument.name]
        axis: Axis = axes[dim]  # type: ignore[assignment]
        key = self.program.parameters.get(argument.name)
        if axis == ax.inert(1) and key is not None and (key, dim) not in self._kept:
            axes[dim] = axis = ax.fresh(1)  # type: ignore[call-overload]
        return axis

    def same_feature(self, argument: Any, dim: int, axis: Axis, node: Node) -> None:
        """Equate a parameter's axis with one of features, be it a single one."""
        if ax.axis_size(axis) == 1 and not ax.is_inert(axis):
            self.features_of(argument, dim)
        ax.unify(self.axes_of(argument)[dim], axis, node.name)

    def use(
        self,
        argument: Any,
        dim: int,
        role: Role | None,
        axis: Axis,
        node: Node,
        why: str = "",
        rows: tuple[int, int] | None = None,
    ) -> None:
        """Record that an axis of a weight has a role in a space, or (None) why it has none.

        ``rows`` limit it to a range of the parameter's axis 0, for the space ``axis``.
        """
        if rows is not None:
            key = self.program.parameters.get(argument.name)
            if key is None:
                ax.pin(axis, f"{node.name}: grouped weights that are computed")
            else:
                assert role is not None
                self._uses[_Use(key, dim, role, axis, rows)] = None
            return
        if role is Role.SCALE and self.is_weight(argument):
            self.restrict([axis], why or f"scaled feature by feature in {node.name}", node)
        for source in self.sources_of(argument):
            for basis in ax.bases(source[dim]):
                assert basis.origin is not None
                if role is None:
                    self._kept[basis.origin] = why
                else:
                    self._uses[_Use(*basis.origin, role)] = None
        if role is None:
            ax.pin(self.axes_of(argument)[dim], why)

    def effect(self, axes: list[Axis], effect: Effect, node: Node) -> None:
        """Record that an operation commutes with no more than ``effect`` allows.

        Of parameters alone it leaves permutations: they are mapped before the operation.
        """
        if node.name in self._static:
            self.restrict(axes, f"{node.op} of parameters", node)
        self._effects.append((axes, effect, node.name))

    def restrict(self, axes: list[Axis], why: str, node: Node) -> None:
        """Allow only permutations along the axes."""
        self._restrictions.append((axes, f"{node.name}: {why}" if node.name not in why else why))

    def remark(self, axes: list[Axis], text: str) -> None:
        """Note something about the axes that limits no map."""
        self._remarks.append((axes, text))

    def normalised(self, node: Node) -> None:
        """The node is a normalisation that stays in the program."""
        self._norms.add(node.name)

    def multiplied(self, node: Node) -> None:
        """The node's features are products of features."""
        self._products.add(node.name)

    def made_of(self, node: Node, sources: list[list[Axis]]) -> None:
        """The sources of a static node's value; a rule that gives none leaves the node unknown."""
        if node.name in self._static:
            self._sources[node.name] = sources

    # The walk ------------------------------------------------------------------------------

    def _leaves(self, name: str) -> list[Axis]:
        found = self._axes.get(name, [])
        return [a for x in found for a in (x if isinstance(x, list) else [x])]

    def _visit(self, node: Node) -> None:
        operands = [r for r in dict.fromkeys(node.refs()) if r in self._axes]
        if all(r in self._static for r in operands):
            self._static.add(node.name)
        if node.op in SHAPE_ONLY or not operands:
            if node.shape is not None:
                self._axes[node.name] = [ax.inert(size) for size in node.shape]
                self._sources[node.name] = []
            return
        if node.op == "getitem":
            picked = self._axes[operands[0]][node.args[1]]
            self._axes[node.name] = picked if isinstance(picked, list) else [picked]
            if operands[0] in self._sources:
                self._sources[node.name] = [
                    source[node.args[1]] for source in self._sources[operands[0]]
                ]
            return
        result = self._applied(node)
        if result is None or not self._known(node, operands):
            known = node.op in RULES or node.op in MOVES
            why = f"{node.op} in an unknown form" if known else f"no rule for {node.op}"
            if result is not None:
                why = f"no rule for {node.op} of parameters"
            for name in operands:
                for axis in self._leaves(name):
                    ax.pin(axis, f"{why} ({node.name})")
            result = [ax.inert(size) for size in node.shape] if node.shape is not None else []
            self._sources[node.name] = []
        if node.shape is not None and [ax.axis_size(a) for a in result] != list(node.shape):  # type: ignore[arg-type]
            message = f"rule for {node.op} gave axes {result} for shape {node.shape}"
            raise AssertionError(message)
        if result:
            self._axes[node.name] = result

    def _applied(self, node: Node) -> list[Axis] | list[list[Axis]] | None:
        """The axes of a node's result by its rule; None if there is none that fits."""
        move = MOVES.get(node.op)
        if move is None:
            rule = RULES.get(node.op)
            return rule(node, self) if rule is not None else None
        if not self.is_tensor(node.args[0]):
            return None
        if node.name in self._static:
            moved = [move(node, source) for source in self.sources_of(node.args[0])]
            if None not in moved:
                self._sources[node.name] = moved  # type: ignore[assignment]
        result = move(node, self.axes_of(node.args[0]))
        return None if result is None else result

    def _known(self, node: Node, operands: list[str]) -> bool:
        """Whether it is known where the parameters in a static value are."""
        if node.name not in self._static or node.name in self._sources:
            return True
        return not any(self._sources.get(r) for r in operands)

    def _pin_unknown_uses(self) -> None:
        """Pin what a parameter shares a basis with in an axis that has no role there."""
        known = {(use.parameter, use.dim) for use in self._uses} | self._kept.keys()
        for key, axes in self._own.items():
            for dim, axis in enumerate(axes):
                if (key, dim) not in known:
                    ax.pin(axis, f"{key} reaches it along axis {dim} by no operation that is known")

    # The result ----------------------------------------------------------------------------

    def finish(self, folds: tuple[Fold, ...], unfolded: Program) -> Spaces:
        """Collect bases into spaces once every equation is known."""
        order: dict[Basis, None] = {}
        taps: dict[Basis, list[Tap]] = {}
        slots: dict[Basis, dict[Slot, None]] = {}
        users = self.program.users()
        for node in self.program.nodes:
            for basis, tap in self._taps(node, users.get(node.name, [])):
                order.setdefault(basis)
                taps.setdefault(basis, []).append(tap)
        for use in self._uses:
            for basis, slot in self._slots(use):
                order.setdefault(basis)
                slots.setdefault(basis, {}).setdefault(slot)
        restrictions = self._table(self._restrictions)
        remarks = self._table(self._remarks)
        effects = self._table([(axes, effect) for axes, effect, _ in self._effects])
        open_spaces: list[Space] = []
        fixed: list[Space] = []
        names: set[str] = set()
        for basis in order:
            own = tuple(slots.get(basis, {}))
            reasons = list(dict.fromkeys(basis.pins))
            roles = {s.role for s in own}
            if not reasons and not ({Role.WRITE} <= roles and Role.READ in roles):
                reasons.append("written or read by no parameter")
            elif not reasons and basis not in taps:
                reasons.append("its features are never computed: it lies between parameters")
            notes = [*restrictions.get(basis, {}), *_tied(own)]
            group = Group.PERMUTATION if notes else Group.GENERAL
            notes += remarks.get(basis, {})
            met = set(effects.get(basis, {}))
            exact = ANY_MAP
            if group is Group.PERMUTATION or Effect.ELEMENTWISE in met:
                exact = Effect.ELEMENTWISE.value
            elif met:
                exact = Effect.POSITIVE.value
            if reasons:
                group, exact, notes = Group.FIXED, "identity", reasons
            space = Space(
                _name(own, taps.get(basis, []), names),
                basis.size,
                group,
                exact,
                tuple(notes),
                own,
                tuple(taps.get(basis, [])),
            )
            (fixed if reasons else open_spaces).append(space)
        pinned = self._explained((*open_spaces, *fixed), fixed)
        return Spaces(self.program, unfolded, folds, tuple(open_spaces), tuple(fixed), pinned)

    def _table(self, records: list[tuple[list[Axis], Any]]) -> dict[Basis, dict[Any, None]]:
        table: dict[Basis, dict[Any, None]] = {}
        for axes, value in records:
            for axis in axes:
                for basis in ax.bases(axis):
                    table.setdefault(basis, {}).setdefault(value)
        return table

    def _taps(self, node: Node, users: list[Node]) -> list[tuple[Basis, Tap]]:
        axes = self._axes.get(node.name)
        if node.shape is None or not axes or node.op in MOVES or node.name in self._static:
            return []
        kind = self._kind(node) if node.real else None
        statistic = node.op in _MAGNITUDES and users and all(u.op in REDUCTIONS for u in users)
        if kind is None or statistic:  # squares of which only a mean is taken: nobody's features
            return []
        found = []
        for dim, axis in enumerate(axes):
            start = 0
            for part, segment in enumerate(ax.resolve(axis)):  # type: ignore[arg-type]
                if len(segment) == 1 and isinstance(segment[0], Basis):
                    tap = Tap(node.name, kind, dim, start, segment[0].size, part)
                    found.append((segment[0], tap))
                start += ax.segment_size(segment)
        return found

    def _kind(self, node: Node) -> str | None:
        if node.op in (*LINEAR_OPS, *CONTRACTIONS, "aten.embedding"):
            return "write"
        if node.name in self._norms:
            return "norm"
        if node.op in ("aten.add", "aten.sub"):
            return "sum"
        if node.name in self._products or any(name == node.name for _, _, name in self._effects):
            return "activation"
        return None

    def _slots(self, use: _Use) -> list[tuple[Basis, Slot]]:
        found, start = [], 0
        axis = self._own[use.parameter][use.dim] if use.axis is None else use.axis
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
        pinned = dict(self._kept)
        for key, axes in self._own.items():
            for dim, axis in enumerate(axes):
                owners = held.get((key, dim), [])
                if any(s.name not in closed for s in owners) or (key, dim) in pinned:
                    continue
                reasons = [n for s in owners for n in s.notes]
                reasons += [p for b in ax.bases(axis) for p in b.pins]
                if ax.axis_size(axis) == 1:
                    reasons.append("a single element")
                if reasons:
                    pinned[key, dim] = "; ".join(dict.fromkeys(reasons))
        return pinned


_MAGNITUDES = frozenset({"aten.pow", "aten.square", "aten.abs", "aten.mul", "aten.exp"})
"""Operations whose means are statistics of features, as in norms."""


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
    taken.add(name)
    return name
