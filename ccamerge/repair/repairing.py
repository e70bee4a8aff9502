"""Restoring the variance that averaging loses (REPAIR, Jordan et al., ICLR 2023).

Averaged features that agree only in part have less variance than each of them had. In the aligned
coordinates of the reference, model ``i``'s features at a tap have mean ``mu_i T_i`` and standard
deviation ``sqrt(diag(T_i^T S_i T_i))``; the merged network's get the weighted mean of those over
the models, by an affine change per channel that its own weights and biases absorb.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.collection.positions import FITTED, RESTORED, lattice
from ccamerge.collection.statistics import Statistics
from ccamerge.collection.taps import repair_taps
from ccamerge.collection.tokens import Tokens
from ccamerge.core.brief import Brief
from ccamerge.core.device import Device, memory_of, resolve
from ccamerge.core.moments import Moments
from ccamerge.core.scratch import most
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.networks.states import fast_layout
from ccamerge.graph.rules import features_dim, operation
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.batches import batch_size, moved
from ccamerge.graph.tracing.lockstep import live_bytes, lockstep, scaled
from ccamerge.graph.tracing.program import Node, Program, Ref
from ccamerge.methods.weights import Shares
from ccamerge.repair.regression import Fit, Fitted, Sample, fit, fits_of

WALK_BYTES = 2 << 30
"""Bound on the live activations of the walk, in the memory of the device that walks; fewer of the
kept inputs are used beyond it."""

WALKED = 1024
"""Inputs that are walked at most, unless an operation has too few rows then. Of 2,500 CIFAR images
the first thousand gave a network 0.2 points lesser, in two fifths of the time."""

_ROWS = 16
"""Rows for each input of an operation's outputs from which on more are not needed: each row tells
of all outputs."""

_PART = 64
"""Channels whose covariances are formed, for nothing but their variances."""

_FLOOR = 1e-6
"""A merged channel this small beside its target has no signal to restore: it keeps its scale."""


@dataclasses.dataclass(frozen=True)
class _Target:
    """What the channels at a node should look like, and the parameters that can make them so."""

    dim: int
    mean: Tensor
    std: Tensor
    scaled: tuple[str, ...]
    shifted: str | None


@dataclasses.dataclass(frozen=True)
class Repaired:
    """For a tap: the merged network's standard deviation over its target, before and after."""

    tap: str
    before: float
    after: float


@dataclasses.dataclass(repr=False)
class RepairResult(Brief):
    """What a repair did.

    ``repaired`` are the taps whose variance was restored, ``fitted`` the operations that were
    fitted, and ``skipped`` says why other linear ones were not; ``walked`` is the number of inputs
    that this took, of ``kept``, as memory allowed. ``statistics`` has each such node's mean and
    variance (channels,) afterwards, for the running statistics of a BatchNorm put back.
    """

    repaired: list[Repaired] = dataclasses.field(default_factory=list)
    fitted: list[Fitted] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    walked: int = 0
    kept: int = 0
    statistics: dict[str, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)


