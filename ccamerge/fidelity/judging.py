"""How far networks are from the ensemble's prediction on inputs that nothing else has seen."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from ccamerge.collection.held_out import rows
from ccamerge.collection.tokens import Tokens
from ccamerge.core.scratch import most
from ccamerge.fidelity.reading import Reading
from ccamerge.graph.networks.network import Network
from ccamerge.graph.tracing.batches import batch_size, moved
from ccamerge.graph.tracing.program import Program

_BYTES = 256 << 20
"""What the ensemble's predictions may take; of large outputs fewer inputs are used."""

_SAME = 1e-5
"""Relative spread of predictions that is rounding."""

_LIKE = 0.8
"""Share of inputs that the ensemble gives one of three or more classes, from which on they are
taken to show that class alone."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs with the ensemble's predictions of them: see `Reading.combined`."""

    leaves: list[Any]
    target: list[Tensor]
    tokens: Tokens | None

    @property
    def size(self) -> int:
        """The number of inputs."""
        return batch_size(self.leaves)

    def some(self, places: Sequence[int], program: Program) -> Examples:
        """Some of the inputs; they, and predictions, must have samples on their first axes."""
        leaves = rows(self.leaves, places)
        tokens = Tokens.of(program, leaves, self.target[0].device)
        return Examples(leaves, rows(self.target, places), tokens)


class Judge:
    """The ensemble's predictions of some inputs, and each member's distance from them.

    Parameters
    ----------
    networks : the members
    batches : lists of leaves
    reading : of their outputs
    weights : of the members in the ensemble, summing to one
    """

    def __init__(
        self,
        networks: Sequence[Network],
        batches: Sequence[list[Any]],
        reading: Reading,
        weights: Sequence[float],
    ) -> None:
        self.reading = reading
        self._examples: list[Examples] = []
        members: list[list[Tensor]] = [[] for _ in networks]
        for examples, predictions in predicted(networks, batches, reading, weights):
            self._examples.append(examples)
            for own, prediction in zip(members, predictions, strict=True):
                own.append(self._errors(prediction, examples))
        self._scale = self._variance(networks[0].program.eps)
        self.members = [self._scaled(own) for own in members]

    @property
    def size(self) -> int:
        """The number of inputs."""
        return sum(examples.size for examples in self._examples)

    def distances(self, program: Program, state: Mapping[str, Tensor]) -> Tensor:
        """The distance (units,) of a network from the ensemble; infinite where it is no number.

        A unit is an input, or a batch of inputs that are not apart.
        """
        with torch.inference_mode():
            return self.of_outputs(program.run(state, leaves) for leaves in self.inputs)

    def of_outputs(self, outputs: Iterable[Any]) -> Tensor:
        """As `distances`, from what a network returns for each of `inputs`."""
        return self._scaled(
            [
                self._errors(self.reading.predictions(moved(output, e.target[0].device)), e)
                for output, e in zip(outputs, self._examples, strict=True)
            ]
        )

    def loss(self, prediction: Sequence[Tensor], examples: Examples) -> Tensor:
        """The mean distance of a prediction from the ensemble's of some examples, to train by."""
        errors = self._errors(prediction, examples)
        return (errors / self._scale.to(errors.device, copy=True)).mean()

    @property
    def inputs(self) -> list[list[Any]]:
        """The inputs, as lists of leaves."""
        return [examples.leaves for examples in self._examples]

    def alike(self) -> str:
        """Why these inputs cannot tell how networks differ on others; empty if they may."""
        logs = self.reading.mean == "probabilities"
        count = len(self._examples[0].target)
        every = [
            [row for e in self._examples for row in _units(e.target[place], e.size)]
            for place in range(count)
        ]
        units = len(every[0])
        if all(map(functools.partial(_spread_is_rounding, logs=logs), every)):
            return f"all {units} held-out inputs give the ensemble the same prediction"
        if logs and len(self.reading.leaves) == 1:
            targets = [e.target[0] for e in self._examples]
            if all(t.dim() == 2 and t.shape[-1] > 2 for t in targets):
                classes = torch.cat([t.argmax(-1) for t in targets]).bincount()
                if units > 1 and float(classes.max()) >= _LIKE * units:
                    return (
                        f"the ensemble takes {int(classes.max())} of {units} held-out inputs "
                        f"for class {int(classes.argmax())} of {targets[0].shape[-1]}"
                    )
        return ""

    def _errors(self, prediction: Sequence[Tensor], examples: Examples) -> Tensor:
        """The error (leaves, units) of a prediction, not yet scaled."""
        check_alike(prediction, examples.target)
        errors = [
            _by_unit(error_of(self.reading, found, target), examples)
            for found, target in zip(prediction, examples.target, strict=True)
        ]
        if len({len(error) for error in errors}) > 1:  # one of them is of the batch as a whole
            errors = [error.mean()[None] for error in errors]
        return torch.stack([error.double() for error in errors])

    def _variance(self, eps: float) -> Tensor:
        """What errors of each leaf are divided by (leaves, 1).

        Its variance; of what is the same for all inputs, but for a rounding of ``eps``, its mean
        square.
        """
        count = len(self._examples[0].target)
        if self.reading.mean == "probabilities":
            return torch.ones(count, 1, dtype=torch.float64)
        found = []
        for place in range(count):
            targets = [e.target[place].double() for e in self._examples]
            alike = len({t.shape[1:] for t in targets}) == 1 and all(t.dim() for t in targets)
            every = torch.cat(targets) if alike else torch.cat([t.flatten() for t in targets])
            variance = float(every.var(0, correction=0).mean()) if every.numel() else 0.0
            square = float(every.square().mean()) if every.numel() else 0.0
            found.append(variance if variance > eps**2 * square else square)
        largest = max(found)
        floor = 1e-12 * largest if largest > 0 else 1.0
        return torch.tensor(found, dtype=torch.float64).clamp_min(floor)[:, None]

    def _scaled(self, errors: Sequence[Tensor]) -> Tensor:
        """The mean over leaves (units,)."""
        every = torch.cat([e.cpu() for e in errors], 1)
        found = (every / self._scale).mean(0).nan_to_num(nan=math.inf, posinf=math.inf)
        return found.clamp_min(0)  # a divergence may be rounded to less


