"""Regression repair: fit each linear operation of the merged network to what the models compute.

At a linear operation that reads ``x`` in the merged network, let ``z`` be the weighted mean of the
models' own outputs there, mapped to the reference's features. The weights become the minimiser of
``E |W x + b - z|^2 + lambda |W - W_merged|^2``, a ridge regression whose second moments are
streamed by the same kernels as all others. Operations are fitted in the order of the network, each
on inputs that the fits before it have already mended. No labels are involved. Related: RegMean (Jin
et al., ICLR 2023), which fits each operation to its own models' inputs instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional as F

from ccamerge.apply import FeatureMap
from ccamerge.collecting import THIN_FROM
from ccamerge.graph.fold import LINEAR_OPS
from ccamerge.graph.program import Node, Ref
from ccamerge.graph.spaces import Spaces
from ccamerge.moments import Moments

DAMPING = 0.01
"""``lambda`` over the mean eigenvalue of the inputs' moments; a tenth or thrice as much was
measured to make no difference."""

LARGEST = 8192
"""Inputs or outputs of an operation up to which it is fitted; moments grow with their square."""

_PATCH_BYTES = 64 << 20
"""Patches of a convolution's input that exist at a time, or one sample's if those are more."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """For an operation: the merged network's root-mean-square error there, after over before."""

    tap: str
    error: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A linear operation that can be fitted.

    ``pieces`` cover its output features: start, size and each model's map; None keeps them.
    """

    node: Node
    weight: str
    bias: str | None
    pieces: tuple[tuple[int, int, tuple[Tensor, ...] | None], ...]

    @property
    def source(self) -> str:
        """The value that the operation reads."""
        return str(self.node.args[0].name)

    def target(self, outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The weighted mean of the models' outputs in the reference's features, features last."""
        total = torch.zeros_like(_features_last(self.node, outputs[0]))
        total = total.to(torch.promote_types(total.dtype, torch.float32))
        for index, (output, share) in enumerate(zip(outputs, weights, strict=True)):
            features = _features_last(self.node, output).to(total.dtype)
            for start, size, maps in self.pieces:
                part = features[..., start : start + size]
                mapped = part if maps is None else part @ maps[index].to(part.dtype)
                total[..., start : start + size].add_(mapped, alpha=share)
        return total

    def apply(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The operation's output with the parameters of a state."""
        bias = state[self.bias] if self.bias else None
        kwargs = {k: v for k, v in self.node.kwargs.items() if k != "bias"}
        value: Tensor = self.node.target(x, state[self.weight], bias, *self.node.args[3:], **kwargs)
        return value


def features_dim(node: Node) -> int:
    """The axis of a linear operation's or a norm's output that its parameters act on."""
    return len(node.shape or ()) - 1 if node.op in ("aten.linear", "aten.layer_norm") else 1


def fits_of(
    spaces: Spaces,
    maps: Mapping[str, Sequence[FeatureMap]],
    absorbers: Mapping[str, tuple[str, str | None]],
) -> dict[str, Fit]:
    """The operations that can be fitted, by name.

    Parameters
    ----------
    spaces : of the merged models
    maps : for each open space, each model's map
    absorbers : for operations whose weight and bias nothing else uses, their names

    Notes
    -----
    Left out are grouped convolutions, padding given by name, operations on constants or with more
    than ``LARGEST`` inputs or outputs, and those with output features whose space is not known or
    with a space on another axis of the output, as in token mixing.
    """
    nodes = {node.name: node for node in spaces.program.nodes}
    shapes = {key: spaces.program.shapes[n] for n, key in spaces.program.parameters.items()}
    readable = {*nodes, *spaces.program.inputs}
    pieces: dict[str, list[tuple[int, int, tuple[Tensor, ...] | None]]] = {}
    across: set[str] = set()
    for space in (*spaces.spaces, *spaces.fixed):
        found = maps.get(space.name)
        forward = None if found is None else tuple(m.forward for m in found)
        for tap in (t for t in space.taps if t.kind == "write"):
            if tap.dim == features_dim(nodes[tap.node]):
                pieces.setdefault(tap.node, []).append((tap.start, tap.size, forward))
            elif found is not None:
                across.add(tap.node)
    fits = {}
    for node in nodes.values():
        if node.op not in LINEAR_OPS or node.name not in absorbers or node.shape is None:
            continue
        if not isinstance(node.args[0], Ref) or not _plain(node) or node.name in across:
            continue
        outs, *ins = shapes[absorbers[node.name][0]]
        if node.args[0].name not in readable or max(outs, math.prod(ins)) > LARGEST:
            continue
        own = sorted(pieces.get(node.name, []), key=lambda piece: piece[0])
        if sum(size for _, size, _ in own) != node.shape[features_dim(node)]:
            continue
        fits[node.name] = Fit(node, *absorbers[node.name], tuple(own))
    return fits


def fit(
    job: Fit,
    state: dict[str, Tensor],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> Fitted:
    """Fit an operation's weight and bias, in place of the mapping.

    Parameters
    ----------
    job : the operation
    state : parameters of the merged network
    inputs, outputs : of the operation in the merged network, a tensor a batch
    targets : what the outputs should be, features last
    """
    weight = state[job.weight]
    outs, ins = weight.shape[0], weight[0].numel()
    moments = Moments([ins, outs], pairs="reference")
    for x, y, z in zip(inputs, outputs, targets, strict=True):
        missing = z - _features_last(job.node, y)
        view = _patches(job.node, x, weight)
        if job.node.op == "aten.conv2d":  # neighbours are alike: as in collecting
            steps = (2 if size >= THIN_FROM else 1 for size in view.shape[1:3])
            every = (slice(None), *(slice(None, None, step) for step in steps))
            view, missing = view[every], missing[every]
        rows = max(1, _PATCH_BYTES // (view[0].numel() * view.element_size()))
        for part, error in zip(view.split(rows), missing.split(rows), strict=True):
            moments.update([part.reshape(-1, ins), error.reshape(-1, outs)], axis=1)
    second, cross = moments.cov(0), moments.cov(0, 1)
    left, mean = moments.cov(1).trace(), moments.mean(1)
    if job.bias is None:  # nothing absorbs a mean, which then is part of what is fitted
        second = second + np.outer(moments.mean(0), moments.mean(0))
        cross = cross + np.outer(moments.mean(0), mean)
        left += mean @ mean
    damping = DAMPING * second.trace() / ins
    before = left + (mean @ mean if job.bias else 0.0)
    if not before > 0:  # nothing to mend
        return Fitted(job.node.name, 1.0)
    if damping > 0:
        change = scipy.linalg.solve(second + damping * np.eye(ins), cross, assume_a="pos")
    else:  # inputs that do not vary tell nothing of the weights
        change = np.zeros_like(cross)
    after = left - 2 * (change * cross).sum() + (change * (second @ change)).sum()
    state[job.weight] = (weight.double() + torch.from_numpy(change.T).reshape(weight.shape)).to(
        weight.dtype
    )
    if job.bias is not None:
        shift = torch.from_numpy(mean - moments.mean(0) @ change)
        state[job.bias] = (state[job.bias].double() + shift).to(weight.dtype)
    return Fitted(job.node.name, float(np.sqrt(max(after, 0.0) / before)))


def _features_last(node: Node, value: Tensor) -> Tensor:
    return value if node.op == "aten.linear" else value.movedim(1, -1)


def _plain(node: Node) -> bool:
    """Whether the operation is dense and pads by numbers."""
    if node.op == "aten.linear":
        return True
    return node.argument(6, "groups", 1) == 1 and not isinstance(
        node.argument(4, "padding", 0), str
    )


def _patches(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """What each output position reads, a view: (batch, positions, channels, kernel)."""
    if node.op == "aten.linear":
        return x
    spatial = weight.dim() - 2

    def each(index: int, name: str, default: int) -> list[int]:
        given = node.argument(index, name, default)
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        return given * spatial if len(given) == 1 else given

    stride, padding, dilation = (
        each(3, "stride", 1),
        each(4, "padding", 0),
        each(5, "dilation", 1),
    )
    x = F.pad(x, [p for amount in reversed(padding) for p in (amount, amount)])
    kernel = weight.shape[2:]
    steps = x.stride()[2:]
    positions = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    return x.as_strided(
        (x.shape[0], *positions, x.shape[1], *kernel),
        (
            x.stride(0),
            *(a * s for a, s in zip(steps, stride, strict=True)),
            x.stride(1),
            *(a * d for a, d in zip(steps, dilation, strict=True)),
        ),
    )
