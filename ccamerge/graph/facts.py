"""What rules find out about a program: axes of its values, and what may be done along them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.groups import GENERAL, PERMUTATION, Group
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Program, Ref


@dataclasses.dataclass(frozen=True)
class Use:
    """A role of a parameter's axis; of ``axis`` in a range of rows, if ``rows`` are given."""

    parameter: str
    dim: int
    role: Role
    axis: Axis | None = None
    rows: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Limit:
    """That parameters can carry only maps of a group, and why."""

    group: Group
    why: str


class Facts:
    """Axes of every value, and what rules record about them.

    What is computed from parameters alone is *static*. A static value has, beside its axes, its
    *sources*: for each parameter in it axes of the same shape, whose bases stand for the axes of
    that parameter. They go through the same moves as the value does, so that a gain that was
    reshaped, expanded, sliced or joined to others is still known for what it is where it is used.

    Attributes
    ----------
    program : the operations
    axes, static, sources : of values, by name; of several tensors a list for each
    own : the axes of each parameter by its key, whatever names it has
    parts : for each part of a parameter that falls apart, by key and row, all axes but the first
    uses : of parameters' axes
    kept : axes of parameters that no map may touch, and why
    limits : axes, and what limits them
    effects : axes, and the group that commutes with what an operation does to them
    remarks : axes, and a text that limits no map
    active : nodes with such effects, and those whose features are products of features
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.axes: dict[str, list[Axis] | list[list[Axis]]] = {}
        self.static: set[str] = set()
        self.sources: dict[str, list[list[Axis]] | list[list[list[Axis]]]] = {}
        self.own: dict[str, list[Axis]] = {}
        self.parts: dict[tuple[str, int], list[Axis]] = {}
        self.uses: dict[Use, None] = {}
        self._roles: dict[tuple[str, int, tuple[int, int] | None], dict[Role, bool]] = {}
        self.kept: dict[tuple[str, int], str] = {}
        self.limits: list[tuple[list[Axis], Limit]] = []
        self.effects: list[tuple[list[Axis], Group]] = []
        self.remarks: list[tuple[list[Axis], str]] = []
        self.active: set[str] = set()

    def is_tensor(self, argument: Any) -> bool:
        """Whether an argument is a value with axes."""
        return isinstance(argument, Ref) and argument.name in self.axes

    def is_static(self, argument: Any) -> bool:
        """Whether an argument does not depend on the network's inputs."""
        return not isinstance(argument, Ref) or argument.name in self.static

    def is_weight(self, argument: Any) -> bool:
        """Whether an argument is a parameter, or computed from parameters alone."""
        return bool(self.sources_of(argument))

    def axes_of(self, argument: Any) -> list[Axis]:
        """The axes of a tensor argument."""
        found = self.axes[argument.name]
        return list(found)  # type: ignore[arg-type]

    def sources_of(self, argument: Any) -> list[list[Axis]]:
        """For each parameter in a static argument its axes; nothing for any other argument."""
        if not isinstance(argument, Ref) or argument.name not in self.static:
            return []
        return list(self.sources.get(argument.name, []))  # type: ignore[arg-type]

    def features_of(self, argument: Any, dim: int) -> Axis:
        """The axis of a weight that holds features, be it a single one."""
        axes = self.axes[argument.name]
        axis: Axis = axes[dim]  # type: ignore[assignment]
        key = self.program.parameters.get(argument.name)
        if axis == ax.inert(1) and key is not None and (key, dim) not in self.kept:
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
        group: Group = PERMUTATION,
    ) -> None:
        """Record that an axis of a weight has a role in a space, or (None) why it has none.

        ``rows`` limit it to a range of the parameter's axis 0, for the space ``axis``; what scales
        features allows them maps of ``group`` only.
        """
        if rows is not None:
            assert role is not None
            places = self._in_rows(argument, dim)
            for key, place in places:
                self.uses[Use(key, place, role, axis, rows)] = None
            if not places:
                ax.pin(axis, f"{node.name}: grouped weights that are computed")
            elif argument.name not in self.program.parameters:
                self.restrict([axis], "weights that are computed", node)
            return
        if role is Role.SCALE and self.is_weight(argument):
            self.restrict([axis], why or f"scaled feature by feature in {node.name}", node, group)
        for source in self.sources_of(argument):
            for basis in ax.bases(source[dim]):
                assert basis.origin is not None
                key, place, row = basis.origin
                if role is None:
                    self.kept[key, place] = why
                    continue
                own, found = self.own[key][place], Use(key, place, role)
                if row is not None:
                    own = self.parts[key, row][place - 1]
                    found = Use(key, place, role, own, (row, row + 1))
                self.uses[found] = None
                self._several_roles(found, own, basis.size < ax.axis_size(own), node)
        if role is None:
            ax.pin(self.axes_of(argument)[dim], why)

    def _several_roles(self, use: Use, axis: Axis, piece: bool, node: Node) -> None:
        """Leave permutations where pieces of an axis have several roles: a use names all of it."""
        own = self._roles.setdefault((use.parameter, use.dim, use.rows), {})
        own[use.role] = own.get(use.role, False) or piece
        if len(own) > 1 and any(own.values()):
            why = "parts of it have several roles"
            self.restrict([axis], f"{use.parameter} axis {use.dim}: {why}", node)

    def _in_rows(self, argument: Any, dim: int) -> list[tuple[str, int]]:
        """The parameters whose rows a weight has, and their axis for one of it; none if unknown."""
        key = self.program.parameters.get(argument.name)
        if key is not None:
            return [(key, dim)]
        found = []
        for source in self.sources_of(argument):
            if ax.is_inert(source[dim]):
                continue
            rows, own = ax.resolve(source[0]), ax.resolve(source[dim])
            origins = [_origin(axis) for axis in (rows, own)]
            if None in origins or origins[0] != (origins[1][0], 0, None):  # type: ignore[index]
                return []
            found.append(origins[1][:2])  # type: ignore[index]
        return found

    def effect(self, axes: list[Axis], group: Group, node: Node) -> None:
        """Record that an operation commutes with no more than a group allows.

        Of parameters alone it leaves permutations: they are mapped before the operation.
        """
        if group == GENERAL:
            return
        if node.name in self.static:
            self.restrict(axes, f"{node.op} of parameters", node)
        self.effects.append((axes, group))
        self.active.add(node.name)

    def restrict(self, axes: list[Axis], why: str, node: Node, group: Group = PERMUTATION) -> None:
        """Allow only maps of a group along the axes."""
        why = f"{node.name}: {why}" if node.name not in why else why
        self.limits.append((axes, Limit(group, why)))

    def remark(self, axes: list[Axis], text: str) -> None:
        """Note something about the axes that limits no map."""
        self.remarks.append((axes, text))

    def multiplied(self, node: Node) -> None:
        """The node's features are products of features."""
        self.active.add(node.name)

    def made_of(self, node: Node, sources: list[list[Axis]]) -> None:
        """The sources of a static node's value; a rule that gives none leaves the node unknown."""
        if node.name in self.static:
            self.sources[node.name] = sources


def _origin(axis: Axis) -> tuple[str, int, int | None] | None:
    """Which axis of a parameter a whole axis is."""
    whole = len(axis) == 1 and len(axis[0]) == 1
    factor = axis[0][0] if whole else None
    return factor.origin if isinstance(factor, ax.Basis) and not factor.piece else None
