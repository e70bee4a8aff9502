"""Fitting one operation: a ridge regression, then rounds through the function that follows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from ccamerge.core.device import Device
from ccamerge.core.moments import Moments, update_many
from ccamerge.core.scratch import kept
from ccamerge.repair.regression.operators import Operator, counted
from ccamerge.repair.regression.ridge import Problem, empty_moments, output_pieces
from ccamerge.repair.regression.rounds import Part, Rounds
from ccamerge.repair.regression.sites import Fit

DAMPING = 0.01
"""``lambda`` over the mean eigenvalue of the inputs' moments, where there are plenty: a tenth
or thrice as much was measured to make no difference, and a choice by held-out inputs, operation by
operation, none that was for the better. The square of the number of inputs of each output over that
of samples is added, so that few samples change little."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """For an operation: the merged network's root-mean-square error there, after over before.

    It is that of what the next operation reads: after the sum and the function that follow.
    """

    tap: str
    error: float


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


def fit(
    job: Fit, state: dict[str, Tensor], samples: Sequence[Sample], device: Device | None = None
) -> Fitted:
    """Fit an operation's weight and bias, in place of the mapping.

    Parameters
    ----------
    job : the operation
    state : parameters of the merged network
    samples : what the operation reads and should give, a batch each
    device : where all of these are, the CPU by default
    """
    weight = state[job.weight]
    operator = Operator.of(job.node, weight, samples[0].output)
    moments = [empty_moments(operator.ins, operator.outs, device) for _ in range(operator.groups)]
    parts: list[Part] = []
    deviations: Tensor | None = None
    for sample in samples:
        part, wanted = _part(job, sample, weight)
        missing = wanted - part.total
        _count(part.operator, moments, part.x, missing)
        if job.activation is not None:
            parts.append(part)
            if deviations is None:
                deviations = wanted.flatten(0, -2).std(0, correction=0)
    problem = Problem.of(moments, job.bias is not None)
    if not problem.left > 0:  # nothing to mend
        return Fitted(job.node.name, 1.0)
    # Inputs that do not vary tell nothing of the weights, and few of them little.
    factor = problem.factor(DAMPING + (operator.ins / max(1, moments[0].count)) ** 2)
    change, shift = problem.solve(factor)
    if deviations is None:
        error = math.sqrt(max(problem.error(change, shift), 0.0) / problem.left)
    else:
        rounds = Rounds(job.bias is not None, job.activate, parts, deviations, problem, factor)
        change, shift, error = rounds.run(change, shift)
    state[job.weight] = kept((weight.double() + operator.weights(change)).to(weight.dtype))
    if job.bias is not None:
        state[job.bias] = (state[job.bias].double() + shift.flatten()).to(weight.dtype)
    return Fitted(job.node.name, error)


def _part(job: Fit, sample: Sample, weight: Tensor) -> tuple[Part, Tensor]:
    """A batch, and what its sum should be."""
    total: Tensor = counted(job.node, sample.output)
    models = [counted(job.node, value) for value in sample.models]
    if sample.added is not None and sample.models_added is not None:
        total = total + counted(job.node, sample.added)
        models = [
            a + counted(job.node, b) for a, b in zip(models, sample.models_added, strict=True)
        ]
    wanted = job.target(models)
    activated = wanted
    if job.activation is not None:
        activated = job.target([job.activate(value) for value in models])
    # Read in every round: not out of a map four times its size.
    total = total.to(wanted.dtype).contiguous()
    operator = Operator.of(job.node, weight, sample.output)
    # A linear layer reads at the positions where it writes; a convolution finds them by its stride.
    x = sample.x if operator.stride else counted(job.node, sample.x)
    return Part(operator, x.to(wanted.dtype), total, activated), wanted


def _count(operator: Operator, moments: Sequence[Moments], x: Tensor, missing: Tensor) -> None:
    """Add a batch to the moments of each group."""
    single = (1,) * len(operator.stride)
    updates = []
    for group, patches, own in zip(
        moments, operator.patches(x), missing.split(operator.outs, -1), strict=True
    ):
        outputs = [piece.reshape(*piece.shape, *single) for piece in output_pieces(own)]
        updates.append((group, [patches, *outputs]))
    update_many(updates, axis=operator.axes)
