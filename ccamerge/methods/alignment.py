"""From statistics to feature maps: which method aligns which space, and with what ridge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.collection.statistics import Pairs, Statistics
from ccamerge.config.patterns import by_pattern
from ccamerge.config.settings import DEFAULT_METHOD, MethodChoice, Mode, RidgeChoice
from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.device import memory_of, resolve
from ccamerge.core.scratch import most
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL, ORTHOGONAL, SIGNED_PERMUTATION, Group
from ccamerge.graph.maps import MappedParameters
from ccamerge.graph.space import Space, Spaces
from ccamerge.graph.tracing.batches import moved
from ccamerge.methods import METHODS, Alignment, Method, Solution, Solutions
from ccamerge.methods.explained_variance import Explained, explained_variance
from ccamerge.methods.heads import solve_heads
from ccamerge.methods.ridges import ridges_of

TOGETHER = 1 << 30
"""Bytes of covariances, of each model three, of spaces that are solved in one call."""


@dataclasses.dataclass(frozen=True, repr=False)
class Aligned(Brief):
    """Feature maps of all models in all spaces, and how they were found.

    Attributes
    ----------
    solutions : for each space, each model's map to the reference
    methods : for each space, the method
    ridges : for each space, the ridge; None where gamma was given or the method takes none
    method, options, gamma, mode, reference : as they were asked for
    on_cpu : methods that solved on the CPU what was collected on a device
    explained : for each space, how much of the reference's features each other model's explain
    """

    solutions: Solutions
    methods: dict[str, str]
    ridges: dict[str, float | None]
    method: MethodChoice
    options: Mapping[str, Any]
    gamma: float | None
    mode: Mode
    reference: int
    on_cpu: tuple[str, ...] = ()
    explained: Mapping[str, Sequence[Explained]] = dataclasses.field(default_factory=dict)

    def _parts(self) -> Mapping[str, Any]:
        return {
            "method": self.method,
            "options": self.options,
            "mode": self.mode,
            "reference": self.reference,
            "models": max((len(row) for row in self.solutions.values()), default=0),
            "spaces": {
                name: f"{len(row[0].feature_map.forward)} by {self.methods[name]}"
                for name, row in self.solutions.items()
            },
            "gamma": self.gamma,
            "ridges": self.ridges,
        }

    @property
    def maps(self) -> dict[str, list[FeatureMap]]:
        """For each space, each model's map."""
        return {name: [s.feature_map for s in row] for name, row in self.solutions.items()}

    def to(self, device: torch.device) -> Aligned:
        """The same with all maps on a device; itself if they are there."""
        if all(m.forward.device == device for row in self.maps.values() for m in row):
            return self
        solutions = {
            name: [dataclasses.replace(s, feature_map=s.feature_map.to(device)) for s in row]
            for name, row in self.solutions.items()
        }
        return dataclasses.replace(self, solutions=solutions)


def method_named(name: str) -> Method:
    """Look a method up; ValueError naming those there are."""
    arguments.string(name, "method", "a name or a dict of names by patterns")
    if name not in METHODS:
        message = f"method must be one of {', '.join(map(repr, METHODS))}; got {name!r}"
        raise ValueError(message)
    return METHODS[name]


def check_ready(choice: MethodChoice) -> None:
    """Raise ImportError for a method that lacks a package it needs."""
    for name in [choice] if isinstance(choice, str) else choice.values():
        method_named(name).ready()


def check_methods(choice: MethodChoice, mode: Mode) -> None:
    """Check what can be said of methods before there are spaces; errors as of `methods_of`."""
    check_ready(choice)
    if isinstance(choice, str):
        _check_mode(method_named(choice), mode)


def able_methods(choice: MethodChoice) -> dict[str, Method]:
    """The methods that may get spaces, by their names, whose options may be given."""
    names = [choice] if isinstance(choice, str) else list(choice.values())
    # Spaces may be left to these whatever is chosen; without options they need not be named.
    names += [name for name in (DEFAULT_METHOD, "permutation") if METHODS[name].options]
    return {name: method_named(name) for name in names}


def _check_mode(method: Method, mode: Mode) -> None:
    if mode not in method.modes:
        known = [m.name for m in METHODS.values() if mode in m.modes]
        message = f"mode {mode!r} is not for method {method.name!r}; it is for {known}"
        raise ValueError(message)


def methods_of(choice: MethodChoice, spaces: Sequence[Space], mode: Mode) -> dict[str, Method]:
    """The method of each space by name: what was chosen, or what it carries; see `_within`."""
    check_ready(choice)
    given = {"*": choice} if isinstance(choice, str) else choice
    smaller = ("permutation", "signed_permutation", "procrustes")
    found = {name: method_named(name) for name in {*given.values(), DEFAULT_METHOD, *smaller}}
    names = by_pattern(given, [s.name for s in spaces], DEFAULT_METHOD, "method")
    methods = {}
    for space in spaces:
        method = found[_within(found[names[space.name]], space.group, mode)]
        _check_mode(method, mode)
        methods[space.name] = method
    return methods


