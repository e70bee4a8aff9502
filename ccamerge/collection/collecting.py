"""One pass over calibration data: the moments of every tap, and a few inputs kept for repair."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ccamerge.collection.kept_inputs import Reservoir
from ccamerge.collection.positions import MATCHED, RESTORED, lattice
from ccamerge.collection.statistics import Collected, Pairs
from ccamerge.core import arguments
from ccamerge.core.device import Device, DeviceLike, memory_of, obstacle, resolve
from ccamerge.core.moments import Moments, check_many, update_many
from ccamerge.core.side_stream import Overlap
from ccamerge.graph.networks.fingerprints import program_fingerprint, state_fingerprint
from ccamerge.graph.networks.states import (
    check_same_function,
    fast_layout,
    folded_state,
    placed,
    same_architecture,
)
from ccamerge.graph.networks.widths import extended, found_by_shapes, given_spaces, spaces_of_models
from ccamerge.graph.space import Space, Spaces, Tap
from ccamerge.graph.tracing.batches import (
    batch_size,
    model_device,
    moved,
    split_batch,
    structure_of,
)
from ccamerge.graph.tracing.modules import tensors_of
from ccamerge.graph.tracing.program import Program

KEEP_SAMPLES = 4096
"""Inputs kept for repair, whole batches, at most so many."""

KEEP_BYTES = 256 << 20
"""What they may take; of large inputs fewer are kept."""

FOLDS = 2
"""Parts of the data whose moments are kept apart, so that one can judge maps found on the other."""


def alignment_taps(space: Space) -> list[Tap]:
    """The taps whose features are matched between models.

    The features after each non-linearity, which are what the next layer reads; where a space has
    none (a linear bottleneck), whatever it has.
    """
    return [t for t in space.taps if t.kind == "activation"] or list(space.taps)


def repair_taps(space: Space) -> list[Tap]:
    """The taps whose variance `repair` restores: outputs of linear operations and norms."""
    return [t for t in space.taps if t.kind in ("write", "norm")]


def collect(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    *,
    reference: int = 0,
    pairs: Pairs = "reference",
    folds: int = FOLDS,
    found: Spaces | Sequence[Spaces] | None = None,
    progress: bool = True,
    seed: int = 0,
    prove: bool = True,
    device: DeviceLike | None = None,
) -> Collected:
    """Stream the moments of several models' features out of one pass over calibration data.

    Of large feature maps and long sequences some positions are counted, other ones in each batch
    (`ccamerge.collection.positions`). Batches may have other sizes (samples, lengths, heights,
    nodes) wherever the models take them; what a forward freezes is traced anew for each size. On a
    CUDA device nothing is waited for until the end of the pass, and counting goes on beside the
    forward passes; their precision is what torch is set to, TF32 for convolutions included.

    Parameters
    ----------
    models : two or more modules of one architecture, of equal or different widths, in any training
        state; not modified
    data : iterable of batches (see `merge`); read once, labels are never looked at
    reference : the model that cross-covariances are taken with, for ``pairs="reference"``
    pairs : "reference" or "all"; the latter allows any reference or subset later
    folds : parts of the data, batch by batch in turn, whose moments are kept apart; two or more
        allow ``ridge="auto"``. They cost memory and no time.
    found : the models' spaces, or each one's if their widths differ, if known already
    progress : whether to show a progress bar
    seed : of the choice of batches kept for repair
    prove : whether to prove spaces, if they are not ``found`` already (see `spaces`)
    device : where the networks run and moments are kept: "cpu", "cuda", "cuda:N", or "auto" for
        CUDA where it is usable. Default: the models' device. Models stay where they are, and
        batches may be anywhere.

    Returns
    -------
    Collected, whose size depends on the spaces and not on the data.

    Raises
    ------
    ValueError
        For fewer than two models, different architectures, a batch of another structure or of
        sizes that the models do not take, a forward that does not give the same output twice, no
        data, or a value that is not finite; the message names the model, the space and the batch.
    RuntimeError
        If the device cannot be used, or has too little memory.

    Warns
    -----
    RuntimeWarning
        If the models are on a CUDA device that cannot be used: all is done on the CPU then.
    """
    models = same_architecture(models)
    data = arguments.batches(data)
    reference = arguments.index(reference, "reference", len(models))
    arguments.choice(pairs, "pairs", get_args(Pairs))
    folds, seed = arguments.integer(folds, "folds"), arguments.seed(seed)
    progress, prove = arguments.flag(progress, "progress"), arguments.flag(prove, "prove")
    if folds < 1:
        message = f"folds must be at least 1, got {folds}"
        raise ValueError(message)
    where = device_for(models, device)
    return one_pass(
        models,
        data,
        given_spaces(found, models),
        where,
        reference=reference,
        pairs=pairs,
        folds=folds,
        progress=progress,
        seed=seed,
        prove=prove,
    )


def one_pass(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    every: Sequence[Spaces],
    where: Device | None,
    *,
    reference: int,
    pairs: Pairs,
    folds: int,
    progress: bool,
    seed: int,
    prove: bool,
    check: Callable[[Sequence[Spaces]], object] = lambda _: None,
) -> Collected:
    """As `collect`, of arguments that are checked.

    ``every`` has each model's spaces; none if they are not known. ``check`` is called with them
    before a second batch is drawn, to raise what it has against them.
    """
    memory = memory_of(where)
    result: Collected | None = None
    reservoir = Reservoir(KEEP_SAMPLES, KEEP_BYTES, seed)
    watched: list[_Watched] = []
    states: list[dict[str, Tensor]] = []
    there: list[Spaces] = []
    checked: set[tuple[tuple[str, int], ...]] = {()}
    overlap = Overlap(where)
    bar = tqdm(data, desc="collect", unit="batch", disable=not progress)
    for index, batch in enumerate(bar):
        args, kwargs = _inputs(batch, models[0], index)
        if result is None:
            every = every or spaces_of_models(models, args, kwargs, prove)
            check(every)
            states = [
                {key: fast_layout(value) for key, value in folded_state(model, own, memory).items()}
                for model, own in zip(models, every, strict=True)
            ]
            result, watched = _empty(every, models, pairs, reference, folds, where)
            result.proved = prove
            there = [placed(own, memory) for own in every]
        leaves, fits = _leaves(there[0].program, args, kwargs, index)
        if not fits:
            every = _extended(every, models, args, kwargs, index, prove)
            result.found = found_by_shapes(models, every)
            there = [placed(own, memory) for own in every]
        here = [fast_layout(x) for x in moved(leaves, memory)]
        size = batch_size(leaves)
        runs = [(s.program, state, here) for s, state in zip(there, states, strict=True)]
        new = index == 0 or not fits
        if (single := there[0].program.single(leaves)) not in checked and not new:
            _check_function(models, there, states, moved((args, kwargs), memory), index)
        checked.add(single)
        try:
            _accumulate(runs, watched[index % folds], index, index // folds, overlap)
        finally:
            overlap.join()
        if new:  # after the moments, which name the space if something is not finite
            _check(watched)
            _check_function(models, there, states, moved((args, kwargs), memory), index)
        reservoir.offer(leaves, size, index // folds)
        result.samples += size
    if result is None:
        message = "data is empty: no batch came from it"
        raise ValueError(message)
    _check(watched)
    result.inputs, result.turns = reservoir.batches, reservoir.labels
    return result


def device_for(models: Sequence[nn.Module], device: DeviceLike | None) -> Device | None:
    """Where to work on some models: where the caller says, else where they are.

    Raises and warns as `collect`.
    """
    if device is not None:
        return resolve(device)
    there = next((d for d in map(model_device, models) if d.type == "cuda"), None)
    if there is None or obstacle() is None:
        return resolve(there)
    message = f"the models are on {there}, but work is done on the CPU: CUDA is {obstacle()}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return None


Run = tuple[Program, Mapping[str, Tensor], list[Any]]
"""A program, its parameters and its inputs."""


@dataclasses.dataclass(frozen=True)
class _Counted:
    """What is to be counted of a node's values, features on axis ``dim``, in one native call.

    ``parts`` say where it is in each model's value, by which moments, and how many rows and columns
    of a feature map are enough. ``title`` is for messages.
    """

    dim: int
    title: str
    parts: list[tuple[Sequence[Tap], Moments, int]]


_Watched = dict[str, list[_Counted]]
"""By nodes."""


def _empty(
    found: Sequence[Spaces],
    models: Sequence[nn.Module],
    pairs: Pairs,
    reference: int,
    folds: int,
    device: Device | None,
) -> tuple[Collected, list[_Watched]]:
    """Nothing counted yet, and what to watch in the batches of each fold."""
    count = len(models)
    options: Any = {"reference": reference, "device": device}
    matched: dict[str, list[Moments]] = {}
    outputs: dict[str, dict[str, Moments]] = {}
    watched: list[_Watched] = [{} for _ in range(folds)]
    for space in zip(*(own.spaces for own in found), strict=True):  # each model's
        name, sizes = space[0].name, [own.size for own in space]
        matched[name] = [Moments(sizes, pairs=pairs, **options) for _ in range(folds)]
        outputs[name] = {
            tap.name: Moments(sizes, pairs="none", **options) for tap in repair_taps(space[0])
        }
        for fold, moments in zip(watched, matched[name], strict=True):
            for taps in zip(*map(alignment_taps, space), strict=True):
                _watch(fold, name, taps, moments, MATCHED)
            for taps in zip(*map(repair_taps, space), strict=True):
                _watch(fold, name, taps, outputs[name][taps[0].name], RESTORED)
    fingerprint = {
        "programs": [program_fingerprint(own.program) for own in found],
        "models": [state_fingerprint(tensors_of(model)) for model in models],
    }
    structure = structure_of(found[0].program.input_spec)
    known = found_by_shapes(models, found)
    result = Collected(
        matched, outputs, [], [], count, 0, pairs, reference, structure, fingerprint, found=known
    )
    return result, watched


def _watch(
    watched: _Watched, space: str, taps: Sequence[Tap], moments: Moments, enough: int
) -> None:
    """Add a tap, by each model's, to what is watched; one call counts a node's along an axis."""
    counted = watched.setdefault(taps[0].node, [])
    title = f"space {space!r}, tap {taps[0].name!r}"
    for index, known in enumerate(counted):
        # The same moments twice in one call would be two updates of one object at a time.
        if known.dim == taps[0].dim and all(m is not moments for _, m, _ in known.parts):
            both = f"{known.title}; {title}"
            counted[index] = _Counted(known.dim, both, [*known.parts, (taps, moments, enough)])
            return
    counted.append(_Counted(taps[0].dim, title, [(taps, moments, enough)]))


def _accumulate(
    runs: Sequence[Run], watched: _Watched, index: int, turn: int, overlap: Overlap
) -> None:
    """Run all models side by side, so that a tap's features live only until they are counted."""
    with torch.inference_mode():
        for name, values in lockstep(runs):
            for counted in watched.get(name, ()):
                dim = counted.dim
                updates = [
                    (
                        moments,
                        [_features(v, t, enough, turn) for v, t in zip(values, taps, strict=True)],
                    )
                    for taps, moments, enough in counted.parts
                ]
                with overlap.counting(values):
                    update_many(updates, axis=dim, label=f"{counted.title}, batch {index}")


