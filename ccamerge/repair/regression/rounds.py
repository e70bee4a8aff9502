"""Gauss-Newton rounds on the error behind an element-wise function, accelerated.

Round by round, every output's error moves its argument, and the regression of those moves on the
inputs moves the weights. The matrix is that of the linear fit, although only the inputs where the
function is not flat should count; so the plain rounds converge slowly where an output is rarely
alive. Anderson's mixing (1965), in the metric of that matrix, makes up for it. Outputs share their
inputs and nothing else: each has its own mixing, and keeps the best weights that it met.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ccamerge.repair.regression.operators import Operator
from ccamerge.repair.regression.ridge import Problem

ROUNDS = 4
"""Rounds at most; they end earlier when the error no longer falls. With ten, 2,048 CIFAR images
were fitted better and new ones worse."""

_MEMORY = 4
"""Earlier rounds that are mixed."""

_SECANT = 0.1
"""Half the width, in standard deviations, over which a function's slope is taken: wide enough for
a unit near the kink of a ReLU to cross it."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A batch: an operation's inputs, and at the counted positions the rest (..., outs).

    ``operator`` is the operation on inputs of their sizes, ``total`` the merged network's sum,
    ``activated`` what should be there after the function.
    """

    operator: Operator
    x: Tensor
    total: Tensor
    activated: Tensor


@dataclasses.dataclass(frozen=True)
class _Point:
    """Weights and where they lead, a row for each output: (outs, ins + 1), float64.

    ``at`` has the change of weights and bias, ``step`` what a plain round adds to it. Mixing is in
    the metric of the matrix: ``step`` with the mean move in the bias' place, ``residual`` is the
    matrix times that.
    """

    at: Tensor
    step: Tensor
    move: Tensor
    residual: Tensor


class Rounds:
    """The problem of one operation.

    Parameters
    ----------
    bias : whether the operation has one
    activate : the element-wise function
    parts : the data
    deviations : (outs,) standard deviation of what the sums should be
    problem, factor : of the linear fit
    """

    def __init__(
        self,
        bias: bool,
        activate: Callable[[Tensor], Tensor],
        parts: Sequence[Part],
        deviations: Tensor,
        problem: Problem,
        factor: Tensor | None,
    ) -> None:
        self._operator = parts[0].operator  # for what does not depend on the sizes of inputs
        self._bias, self._activate = bias, activate
        self._parts, self._problem, self._factor = parts, problem, factor
        self._width = _SECANT * deviations.clamp_min(1e-12)

    def run(self, change: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, float]:
        """From the linear fit: the best change found, and its error over that of none."""
        at = torch.cat([change, shift[:, None]], 1).transpose(1, 2).flatten(0, 1)
        before = self._before()
        best, least = torch.zeros_like(at), before.clone()
        history: list[_Point] = []
        for turn in range(ROUNDS + 1):
            onwards = turn < ROUNDS and self._factor is not None
            error, point = self._turn(at, onwards)
            fell = error < least
            gained = float((least - error)[fell].sum())
            best[fell], least[fell] = at[fell], error[fell]
            if point is None or (turn > 0 and gained < 0.003 * float(least.sum())):
                break
            history = [*history[-_MEMORY:], point]
            at = _mixed(history)
        change, shift = self._split(best)
        whole = float(before.sum())
        return change, shift, math.sqrt(float(least.sum()) / whole) if whole > 0 else 1.0

    def _before(self) -> Tensor:
        """The squared error (outs,) of the weights as they are."""
        return sum(  # type: ignore[return-value]
            _squares(part.activated - self._activate(part.total)) for part in self._parts
        )

    def _split(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Change of weights (groups, ins, outs) and bias (groups, outs)."""
        rows = at.unflatten(0, (self._operator.groups, -1))
        return rows[..., :-1].transpose(1, 2), rows[..., -1]

    def _turn(self, at: Tensor, onwards: bool) -> tuple[Tensor, _Point | None]:
        """The squared error (outs,) of a change, and where to go from there."""
        operator, problem, dtype = self._operator, self._problem, self._parts[0].x.dtype
        change, shift = self._split(at)
        weight, bias = operator.weights(change).to(dtype), shift.flatten().to(dtype)
        cross = problem.second.new_zeros(operator.weight)
        moves = problem.second.new_zeros(operator.weight[0])
        error = torch.zeros_like(moves)
        count = 0
        for part in self._parts:
            total = part.operator.apply(part.x, weight, bias).add_(part.total)
            missing = part.activated - self._activate(total)
            error += _squares(missing)
            if onwards:
                move = self._move(total, missing)
                count += move[..., 0].numel()
                moves += move.flatten(0, -2).sum(0).double()
                cross += part.operator.transposed(part.x, move)
        if not onwards or self._factor is None:
            return error, None
        mean = (moves / count).reshape(shift.shape)
        if not self._bias:
            mean.zero_()
        residual = operator.matrices(cross) / count - problem.centre[..., None] * mean[:, None]
        step = torch.cholesky_solve(residual, self._factor)
        shifted = mean - (problem.centre[:, None] @ step)[:, 0]
        rows = [
            torch.cat([a, b[:, None]], 1).transpose(1, 2).flatten(0, 1)
            for a, b in ((step, shifted), (step, mean), (residual, mean))
        ]
        return error, _Point(at, *rows)

    def _move(self, total: Tensor, missing: Tensor) -> Tensor:
        """Where the error behind the function says that its argument should go."""
        activate, width = self._activate, self._width
        slope = activate(total + width).sub_(activate(total - width)).div_(2 * width)
        return missing.mul_(slope).div_(slope.square_().add_(1)).mul_(2)


def _mixed(history: Sequence[_Point]) -> Tensor:
    """Anderson's mixing of the latest point with those before it, for each output by itself."""
    last = history[-1]
    result = last.at + last.step
    if len(history) == 1:
        return result
    differences = [
        _Point(b.at - a.at, b.step - a.step, b.move - a.move, b.residual - a.residual)
        for a, b in itertools.pairwise(history)
    ]
    moves = torch.stack([d.move for d in differences], 1)
    residuals = torch.stack([d.residual for d in differences], 1)
    gram = moves @ residuals.mT  # (outs, memory, memory)
    right = moves @ last.residual[:, :, None]
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    gram = gram + (1e-8 * scale)[:, None, None] * torch.eye(
        len(differences), dtype=gram.dtype, device=gram.device
    )
    shares = torch.linalg.solve(gram, right)[..., 0]
    for index, difference in enumerate(differences):
        result = result - shares[:, index, None] * (difference.at + difference.step)
    return result


def _squares(value: Tensor) -> Tensor:
    return value.flatten(0, -2).square().sum(0).double()