def predicted(
    networks: Sequence[Network],
    batches: Sequence[list[Any]],
    reading: Reading,
    weights: Sequence[float],
) -> Iterator[tuple[Examples, list[list[Tensor]]]]:
    """For each batch, as far as memory allows, the examples and each member's prediction."""
    taken = 0
    for leaves in batches:
        with torch.inference_mode(False), torch.no_grad():  # training reads them
            there = [_plain(x) for x in moved(leaves, networks[0].device)]
            own = [reading.predictions(n.program.run(n.state, there)) for n in networks]
            for prediction in own[1:]:
                check_alike(prediction, own[0])
            target = reading.combined(own, weights)
        taken += sum(x.nbytes for x in target)
        if taken > most(_BYTES, 1 / 16) and taken > sum(x.nbytes for x in target):
            return
        tokens = Tokens.of(networks[0].program, there, networks[0].device)
        yield Examples(there, target, tokens), own


def error_of(reading: Reading, found: Tensor, target: Tensor) -> Tensor:
    """Divergence of a prediction from the ensemble's at each position, or squared error."""
    if reading.mean == "outputs":
        return (found - target).square()
    # Where the ensemble says never, it does not matter how seldom the network says so.
    terms = target.exp() * (target - found)
    return torch.where(target > -math.inf, terms, 0.0).sum(-1)


def _by_unit(error: Tensor, examples: Examples) -> Tensor:
    """The mean error of each sample (units,), of its tokens that count."""
    size, tokens = examples.size, examples.tokens
    if error.dim() == 0 or len(error) != size:
        return error.mean()[None]
    if tokens is not None and tuple(error.shape[:2]) == tokens.shape:
        counts = torch.zeros(tokens.shape, dtype=error.dtype, device=error.device).flatten()
        counts[tokens.rows] = 1
        counts = counts.view(tokens.shape)
        own = error.flatten(2).mean(2) if error.dim() > 2 else error
        return torch.where(counts > 0, own, 0.0).sum(1) / counts.sum(1).clamp_min(1)
    return error.flatten(1).mean(1) if error.dim() > 1 else error


def _units(target: Tensor, size: int) -> list[Tensor]:
    """The ensemble's prediction of each unit."""
    return [target] if target.dim() == 0 or len(target) != size else list(target)


def _spread_is_rounding(rows: Sequence[Tensor], logs: bool) -> bool:
    """Whether several predictions are the same."""
    if len(rows) < 2 or any(row.shape != rows[0].shape for row in rows):
        return False

    def numbers() -> Iterator[Tensor]:  # one by one: those of a language model are many
        return (row.double().exp() if logs else row.double() for row in rows)

    mean = sum(numbers(), torch.zeros_like(rows[0], dtype=torch.float64)) / len(rows)
    apart = sum(float((row - mean).square().sum()) for row in numbers()) / (len(rows) - 1)
    square = sum(float(row.square().sum()) for row in numbers()) / len(rows)
    return apart <= _SAME**2 * square


def check_alike(found: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """ValueError unless predictions have the shapes of others."""
    shapes = [[tuple(x.shape) for x in every] for every in (found, others)]
    if shapes[0] != shapes[1]:
        one, other = (", ".join(map(str, own)) for own in shapes)
        message = (
            f"predictions of shape {one} beside {other}: all networks' predictions of an input "
            "must have one shape (see ensemble)"
        )
        raise ValueError(message)


def _plain(value: Any) -> Any:
    """A tensor that training may keep; those made in inference mode are copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def closer(candidate: Tensor, other: Tensor, trials: int = 1) -> bool:
    """Whether a network is closer than another by more than chance: distances (units,) of both.

    Student's t of the paired differences, one-sided at 95 %; of so many ``trials``, as one of them
    will look closer by chance, together (Bonferroni).
    """
    difference = candidate - other
    count = len(difference)
    if not bool(candidate.isfinite().all()) or count < 2:
        return False
    if not bool(other.isfinite().all()):
        return True
    mean, deviation = float(difference.mean()), float(difference.std())
    return (
        mean < 0
        and -mean * math.sqrt(count) > float(stdtrit(count - 1, 1 - 0.05 / trials)) * deviation
    )
