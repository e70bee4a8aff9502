"""Trying what is claimed of a model's spaces: its program run with parameters that were mapped.

An element of a space's exact group must leave the network's outputs as they are, and take the
features at every tap to the mapped ones. Both are seen in one run beside the original's.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.maps import MappedParameters
from ccamerge.graph.space import Space, Spaces, Tap
from ccamerge.graph.tracing.program import Program

EXACT_TOLERANCE = 1e-10
"""Relative change of the output allowed to a map that preserves it, in float64."""

_NOISE = 300.0
"""What rounding does, times this, is allowed as well: a network may amplify it."""

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def widened(value: Any) -> Any:
    """Floating-point and complex tensors, and the names of their dtypes, in double precision."""
    if isinstance(value, Tensor):
        return value.to(_WIDER[value.dtype]) if value.dtype in _WIDER else value
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def in_float64(program: Program) -> Program:
    """The program with its constants, and the casts that the trace has baked in, widened."""
    nodes = []
    for node in program.nodes:
        if node.op == "aten._assert_tensor_metadata":
            continue
        args, kwargs = pytree.tree_map(widened, (node.args, node.kwargs))
        nodes.append(dataclasses.replace(node, args=args, kwargs=kwargs))
    constants = {name: widened(value) for name, value in program.constants.items()}
    return dataclasses.replace(program, nodes=tuple(nodes), constants=constants)


class _Changed(Mapping[str, Tensor]):
    """Parameters that are changed one by one, when they are asked for.

    Parameters
    ----------
    state : parameters
    change : what is made of each, by its name and value
    """

    def __init__(
        self, state: Mapping[str, Tensor], change: Callable[[str, Tensor], Tensor]
    ) -> None:
        self._state, self._change = state, change

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __getitem__(self, key: str) -> Tensor:
        return self._change(key, self._state[key])


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What mapping some spaces changed, all relatively.

    ``output`` is the change of the network's outputs; ``missed`` for each space, at the tap where
    it is most, by how much its features differ from the mapped ones of the original.
    """

    output: float
    missed: Mapping[str, float]


