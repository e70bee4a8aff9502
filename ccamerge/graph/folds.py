"""What scales features one by one, folded into linear operations, and how it is put back.

Multiplying a BatchNorm's parameters by a general matrix is wrong: variances turn negative. Folded
into its convolution it is a weight and a bias, which transform exactly. The same goes for the gains
of norms, of which what is left commutes with rotations.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Statistics = Mapping[str, tuple[Tensor, Tensor]]


class Fold(abc.ABC):
    """Parameters, by the names of the ``state_dict``, that the folded program does without."""

    @property
    @abc.abstractmethod
    def keys(self) -> tuple[str, ...]:
        """What is taken away; its sizes follow from those of the parameters that took it in."""

    @abc.abstractmethod
    def apply(self, state: dict[str, Tensor]) -> None:
        """Fold, in place of the mapping; tensors are replaced, not written to.

        Raises
        ------
        ValueError
            If these parameters cannot be folded.
        """

    @abc.abstractmethod
    def unapply(self, state: dict[str, Tensor], statistics: Statistics) -> None:
        """Put back what was taken away so that the function stays the same.

        ``statistics`` are means and variances (out channels,) of outputs of operations, by the
        names of their nodes, as far as they are known.
        """


@dataclasses.dataclass(frozen=True)
class BatchNormFold(Fold):
    """A linear operation and the BatchNorm folded into it.

    ``node`` is the operation's name in the folded program and ``folded`` the key of its new bias.
    A BatchNorm without affine parameters has None for ``gamma`` and ``beta``.
    """

    node: str
    weight: str
    bias: str | None
    folded: str
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The BatchNorm's, and the old bias."""
        every = (self.bias, self.gamma, self.beta, self.mean, self.variance)
        return tuple(key for key in every if key is not None)

    def _scale(self, state: Mapping[str, Tensor]) -> Tensor:
        scale = (state[self.variance].double() + self.eps).rsqrt()
        return scale * state[self.gamma].double() if self.gamma else scale

    def apply(self, state: dict[str, Tensor]) -> None:
        """Replace weight and BatchNorm by a weight and a bias."""
        weight = state[self.weight]
        scale = self._scale(state)
        shift = -state[self.mean].double()
        if self.bias:
            shift = shift + state[self.bias].double()
        bias = scale * shift
        if self.beta:
            bias = bias + state[self.beta].double()
        shape = (-1,) + (1,) * (weight.dim() - 1)
        state[self.weight] = (weight.double() * scale.reshape(shape)).to(weight.dtype)
        state[self.folded] = bias.to(weight.dtype)
        for key in self.keys:
            state.pop(key)

    def unapply(self, state: dict[str, Tensor], statistics: Statistics) -> None:
        """Put a BatchNorm back.

        Mean and variance of the operation's output, without its folded bias, become the running
        statistics, which matters to whoever trains the model further; if they are not known those
        are 0 and 1. A BatchNorm that has no affine parameters takes its scale and shift from the
        statistics instead, and must have no negative scale to represent.
        """
        weight, bias = state[self.weight], state.pop(self.folded)
        mean, variance = torch.zeros_like(bias), torch.ones_like(bias)
        if self.node in statistics:
            of_output, spread = statistics[self.node]
            mean, variance = (of_output - bias.to(of_output)).to(bias), spread.to(bias)
        if self.bias:
            state[self.bias] = torch.zeros_like(bias)
        if self.gamma is None or self.beta is None:
            # Without an affine part: output = (Wx - m) / sqrt(v + eps) with v + eps = 1, m = -b.
            mean, variance = -bias, torch.full_like(bias, 1.0 - self.eps)
        else:
            state[self.gamma] = (variance + self.eps).sqrt()
            state[self.beta] = bias + mean
        state[self.weight] = weight
        state[self.mean], state[self.variance] = mean, variance


@dataclasses.dataclass(frozen=True)
class PerFeature:
    """A parameter with an element for each feature, whatever ``shape`` it has.

    It stands for ``offset`` more: gains of Gemma's norms are ``1 + w``.
    """

    key: str
    shape: tuple[int, ...]
    offset: float = 0.0

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """What it stands for (features,), in float64."""
        return state[self.key].double().flatten() + self.offset

    def standing_for(self, number: float, like: Tensor) -> Tensor:
        """The parameter that stands for one number everywhere."""
        return like.new_full(self.shape, number - self.offset)