def _features(value: Tensor, tap: Tap, enough: int, turn: int) -> Tensor:
    """A tap's features at the positions that count: a view."""
    value = value.narrow(tap.dim, tap.start, tap.size)
    return value[lattice(value.shape, tap.dim, enough, turn)]


def _check(watched: Sequence[_Watched]) -> None:
    """Wait for all that is counted; ValueError for the first value that is not finite."""
    every = (c for fold in watched for node in fold.values() for c in node)
    check_many(list({id(m): m for counted in every for _, m, _ in counted.parts}.values()))


def lockstep(
    runs: Sequence[Run],
) -> Generator[tuple[str, list[Any]], list[Any] | None, None]:
    """Advance several runs together, yielding each node's name and values.

    Their programs have the same operations by the same names; widths and the sizes of inputs may
    differ. As with `Program.steps`, the receiver may ``send`` a list of replacements.
    """
    steps = [program.steps(state, leaves) for program, state, leaves in runs]
    replies: list[Any] = [None] * len(steps)
    for _ in runs[0][0].operations:
        moved = [s.send(reply) for s, reply in zip(steps, replies, strict=True)]
        sent = yield moved[0][0].name, [value for _, value in moved]
        replies = [None] * len(steps) if sent is None else sent


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


def _check_function(
    models: Sequence[nn.Module],
    found: Sequence[Spaces],
    states: Sequence[Mapping[str, Tensor]],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    index: int,
) -> None:
    """`check_same_function` on a batch, which the message names."""
    try:
        check_same_function(models, found, states, *call)
    except ValueError as error:
        message = f"batch {index}: {error}"
        raise ValueError(message) from error
    except (IndexError, RuntimeError) as error:
        program = found[0].program
        single = program.single(program.flatten_inputs(*call))
        if not single:
            raise
        name, axis = single[0]
        message = (
            f"batch {index}: input {name!r} has a size of one along axis {axis}, and what forward "
            f"does with larger ones fails ({error}); leave such batches out"
        )
        raise ValueError(message) from error


def _extended(
    every: Sequence[Spaces],
    models: Sequence[nn.Module],
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