def repair_merged(
    state: dict[str, Tensor],
    spaces: Spaces,
    collected: Statistics,
    maps: Mapping[str, Sequence[FeatureMap]],
    shares: Shares,
    teachers: Sequence[tuple[Program, Mapping[str, Tensor]]] = (),
) -> RepairResult:
    """Repair a merged network in place, walking it once over the kept inputs.

    Parameters
    ----------
    state : parameters of the folded program, averaged; changed in place
    spaces : of the reference; programs, parameters and maps are all where the moments are
    collected : of the models that were merged
    maps : for each space, each model's map
    shares : of the models
    teachers : programs and parameters of the models, if linear operations are to be fitted to them
        (see `ccamerge.repair.regression`); what cannot be fitted, and everything without them, gets
        its variance restored
    """
    device = resolve(collected.device)
    targets = _targets(spaces, collected, maps, shares)
    program = spaces.program
    fits: dict[str, Fit] = {}
    skipped: dict[str, str] = {}
    if teachers:
        fits, skipped = fits_of(spaces, maps, shares, _all_absorbers(program))
    programs = [program, *(p for p, _ in teachers)]
    enough = _enough(program, fits.values())
    batches = walked_inputs(programs, collected.inputs, fits, memory_of(device), enough)
    count = len(batches)
    turns = collected.turns[:count]  # where the models' outputs were counted
    tokens = [Tokens.of(program, leaves, memory_of(device)) for leaves in batches]
    result = RepairResult(skipped=skipped, walked=_inputs(batches), kept=_inputs(collected.inputs))
    held = _Held(fits.values(), count)
    for position, name in enumerate(program.inputs):
        held.keep(name, [leaves[position] for leaves in batches] * (1 + len(teachers)))
    with torch.inference_mode():
        start = {key: fast_layout(value) for key, value in state.items()}
        networks = [(program, start), *teachers]
        walk = lockstep([(p, own, leaves) for p, own in networks for leaves in batches])
        replies: list[Any] | None = None
        while True:
            try:
                name, every = walk.send(replies)
            except StopIteration:
                return result
            replies, values = None, every[:count]
            if name in fits:
                job = fits[name]
                samples = held.samples(job, every)
                kept = [_kept(job, own, among) for own, among in zip(samples, tokens, strict=True)]
                result.fitted.append(fit(job, state, kept, device))
                values = [job.apply(sample.x, state) for sample in samples]
                dim = features_dim(job.node)
                mean, std = channel_statistics(values, dim, turns, device, tokens)
                result.statistics[name] = (mean, std**2)
                replies = [*values, *every[count:]]
                held.release(job)
            elif name in targets:
                places = turns, tokens
                values = _restore(name, targets[name], state, values, places, result, device)
                replies = [*values, *every[count:]]
            held.keep(name, every if replies is None else replies)


class _Held:
    """The values that fits still to come read: lists of the merged network's, then each model's.

    ``count`` is the number of batches.
    """

    def __init__(self, fits: Collection[Fit], count: int) -> None:
        self._waiting = Counter(name for job in fits for name in _read(job))
        self._values: dict[str, Sequence[Tensor]] = {}
        self._count = count

    def keep(self, name: str, values: Sequence[Tensor]) -> None:
        """Hold a value if a fit will read it."""
        if self._waiting[name]:
            self._values[name] = values

    def samples(self, job: Fit, every: Sequence[Tensor]) -> list[Sample]:
        """What a fit needs of each batch, ``every`` being what the operation gives."""
        count, source = self._count, self._values[job.source]
        added = self._values[job.added] if job.added else None
        if added is not None:  # where the operation's outputs are laid out otherwise
            added = [a.reshape(own.shape) for a, own in zip(added, every, strict=True)]
        return [
            Sample(
                source[batch],
                every[batch],
                every[count + batch :: count],
                None if added is None else added[batch],
                None if added is None else added[count + batch :: count],
            )
            for batch in range(count)
        ]

    def release(self, job: Fit) -> None:
        """Let go of what only this fit was to read."""
        for name in _read(job):
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._values[name]


def _kept(job: Fit, sample: Sample, tokens: Tokens | None) -> Sample:
    """Of what a linear layer reads and gives, the tokens that count."""
    last = sample.output.dim() - 1
    if tokens is None or features_dim(job.node) != last:
        return sample

    def among(value: Tensor) -> Tensor:
        return tokens.among(value, value.dim() - 1)[0]

    more = None if sample.models_added is None else list(map(among, sample.models_added))
    return Sample(
        among(sample.x),
        among(sample.output),
        list(map(among, sample.models)),
        None if sample.added is None else among(sample.added),
        more,
    )


def _read(job: Fit) -> list[str]:
    """The values that a fit reads."""
    return [name for name in (job.source, job.added) if name]


