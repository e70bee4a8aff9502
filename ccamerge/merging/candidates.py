"""Networks that a merge might hand over: the merge, points on the way to it, and the models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Settings
from ccamerge.core.scratch import kept
from ccamerge.fidelity.judging import Judge
from ccamerge.graph.networks.network import Network
from ccamerge.graph.networks.parameters import parameters_of
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.exporting import results_of
from ccamerge.merging.assembling import Merged, loaded, member, plain_average
from ccamerge.methods.weights import Shares

POINTS = (0.25, 0.5, 0.75)
"""Where between the reference and the merge candidates lie."""

ASKED = "merge"
"""The merge that was asked for."""

AVERAGE = "plain average"

Made = Callable[[], Merged]


@dataclasses.dataclass(frozen=True)
class Option:
    """A network that might be handed over: its distances (units,), and how it is made.

    ``state`` are its parameters of the reference's program, where that is known.
    """

    name: str
    distances: Tensor
    made: Made
    state: Mapping[str, Tensor] | None = None
    t: float | None = None

    @property
    def mean(self) -> float:
        """The mean distance."""
        return float(self.distances.mean())


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Makes and judges them.

    Attributes
    ----------
    networks, reference : the models, and which of them others are brought to
    statistics : of the models, with inputs that are held out
    merged : the merge that was asked for
    judge : of the held-out inputs
    """

    networks: Sequence[Network]
    reference: int
    statistics: Statistics
    merged: Merged
    judge: Judge

    @property
    def first(self) -> Network:
        """The reference."""
        return self.networks[self.reference]

    def options(self, shares: Shares, settings: Settings) -> dict[str, Option]:
        """All by name; models of other widths than the reference are none.

        They are judged by their parameters of the program where a network can hold these.
        """
        found: dict[str, Option] = {}

        def add(name: str, distances: Tensor, made: Made, *more: Any) -> None:
            found[name] = Option(name, distances, made, *more)

        merged, first = self.merged, self.first
        for index, network in enumerate(self.networks):
            if network.parameters.shapes == first.parameters.shapes:
                made = functools.partial(self._member, index)
                state = network.state if self._holds or index == self.reference else None
                add(f"models[{index}]", self.judge.members[index], made, state)
        if merged.alone:
            add(ASKED, self.of_module(merged), lambda: merged)
            return found
        if len(found) == len(self.networks):
            average = plain_average(self.networks, self.reference, shares)
            add(AVERAGE, *self._judged(average))
        if merged.state is None:
            state = parameters_of(merged.model, "the merged network").folded(
                first.spaces.folds, first.device
            )
            add(ASKED, self.of_module(merged), lambda: merged, state)
            return found
        add(ASKED, self._distances(merged.state), lambda: merged, merged.state)
        if settings.t is None and settings.select == "fidelity" and self._holds:
            for t in POINTS:
                between = _between(first.state, merged.state, t)
                add(f"t = {t:g}", *self._judged(between, merged=True), t)
        return found

    @property
    def _holds(self) -> bool:
        """Whether the reference's modules can hold any parameters."""
        return not self.first.program.limits

    def _distances(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.judge.distances(self.first.program, state)

    def _judged(
        self, state: dict[str, Tensor], merged: bool = False
    ) -> tuple[Tensor, Made, Mapping[str, Tensor] | None]:
        """Distances, how it is made, and the parameters if they are what a network then has."""
        if self._holds:
            return self._distances(state), functools.partial(self.made, state, merged), state
        made = self.made(state, merged)
        return self.of_module(made), lambda: made, None

    def _member(self, index: int) -> Merged:
        """A model itself; the report tells of the merge all the same."""
        found = member(self.networks, index)
        found.repaired = self.merged.repaired
        return found

    def made(self, state: dict[str, Tensor], merged: bool = False) -> Merged:
        """A network of parameters of the program; ``merged`` if they come of the merge."""
        found = loaded(self.networks, self.reference, state, self.statistics)
        # What the program does not use, and what averages leave alone, is the reference's in all.
        found.from_reference |= self.merged.from_reference
        if merged:
            found.repaired = self.merged.repaired
        return found

    def of_module(self, merged: Merged) -> Tensor:
        """The distances of a network as users have it."""
        return self.judge.of_outputs(self._outputs(merged))

    def _outputs(self, merged: Merged) -> Iterator[Any]:
        device = model_device(merged.model)
        spec = self.first.program.input_spec
        for leaves in self.judge.inputs:
            copies = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(moved(copies, device), spec)
            # Not in inference mode: modules may keep what they compute.
            with torch.inference_mode(False), torch.no_grad():
                output = results_of(merged.model(*args, **kwargs))
            yield output


def _between(one: Mapping[str, Tensor], other: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """The point of the way from one network's parameters to another's."""
    return {
        key: value
        if torch.equal(value, one[key]) or not value.is_floating_point()
        else kept(torch.lerp(one[key].double(), value.double(), t).to(value.dtype))
        for key, value in other.items()
    }
