"""What an attention allows, tried: its core is run with queries, keys and values mapped.

They are random numbers, since a network's own may be such that much goes unseen: one position
alone, or scores that are all alike. So are parameters that attention reads, such as tables of
positions and gains: other networks have others, and those of a new one are all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.attention.cores import Core, cores_of
from ccamerge.graph.attention.heads import Choice, Heads, Part, Table
from ccamerge.graph.attention.layout import Layout, layout_of, writer_axis
from ccamerge.graph.attention.pairing import Pairing, candidates
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import FIXED, GENERAL, PERMUTATION, Group
from ccamerge.graph.tracing.program import Node, Program, bound, made_of

_TOLERANCE = 1e-9
"""Relative change of a core's output that rounding explains, in float64."""

_STRETCH = 2.0**10
"""Scale of a single feature of queries: large, since slow rotations mix little of it into others,
and a power of two, which adds no rounding."""

NORMALISED = "queries and keys are normalised, and none of their features is free"
ALIKE = "queries and keys are normalised alike in all heads, where their features keep their order"
"""Why gains of theirs that all heads share keep their basis: no map of features leaves attention,
or one order for all heads together does, which is no map of each."""

UNSEEN = "nothing depends on it here"
"""Why tables keep their basis where attention is to one position alone."""

_NONE: Mapping[str, Tensor] = {}


def attention_of(
    program: Program,
    state: Mapping[str, Tensor],
    leaves: Sequence[Any],
    learned: Collection[str] = (),
) -> list[tuple[Core, Heads]]:
    """The attention of a program, with what it allows; spaces are called by their nodes.

    Parameters
    ----------
    program, state, leaves : in float64, so that rounding is told from change
    learned : what of the state is no buffer, so that other networks have other numbers there
    """
    nodes = {node.name: node for node in program.nodes}
    cores = [(core, layout_of(core, program)) for core in cores_of(program)]
    wanted = {name for core, layout in cores if layout for name in (*core.sides, *core.writers)}
    if not wanted:
        return []
    found = []
    known: list[tuple[Pairing, tuple[int, ...]]] = []
    with torch.inference_mode():
        sides = {name for core, layout in cores if layout for name in core.sides}
        seen = made_of(sides, nodes)
        read = {key for name, key in program.parameters.items() if name in seen}
        other = _unlike(state, read & set(learned))
        values = program.values(other, leaves, wanted)
        for core, layout in cores:
            if layout is not None:
                probe = _Probe(core, layout, nodes, values)
                heads = probe.heads(known)
                if heads is not None:
                    found.append((core, heads))
    return found


def _unlike(state: Mapping[str, Tensor], keys: Collection[str]) -> dict[str, Tensor]:
    """A state with some noise on some of its entries."""
    generator = torch.Generator().manual_seed(1)
    result = dict(state)
    for key in sorted(set(keys) & state.keys()):
        value = state[key]
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            result[key] = value + 0.1 * (1 + value.abs().mean()) * noise
    return result


