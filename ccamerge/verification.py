"""Five checks that a model's feature spaces are right; run them on any architecture."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge import arguments
from ccamerge.apply import FeatureMap, transform
from ccamerge.graph.batches import moved, split_batch
from ccamerge.graph.derivation import spaces
from ccamerge.graph.program import Node, Program
from ccamerge.graph.spaces import Effect, Group, Role, Space, Spaces
from ccamerge.graph.states import folded_state

EXACT_TOLERANCE = 1e-10
"""Relative change of the output allowed to a map that preserves it, in float64."""

CHANGED = 1e-6
"""Relative change that half of a transformation must at least make."""

RECOVERY_TOLERANCE = 1e-4
"""Relative change of the output of a model merged with a transformed copy of itself, in float64;
alignment is as exact as the features' conditioning lets it be."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was measured."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}"


def verify(model: nn.Module, example_inputs: Any, *, seed: int = 0) -> list[Check]:
    """Prove, for one model, that its feature spaces are right.

    1. *symmetry*: a random element of each space's exact symmetry group leaves the output unchanged
       (float64, relative 1e-10);
    2. *linear twin*: with non-linearities and normalisation replaced by the identity, a random
       well-conditioned invertible map on every space leaves it unchanged;
    3. *mutation*: transforming only what writes, or only what reads, a space changes it;
    4. *coverage*: every axis of every parameter belongs to a space or is pinned with a reason;
    5. *recovery*: the model merged with a transformed copy of itself is the model again.

    Parameters
    ----------
    model : any module that can be traced; not modified. A copy is checked, on the CPU.
    example_inputs : one batch, as `merge` takes it
    seed : of the random maps

    Returns
    -------
    The five checks, in order.
    """
    model, seed = arguments.module(model, "model"), arguments.seed(seed)
    model, example_inputs = copy.deepcopy(model).cpu(), moved(example_inputs, torch.device("cpu"))
    found = spaces(model, example_inputs)
    args, kwargs = split_batch(example_inputs, model)
    generator = torch.Generator().manual_seed(seed)
    state = {k: _double(v) for k, v in folded_state(model, found).items()}
    program = _in_float64(found.program)
    leaves = [_double(x) for x in program.flatten_inputs(args, kwargs)]
    return [
        _symmetry(program, state, leaves, found, generator),
        _linear_twin(program, state, leaves, found, generator),
        _mutation(program, state, leaves, found, generator),
        _coverage(found),
        _recovery(model, example_inputs, found, generator),
    ]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _in_float64(program: Program) -> Program:
    constants = {k: _double(v) for k, v in program.constants.items()}
    return dataclasses.replace(program, constants=constants)


def _output(program: Program, state: Mapping[str, Tensor], leaves: list[Any]) -> Tensor:
    with torch.inference_mode():
        outputs = pytree.tree_leaves(program.run(state, leaves))
    floats = [o.flatten() for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
    return torch.cat(floats)


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm().clamp_min(1e-300))