def _within(method: Method, group: Group, mode: Mode) -> str:
    """The method that gives maps that parameters can carry, or such as have a map near them.

    Where these are orthogonal, CCA becomes Procrustes, and optimal transport is brought to the
    nearest orthogonal map; where no more than signs may change and features be permuted, both that
    rotate become signed permutations, and where not even signs, all become permutations. Within
    heads of attention methods act that need no more than moments.
    """
    if group.joint:
        return method.name if method.local else "permutation"
    if method.maps <= group:
        return method.name
    rotates = method.name in ("cca", "procrustes")
    if group <= SIGNED_PERMUTATION or not group <= ORTHOGONAL:
        signed = rotates and group >= SIGNED_PERMUTATION and mode == "reference"
        return "signed_permutation" if signed else "permutation"
    return "procrustes" if rotates else "ot" if method.name == "ot" else "permutation"


def check_options(
    options: Mapping[str, Any] | None, methods: Mapping[str, Method]
) -> dict[str, Any]:
    """The options as plain Python numbers.

    Raises
    ------
    ValueError
        For an option that none of the spaces' methods knows, a number that is not finite, or one
        beyond a method's limits.
    TypeError
        For an option that should be a number, a whole one or a bool by its default, and is none.
    """
    options = arguments.mapping({} if options is None else options, "options", "a dict by names")
    used = {m.name: m for m in methods.values()}
    known = {name for m in used.values() for name in m.options}
    if unknown := sorted(set(options or {}) - known):
        message = (
            f"options: {', '.join(map(repr, unknown))} is not known to "
            f"{', '.join(map(repr, used))}; known: {', '.join(sorted(known)) or 'none'}"
        )
        raise ValueError(message)
    defaults = {name: value for m in used.values() for name, value in m.options.items()}
    found = {name: _option(value, name, defaults[name]) for name, value in options.items()}
    for method in used.values():
        for name, limit in method.limits.items():
            if name in found:
                limit(found[name], name)
    return found


def _option(value: Any, name: str, default: Any) -> Any:
    """An option of the type that its default has, if that is a kind of number."""
    if isinstance(default, bool):
        return arguments.flag(value, f"options: {name}")
    if isinstance(default, int):
        return arguments.integer(value, f"options: {name}")
    if isinstance(default, float):
        found = arguments.number(value, f"options: {name}")
        if not math.isfinite(found):
            message = f"options: {name} must be a finite number, got {found}"
            raise ValueError(message)
        return found
    return value


def check_widths(
    methods: Mapping[str, Method], mode: Mode, widths: Mapping[str, Sequence[int]]
) -> None:
    """Raise ValueError for a space whose method cannot map between the models' ``widths``.

    All mappings are by the names of spaces.
    """
    for name, sizes in widths.items():
        if len(set(sizes)) == 1:
            continue
        what = f"space {name!r} has {', '.join(map(str, sizes))} features in the models"
        if mode == "universe":
            message = f"{what}: mode 'universe' needs equal widths, mode 'reference' does not"
            raise ValueError(message)
        if not methods[name].rectangular:
            able = ", ".join(repr(m.name) for m in METHODS.values() if m.rectangular)
            message = (
                f"{what}: method {methods[name].name!r} needs equal widths; "
                f"these methods do not: {able}"
            )
            raise ValueError(message)


def pairs_needed(choice: MethodChoice, mode: Mode) -> Pairs:
    """The cross-covariances to collect for a merge."""
    names = [choice] if isinstance(choice, str) else choice.values()
    if mode == "universe" or any(method_named(name).pairs == "all" for name in names):
        return "all"
    return "reference"


def check_solutions(
    method: str, solved: Any, spaces: Sequence[Space], widths: Mapping[str, Sequence[int]]
) -> None:
    """Check what a method, maybe one of the user's, returned.

    Raises
    ------
    TypeError, ValueError
        Naming the method, the space and the model, for what nothing can be merged with: no
        `Solutions`, a missing space or model, maps that are not finite float64 between the models'
        ``widths`` by the names of spaces and the reference's.
    """
    if not isinstance(solved, Mapping):
        message = f"method {method!r} must return a dict by space, got {type(solved).__name__}"
        raise TypeError(message)
    for space in spaces:
        where = f"method {method!r}, space {space.name!r}"
        if space.name not in solved:
            message = f"{where}: missing in what the method returned"
            raise ValueError(message)
        row = solved[space.name]
        if not isinstance(row, Sequence) or not all(isinstance(s, Solution) for s in row):
            message = f"{where}: expected a list of Solution, one for each model, got {row!r:.80}"
            raise TypeError(message)
        own = widths[space.name]
        if len(row) != len(own):
            message = f"{where}: expected {len(own)} solutions, one for each model, got {len(row)}"
            raise ValueError(message)
        for index, solution in enumerate(row):
            sizes = (own[index], space.size)
            for side, shape in (("forward", sizes), ("inverse", sizes[::-1])):
                matrix = getattr(solution.feature_map, side)
                found = f"{str(matrix.dtype).removeprefix('torch.')} {tuple(matrix.shape)}"
                if found != f"float64 {shape}":
                    message = f"{where}, models[{index}]: {side} is {found}, not float64 {shape}"
                    raise ValueError(message)
                if not torch.isfinite(matrix).all():
                    message = f"{where}, models[{index}]: {side} is not finite"
                    raise ValueError(message)