def _restore(
    name: str,
    target: _Target,
    state: dict[str, Tensor],
    values: Sequence[Tensor],
    places: tuple[Sequence[int], Sequence[Tokens | None]],
    result: RepairResult,
    device: Device | None,
) -> list[Tensor]:
    """Give a node's channels their target's mean and deviation; the values after that."""
    turns, tokens = places
    mean, std = channel_statistics(values, target.dim, turns, device, tokens)
    kept = std > _FLOOR * target.std
    scale = torch.where(kept, target.std / std.clamp_min(1e-300), 1.0)
    if not target.scaled:
        scale = torch.ones_like(scale)
    shift = target.mean - scale * mean if target.shifted else torch.zeros_like(mean)
    for key in target.scaled:
        _rescale(state, key, scale)
    if target.shifted:
        state[target.shifted] = (state[target.shifted].double() + shift).to(
            state[target.shifted].dtype
        )
    shape = [1] * values[0].dim()
    shape[target.dim] = -1
    result.statistics[name] = (scale * mean + shift, (scale * std) ** 2)
    result.repaired.append(Repaired(name, _share(std, target.std), _share(scale * std, target.std)))
    return [v * scale.to(v.dtype).view(shape) + shift.to(v.dtype).view(shape) for v in values]


def _share(std: Tensor, target: Tensor) -> float:
    """The median over channels that should vary."""
    alive = target > 0
    return float((std[alive] / target[alive]).median()) if bool(alive.any()) else 1.0


def _rescale(state: dict[str, Tensor], key: str, scale: Tensor) -> None:
    value = state[key]
    shape = (-1,) + (1,) * (value.dim() - 1)
    state[key] = (value.double() * scale.view(shape)).to(value.dtype)


def channel_statistics(
    values: Sequence[Tensor],
    dim: int,
    turns: Sequence[int] | None = None,
    device: Device | None = None,
    tokens: Sequence[Tokens | None] = (),
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels,) in float64 over several batches of a value.

    With ``turns``, one for each batch, over the positions of a feature map that count then; with
    ``tokens``, over those.
    """
    # In parts: of a language model's logits all covariances would take gigabytes.
    channels = values[0].shape[dim]
    parts = [min(_PART, channels - start) for start in range(0, channels, _PART)]
    moments = Moments(parts, pairs="none", device=device)
    for index, value in enumerate(values):
        axis, among = dim, tokens[index] if tokens else None
        if among is not None:
            value, axis = among.among(value, dim)
        if turns is not None:
            value = value[lattice(value.shape, axis, RESTORED, turns[index])]
        moments.update(list(value.split(_PART, axis)), axis=axis)
    of_parts = range(len(parts))
    means = torch.cat([moments.mean_tensor(part) for part in of_parts])
    variances = torch.cat([moments.cov_tensor(part).diagonal() for part in of_parts])
    return means, variances.sqrt()


def walked_statistics(
    program: Program,
    state: Mapping[str, Tensor],
    inputs: Sequence[list[Any]],
    dims: Mapping[str, int],
    device: Device | None,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Mean and standard deviation (channels,) of some values, as one walk comes to them.

    Parameters
    ----------
    program, state : of a network; what the receiver writes into the state counts from there on
    inputs : kept inputs, of which as many are walked as memory allows
    dims : axes of channels by the names of values
    device : where program and state are
    """
    batches = walked_inputs([program], inputs, device=memory_of(device))
    for name, values in lockstep([(program, state, leaves) for leaves in batches]):
        if name in dims:
            yield name, *channel_statistics(values, dims[name], device=device)


def _targets(
    spaces: Spaces,
    collected: Statistics,
    maps: Mapping[str, Sequence[FeatureMap]],
    shares: Shares,
) -> dict[str, _Target]:
    nodes = {node.name: node for node in spaces.program.nodes}
    usage = _usage(spaces.program)
    pieces: dict[str, list[tuple[int, int, Tensor, Tensor]]] = {}
    for space in spaces.spaces:
        for tap in repair_taps(space):
            moments = collected.outputs[space.name][tap.name]
            mean = maps[space.name][0].forward.new_zeros(space.size)
            std = torch.zeros_like(mean)
            for index, (feature_map, weight) in enumerate(
                zip(maps[space.name], shares.of_space(space.name), strict=True)
            ):
                forward = feature_map.forward
                mapped = (forward * (moments.cov_tensor(index) @ forward)).sum(0)
                mean += weight * (moments.mean_tensor(index) @ forward)
                std += weight * mapped.clamp_min(0).sqrt()
            pieces.setdefault(tap.node, []).append((tap.dim, tap.start, mean, std))
    targets = {}
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[1])
        node, dim = nodes[name], features_dim(nodes[name])
        if any(part[0] != dim for part in parts):
            continue  # its parameters act on another axis than a space of its features
        mean, std = (torch.cat([part[i] for part in parts]) for i in (2, 3))  # type: ignore[misc]
        if node.shape is None or len(mean) != node.shape[dim]:
            continue  # part of the channels is pinned: their scale is not ours to change
        scaled, shifted = _absorbers(node, spaces.program, usage)
        if scaled or shifted:
            targets[name] = _Target(dim, mean, std, scaled, shifted)
    return targets