@dataclasses.dataclass(frozen=True)
class Linear:
    """The weight of a linear operation, its axes that read and write, and its bias.

    ``groups`` are those of a convolution. A feature is read at ``inner`` elements in a row, as
    often as ``outer`` says, where positions were flattened into the axis. Of a weight that is
    one of several ``parts`` of a parameter, this is the parameter.
    """

    weight: str
    reads: int
    writes: int
    bias: str | None = None
    groups: int = 1
    outer: int = 1
    inner: int = 1
    parts: int = 1

    def along(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """A number for each feature (features,) that is read, to multiply a weight of some size."""
        every = features.repeat_interleave(self.inner).repeat(self.outer)
        shape = [1] * len(size)
        shape[self.reads] = size[self.reads]
        if self.groups == 1:
            return every.reshape(shape)
        shape[self.writes] = size[self.writes]
        rows = size[self.writes] // self.groups
        return every.reshape(self.groups, -1).repeat_interleave(rows, 0).reshape(shape)


@dataclasses.dataclass(frozen=True)
class NormFold(Fold):
    """Gain and bias of a LayerNorm or RMSNorm, folded into all that reads its output.

    Where a reader has no bias of its own the norm ``keeps`` one, that of features before the gain.
    """

    gain: PerFeature
    bias: PerFeature | None
    keeps: bool
    readers: tuple[Linear, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The gain, and the bias unless it is kept."""
        every = (self.gain, None if self.keeps else self.bias)
        return tuple(parameter.key for parameter in every if parameter is not None)

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a bias that is kept can be: where the gain is zero there must be none."""
        if self.bias is None or not self.keeps:
            return True
        return not bool(((self.gain.of(state) == 0) & (self.bias.of(state) != 0)).any())

    def apply(self, state: dict[str, Tensor]) -> None:
        """Scale the weights of all readers, and shift their biases, or change the norm's own."""
        if not self.fits(state):
            message = (
                f"{self.gain.key!r} is zero where the norm's bias is not, and an operation that "
                "reads the norm has no bias to take it in, as was possible for the model that "
                "these spaces are of"
            )
            raise ValueError(message)
        gain = self.gain.of(state)
        shift = self.bias.of(state) if self.bias is not None else None
        for reader in self.readers:
            weight = state[reader.weight]
            if shift is not None and reader.bias is not None and not self.keeps:
                others = [dim for dim in range(weight.dim()) if dim != reader.writes]
                added = (weight.double() * reader.along(shift, weight.shape)).sum(others)
                bias = state[reader.bias]
                state[reader.bias] = (bias.double() + added).to(bias.dtype)
            scaled = weight.double() * reader.along(gain, weight.shape)
            state[reader.weight] = scaled.to(weight.dtype)
        if self.bias is not None and shift is not None and self.keeps:
            kept, before = state[self.bias.key], shift / torch.where(gain == 0, 1.0, gain)
            state[self.bias.key] = before.reshape(kept.shape).to(kept.dtype)
        for key in self.keys:
            state.pop(key)

    def unapply(self, state: dict[str, Tensor], statistics: Statistics) -> None:
        """Gains of one, and biases of zero."""
        like = state[self.readers[0].weight]
        state[self.gain.key] = self.gain.standing_for(1.0, like)
        if self.bias is not None and not self.keeps:
            state[self.bias.key] = self.bias.standing_for(0.0, like)


@dataclasses.dataclass(frozen=True)
class ScaleFold(Fold):
    """A constant for each channel of what a linear operation writes, as LayerScale has them."""

    gain: PerFeature
    writer: Linear

    @property
    def keys(self) -> tuple[str, ...]:
        """The constants."""
        return (self.gain.key,)

    def apply(self, state: dict[str, Tensor]) -> None:
        """Scale the rows of the weight, and the bias."""
        gain = self.gain.of(state)
        weight, bias = state[self.writer.weight], self.writer.bias
        shape = [1] * weight.dim()
        shape[self.writer.writes] = -1
        state[self.writer.weight] = (weight.double() * gain.reshape(shape)).to(weight.dtype)
        if bias is not None:
            state[bias] = (state[bias].double() * gain).to(state[bias].dtype)
        state.pop(self.gain.key)

    def unapply(self, state: dict[str, Tensor], statistics: Statistics) -> None:
        """Ones."""
        state[self.gain.key] = self.gain.standing_for(1.0, state[self.writer.weight])
