"""A linear operation as a map that is linear in its weight, on the positions that are counted.

A convolution's patches are the rows of a regression, many times its input if they were copied. They
never are: their moments are read through a strided view, and their products with a matrix are a
convolution, and its gradient with regard to the weight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ccamerge.collection.positions import FITTED, lattice
from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)


def counted(node: Node, value: Tensor) -> Tensor:
    """The positions of an operation's output that count, features last: a view."""
    dim = operation(node).features % value.dim()  # of tokens that count there are fewer axes
    return value[lattice(value.shape, dim, FITTED)].movedim(dim, -1)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operation of some weight (outs, ins / groups, *kernel), for inputs of one shape.

    ``stride`` is that of the counted positions; ``padding`` is before and after, for each spatial
    axis. A linear layer has no spatial axes.
    """

    weight: tuple[int, ...]
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()

    @classmethod
    def of(cls, node: Node, weight: Tensor, output: Tensor) -> Operator:
        """The operation of a node, whose outputs are like ``output``."""
        shape = tuple(weight.shape)
        spatial = len(shape) - 2
        if not spatial:
            return cls(shape)

        def each(index: int, name: str, default: int) -> tuple[int, ...]:
            given = node.argument(index, name, default)
            given = tuple(given) if isinstance(given, (list, tuple)) else (given,)
            return given * spatial if len(given) == 1 else given

        steps = [index.step or 1 for index in lattice(output.shape, 1, FITTED)[2:]]
        stride = each(3, "stride", 1)
        dilation = each(5, "dilation", 1)
        named = node.argument(4, "padding", 0)
        if named == "same":  # an odd one goes behind
            extra = [d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True)]
            padding = tuple((e // 2, e - e // 2) for e in extra)
        else:
            amounts = (0,) * spatial if named == "valid" else each(4, "padding", 0)
            padding = tuple((p, p) for p in amounts)
        return cls(
            shape,
            int(node.argument(6, "groups", 1)),
            tuple(a * b for a, b in zip(stride, steps, strict=True)),
            padding,
            dilation,
        )

    @property
    def ins(self) -> int:
        """Inputs of each output: those of its group, times the kernel."""
        return torch.Size(self.weight[1:]).numel()

    @property
    def outs(self) -> int:
        """Outputs of each group."""
        return self.weight[0] // self.groups

    @property
    def axes(self) -> tuple[int, ...]:
        """The feature axes of `patches`."""
        return tuple(range(-len(self.stride) - 1, 0))

    def patches(self, x: Tensor) -> list[Tensor]:
        """For each group what its outputs read: (batch, *positions, *kernel, ins / groups).

        Views of the input, padded where the operation pads.
        """
        if not self.stride:
            return [x]
        x = self._padded(x)
        if self.weight[1] == 1:  # single channels are read along rows
            x = x.contiguous()
        kernel, steps = self.weight[2:], x.stride()[2:]
        positions = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(x.shape[2:], kernel, self.stride, self.dilation, strict=True)
        ]
        channels = self.weight[1]
        view = x.as_strided(
            (x.shape[0], *positions, *kernel, x.shape[1]),
            (
                x.stride(0),
                *(a * s for a, s in zip(steps, self.stride, strict=True)),
                *(a * d for a, d in zip(steps, self.dilation, strict=True)),
                x.stride(1),
            ),
        )
        return list(view.split(channels, -1))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The outputs at the counted positions, features last."""
        if not self.stride:
            return F.linear(x, weight, bias)
        x, padding = self._plain(x)
        convolution = _CONVOLUTIONS[len(self.stride) - 1]
        result: Tensor = convolution(
            x, weight, bias, self.stride, padding, self.dilation, self.groups
        )
        return result.movedim(1, -1)

    def transposed(self, x: Tensor, moves: Tensor) -> Tensor:
        """The sum over all rows of outputs (features last) times what they read, like the weight.

        The gradient of ``(apply(x, weight) * moves).sum()`` with regard to the weight.
        """
        if not self.stride:
            return moves.flatten(0, -2).T @ x.flatten(0, -2)
        x, padding = self._plain(x)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            moves.movedim(-1, 1),
            x,
            x.new_empty(self.weight),
            None,
            self.stride,
            padding,
            self.dilation,
            False,
            [0] * len(self.stride),
            self.groups,
            (False, True, False),
        )[1]
        return gradient

    def matrices(self, weight: Tensor) -> Tensor:
        """A weight as (groups, ins, outs), inputs in the order of the patches."""
        split = weight.reshape(self.groups, self.outs, *self.weight[1:])
        return split.movedim(2, -1).flatten(2).transpose(1, 2)

    def weights(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        split = matrices.transpose(1, 2).reshape(
            self.groups, self.outs, *self.weight[2:], self.weight[1]
        )
        return split.movedim(-1, 2).reshape(self.weight)

    def _padded(self, x: Tensor) -> Tensor:
        amounts = [p for pair in reversed(self.padding) for p in pair]
        return F.pad(x, amounts) if any(amounts) else x

    def _plain(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input and its padding, which is as much after as before."""
        if all(before == after for before, after in self.padding):
            return x, tuple(before for before, _ in self.padding)
        return self._padded(x), (0,) * len(self.padding)