def _usage(program: Program) -> Counter[str]:
    """For each parameter the number of operations that read it."""
    keys = ({program.parameters.get(ref) for ref in n.refs()} for n in program.nodes)
    return Counter(key for found in keys for key in found if key is not None)


def _all_absorbers(program: Program) -> dict[str, tuple[str, str | None]]:
    """For each node with a weight of its own the names of weight and bias."""
    usage = _usage(program)
    found = ((node.name, *_absorbers(node, program, usage)) for node in program.nodes)
    return {name: (scaled[0], shifted) for name, scaled, shifted in found if scaled}


def _absorbers(
    node: Node, program: Program, usage: Mapping[str, int]
) -> tuple[tuple[str, ...], str | None]:
    """Parameters that can absorb a scale and a shift of the node's channels, used only there."""

    def key(argument: Any) -> str | None:
        found = program.parameters.get(argument.name) if isinstance(argument, Ref) else None
        if found is None or usage[found] != 1 or found in program.limits:
            return None
        return found

    names = ("weight", "bias")
    if not operation(node).places.keys() >= set(names):
        return (), None
    arguments = [operation(node).place(node, name) for name in names]
    weight, bias = (key(a) for a in arguments)
    if weight is None or (arguments[1] is not None and bias is None):
        return (), None  # shared with another operation, or absent
    return tuple(k for k in (weight, bias) if k), bias


def walked_inputs(
    programs: Sequence[Program],
    batches: Sequence[list[Any]],
    fitted: Collection[str] = (),
    device: torch.device | None = None,
    enough: float = WALKED,
) -> list[list[Any]]:
    """As many of the kept batches as the bound on live activations allows, at least one.

    No more are taken when there are ``enough`` inputs. ``programs`` are those that are walked side
    by side; at an operation of the first that is ``fitted``, sums, targets and new outputs come on
    top. Inputs are brought to a device if one is given.
    """
    chosen: list[list[Any]] = []
    total = inputs = 0
    peaks: dict[int, int] = {}  # by the program that runs, of a value in its example inputs
    for leaves in batches:
        running = [program.variant(leaves) for program in programs]
        first = id(running[0])
        if first not in peaks:
            peaks[first] = live_bytes(running, fitted)
        total += scaled(peaks[first], running[0], leaves)
        if chosen and (total > most(WALK_BYTES, 1 / 4) or inputs >= enough):
            break
        inputs += batch_size(leaves)
        there = leaves if device is None else moved(leaves, device)
        chosen.append([fast_layout(x) for x in there])
    return chosen


def _enough(program: Program, fits: Collection[Fit]) -> float:
    """The number of inputs that give every fit enough rows."""
    first = next((program.shapes[name] for name in program.inputs if name in program.shapes), ())
    samples = first[0] if first else 1
    needed = [float(WALKED)]
    for job in fits:
        shape = job.node.shape or ()
        dim = features_dim(job.node)
        counted = [
            len(range(size)[at])
            for size, at in zip(shape, lattice(shape, dim, FITTED), strict=True)
        ]
        rows = math.prod(size for axis, size in enumerate(counted) if axis != dim) / samples
        weight = program.parameter_shapes[job.weight]
        needed.append(_ROWS * math.prod(weight[1:]) / max(rows, 1e-3))
    return max(needed)


def _inputs(batches: Sequence[list[Any]]) -> int:
    """Inputs in some batches."""
    return sum(batch_size(leaves) for leaves in batches)
