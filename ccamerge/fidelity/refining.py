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

import torch
from torch import Tensor
from tqdm import tqdm

from ccamerge.collection.held_out import are_apart
from ccamerge.config.kinds import limit_of
from ccamerge.config.settings import Refine
from ccamerge.fidelity.judging import Examples, Judge
from ccamerge.graph.folds import BatchNormFold
from ccamerge.graph.networks.network import Network

EPOCHS, STEPS = 20, 1000
"""Epochs, or of few inputs as many as make so many steps, if nothing else is asked for."""

BATCH = 64
"""Inputs of a step, where they are apart."""

RATES = (1e-3, 3e-4, 1e-4, 1e-5)
"""Learning rates of Adam that are tried, from the closest start: what trains a ResNet20 undoes a
potential, whose energies are sums over atoms."""

STARTS = 3
"""Networks from which training is tried, the others than the closest by the best rate."""

_TRIED = 0.1
"""Share of the training that each trial takes; a budget in seconds is for all of them together."""

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
    start, called ``name``. ``inputs`` is the number that was trained on.
    """

    name: str
    state: dict[str, Tensor]
    distance: float
    rate: float
    progress: list[tuple[float, float, float]]
    inputs: int = 0

    @property
    def reached(self) -> float:
        """The least distance after training began; infinite if it did not."""
        return min((own for _, _, own in self.progress[1:]), default=math.inf)

    @property
    def closer(self) -> bool:
        """Whether any training came closer than its start."""
        return bool(self.progress) and self.distance < self.progress[0][2]


@dataclasses.dataclass(frozen=True)
class _Limit:
    """How long to train: by the clock, or in epochs."""

    amount: float
    unit: str

    @classmethod
    def of(cls, refine: Refine, steps: int) -> _Limit:
        """What is asked for, or the usual where an epoch takes so many steps."""
        found = limit_of(refine) if isinstance(refine, str) else None
        return cls(*(found or (max(EPOCHS, -(-STEPS // steps)), "epochs")))

    def beside(self, trials: int) -> _Limit:
        """That of the training beside so many trials: all of it in epochs."""
        return self.share(1 / (1 + trials * _TRIED)) if self.unit == "seconds" else self

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
        self._examples = [e for e in examples if e.size]
        self._progress, self._seed = progress, seed
        self._trained = _trainable(network)
        several = [e.leaves for e in self._examples if e.size > 1][:1]
        read = judge.reading.predictions
        self._apart = all(are_apart(self._program, network.state, x, read) for x in several)
        self._count = sum(e.size for e in self._examples)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def train(self, starts: Sequence[Start], refine: Refine) -> Refined:
        """Try the starts and rates for a while, and train the best of them to the end.

        Ctrl-C ends it with the best so far, and a warning.

        Raises
        ------
        ValueError
            If the predictions have no gradients.
        """
        runs = [Refined(starts[0].name, dict(starts[0].state), math.inf, 0.0, [])]
        if not self._trained or not self._examples:
            return runs[0]
        others = starts[1:STARTS]
        steps = sum(-(-e.size // BATCH) if self._apart else 1 for e in self._examples)
        limit = _Limit.of(refine, steps).beside(len(RATES) + len(others))

        def run(start: Start, rate: float, title: str) -> None:
            runs.append(Refined(start.name, dict(start.state), math.inf, rate, []))
            self._run(runs[-1], limit.share(_TRIED) if title == "try" else limit, title)

        try:
            for rate in RATES:
                run(starts[0], rate, "try")
            fastest = min(runs, key=lambda one: one.reached).rate
            for start in others:
                run(start, fastest, "try")
            best = min(runs, key=lambda one: one.reached)
            run(next(s for s in starts if s.name == best.name), best.rate, "refine")
        except KeyboardInterrupt:
            message = "refinement was interrupted; the best network so far is kept"
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        best = min(runs, key=lambda one: one.distance)
        return dataclasses.replace(best, inputs=self._count)

    def _run(self, result: Refined, limit: _Limit, title: str) -> None:
        """Train from the result's state; it is given the best that the held-out inputs saw."""
        fixed = {key: value.detach().clone() for key, value in result.state.items()}
        wide = {key: torch.promote_types(fixed[key].dtype, torch.float32) for key in self._trained}
        own = {key: fixed[key].to(wide[key], copy=True) for key in self._trained}
        for value in own.values():
            value.requires_grad_()
        begun = time.perf_counter()
        self._look(result, fixed, own, 0.0, 0.0)
        optimiser = torch.optim.Adam(own.values(), lr=result.rate)
        generator = torch.Generator().manual_seed(self._seed)
        steps, seen, looked, done = 0, 0, 0.0, 0.0
        with tqdm(total=100, desc=title, unit="%", disable=not self._progress, leave=False) as bar:
            for examples in self._steps(generator):
                # A warm-up, then half a cosine down to zero.
                factor = min(1, (steps + 1) / 10) * (1 + math.cos(math.pi * done)) / 2
                for group in optimiser.param_groups:
                    group["lr"] = result.rate * factor
                loss = self._loss({**fixed, **_as(own, fixed)}, examples)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
                optimiser.step()
                steps, seen = steps + 1, seen + examples.size
                epochs, seconds = seen / self._count, time.perf_counter() - begun
                done = min(1.0, limit.passed(epochs, seconds))
                if done < 1 and done < looked + 1 / _CHECKS:
                    continue
                looked = done
                self._look(result, fixed, own, epochs, seconds)
                bar.set_postfix({"held out": f"{result.progress[-1][2]:.4g}"})
                bar.update(int(100 * done) - bar.n)
                if done == 1 or not math.isfinite(result.progress[-1][2]):
                    return

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
            result.state = {key: x.clone() if key in own else x for key, x in state.items()}
            result.distance = distance

    def _loss(self, state: Mapping[str, Tensor], examples: Examples) -> Tensor:
        """The mean distance of a step's predictions."""
        output = self._program.run(state, examples.leaves)
        loss = self._judge.loss(self._judge.reading.predictions(output), examples)
        if not loss.requires_grad:
            message = "refine: no gradients lead from the predictions to what may be trained"
            raise ValueError(message)
        return loss

    def _steps(self, generator: torch.Generator) -> Iterator[Examples]:
        """Examples of step after step, without end."""
        while True:
            for place in torch.randperm(len(self._examples), generator=generator).tolist():
                examples = self._examples[place]
                order = torch.randperm(examples.size, generator=generator)
                for own in order.split(BATCH):
                    if not self._apart:
                        yield examples
                        break
                    if len(own) > 1 or len(order) == 1:
                        some = examples.some(own.tolist(), self._program)
                        yield some if self._program.accepts(some.leaves) else examples


def _as(own: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors in the types of the network's."""
    return {key: value.to(fixed[key].dtype) for key, value in own.items()}


def _trainable(network: Network) -> list[str]:
    """The parameters of the program that training may change: none that is frozen or limited.

    The bias that a folded BatchNorm leaves is free if one that went into it is.
    """
    named = dict(network.model.named_parameters(remove_duplicate=False))
    free = {key for key, value in named.items() if value.requires_grad}
    buffers = {key for key, _ in network.model.named_buffers(remove_duplicate=False)}
    fixed = buffers | (named.keys() - free)
    for fold in network.spaces.folds:
        if isinstance(fold, BatchNormFold):
            shifts = [key for key in (fold.bias, fold.beta) if key is not None] or [fold.weight]
            fixed = fixed - {fold.folded} if free & set(shifts) else fixed | {fold.folded}
    return [
        key
        for key in dict.fromkeys(network.program.parameters.values())
        if network.state[key].is_floating_point()
        and key not in fixed
        and key not in network.program.limits
    ]
