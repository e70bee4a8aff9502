"""One pass over calibration data, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from ccamerge.collection.counting import Watched, accumulate, check_finite, nothing_counted
from ccamerge.collection.held_out import HeldOut
from ccamerge.collection.kept_inputs import Reservoir
from ccamerge.collection.statistics import Pairs, Statistics
from ccamerge.collection.tokens import Tokens
from ccamerge.collection.working_set import check_working_set
from ccamerge.core.device import Device, memory_of
from ccamerge.core.scratch import most
from ccamerge.core.side_stream import SideStream
from ccamerge.data.local import LocalData
from ccamerge.graph.networks.fingerprints import program_fingerprint
from ccamerge.graph.networks.network import Network, networks_of
from ccamerge.graph.networks.parameters import Parameters
from ccamerge.graph.networks.same_function import check_same_function
from ccamerge.graph.networks.states import fast_layout
from ccamerge.graph.networks.widths import extended, spaces_of_models
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.batches import batch_size, moved, split_batch, structure_of
from ccamerge.graph.tracing.program import Program

KEEP_SAMPLES = 4096
"""Inputs kept for repair, whole batches, at most so many."""

KEEP_BYTES = 256 << 20
"""What they may take; of large inputs fewer are kept."""


class Pass:
    """One pass over data, under way; parameters as for `collect`.

    ``check`` is called with the models' spaces as soon as a first batch shows them.
    """

    def __init__(
        self,
        models: Sequence[Parameters],
        every: Sequence[Spaces],
        pairs: Pairs,
        reference: int,
        folds: int,
        device: Device | None,
        seed: int,
        prove: bool,
        check: Callable[[Sequence[Spaces]], None] | None = None,
        holdout: float = 0.0,
    ) -> None:
        self._models, self._every = models, every
        self._device, self._memory = device, memory_of(device)
        self._prove, self._check = prove, check
        self._folds = folds
        self._result = Statistics(
            matched={},
            outputs={},
            inputs=[],
            turns=[],
            models=len(models),
            samples=0,
            pairs=pairs,
            reference=reference,
            structure="",
            fingerprint={"programs": [], "models": [model.fingerprint for model in models]},
            proved=prove,
        )
        self._reservoir = Reservoir(KEEP_SAMPLES, most(KEEP_BYTES, 1 / 16), seed)
        self._held_out = HeldOut(holdout, seed, self._memory)
        self._overlap = SideStream(device)
        self._watched: list[Watched] = []
        self._networks: list[Network] = []
        self._states: list[dict[str, Tensor]] = []
        self._tried: set[tuple[tuple[str, int], ...]] = {()}  # axes of size one

    def over(self, data: Iterable[Any], progress: bool) -> Statistics:
        """Count all batches.

        Raises
        ------
        ValueError
            As `collect`.
        """
        if isinstance(data, LocalData):
            data.check(self._models[0].plain)
            self._result.data = data.fingerprint
        bar = tqdm(data, desc="collect", unit="batch", disable=not progress)
        for index, batch in enumerate(bar):
            self._count(batch, index)
        if not self._networks:
            message = "data is empty: no batch came from it"
            raise ValueError(message)
        check_finite(self._watched)
        self._result.inputs, self._result.turns = self._reservoir.batches, self._reservoir.labels
        self._result.held = self._held_out.batches
        return self._result

    def _count(self, batch: Any, index: int) -> None:
        args, kwargs = _inputs(batch, self._models[0].plain, index)
        new = not self._networks
        if new:
            self._start(args, kwargs)
        leaves, fits = _leaves(self._networks[0].program, args, kwargs, index)
        if not fits:
            every = _extended(self._every, self._models, args, kwargs, index, self._prove)
            self._place(every)
            new = True
        programs = [network.program for network in self._networks]
        counted = self._held_out.split(programs[0], self._states[0], leaves)
        if counted is None:
            return
        here = [fast_layout(x) for x in moved(counted, self._memory)]
        runs = [(own, state, here) for own, state in zip(programs, self._states, strict=True)]
        single = programs[0].single(leaves)
        if single not in self._tried and not new:
            self._check_function(args, kwargs, index)
        self._tried.add(single)
        fold, turn = index % self._folds, index // self._folds
        try:
            tokens = Tokens.of(programs[0], counted, self._memory)
            accumulate(runs, self._watched[fold], index, turn, self._overlap, tokens)
        finally:
            self._overlap.join()
        if new:  # after the moments, which name the space if something is not finite
            check_finite(self._watched)
            self._check_function(args, kwargs, index)
        size = batch_size(counted)
        self._reservoir.offer(counted, size, turn)
        self._result.samples += size

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Know the networks, and what is to be counted of them."""
        every = self._every or spaces_of_models(self._models, args, kwargs, self._prove)
        if self._check is not None:
            self._check(every)
        check_working_set(every, _leaves(every[0].program, args, kwargs, 0)[0])
        self._place(every)
        self._states = [
            {key: fast_layout(value) for key, value in network.state.items()}
            for network in self._networks
        ]
        result = self._result
        result.structure = structure_of(every[0].program.input_spec)
        result.fingerprint["programs"] = [program_fingerprint(own.program) for own in every]
        result.matched, result.outputs, self._watched = nothing_counted(
            every, result.pairs, result.reference, self._folds, self._device
        )

    def _place(self, every: Sequence[Spaces]) -> None:
        self._every = every
        self._networks = networks_of(self._models, every, self._memory)
        shapes = [model.shapes for model in self._models]
        self._result.found = dict(zip(shapes, every, strict=True))

    def _check_function(self, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
        """`check_same_function` on a batch, which the message names."""
        call = moved((args, kwargs), self._memory)
        try:
            check_same_function(self._networks, *call)
        except ValueError as error:
            message = f"batch {index}: {error}"
            raise ValueError(message) from error
        except (IndexError, RuntimeError) as error:
            program = self._networks[0].program
            single = program.single(program.flatten_inputs(*call))
            if not single:
                raise
            name, axis = single[0]
            message = (
                f"batch {index}: input {name!r} has a size of one along axis {axis}, and what "
                f"forward does with larger ones fails ({error}); leave such batches out"
            )
            raise ValueError(message) from error


def _inputs(batch: Any, model: nn.Module, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return split_batch(batch, model)
    except TypeError as error:
        message = f"batch {index}: {error}"
        raise TypeError(message) from error


def _leaves(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], index: int
) -> tuple[list[Any], bool]:
    """A batch's inputs in the program's order, and whether it was traced for such ones."""
    try:
        leaves = program.flatten_inputs(args, kwargs)
    except ValueError as error:
        message = f"batch {index}: {error}"
        raise ValueError(message) from error
    return leaves, program.accepts(leaves)


def _extended(
    every: Sequence[Spaces],
    models: Sequence[Parameters],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: int,
    prove: bool,
) -> list[Spaces]:
    """The spaces with a program for a batch of other sizes; ValueError, which says both reasons."""
    try:
        return extended(every, models, args, kwargs, prove)
    except ValueError as error:
        misfit = every[0].program.misfit(every[0].program.flatten_inputs(args, kwargs))
        message = f"batch {index}: {misfit}, and a trace of its own fails: {error}"
        raise ValueError(message) from error
