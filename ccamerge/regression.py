"""Regression repair: fit each linear operation of the merged network to what the models compute.

Take a linear operation that reads ``x`` in the merged network, and the value ``s = W x + b + c``
that its output becomes when something already computed, ``c``, is added to it, as in a residual
block. Each model has its own ``s_i`` there. The weights first become the minimiser of
``E |s - s^|^2 + lambda |W - W_merged|^2``, where ``s^`` is the weighted mean of the ``s_i`` mapped
to the reference's features: a ridge regression, whose second moments are streamed by the same
kernels as all others. So a residual branch also mends what its shortcut got wrong.

If an element-wise function ``f`` follows, it is ``E |f(s) - f^|^2`` that matters, ``f^`` being the
mean of the mapped ``f(s_i)``: that is what the next operation reads, and what the maps were made
for. Some rounds of a damped Gauss-Newton method bring it down; each is a regression with the same
matrix, which has been factored already.

Operations are fitted in the order of the network, each on inputs that the fits before it have
mended. No labels are involved. Related: RegMean (Jin et al., ICLR 2023), which fits each operation
to its own models' inputs; Zhang et al. (2016) and He et al. (2017), who compress networks by
reconstructing outputs through the non-linearity and across the shortcut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional as F

from ccamerge.apply import FeatureMap
from ccamerge.collecting import thinning
from ccamerge.graph.fold import LINEAR_OPS
from ccamerge.graph.program import Node, Program, Ref
from ccamerge.graph.spaces import Spaces
from ccamerge.moments import Moments
from ccamerge.shares import Shares

DAMPING = 0.01
"""``lambda`` over the mean eigenvalue of the inputs' moments; a tenth or thrice as much was
measured to make no difference."""

ROUNDS = 6
"""Gauss-Newton rounds at most; they end earlier when the error no longer falls."""

_SECANT = 0.1
"""Half the width, in standard deviations, over which a function's slope is taken: wide enough for
a unit near the kink of a ReLU to cross it."""

LARGEST = 8192
"""Inputs or outputs of an operation up to which it is fitted; moments grow with their square."""

_PATCH_BYTES = 64 << 20
"""Patches of a convolution's input that are copied at a time, or one sample's if those are more."""

_KEPT_BYTES = 512 << 20
"""Patches of an operation up to which they are kept from round to round, not copied again."""

ACTIVATIONS = tuple(
    f"aten.{name}"
    for name in (
        "relu",
        "relu6",
        "hardtanh",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "hardswish",
        "sigmoid",
        "tanh",
    )
)
"""Element-wise functions through which an operation is fitted."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """For an operation: the merged network's root-mean-square error there, after over before.

    It is that of what the next operation reads: after the sum and the function that follow.
    """

    tap: str
    error: float


@dataclasses.dataclass(frozen=True)
class Piece:
    """Output features ``start`` to ``start + size``, of one space, in the reference.

    ``maps`` are each model's to the reference (own, ``size``), None if they keep their basis;
    ``shares`` say how much each model counts.
    """

    start: int
    size: int
    maps: tuple[Tensor, ...] | None
    shares: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A linear operation that can be fitted.

    ``pieces`` cover its output features. ``added`` is the value that is added to its output and
    ``activation`` the element-wise function that follows, where there are any.
    """

    node: Node
    weight: str
    bias: str | None
    pieces: tuple[Piece, ...]
    added: str | None = None
    activation: Node | None = None

    @property
    def source(self) -> str:
        """The value that the operation reads."""
        return str(self.node.args[0].name)

    def target(self, values: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the models' values in the reference's features, features last."""
        first = features_last(self.node, values[0])
        dtype = torch.promote_types(first.dtype, torch.float32)
        width = sum(piece.size for piece in self.pieces)
        total = first.new_zeros((*first.shape[:-1], width), dtype=dtype)
        for index, value in enumerate(values):
            features = features_last(self.node, value).to(dtype)
            start = 0  # in a model of another width
            for piece in self.pieces:
                own = piece.size if piece.maps is None else len(piece.maps[index])
                part = features.narrow(-1, start, own)
                mapped = part if piece.maps is None else part @ piece.maps[index].to(part.dtype)
                total.narrow(-1, piece.start, piece.size).add_(mapped, alpha=piece.shares[index])
                start += own
        return total

    def activate(self, value: Tensor) -> Tensor:
        """What follows the sum."""
        assert self.activation is not None
        result: Tensor = self.activation.target(
            value, *self.activation.args[1:], **self.activation.kwargs
        )
        return result

    def apply(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The operation's output with the parameters of a state."""
        bias = state[self.bias] if self.bias else None
        kwargs = {k: v for k, v in self.node.kwargs.items() if k != "bias"}
        value: Tensor = self.node.target(x, state[self.weight], bias, *self.node.args[3:], **kwargs)
        return value


@dataclasses.dataclass(frozen=True)
class Sample:
    """A batch at an operation: what it reads and gives in the merged network, and in each model.

    ``added`` and ``models_added`` are what is added to the outputs, if anything is.
    """

    x: Tensor
    output: Tensor
    models: Sequence[Tensor]
    added: Tensor | None = None
    models_added: Sequence[Tensor] | None = None


def features_dim(node: Node) -> int:
    """The axis of a linear operation's or a norm's output that its parameters act on."""
    return len(node.shape or ()) - 1 if node.op in ("aten.linear", "aten.layer_norm") else 1


def fits_of(
    spaces: Spaces,
    maps: Mapping[str, Sequence[FeatureMap]],
    shares: Shares,
    absorbers: Mapping[str, tuple[str, str | None]],
) -> dict[str, Fit]:
    """The operations that can be fitted, by name.

    Parameters
    ----------
    spaces : of the merged models
    maps : for each open space, each model's map
    shares : of the models
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
    pieces: dict[str, list[Piece]] = {}
    across: set[str] = set()
    for space in (*spaces.spaces, *spaces.fixed):
        found = maps.get(space.name)
        forward = None if found is None else tuple(m.forward for m in found)
        for tap in (t for t in space.taps if t.kind == "write"):
            if tap.dim == features_dim(nodes[tap.node]) and tap.node in absorbers:
                share = shares.of_space(space.name)
                if forward is None:
                    share = shares.of_parameter(absorbers[tap.node][0])
                piece = Piece(tap.start, tap.size, forward, share)
                pieces.setdefault(tap.node, []).append(piece)
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
        own = sorted(pieces.get(node.name, []), key=lambda piece: piece.start)
        if sum(piece.size for piece in own) != node.shape[features_dim(node)]:
            continue
        site = _site(node, spaces.program)
        fits[node.name] = Fit(node, *absorbers[node.name], tuple(own), *site)
    return fits


def _site(node: Node, program: Program) -> tuple[str | None, Node | None]:
    """The value that is added to an operation's output, and the function applied after that.

    Each only if nothing else reads the value before it.
    """
    users = program.users()
    end, added = node, None
    following = users.get(node.name, [])
    if len(following) == 1 and following[0].op == "aten.add" and node.name not in program.outputs:
        total = following[0]
        others = [ref for ref in total.refs() if ref != node.name]
        before = {n.name for n in program.nodes[: program.nodes.index(node)]}
        plain = not total.kwargs and len(total.args) == 2 and len(others) == 1
        if plain and others[0] in before and program.shapes.get(others[0]) == node.shape:
            end, added = total, others[0]
    readers = users.get(end.name, [])
    same = {(n.op, n.args[1:], tuple(n.kwargs.items())) for n in readers if len(n.refs()) == 1}
    if end.name in program.outputs or len(same) != 1 or any(len(n.refs()) > 1 for n in readers):
        return added, None
    return added, readers[0] if readers[0].op in ACTIVATIONS else None


def fit(job: Fit, state: dict[str, Tensor], samples: Sequence[Sample]) -> Fitted:
    """Fit an operation's weight and bias, in place of the mapping.

    Parameters
    ----------
    job : the operation
    state : parameters of the merged network
    samples : what the operation reads and should give, a batch each
    """
    weight = state[job.weight]
    outs, ins = weight.shape[0], weight[0].numel()
    moments = Moments([ins, outs], pairs="reference")
    rows = _Rows(job, samples, weight)
    for part in rows:
        moments.update([part.x, part.wanted - part.total], axis=1)
    second, cross = moments.cov(0), moments.cov(0, 1)
    centre, mean = moments.mean(0), moments.mean(1)
    left = moments.cov(1).trace() + mean @ mean
    if job.bias is None:  # nothing absorbs a mean, which then is part of what is fitted
        second = second + np.outer(centre, centre)
        cross = cross + np.outer(centre, mean)
        centre, mean = np.zeros_like(centre), np.zeros_like(mean)
    if not left > 0:  # nothing to mend
        return Fitted(job.node.name, 1.0)
    damping = DAMPING * second.trace() / ins
    factor = None  # inputs that do not vary tell nothing of the weights
    if damping > 0:
        factor = scipy.linalg.cho_factor(second + damping * np.eye(ins), lower=True)
    change = np.zeros_like(cross) if factor is None else scipy.linalg.cho_solve(factor, cross)
    shift = mean - centre @ change
    if job.activation is None:
        after = left - 2 * (change * cross).sum() + (change * (second @ change)).sum()
        after -= mean @ mean
        error = float(np.sqrt(max(after, 0.0) / left))
    else:
        change, shift, error = _refined(job, rows, change, shift, centre, factor)
    state[job.weight] = (weight.double() + torch.from_numpy(change.T).reshape(weight.shape)).to(
        weight.dtype
    )
    if job.bias is not None:
        state[job.bias] = (state[job.bias].double() + torch.from_numpy(shift)).to(weight.dtype)
    return Fitted(job.node.name, error)


_Array = np.ndarray[Any, Any]


def _refined(
    job: Fit, rows: _Rows, change: _Array, shift: _Array, centre: _Array, factor: Any
) -> tuple[_Array, _Array, float]:
    """Gauss-Newton rounds on the error behind the activation, from the linear fit.

    ``change`` (ins, outs) is that of the weights and ``shift`` (outs,) of the bias; ``centre`` what
    the factored second moments of the inputs are about. Returns the best of both, and the error
    there over that of the weights as they were.
    """
    best, least = (change, shift), math.inf
    before, width = 0.0, None
    trials = [(np.zeros_like(change), np.zeros_like(shift)), (change, shift)]
    for turn in range(ROUNDS + 2):
        change, shift = trials[turn]
        moves = np.zeros_like(shift)
        cross = np.zeros_like(change)
        error, count = 0.0, 0
        for part in rows:
            if width is None:
                width = _SECANT * part.wanted.std(0, correction=0).clamp_min(1e-12)
            total = torch.addmm(part.total, part.x, torch.from_numpy(change).to(part.x.dtype))
            total += torch.from_numpy(shift).to(part.x.dtype)
            missing, move = _move(job, total, part.activated, width)
            error += float(missing.double().square().sum())
            count += len(total)
            moves += move.sum(0, dtype=torch.float64).numpy()
            cross += (part.x.T @ move).double().numpy()
        if turn == 0:
            before = error
            continue
        if not error < least:
            break
        best, gained, least = (change, shift), least - error, error
        if factor is None or gained < 0.003 * error:
            break
        mean = moves / count if job.bias is not None else np.zeros_like(moves)
        step = scipy.linalg.cho_solve(factor, cross / count - np.outer(centre, mean))
        trials.append((change + step, shift + mean - centre @ step))
    return *best, math.sqrt(least / before) if before > 0 else 1.0


def _move(job: Fit, total: Tensor, wanted: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The error behind the activation, and where it says that its argument should go."""
    missing = wanted - job.activate(total)
    slope = job.activate(total + width).sub_(job.activate(total - width)).div_(2 * width)
    return missing, (missing * slope).div_(slope.square_().add_(1)).mul_(2)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some rows of an operation's samples: inputs (n, ins), the rest (n, outs).

    ``total`` is the merged network's sum, ``wanted`` what it should be and ``activated`` what
    should be there after the activation.
    """

    x: Tensor
    total: Tensor
    wanted: Tensor
    activated: Tensor


class _Rows:
    """The samples of an operation, row by row in parts, copied anew each time if they are many."""

    def __init__(self, job: Fit, samples: Sequence[Sample], weight: Tensor) -> None:
        self._job, self._samples, self._weight = job, samples, weight
        self._kept: list[_Part] | None = None

    def __iter__(self) -> Iterator[_Part]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[_Part] | None = []
        size = 0
        for sample in self._samples:
            for part in self._parts(sample):
                size += part.x.nbytes
                if size > _KEPT_BYTES:
                    kept = None
                if kept is not None:
                    kept.append(part)
                yield part
        self._kept = kept

    def _parts(self, sample: Sample) -> Iterator[_Part]:
        job, node = self._job, self._job.node
        few = thinning(sample.output, features_dim(node))

        def thin(value: Tensor) -> Tensor:
            return value[few]

        total = thin(sample.output)
        models = [thin(value) for value in sample.models]
        if sample.added is not None and sample.models_added is not None:
            total = total + thin(sample.added)
            models = [a + thin(b) for a, b in zip(models, sample.models_added, strict=True)]
        wanted = job.target(models)
        total = features_last(node, total).to(wanted.dtype)
        activated = wanted
        if job.activation is not None:
            activated = job.target([job.activate(value) for value in models])
        view = _patches(node, sample.x, self._weight)
        if node.op != "aten.linear":
            few = (few[0], *few[2:])
        view = view[few]
        outs, ins = self._weight.shape[0], self._weight[0].numel()
        step = max(1, _PATCH_BYTES // (view[0].numel() * view.element_size()))
        for start in range(0, len(view), step):
            piece = slice(start, start + step)
            yield _Part(
                view[piece].reshape(-1, ins).to(wanted.dtype),
                *(v[piece].reshape(-1, outs) for v in (total, wanted, activated)),
            )


def features_last(node: Node, value: Tensor) -> Tensor:
    """A linear operation's output with its features on the last axis."""
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