class Trial:
    """A program, its parameters and some inputs, and the outputs that these give."""

    def __init__(
        self, program: Program, state: Mapping[str, Tensor], leaves: Sequence[Any]
    ) -> None:
        self.program, self.state, self.leaves = program, state, leaves
        self.outputs = self.run(state)

    @classmethod
    def of(
        cls, program: Program, state: Mapping[str, Tensor], inputs: Sequence[Sequence[Any]]
    ) -> Trial:
        """In double precision where the network runs in it, on the first inputs that it takes."""
        wide = _Changed(state, lambda _, value: widened(value))
        double = [[widened(leaf) for leaf in leaves] for leaves in inputs]
        precisions: list[Any] = [(in_float64(program), wide, double), (program, state, inputs)]
        attempts = [(p, s, leaves) for p, s, every in precisions for leaves in every]
        for attempt in attempts[:-1]:
            try:
                return cls(*attempt)
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue  # it insists on a dtype, or on the number of samples
        return cls(*attempts[-1])

    def run(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """The network's outputs with other parameters."""
        with torch.inference_mode():
            found = self.program.run(state, self.leaves)
        return [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]

    def changed(self, state: Mapping[str, Tensor]) -> float:
        """The relative change of the outputs by other parameters."""
        return change(self.outputs, self.run(state))

    def allows(self, amount: float) -> bool:
        """Whether rounding may explain a relative change."""
        return amount <= EXACT_TOLERANCE or amount <= self._rounding

    @functools.cached_property
    def _rounding(self) -> float:
        """A bound on what rounding does: some times what a nudge of all parameters does."""
        units = [0.0]

        def nudged(key: str, value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            units.append(torch.finfo(value.dtype).eps)
            return value + value * (units[-1] * noise.to(value.device, value.dtype))

        change = self.changed(_Changed(self.state, nudged))
        return max(_NOISE * change, 8 * max(units))

    def mapped(self, spaces: Sequence[Space], maps: Mapping[str, FeatureMap]) -> Mapped:
        """Map some spaces, and look at outputs and at features."""
        after = MappedParameters(self.state, spaces, maps)
        taps: dict[str, list[tuple[Space, Tap]]] = {}
        for space in spaces:
            for tap in space.taps:
                taps.setdefault(tap.node, []).append((space, tap))
        missed = {space.name: 0.0 for space in spaces}
        with torch.inference_mode():
            ours = self.program.steps(self.state, self.leaves)
            theirs = self.program.steps(after, self.leaves)
            for node in self.program.operations:
                (_, a), (_, b) = next(ours), next(theirs)
                if node.name not in taps:
                    continue
                wide = torch.promote_types(a.dtype, torch.float64)
                want = a.to(wide, copy=True)
                for space, tap in taps[node.name]:  # spaces may lie along several axes of it
                    forward = maps[space.name].forward.to(wide)
                    part = want.narrow(tap.dim, tap.start, tap.size).movedim(tap.dim, -1)
                    part.copy_(part @ forward)
                for space, tap in taps[node.name]:
                    own, there = (x.narrow(tap.dim, tap.start, tap.size) for x in (want, b))
                    missed[space.name] = max(missed[space.name], change([own], [there]))
        return Mapped(change(_end(ours), _end(theirs)), missed)


def _end(run: Any) -> list[Tensor]:
    """What a run that is through returns."""
    try:
        next(run)
    except StopIteration as stop:
        return [x for x in pytree.tree_leaves(stop.value) if isinstance(x, Tensor)]
    message = "the program has more operations than it says"
    raise AssertionError(message)


def change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest relative change of a tensor; infinite where values become, or stop being, finite.

    Infinities and NaN that stay what they are, as of masks, are left out.
    """
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not (a.is_floating_point() or a.is_complex()):
            continue
        wide = torch.complex128 if a.is_complex() else torch.float64
        finite = a.isfinite()
        if a.shape != b.shape or not torch.equal(finite, b.isfinite()):
            return float("inf")
        a, b = a[finite].to(wide), b[finite].to(wide)
        scale = a.abs().square().sum().sqrt()
        worst = max(worst, float((b - a).abs().square().sum().sqrt() / scale.clamp_min(1e-300)))
    return worst


def uncovered(found: Spaces) -> list[tuple[str, int]]:
    """Axes of parameters that are neither in spaces, all along, nor pinned with a reason.

    What spaces that keep their basis hold counts beside open ones only: such an axis by itself
    has a reason.
    """
    held: dict[tuple[str, int], dict[tuple[int, int] | None, set[tuple[int, int]]]] = {}
    for space in (*found.spaces, *found.fixed):
        for slot in space.slots:
            rows = held.setdefault((slot.parameter, slot.dim), {})
            extent = (slot.start, slot.extent(space.size))
            rows.setdefault(slot.rows, set()).add(extent)
    open_axes = {(slot.parameter, slot.dim) for space in found.spaces for slot in space.slots}
    missing = []
    for name, key in found.program.parameters.items():
        shape = found.program.shapes[name]
        for dim, size in enumerate(shape):
            where = (key, dim)
            if where in found.pinned:
                continue
            if where not in open_axes or not _filled(held[where], size, shape[0]):
                missing.append(where)
    return list(dict.fromkeys(missing))


def _filled(
    held: Mapping[tuple[int, int] | None, set[tuple[int, int]]], size: int, rows: int
) -> bool:
    """Whether extents tile the whole axis in every range of rows, and the ranges all rows."""
    whole = all(sum(extent for _, extent in parts) == size for parts in held.values())
    ranges = [of for of in held if of is not None]
    return whole and (not ranges or sum(end - start for start, end in ranges) == rows)