class _Probe:
    """A core and its random inputs."""

    def __init__(
        self, core: Core, layout: Layout, nodes: Mapping[str, Node], values: Mapping[str, Any]
    ) -> None:
        self._core, self._layout = core, layout
        self._generator = torch.Generator().manual_seed(0)
        self._axes = {name: writer_axis(nodes[name]) for name in core.writers}
        self._out = core.axis
        self._values = {name: values[name] for name in core.sides if name in values}
        self._inputs = {name: self._noise(values[name]) for name in core.writers}
        self._before = self._run(self._inputs)

    def _noise(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(like.device, like.dtype)

    def _run(self, inputs: Mapping[str, Tensor], tables: Mapping[str, Tensor] = _NONE) -> Tensor:
        """The output of some inputs, features last; with other tables if they are given."""
        values = {**self._values, **tables, **inputs}
        for node in self._core.nodes:
            values[node.name] = node.target(*bound(node.args, values), **bound(node.kwargs, values))
        result: Tensor = values[self._core.out]
        return result.movedim(self._out, -1)

    def heads(self, known: list[tuple[Pairing, tuple[int, ...]]]) -> Heads | None:
        """What is allowed; None if nothing makes sense.

        ``known`` are pairings of other cores and the features that are rotated there, which are
        tried first; what is found is added.
        """
        layout, core = self._layout, self._core
        size = len(layout.queries[0])
        heads = Heads(
            core.mixed,
            Part(core.queries, layout.queries),
            Part(core.keys, layout.keys),
            Part(core.values, layout.values),
            Part(core.out, layout.outputs),
            Pairing(size),
            FIXED,
            exchanged=False,
            shuffled=False,
            nodes=frozenset(node.name for node in core.nodes),
        )
        if not self._before.isfinite().any() or not self._holds(heads, heads.identity()):
            return None
        heads = dataclasses.replace(heads, within=self._within(heads))
        heads = self._paired(heads, known)
        if self._seen(heads):
            heads = self._permuted(heads)
        return heads if self._holds(heads, heads.random(self._generator)) else None

    def _within(self, heads: Heads) -> Group:
        """The largest maps of values within heads that go through to the output."""
        same, size = heads.identity(), len(self._layout.values[0])
        trial = dataclasses.replace(heads, within=GENERAL)
        if self._holds(trial, trial.random(self._generator)):
            return GENERAL
        moved = (
            [FeatureMap.permutation(torch.tensor(order)) for _ in same.values]
            for order in _generators(size)
        )
        allowed = [self._holds(heads, dataclasses.replace(same, values=own)) for own in moved]
        return PERMUTATION if allowed and all(allowed) else FIXED

    def _seen(self, heads: Heads) -> bool:
        """Whether queries matter: of one position alone they do not, nor what tells heads apart."""
        return self._changes(self._run(self._redrawn(heads.queries)), self._before)

    def _paired(self, heads: Heads, known: list[tuple[Pairing, tuple[int, ...]]]) -> Heads:
        """With the largest maps of queries and keys that change nothing."""
        size = len(self._layout.queries[0])
        if not self._seen(heads):
            why = f"{heads.name}: nothing depends on queries here"
            reasons = {name: UNSEEN for name in self._values if not self._matters(name)}
            return dataclasses.replace(heads, why=(*heads.why, why), reasons=reasons)
        for pairing in (Pairing(size, free=tuple(range(size))), *(own for own, _ in known)):
            if pairing.size == size and not pairing.fixed and self._allows(heads, pairing):
                return dataclasses.replace(heads, pairing=pairing)
        rotated = [features for own, features in known if own.size == size and own.fixed]
        rotated.append(self._rotated(heads) if not rotated else ())
        for pairing in candidates(size, rotated[0]):
            if self._allows(heads, pairing):
                break
        known.append((pairing, rotated[0]))
        if pairing.fixed:
            why = f"{heads.name}: queries and keys are normalised, or otherwise compared"
            reasons = {**heads.reasons, **self._reasons(heads)}
            heads = dataclasses.replace(heads, why=(*heads.why, why), reasons=reasons)
        return dataclasses.replace(heads, pairing=pairing)

    def _matters(self, name: str) -> bool:
        """Whether noise on a value that attention reads changes anything."""
        value = self._values[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return True
        other = {name: value + self._noise(value)}
        return self._changes(self._run(self._inputs, other), self._before)

    def _reasons(self, heads: Heads) -> dict[str, str]:
        """Why gains of queries and keys stay, where no map of each head's features is free."""
        size = len(heads.queries.features[0])
        inside = {node.name: node for node in self._core.nodes}
        seen = made_of(self._core.read[:2], inside) & inside.keys()
        refs = dict.fromkeys(ref for name in sorted(seen) for ref in inside[name].refs())
        gains = {
            ref: value
            for ref in refs
            if isinstance(value := self._values.get(ref), Tensor)
            and value.shape[-1:] == (size,)
            and value.is_floating_point()
        }
        same = heads.identity()
        for order in _pairs(size) if gains else ():
            moved = FeatureMap.permutation(torch.tensor(order))
            choice = dataclasses.replace(same, pairs=[moved for _ in same.pairs])
            own = {name: value[..., torch.tensor(order)] for name, value in gains.items()}
            if self._holds(heads, choice, own):
                return dict.fromkeys(gains, ALIKE)
        return dict.fromkeys(gains, NORMALISED)

    def _allows(self, heads: Heads, pairing: Pairing) -> bool:
        trial = dataclasses.replace(heads, pairing=pairing)
        return self._holds(trial, trial.random(self._generator))

    def _rotated(self, heads: Heads) -> tuple[int, ...]:
        """The features that a scale, and its inverse for keys, does not leave as they are."""
        size = len(self._layout.queries[0])
        found = []
        for feature in range(size):
            scales = torch.ones(size, dtype=torch.float64)
            scales[feature] = _STRETCH
            stretched = FeatureMap(torch.diag(scales), torch.diag(1 / scales))
            choice = heads.identity()
            pairs = [stretched for _ in choice.pairs]
            if not self._holds(heads, dataclasses.replace(choice, pairs=pairs)):
                found.append(feature)
        return tuple(found)

    def _permuted(self, heads: Heads) -> Heads:
        """With the orders of heads that change nothing."""
        heads = dataclasses.replace(heads, tables=self._tables(heads))
        same = heads.identity()
        count, share = len(heads.keys.features), heads.share

        def alike(groups: Sequence[int], places: Sequence[int]) -> bool:
            order = [heads.members(own)[place] for own in groups for place in places]
            return self._holds(heads, dataclasses.replace(same, groups=groups, heads=order))

        if count > 1:
            allowed = all(alike(order, range(share)) for order in _generators(count))
            why = () if allowed else (f"{heads.name}: its heads are told from each other",)
            heads = dataclasses.replace(heads, exchanged=allowed, why=(*heads.why, *why))
        if share > 1:
            allowed = all(alike(range(count), order) for order in _generators(share))
            heads = dataclasses.replace(heads, shuffled=allowed)
        return heads if heads.exchanged or heads.shuffled else dataclasses.replace(heads, tables=())

    def _tables(self, heads: Heads) -> tuple[Table, ...]:
        """What has something for each head: a part of it changes what this head makes alone."""
        counts = dict.fromkeys(len(part.features) for part in (heads.queries, heads.keys))
        found = []
        for name, value in self._values.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            every = (
                Table(name, axis, count)
                for axis, size in enumerate(value.shape)
                for count in counts
                if count > 1 and size % count == 0
            )
            own = next((table for table in every if self._tells_apart(heads, table)), None)
            if own is not None:
                found.append(own)
        return tuple(found)

    def _tells_apart(self, heads: Heads, table: Table) -> bool:
        """Whether each of the first two parts along an axis belongs to a head of its own."""
        value = self._values[table.value]
        share = len(heads.queries.features) // table.heads
        for at in range(2):
            other = value.clone()
            part = other.unflatten(table.axis, (table.heads, -1)).select(table.axis, at)
            part.mul_(1 + 0.1 * self._noise(part)).add_(0.1 * self._noise(part))
            after = self._run(self._inputs, {table.value: other})
            for head, features in enumerate(heads.outputs.features):
                own = torch.tensor(features)
                changed = self._changes(after[..., own], self._before[..., own])
                if changed != (head // share == at):
                    return False
        return True

    def _ordered(self, heads: Heads, choice: Choice) -> dict[str, Tensor]:
        """The tables with heads in another order."""
        found = {}
        for table in heads.tables:
            alike = table.heads == len(choice.heads)
            order = torch.tensor(list(choice.heads if alike else choice.groups))
            value = self._values[table.value]
            parts = value.unflatten(table.axis, (table.heads, -1))
            moved = parts.index_select(table.axis, order.to(value.device))
            found[table.value] = moved.flatten(table.axis, table.axis + 1)
        return found

    def _redrawn(self, part: Part) -> dict[str, Tensor]:
        """The inputs with others in the place of some features."""
        inputs = dict(self._inputs)
        own = torch.tensor([feature for head in part.features for feature in head])
        moved = self._last(inputs[part.space], part.space).clone()
        moved[..., own] = self._noise(moved[..., own])
        inputs[part.space] = moved.movedim(-1, self._axes[part.space])
        return inputs

    def _holds(self, heads: Heads, choice: Choice, sides: Mapping[str, Tensor] = _NONE) -> bool:
        """Whether a core's output is mapped as its inputs are, with tables in the order of heads.

        ``sides`` are other values that attention reads, if not as they are.
        """
        wide = {name: self._last(value, name) for name, value in self._inputs.items()}
        inputs = {name: value.clone() for name, value in wide.items()}
        groups = range(len(heads.keys.features))
        pairs = [choice.pairs[group] for group in groups]
        keys = torch.stack([pair.inverse.mT for pair in pairs])
        queries = torch.stack([pair.forward for pair in pairs]).repeat_interleave(heads.share, 0)
        values = torch.stack([found.forward for found in choice.values])
        for part, own, maps in (
            (heads.keys, choice.groups, keys),
            (heads.values, choice.groups, values),
            (heads.queries, choice.heads, queries),
        ):
            _put(inputs[part.space], wide[part.space], part, own, maps)
        moved = {
            name: value.movedim(-1, self._axes[name]).contiguous() for name, value in inputs.items()
        }
        want = self._before.clone()
        mixed = values.repeat_interleave(heads.share, 0)
        _put(want, self._before, heads.outputs, choice.heads, mixed)
        tables = {**sides, **self._ordered(heads, choice)}
        return not self._changes(self._run(moved, tables), want)

    def _last(self, value: Tensor, name: str) -> Tensor:
        return value.movedim(self._axes[name], -1)

    @staticmethod
    def _changes(found: Tensor, want: Tensor) -> bool:
        finite = want.isfinite()
        if not torch.equal(finite, found.isfinite()):
            return True
        want, found = want[finite], found[finite]
        return bool((found - want).norm() > _TOLERANCE * want.norm())


def _generators(count: int) -> list[list[int]]:
    """A transposition and a cycle, of which all orders are made; nothing of one."""
    return [[1, 0, *range(2, count)], [*range(1, count), 0]] if count > 1 else []


def _pairs(size: int) -> list[list[int]]:
    """For each feature an order that exchanges it with the next alone."""
    every = list(range(size))
    return [[*every[:at], at + 1, at, *every[at + 2 :]] for at in range(size - 1)]


def _put(into: Tensor, source: Tensor, part: Part, own: Sequence[int], maps: Tensor) -> None:
    """Write own heads, mapped, in the places of those that they become; features are last."""
    places = torch.tensor(part.features)
    taken = source[..., places[torch.tensor(list(own))]]
    into[..., places] = torch.einsum("...hd,hde->...he", taken, maps.to(source))
