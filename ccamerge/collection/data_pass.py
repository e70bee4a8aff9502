"""One pass over calibration data, batch by batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from ccamerge.collection.checkpoint import Checkpoint, Keeping
from ccamerge.collection.counting import (
    Watched,
    accumulate,
    check_finite,
    nothing_counted,
    watched_for,
)
from ccamerge.collection.held_out import HeldOut
from ccamerge.collection.kept_inputs import Reservoir
from ccamerge.collection.processes import Processes
from ccamerge.collection.statistics import Pairs, Statistics
from ccamerge.collection.tokens import Tokens
from ccamerge.collection.working_set import check_working_set
from ccamerge.core.device import Device, memory_of
from ccamerge.core.scratch import most
from ccamerge.core.side_stream import SideStream
from ccamerge.data.local import LocalData
from ccamerge.graph.networks.fingerprints import (
    inputs_fingerprint,
    program_fingerprint,
    spaces_fingerprint,
)
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

    ``check`` is called with the models' spaces as soon as a first batch shows them; ``keeping``
    says where the pass is kept, and what is counted already, ``processes`` which of them share it.
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
        keeping: Keeping | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._models, self._every = models, every
        self._device, self._memory = device, memory_of(device)
        self._prove, self._check = prove, check
        self._folds, self._keeping = folds, keeping
        self._processes = Processes() if processes is None else processes
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
        self._seen: list[bytes] = []
        self._data: dict[str, Any] = {}
        self._made_of: dict[str, Any] = {
            "pairs": pairs,
            "reference": reference,
            "folds": folds,
            "seed": seed,
            "holdout": holdout,
            "prove": prove,
            "the number of models": len(models),
        }
        for index, own in enumerate(self._result.fingerprint["models"]):
            self._made_of[f"the digest of models[{index}]'s parameters"] = own

    def over(self, data: Iterable[Any], progress: bool) -> Statistics:
        """Count all batches.

        Raises
        ------
        ValueError
            As `collect`.
        """
        if isinstance(data, LocalData):
            data.check(self._models[0].plain)
            self._data = data.fingerprint
        self._processes.check_same("settings", self._made_of)
        if self._keeping is not None:
            self._resume(self._keeping)
        bar = tqdm(data, desc="collect", unit="batch", disable=not progress)
        count = 0
        for index, batch in enumerate(bar):
            self._processes.look()
            counted, count = self._count(batch, index), index + 1
            if counted and self._keeping is not None and self._keeping.due():
                self._keeping.write(self._under_way())
        if self._keeping is not None:
            self._keeping.check_end(count)
        if not self._networks:
            message = "data is empty: no batch came from it"
            raise ValueError(message)
        check_finite(self._watched)
        self._add_up(count)
        return self._so_far()

    def _add_up(self, count: int) -> None:
        """Have what all processes counted, which must be of the same batches."""
        choices = json.dumps(self._choices()).encode()
        self._processes.check_same(
            "end",
            {
                "the number of batches": count,
                "the digest of all batches": inputs_fingerprint(self._seen).hex(),
                "the digest of the choice of inputs": inputs_fingerprint([choices]).hex(),
            },
        )
        result = self._result
        every = [m for folds in result.matched.values() for m in folds]
        every += [m for taps in result.outputs.values() for m in taps.values()]
        total = iter(self._processes.add_up(every))
        result.matched = {s: [next(total) for _ in own] for s, own in result.matched.items()}
        result.outputs = {s: {t: next(total) for t in own} for s, own in result.outputs.items()}

    def _so_far(self) -> Statistics:
        return dataclasses.replace(
            self._result,
            inputs=self._reservoir.batches,
            turns=self._reservoir.labels,
            held=self._held_out.batches,
            data=self._data,
        )

    def _under_way(self) -> Checkpoint:
        check_finite(self._watched)
        made_of = {**self._made_of, **self._who}
        return Checkpoint(self._so_far(), made_of, self._seen, self._choices())

    @property
    def _who(self) -> dict[str, str]:
        return {"the process": f"{self._processes.rank} of {self._processes.world}"}

    def _choices(self) -> dict[str, Any]:
        return {"kept": self._reservoir.state(), "held out": self._held_out.state()}

    def _resume(self, keeping: Keeping) -> None:
        """Go on from what is counted already, if anything is."""
        if (before := keeping.before) is None:
            return
        keeping.check({**self._made_of, **self._who})
        known = before.statistics
        self._result = dataclasses.replace(known, inputs=[], turns=[], held=[])
        self._reservoir.restore(before.choices["kept"], known.inputs)
        self._held_out.restore(before.choices["held out"], known.held)

    def _count(self, batch: Any, index: int) -> bool:
        """Look at a batch, and count it if that has not been done, as is returned."""
        args, kwargs = _inputs(batch, self._models[0].plain, index)
        new = not self._networks
        if new:
            self._start(args, kwargs)
        leaves, fits = _leaves(self._networks[0].program, args, kwargs, index)
        if not fits:
            every = _extended(self._every, self._models, args, kwargs, index, self._prove)
            self._place(every)
            new = True
        if self._keeping is not None or self._processes.world > 1:
            self._seen.append(inputs_fingerprint(leaves))
            if index == 0:
                self._processes.check_same("first batch", {"its digest": self._seen[0].hex()})
        if self._keeping is not None and self._keeping.check_batch(index, self._seen[-1]):
            return False
        counted = self._held_out.split(self._networks[0].program, self._states[0], leaves)
        if counted is None:
            return True
        if self._processes.counts(index):
            single = self._networks[0].program.single(leaves)
            if single not in self._tried and not new:
                self._check_function(args, kwargs, index)
            self._tried.add(single)
            self._run(counted, index)
            if new:  # after the moments, which name the space if something is not finite
                check_finite(self._watched)
                self._check_function(args, kwargs, index)
        size = batch_size(counted)
        self._reservoir.offer(counted, size, index // self._folds)
        self._result.samples += size
        return True

    def _run(self, counted: list[Any], index: int) -> None:
        """Run the networks on what is to be counted of a batch, and count it."""
        here = [fast_layout(x) for x in moved(counted, self._memory)]
        programs = [network.program for network in self._networks]
        runs = [(own, state, here) for own, state in zip(programs, self._states, strict=True)]
        fold, turn = index % self._folds, index // self._folds
        try:
            tokens = Tokens.of(programs[0], counted, self._memory)
            accumulate(runs, self._watched[fold], index, turn, self._overlap, tokens)
        finally:
            self._overlap.join()

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
        new = {"the structure of batches": result.structure}
        for index, own in enumerate(every):
            new[f"the digest of models[{index}]'s operations"] = program_fingerprint(own.program)
            new[f"the digest of models[{index}]'s spaces"] = spaces_fingerprint(own)
        self._made_of.update(new)
        self._processes.check_same("networks", new)
        if self._keeping is not None:
            self._keeping.check(new)
        if self._keeping is None or self._keeping.before is None:
            result.matched, result.outputs = nothing_counted(
                every, result.pairs, result.reference, self._folds, self._device
            )
        self._watched = watched_for(every, result.matched, result.outputs, self._folds)

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
