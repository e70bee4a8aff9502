"""Models of one architecture whose layers differ in width: whether their spaces correspond."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.core import arguments
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.networks.inspection import spaces_of_call
from ccamerge.graph.networks.parameters import Parameters, Shapes
from ccamerge.graph.space import Space, Spaces
from ccamerge.graph.tracing.exporting import Free
from ccamerge.graph.tracing.program import Node, Program


def spaces_of_models(
    models: Sequence[Parameters],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prove: bool = True,
) -> list[Spaces]:
    """Each model's spaces, which correspond by name; derived once for models of equal shapes.

    Raises
    ------
    ValueError
        If a model cannot be traced, or differs from the first in more than the sizes of spaces
        that can be mapped between widths; the message names the model, the space or parameter and
        both sizes.
    """
    known: dict[Shapes, Spaces] = {}
    for index, model in enumerate(models):
        if model.shapes in known:
            continue
        if known:
            first = known[models[0].shapes]
            who = f"models[{index}] cannot be merged with models[0]"
            _check_kept_axes(who, first, models[0].tensors, model.tensors)
            found = spaces_of_call(model, args, kwargs, prove=prove, who=f"models[{index}]")
            _check_programs(who, first.program, found.program)
            _check_spaces(who, first, found)
        else:
            found = spaces_of_call(model, args, kwargs, prove=prove, who=f"models[{index}]")
        known[model.shapes] = found
    return [known[model.shapes] for model in models]


MOST_TRACES = 16
"""Programs of a model, each for other sizes of the inputs, beyond which no more are made."""


def extended(
    every: Sequence[Spaces],
    models: Sequence[Parameters],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prove: bool = True,
) -> list[Spaces]:
    """Each model's spaces with a program for inputs of other sizes, too.

    It is traced with all sizes free that the model leaves free, so that one mostly serves all.

    Raises
    ------
    ValueError
        If a model cannot be traced for the inputs, does something else with them than with the
        first ones, or would need too many programs.
    """
    known: dict[int, Spaces] = {}
    for model, own in zip(models, every, strict=True):
        if id(own) in known:
            continue
        if len(own.program.variants) + 2 > MOST_TRACES:
            message = (
                f"{type(model.plain).__name__} needs a trace of its own for each size of its "
                f"inputs, and {MOST_TRACES} were made: use batches of fewer sizes"
            )
            raise ValueError(message)
        try:
            known[id(own)] = _with_variant(own, model, args, kwargs, "all", prove)
        except ValueError:  # free sizes may take other operations: trace as the first inputs were
            known[id(own)] = _with_variant(own, model, args, kwargs, "some", prove)
    return [known[id(own)] for own in every]


def _with_variant(
    own: Spaces,
    model: Parameters,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: Free,
    prove: bool,
) -> Spaces:
    found = spaces_of_call(model, args, kwargs, free=free, prove=prove)
    who = f"{type(model.plain).__name__} does something else with inputs of these sizes"
    _check_same_operations(who, own.program, found.program)
    _check_spaces(who, own, found)

    def joined(program: Program, variant: Program) -> Program:
        return dataclasses.replace(program, variants=(*program.variants, variant))

    return dataclasses.replace(
        own,
        program=joined(own.program, found.program),
        unfolded=joined(own.unfolded, found.unfolded),
    )


def given_spaces(
    found: Spaces | Sequence[Spaces] | None, models: Sequence[Parameters]
) -> list[Spaces]:
    """Each model's spaces, of what a caller knows: none if that is None."""
    if found is None:
        return []
    if not isinstance(found, Spaces):
        expected = "Spaces, or a list with each model's"
        found = arguments.items(found, "found", expected)
        for index, own in enumerate(found):
            arguments.instance(own, Spaces, f"found[{index}]", "Spaces")
        if len(found) != len(models):
            message = f"found must hold the spaces of {len(models)} models, got {len(found)}"
            raise ValueError(message)
        return found
    if len({model.shapes for model in models}) > 1:
        message = "found must hold each model's spaces, since their widths differ; got one's"
        raise ValueError(message)
    return [found] * len(models)


