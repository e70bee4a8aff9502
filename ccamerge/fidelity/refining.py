"""Training a merged network towards the ensemble's predictions, without labels.

Distillation (Hinton, Vinyals & Dean, 2015) whose student starts where a merge ends. The folded
program is trained, in which a BatchNorm after a linear operation is part of it: what is optimised
is what is handed over, on the networks' device, and nothing depends on a batch's statistics.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ccamerge.collection.held_out import are_apart, rows
from ccamerge.config.kinds import limit_of
from ccamerge.config.settings import Refine
from ccamerge.fidelity.judging import Examples, Judge, error_of
from ccamerge.graph.networks.network import Network

EPOCHS = 30
"""Epochs at most, if nothing else is asked for."""

BATCH = 64
"""Inputs of a step, where they are apart."""

RATES = (1e-3, 3e-4)
"""Learning rates of Adam that are tried."""

_STARTS = 3
"""Networks from which training is tried."""

TRIED = 0.1
"""Share of the budget for each trial; together they take as much as the training."""

_CHECKS = 20
"""How often at least the held-out inputs are looked at."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters of the program to start from, and what they are called."""

    name: str
    state: Mapping[str, Tensor]


@dataclasses.dataclass
class Refined:
    """What training came to.

    ``progress`` has epochs, seconds and mean held-out distance of each look; the first is of the
    start, called ``name``.
    """

    name: str
    state: dict[str, Tensor]
    distance: float
    rate: float
    progress: list[tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class _Limit:
    """How long to train: by the clock, or in epochs."""

    amount: float
    unit: str

    @classmethod
    def of(cls, refine: Refine) -> _Limit:
        found = limit_of(refine) if isinstance(refine, str) else None
        return cls(*(found or (EPOCHS, "epochs")))

    def share(self, part: float) -> _Limit:
        least = 1.0 if self.unit == "epochs" else 0.0
        return _Limit(max(least, part * self.amount), self.unit)

    def passed(self, epochs: float, seconds: float) -> float:
        """The share of it that is over."""
        return (epochs if self.unit == "epochs" else seconds) / self.amount


class Trainer:
    """Trains a program's parameters on some examples.

    Parameters
    ----------
    network : the reference, whose program it is
    examples : inputs with the ensemble's predictions
    judge : of the held-out inputs
    seed : of the order of inputs
    progress : whether to show a progress bar
    """

    def __init__(
        self,
        network: Network,
        examples: Sequence[Examples],
        judge: Judge,
        seed: int,
        progress: bool,
    ) -> None:
        self._program, self._judge = network.program, judge
        self._examples, self._progress, self._seed = examples, progress, seed
        self._trained = _trainable(network)
        state = network.state
        self._apart = all(
            are_apart(self._program, state, e.leaves) for e in examples[:1] if e.size > 1
        )
        self._count = sum(e.size for e in examples)

    def train(self, starts: Sequence[Start], refine: Refine) -> Refined:
        """Try the starts and rates for a while, and train the best of them to the end.

        Ctrl-C ends it with the best so far, and a warning.
        """
        limit = _Limit.of(refine)
        trials: list[tuple[float, Start, float]] = []
        try:
            pairs = [(start, rate) for start in starts[:_STARTS] for rate in RATES]
            for start, rate in pairs:
                tried = self._run(start, rate, limit.share(TRIED), "try")
                trials.append((tried.distance, start, rate))
            _, start, rate = min(trials, key=lambda trial: trial[0])
            return self._run(start, rate, limit, "refine")
        except KeyboardInterrupt:
            warnings.warn(
                "refinement was interrupted before it began", RuntimeWarning, stacklevel=5
            )
            start = starts[0]
            own = float(self._judge.distances(self._program, start.state).mean())
            return Refined(start.name, dict(start.state), own, 0.0, [(0.0, 0.0, own)])

    def _run(self, start: Start, rate: float, limit: _Limit, title: str) -> Refined:
        """Train from a start; the best that the held-out inputs saw."""
        fixed = {key: value.detach().clone() for key, value in start.state.items()}
        wide = {key: torch.promote_types(fixed[key].dtype, torch.float32) for key in self._trained}
        own = {key: fixed[key].to(wide[key], copy=True) for key in self._trained}
        for value in own.values():
            value.requires_grad_()
        begun = time.perf_counter()
        result = Refined(start.name, fixed, math.inf, rate, [])
        self._look(result, fixed, own, 0.0, 0.0)
        if not own:
            return result
        optimiser = torch.optim.Adam(own.values(), lr=rate)
        generator = torch.Generator().manual_seed(self._seed)
        steps, seen, looked = 0, 0, 0.0
        bar = tqdm(total=100, desc=title, unit="%", disable=not self._progress, leave=False)
        try:
            for leaves, target in self._steps(generator):
                done = limit.passed(seen / self._count, time.perf_counter() - begun)
                if done >= 1:
                    break
                for group in optimiser.param_groups:  # a warm-up, then half a cosine down to zero
                    group["lr"] = (
                        rate * min(1, (steps + 1) / 10) * (1 + math.cos(math.pi * done)) / 2
                    )
                loss = self._loss({**fixed, **_as(own, fixed)}, leaves, target)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
                optimiser.step()
                steps, seen = steps + 1, seen + len(leaves[0]) if self._apart else seen + 1
                done = limit.passed(seen / self._count, time.perf_counter() - begun)
                if done >= looked + 1 / _CHECKS:
                    looked = done
                    self._look(result, fixed, own, seen / self._count, time.perf_counter() - begun)
                    bar.set_postfix({"held out": f"{result.progress[-1][2]:.4g}"})
                    bar.update(int(100 * min(1, done)) - bar.n)
                    if not math.isfinite(result.progress[-1][2]):
                        break
        except KeyboardInterrupt:
            if title != "refine":
                raise
            message = "refinement was interrupted; the best network so far is kept"
            warnings.warn(message, RuntimeWarning, stacklevel=6)
        finally:
            bar.close()
        self._look(result, fixed, own, seen / self._count, time.perf_counter() - begun)
        return result

    def _look(
        self,
        result: Refined,
        fixed: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        epochs: float,
        seconds: float,
    ) -> None:
        """Measure on the held-out inputs, and keep what is best."""
        state = {**fixed, **{key: x.detach() for key, x in _as(own, fixed).items()}}
        distance = float(self._judge.distances(self._program, state).mean())
        result.progress.append((epochs, seconds, distance))
        if distance < result.distance:
            result.distance = distance
            result.state = {key: x.clone() if key in own else x for key, x in state.items()}

    def _loss(
        self, state: Mapping[str, Tensor], leaves: list[Any], target: Sequence[Tensor]
    ) -> Tensor:
        """The mean distance of a step's predictions."""
        reading = self._judge.reading
        found = reading.predictions(self._program.run(state, leaves))
        errors = [
            error_of(reading, one, other).mean() / scale
            for one, other, scale in zip(found, target, self._judge.scales, strict=True)
        ]
        return torch.stack(errors).mean()

    def _steps(self, generator: torch.Generator) -> Iterator[tuple[list[Any], list[Tensor]]]:
        """Inputs and predictions of step after step, without end."""
        while True:
            for place in torch.randperm(len(self._examples), generator=generator).tolist():
                examples = self._examples[place]
                if not self._apart:
                    yield examples.leaves, examples.target
                    continue
                order = torch.randperm(examples.size, generator=generator)
                for own in order.split(BATCH):
                    if len(own) > 1 or len(order) == 1:
                        places = own.tolist()
                        yield rows(examples.leaves, places), rows(examples.target, places)


def _as(own: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors in the types of the network's."""
    return {key: value.to(fixed[key].dtype) for key, value in own.items()}


def _trainable(network: Network) -> list[str]:
    """The parameters of the program that training may change: none that is frozen or limited."""
    named = dict(network.model.named_parameters(remove_duplicate=False))
    buffers = {key for key, _ in network.model.named_buffers(remove_duplicate=False)}
    found = []
    for key in dict.fromkeys(network.program.parameters.values()):
        value = network.state[key]
        frozen = key in buffers or (key in named and not named[key].requires_grad)
        if value.is_floating_point() and not frozen and key not in network.program.limits:
            found.append(key)
    return found
