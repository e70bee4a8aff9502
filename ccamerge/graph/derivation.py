"""The derivation of a model's feature spaces from its program, by the rules of its operations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn

from ccamerge import arguments
from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.batches import split_batch
from ccamerge.graph.fold import LINEAR_OPS, Fold, fold
from ccamerge.graph.program import Node, Program, Ref, trace
from ccamerge.graph.rules import RULES
from ccamerge.graph.spaces import ANY_MAP, Effect, Group, Role, Slot, Space, Spaces, Tap


@dataclasses.dataclass
class _Use:
    parameter: str
    dim: int
    role: Role | None
    axis: Axis
    rows: tuple[int, int] | None
    why: str


class Derivation:
    """Axes of every value, filled in by the rules as the program is walked once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.uses: list[_Use] = []
        self._axes: dict[str, list[Axis] | list[list[Axis]]] = {}
        self._weights: dict[str, tuple[str, list[int]]] = {}  # value -> parameter, its dims
        self._effects: list[tuple[list[Axis], Effect, str]] = []
        self._restrictions: list[tuple[list[Axis], str]] = []
        self._through: set[str] = set()
        self._norms: set[str] = set()
        by_key: dict[str, list[Axis]] = {}
        for name, shape in program.shapes.items():
            key = program.parameters.get(name)
            if key is not None:
                self._axes[name] = by_key.setdefault(key, [ax.fresh(size) for size in shape])
                self._weights[name] = (key, list(range(len(shape))))
            elif name in program.inputs or name in program.constants:
                self._axes[name] = [ax.inert(size) for size in shape]
        for node in program.nodes:
            self._visit(node)
        for name in program.outputs:
            for axis in self._leaves(name):
                ax.pin(axis, "network output")

    # What rules call -----------------------------------------------------------------------

    def is_tensor(self, argument: Any) -> bool:
        """Whether an argument is a value with axes."""
        return isinstance(argument, Ref) and argument.name in self._axes

    def is_weight(self, argument: Any) -> bool:
        """Whether an argument is a parameter, possibly transposed."""
        return isinstance(argument, Ref) and argument.name in self._weights

    def axes_of(self, argument: Any) -> list[Axis]:
        """The axes of a tensor argument."""
        found = self._axes[argument.name]
        return list(found)  # type: ignore[arg-type]

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
        """Record that a parameter's axis has a role in a space, or (None) why it has none."""
        if not self.is_weight(argument):
            return
        key, dims = self._weights[argument.name]
        if rows is not None and dims[0] != 0:
            ax.pin(axis, f"{node.name}: grouped weights of a transposed parameter")
        if role is None:
            ax.pin(self.axes_of(argument)[dim], why)
        elif role is Role.SCALE:
            self.restrict([axis], why or f"scaled feature by feature in {node.name}", node)
        self.uses.append(_Use(key, dims[dim], role, axis, rows, why))

    def effect(self, axes: list[Axis], effect: Effect, node: Node) -> None:
        """Record that an operation commutes with no more than ``effect`` allows."""
        self._effects.append((axes, effect, node.op))

    def restrict(self, axes: list[Axis], why: str, node: Node) -> None:
        """Allow only permutations along the axes."""
        self._restrictions.append((axes, f"{node.name}: {why}" if node.name not in why else why))

    def passed_through(self, node: Node, order: list[int] | None = None) -> None:
        """The result holds the operand's elements; for a parameter, permuted by ``order``."""
        self._through.add(node.name)
        source = node.args[0]
        if self.is_weight(source) and order is not None:
            key, dims = self._weights[source.name]
            self._weights[node.name] = (key, [dims[i] for i in order])

    def normalised(self, node: Node) -> None:
        """The node is a normalisation that stays in the program."""
        self._norms.add(node.name)

    # The walk ------------------------------------------------------------------------------

    def _leaves(self, name: str) -> list[Axis]:
        found = self._axes.get(name, [])
        return [a for x in found for a in (x if isinstance(x, list) else [x])]

    def _visit(self, node: Node) -> None:
        operands = [r for r in dict.fromkeys(node.refs()) if r in self._axes]
        if not operands:
            if node.shape is not None:
                self._axes[node.name] = [ax.inert(size) for size in node.shape]
            return
        if node.op == "getitem":
            picked = self._axes[operands[0]][node.args[1]]
            self._axes[node.name] = picked if isinstance(picked, list) else [picked]
            return
        rule = RULES.get(node.op)
        result = rule(node, self) if rule is not None else None
        if result is None:
            why = f"no rule for {node.op}" if rule is None else f"{node.op} in an unknown form"
            for name in operands:
                for axis in self._leaves(name):
                    ax.pin(axis, f"{why} ({node.name})")
            result = [ax.inert(size) for size in node.shape] if node.shape is not None else []
        if node.shape is not None and [ax.axis_size(a) for a in result] != list(node.shape):  # type: ignore[arg-type]
            message = f"rule for {node.op} gave axes {result} for shape {node.shape}"
            raise AssertionError(message)
        if result:
            self._axes[node.name] = result

    # The result ----------------------------------------------------------------------------

    def finish(self, folds: tuple[Fold, ...], unfolded: Program) -> Spaces:
        """Collect bases into spaces once every equation is known."""
        order: dict[Basis, None] = {}
        taps: dict[Basis, list[Tap]] = {}
        slots: dict[Basis, dict[Slot, None]] = {}
        pinned: dict[tuple[str, int], str] = {}
        for node in self.program.nodes:
            for basis, tap in self._taps(node):
                order.setdefault(basis)
                taps.setdefault(basis, []).append(tap)
        for use in self.uses:
            if use.role is None:
                pinned[use.parameter, use.dim] = use.why
                continue
            for basis, slot in self._slots(use):
                order.setdefault(basis)
                slots.setdefault(basis, {}).setdefault(slot)
        restrictions = self._table(self._restrictions)
        effects = self._table([(a, (e, op)) for a, e, op in self._effects])
        open_spaces: list[Space] = []
        fixed: list[Space] = []
        names: set[str] = set()
        for basis in order:
            own = tuple(slots.get(basis, {}))
            reasons = list(dict.fromkeys(basis.pins))
            roles = {s.role for s in own}
            if not reasons and not ({Role.WRITE} <= roles and Role.READ in roles):
                reasons.append("written or read by no parameter")
            notes = [*restrictions.get(basis, {}), *_tied(own)]
            group = Group.PERMUTATION if notes else Group.GENERAL
            met = {effect for effect, _ in effects.get(basis, {})}
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
        self._explain(pinned, (*open_spaces, *fixed), fixed)
        return Spaces(self.program, unfolded, folds, tuple(open_spaces), tuple(fixed), pinned)

    def _table(self, records: list[tuple[list[Axis], Any]]) -> dict[Basis, dict[Any, None]]:
        table: dict[Basis, dict[Any, None]] = {}
        for axes, value in records:
            for axis in axes:
                for basis in ax.bases(axis):
                    table.setdefault(basis, {}).setdefault(value)
        return table

    def _taps(self, node: Node) -> list[tuple[Basis, Tap]]:
        axes = self._axes.get(node.name)
        if node.shape is None or not axes or node.name in self._through or node.op == "aten.cat":
            return []
        if node.name in self._weights or not set(node.refs()) - set(self._weights):
            return []
        kind = self._kind(node)
        if kind is None:
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
        if node.op in LINEAR_OPS or node.op == "aten.embedding":
            return "write"
        if node.name in self._norms or node.op in ("aten.layer_norm", "aten.group_norm"):
            return "norm"
        if node.op in ("aten.add", "aten.sub"):
            return "sum"
        if any(op == node.op for _, _, op in self._effects):
            return "activation"
        return None

    def _slots(self, use: _Use) -> list[tuple[Basis, Slot]]:
        found, start = [], 0
        assert use.role is not None
        for segment in ax.resolve(use.axis):
            sizes = [f.size if isinstance(f, Basis) else f for f in segment]
            for i, factor in enumerate(segment):
                if isinstance(factor, Basis):
                    outer, inner = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
                    slot = Slot(use.parameter, use.dim, use.role, start, outer, inner, use.rows)
                    found.append((factor, slot))
            start += math.prod(sizes)
        return found

    def _explain(
        self,
        pinned: dict[tuple[str, int], str],
        spaces: tuple[Space, ...],
        fixed: list[Space],
    ) -> None:
        """Give a reason for every axis of every parameter that no open space holds."""
        closed = {s.name for s in fixed}
        held: dict[tuple[str, int], list[Space]] = {}
        for space in spaces:
            for slot in space.slots:
                held.setdefault((slot.parameter, slot.dim), []).append(space)
        for name, key in self.program.parameters.items():
            for dim, axis in enumerate(self._axes[name]):
                owners = held.get((key, dim), [])
                if any(s.name not in closed for s in owners) or (key, dim) in pinned:
                    continue
                reasons = [n for s in owners for n in s.notes]
                reasons += [p for b in ax.bases(axis) for p in b.pins]  # type: ignore[arg-type]
                if ax.axis_size(axis) == 1:  # type: ignore[arg-type]
                    reasons.append("a single element")
                if reasons:
                    pinned[key, dim] = "; ".join(dict.fromkeys(reasons))


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


def spaces(model: nn.Module, example_inputs: Any) -> Spaces:
    """Derive the feature spaces of a model from its own computation.

    Parameters
    ----------
    model : any module that ``torch.export`` can follow; neither modified nor kept
    example_inputs : one batch as `merge` takes it: a tensor, a tuple or list whose first item is
        the input, or a dict of keyword inputs. Two or more samples make the result independent of
        the batch size.

    Returns
    -------
    Spaces, whose ``str`` is a table.

    Raises
    ------
    ValueError
        If the model cannot be traced; the message carries the tracer's reason.
    """
    model = arguments.module(model, "model")
    return spaces_of_call(model, *split_batch(example_inputs, model))


def spaces_of_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spaces:
    """As `spaces`, from the arguments of a call."""
    unfolded = trace(model, args, kwargs)
    program, folds = fold(unfolded)
    return Derivation(program).finish(folds, unfolded)