def _check_kept_axes(
    who: str, first: Spaces, tensors: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> None:
    """Axes that no map changes have one size; this comes before tracing, which they may break."""
    mapped = {(slot.parameter, slot.dim) for space in first.spaces for slot in space.slots}
    follow = {key for fold in first.folds for key in fold.keys}
    for key, value in tensors.items():
        if key in follow:
            continue
        if value.dim() != theirs[key].dim():
            message = (
                f"{who}: parameter {key!r} has shape {tuple(theirs[key].shape)}, "
                f"not {tuple(value.shape)}"
            )
            raise ValueError(message)
        for dim, (ours, size) in enumerate(zip(value.shape, theirs[key].shape, strict=True)):
            if ours != size and (key, dim) not in mapped:
                why = first.pinned.get((key, dim), "the network does not use it")
                message = (
                    f"{who}: parameter {key!r} has size {size} along axis {dim}, not {ours}, and "
                    f"that axis keeps its basis ({why})"
                )
                raise ValueError(message)


def _check_programs(who: str, first: Program, other: Program) -> None:
    """The same operations on the same values; numbers among their arguments may be widths."""
    _check_same_operations(f"{who}: another architecture", first, other)
    widths = {
        pair
        for name, shape in first.shapes.items()
        for pair in zip(shape, other.shapes.get(name, shape), strict=False)
    }
    for one, two in zip(first.operations, other.operations, strict=True):
        if not _alike(one, two, widths):
            message = f"{who}: {one.name!r} ({one.op}) has other arguments there"
            raise ValueError(message)
    for name, value in first.constants.items():
        if not _equal(value, other.constants.get(name)):
            message = f"{who}: the constant {name!r} has another value there"
            raise ValueError(message)


def _check_same_operations(who: str, first: Program, other: Program) -> None:
    a, b = ([(n.name, n.op) for n in p.operations] for p in (first, other))
    if a != b or first.parameters != other.parameters or first.outputs != other.outputs:
        odd = next((x[0] for x, y in zip(a, b, strict=False) if x != y), "the end")
        message = f"{who}: operations differ at {odd!r}"
        raise ValueError(message)


def _alike(one: Node, two: Node, widths: set[tuple[int, int]]) -> bool:
    a, b = (pytree.tree_leaves((node.args, node.kwargs)) for node in (one, two))
    same = one.target == two.target or one.schema is not None
    return (
        same
        and len(a) == len(b)
        and all(
            x == y or (type(x) is type(y) is int and (x, y) in widths)
            for x, y in zip(a, b, strict=True)
        )
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _check_spaces(who: str, first: Spaces, other: Spaces) -> None:
    names = [[space.name for space in found.spaces] for found in (first, other)]
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))
        message = f"{who}: only one of them has the spaces {', '.join(odd) or 'in that order'}"
        raise ValueError(message)
    for ours, theirs in zip(first.spaces, other.spaces, strict=True):
        sizes = f"space {ours.name!r} has {theirs.size} features, not {ours.size}"
        carried = ours.group & theirs.group
        if ours.size != theirs.size and carried != GENERAL:
            notes = "; ".join((*ours.notes, *theirs.notes)[:1])
            message = (
                f"{who}: {sizes}, and its parameters can carry no more than {carried.words} "
                f"({notes}), which needs equal widths"
            )
            raise ValueError(message)
        if _layout(ours) != _layout(theirs):
            message = f"{who}: {sizes}, and lies otherwise in its parameters or activations"
            raise ValueError(message)
    kept = [_kept(found) for found in (first, other)]
    for axis, size in kept[0].items():
        if size != kept[1][axis]:
            message = (
                f"{who}: parameter {axis[0]!r} has {kept[1][axis]} elements along axis {axis[1]} "
                f"that belong to no space, not {size}"
            )
            raise ValueError(message)


def _layout(space: Space) -> tuple[Any, ...]:
    """All of a space but its size, and positions that follow from the sizes of others."""
    slots = [
        (s.parameter, s.dim, s.role, s.outer, s.inner, s.rows is None, s.blocks)
        for s in space.slots
    ]
    taps = [(t.node, t.kind, t.dim, t.part) for t in space.taps]
    return space.group, slots, taps


def _kept(found: Spaces) -> Mapping[tuple[str, int], int]:
    """For each axis that spaces hold, how many elements of it none of them does."""
    extents: dict[tuple[str, int], dict[tuple[int, int], int]] = {}
    for space in found.spaces:
        for slot in space.slots:
            place = (slot.rows[0] if slot.rows else 0, slot.start)
            held = extents.setdefault((slot.parameter, slot.dim), {})
            held[place] = slot.extent(space.size)
    lengths = found.program.parameter_shapes
    return {
        (key, dim): lengths[key][dim] * len({row for row, _ in held}) - sum(held.values())
        for (key, dim), held in extents.items()
    }