def random_map(space: Space, kind: str, generator: torch.Generator) -> FeatureMap:
    """A random element of a group of maps: "any invertible map", a scaled or a pure permutation.

    Invertible maps have singular values in [1/2, 2].
    """
    size = space.size
    order = torch.randperm(size, generator=generator)
    permutation = FeatureMap.permutation(order)
    if kind == Effect.ELEMENTWISE.value:
        return permutation
    stretch = torch.exp2(2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    if kind == Effect.POSITIVE.value:
        return FeatureMap(permutation.forward * stretch, permutation.inverse / stretch[:, None])
    left, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return FeatureMap((left * stretch) @ right, (right.T / stretch) @ left.T)


def _symmetry(
    program: Program,
    state: dict[str, Tensor],
    leaves: list[Any],
    found: Spaces,
    generator: torch.Generator,
) -> Check:
    before = _output(program, state, leaves)
    maps = {s.name: random_map(s, s.exact, generator) for s in found.spaces}
    change = _change(before, _output(program, transform(state, found.spaces, maps), leaves))
    detail = f"output changes by {change:.1e} under {len(maps)} random exact maps"
    return Check("symmetry", change <= EXACT_TOLERANCE and bool(maps), detail)


def _linear_twin(
    program: Program,
    state: dict[str, Tensor],
    leaves: list[Any],
    found: Spaces,
    generator: torch.Generator,
) -> Check:
    twin = linear_twin(program)
    before = _output(twin, state, leaves)
    maps = {}
    for space in found.spaces:
        general = space.group is Group.GENERAL
        kind = "any invertible map" if general else Effect.ELEMENTWISE.value
        maps[space.name] = random_map(space, kind, generator)
    change = _change(before, _output(twin, transform(state, found.spaces, maps), leaves))
    detail = f"output changes by {change:.1e} under random invertible maps"
    return Check("linear twin", change <= EXACT_TOLERANCE and bool(maps), detail)


def linear_twin(program: Program) -> Program:
    """The program without its non-linearities.

    Element-wise functions and normalisations become the identity, maxima over space means.
    """
    return dataclasses.replace(program, nodes=tuple(map(_linearised, program.nodes)))


_LINEAR = {
    "aten.max_pool1d": torch.ops.aten.avg_pool1d.default,
    "aten.max_pool2d": torch.ops.aten.avg_pool2d.default,
    "aten.max_pool3d": torch.ops.aten.avg_pool3d.default,
    "aten.adaptive_max_pool2d": torch.ops.aten.adaptive_avg_pool2d.default,
    "aten.amax": torch.ops.aten.mean.dim,
    "aten.amin": torch.ops.aten.mean.dim,
}


def _linearised(node: Node) -> Node:
    if node.op in _LINEAR:
        args = node.args[:4] if "pool" in node.op and "adaptive" not in node.op else node.args
        return dataclasses.replace(node, target=_LINEAR[node.op], args=args)
    if node.op in NONLINEAR:
        return dataclasses.replace(node, target=lambda x: x, args=node.args[:1], kwargs={})
    return node


NONLINEAR = frozenset(
    f"aten.{name}"
    for name in (
        *("relu", "leaky_relu", "threshold", "prelu", "gelu", "silu", "sigmoid", "tanh", "elu"),
        *("selu", "celu", "hardtanh", "relu6", "hardswish", "hardsigmoid", "mish", "softplus"),
        *("softsign", "log_sigmoid", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square"),
        *("pow", "sign", "clamp", "clamp_min", "clamp_max", "erf", "sin", "cos", "nan_to_num"),
        *("batch_norm", "layer_norm", "rms_norm", "group_norm"),
    )
)


def _mutation(
    program: Program,
    state: dict[str, Tensor],
    leaves: list[Any],
    found: Spaces,
    generator: torch.Generator,
) -> Check:
    before = _output(program, state, leaves)
    silent = []
    halves = {"writers": frozenset(Role) - {Role.READ}, "readers": frozenset({Role.READ})}
    least = float("inf")
    for space in found.spaces:
        maps = {space.name: random_map(space, space.exact, generator)}
        while space.size > 1 and bool((maps[space.name].forward.diagonal() == 1).all()):
            maps = {space.name: random_map(space, space.exact, generator)}
        for half, roles in halves.items():
            mapped = transform(state, [space], maps, roles)
            change = _change(before, _output(program, mapped, leaves))
            least = min(least, change)
            if not change > CHANGED:
                silent.append(f"{half} of {space.name}")
    detail = f"half a transformation changes the output by {least:.1e} or more"
    if silent:
        detail = f"no change from transforming only the {', the '.join(silent)}"
    return Check("mutation", not silent and bool(found.spaces), detail)


def _coverage(found: Spaces) -> Check:
    held: dict[tuple[str, int], set[tuple[int, int, int]]] = {}
    for space in found.spaces:
        for slot in space.slots:
            extent = slot.outer * space.size * slot.inner
            first = slot.rows[0] if slot.rows else 0
            held.setdefault((slot.parameter, slot.dim), set()).add((first, slot.start, extent))
    missing, axes = [], 0
    for name, key in found.program.parameters.items():
        for dim, size in enumerate(found.program.shapes[name]):
            axes += 1
            parts = held.get((key, dim))
            covered = parts is not None and _filled(parts, size)
            if not covered and (key, dim) not in found.pinned:
                missing.append(f"{key} axis {dim}")
    detail = f"{axes} axes, each in a space or pinned with a reason"
    if missing:
        detail = f"neither in a space nor pinned: {', '.join(missing[:5])}"
    return Check("coverage", not missing, detail)


def _filled(parts: set[tuple[int, int, int]], size: int) -> bool:
    """Whether the extents tile the whole axis in every range of rows that has any."""
    rows = {first for first, _, _ in parts}
    return all(sum(extent for first, _, extent in parts if first == row) == size for row in rows)


_RECOVERY_BATCHES = 32
"""More samples than features: directions that never vary are matched arbitrarily."""


def _scattered(
    args: tuple[Any, ...], kwargs: dict[str, Any], generator: torch.Generator
) -> tuple[tuple[Any, ...]] | dict[str, Any]:
    """A batch of the same shape and spread as the example; whole numbers are shuffled."""

    def scatter(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 2:
            return x
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator).to(x.dtype)
            return x.mean() + noise * x.std().clamp_min(1e-3)
        return x.flatten()[torch.randperm(x.numel(), generator=generator)].view_as(x)

    moved_args, moved_kwargs = pytree.tree_map(scatter, (args, kwargs))
    return moved_kwargs if moved_kwargs else (moved_args,)


def _recovery(
    model: nn.Module, example_inputs: Any, found: Spaces, generator: torch.Generator
) -> Check:
    from ccamerge.merging import load_merged, merge

    original = copy.deepcopy(model).eval().double()
    copied = copy.deepcopy(original)
    maps = {s.name: random_map(s, Effect.ELEMENTWISE.value, generator) for s in found.spaces}
    load_merged(copied, transform(folded_state(original, found), found.spaces, maps), found, {})
    args, kwargs = pytree.tree_map(_double, split_batch(example_inputs, model))
    batches = [_scattered(args, kwargs, generator) for _ in range(_RECOVERY_BATCHES)]
    merged = merge([original, copied], batches, ridge=1e-9, progress=False).model
    args, kwargs = split_batch(batches[0], model)  # dead units are only known to be dead here
    with torch.inference_mode():
        pairs = zip(
            pytree.tree_leaves(original(*args, **kwargs)),
            pytree.tree_leaves(merged(*args, **kwargs)),
            strict=True,
        )
        change = max(_change(a.double(), b.double()) for a, b in pairs if isinstance(a, Tensor))
    detail = f"merging with a transformed copy changes the output by {change:.1e}"
    return Check("recovery", change <= RECOVERY_TOLERANCE, detail)