def _carried(space: Space, row: Sequence[Solution]) -> list[Solution]:
    """Solutions whose maps a space's parameters can carry: the nearest ones."""

    def carried(found: FeatureMap) -> FeatureMap:
        if space.group != GENERAL and not space.group.contains(found.forward):
            found = space.group.project(found.forward)
        return found.kept()

    return [dataclasses.replace(s, feature_map=carried(s.feature_map)) for s in row]


def _in_turn(spaces: Sequence[Space], widths: Mapping[str, Sequence[int]]) -> Iterator[list[Space]]:
    """Spaces in parts that are solved together, whose covariances do not take too much memory."""
    part: list[Space] = []
    total = 0
    for space in spaces:
        size = sum(24 * width**2 for width in widths[space.name])
        if part and total + size > most(TOGETHER, 1 / 8):
            yield part
            part, total = [], 0
        part.append(space)
        total += size
    if part:
        yield part


def _with_maps(
    states: Sequence[Mapping[str, Tensor]], found: Spaces, solutions: Solutions
) -> list[Mapping[str, Tensor]]:
    """Models' parameters with the features of some spaces mapped to the reference's."""
    spaces = [space for space in found.spaces if space.name in solutions]
    return [
        MappedParameters(
            state, spaces, {name: row[i].feature_map for name, row in solutions.items()}
        )
        for i, state in enumerate(states)
    ]


def align(
    found: Spaces,
    collected: Statistics,
    states: Sequence[Mapping[str, Tensor]],
    *,
    method: MethodChoice = DEFAULT_METHOD,
    options: Mapping[str, Any] | None = None,
    mode: Mode = "reference",
    ridge: RidgeChoice | None = None,
    gamma: float | None = None,
    reference: int = 0,
    weights: Mapping[str, Sequence[float]] | None = None,
) -> Aligned:
    """Maps of every model in every space, each method's problems solved in one call.

    They are solved where the moments are, or on the CPU by methods that know NumPy only; the maps
    are where the moments are.

    Parameters
    ----------
    found : spaces of the reference
    collected : statistics of the models
    states : each model's folded parameters
    method, options, mode, ridge, gamma, reference : as for `ccamerge.merge`
    weights : for each space, of the models in the average; default equal

    Raises
    ------
    TypeError, ValueError, numpy.linalg.LinAlgError
        As `ccamerge.merge` and `check_solutions`.
    """
    methods = methods_of(method, found.spaces, mode)
    options = check_options(options, methods)
    widths = {s.name: collected.matched[s.name][0].dims for s in found.spaces}
    check_widths(methods, mode, widths)
    used = {m.name: m for m in methods.values()}
    ridges: dict[str, float] = {}
    if gamma is None:
        regularised = {name for name, entry in methods.items() if entry.regularised}
        ridges = ridges_of(ridge, found, collected, reference, regularised)
    solutions: Solutions = {}
    on_cpu = {n for n, entry in used.items() if collected.device != "cpu" and not entry.on_device}

    def alignment(own: Sequence[Space], on_cpu: bool) -> Alignment:
        place = "cpu" if on_cpu else collected.device
        there = states
        if on_cpu and collected.device != "cpu":
            there = [moved(dict(state), torch.device("cpu")) for state in states]
        pooled = {space.name: collected.pooled(space).to(place) for space in own}
        return Alignment(own, pooled, there, reference, mode, ridges, gamma, weights or {})

    def chosen(entry: Method) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key in entry.options}

    for heads in found.attention:
        own = [found[name] for name in heads.spaces]
        pair = (methods[heads.queries.space], methods[heads.values.space])
        given = alignment(own, bool(on_cpu & {entry.name for entry in pair}))
        solutions |= solve_heads(heads, given, pair, chosen(pair[1]))
    if found.attention:  # others are matched by weights, too, beside heads that are matched
        states = _with_maps(states, found, solutions)
    for name, entry in used.items():
        own = [s for s in found.spaces if methods[s.name] is entry and not s.group.joint]
        for part in _in_turn(own, widths) if entry.local else filter(None, [own]):
            solved = entry.solve(alignment(part, name in on_cpu), **chosen(entry))
            check_solutions(name, solved, part, widths)
            solutions.update({space.name: _carried(space, solved[space.name]) for space in part})
    aligned = Aligned(
        {space.name: solutions[space.name] for space in found.spaces},
        {name: m.name for name, m in methods.items()},
        {space.name: ridges.get(space.name) for space in found.spaces},
        method,
        options,
        gamma,
        mode,
        reference,
        tuple(name for name in used if name in on_cpu),
    ).to(memory_of(resolve(collected.device)))
    explained = {
        space.name: explained_variance(space, collected, aligned.maps[space.name], reference)
        for space in found.spaces
    }
    return dataclasses.replace(aligned, explained=explained)
