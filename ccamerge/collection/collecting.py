"""One pass over calibration data: the moments of every tap, and a few inputs kept for repair."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ccamerge.collection.checkpoint import Checkpoint, Keeping
from ccamerge.collection.checkpoint_files import checkpoint_of_process, checkpoints_there
from ccamerge.collection.data_pass import Pass
from ccamerge.collection.processes import Processes
from ccamerge.collection.statistics import Pairs, Statistics
from ccamerge.config.settings import TABLE
from ccamerge.core import arguments
from ccamerge.core.device import Device, DeviceLike, obstacle, resolve
from ccamerge.core.tensorfile import remove_partial
from ccamerge.graph.networks.parameters import same_architecture
from ccamerge.graph.networks.widths import given_spaces
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.batches import model_device

FOLDS = 2
"""Parts of the data whose moments are kept apart, so that one can judge maps found on the other."""

CHECKPOINT_EVERY = 300.0
"""Seconds after which a pass that is kept in a file is written there."""


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
    holdout: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_EVERY,
    resume: bool = False,
    distributed: bool | None = None,
) -> Statistics:
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
    holdout : share of the inputs of which nothing is counted, so that merges can be judged by them,
        as for `merge`
    checkpoint : file, ending in .safetensors, to keep the pass in while it is under way, so that
        one that was killed can go on. Each batch is hashed then, which waits for those on a device.
        The file stays when the pass has ended: delete it once the result is saved.
    checkpoint_every : seconds between two writes of the file, at least; each writes as much as
        `Statistics.save` does
    resume : go on from the file if it is there. ``models``, ``data`` and settings must be the same:
        batches that are counted already are read again, compared and left out, and the result is
        that of a pass that nothing interrupted, to the last bit on the same kind of machine.
    distributed : whether the processes of ``torch.distributed`` share the pass: each calls this
        with the same arguments, sees all batches and counts every n-th, and all get the statistics
        of all. Default: if it is initialised. Inputs are kept and held out as by one process;
        moments differ from one process's by rounding, and not at all between runs with as many.
        Each has a checkpoint of its own, "-0-of-2" added to its name.

    Returns
    -------
    Statistics, whose size depends on the spaces and not on the data.

    Raises
    ------
    ValueError
        For fewer than two models, different architectures, a batch of another structure or of
        sizes that the models do not take, a forward that does not give the same output twice, no
        data, or a value that is not finite; the message names the model, the space and the batch.
        For a ``checkpoint`` that is damaged, or of other models, data or settings, and for
        processes whose models, data or settings differ; the message says in what.
    FileExistsError
        If there is a ``checkpoint`` and ``resume`` is not asked for.
    RuntimeError
        If the device cannot be used, or has too little memory; or if another process failed, with
        its message, or did not come or go on for half an hour.

    Warns
    -----
    RuntimeWarning
        If the models are on a CUDA device that cannot be used: all is done on the CPU then; or if
        the checkpoint cannot be written: the pass goes on.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> def network():
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ...     )
    >>> models = [network(), network()]  # trained elsewhere
    >>> data = [torch.randn(32, 4) for _ in range(4)]
    >>> statistics = collect(models, data, pairs="all", progress=False)
    >>> statistics.samples, statistics.pooled(statistics.spaces_of(models[0])["0"]).dims
    (128, (8, 8))
    """
    known = same_architecture(models)
    data = arguments.batches(data)
    reference = arguments.index(reference, "reference", len(known))
    arguments.choice(pairs, "pairs", get_args(Pairs))
    folds, seed = arguments.integer(folds, "folds"), arguments.seed(seed)
    progress, prove = arguments.flag(progress, "progress"), arguments.flag(prove, "prove")
    if folds < 1:
        message = f"folds must be at least 1, got {folds}"
        raise ValueError(message)
    where = device_for([own.plain for own in known], device)
    share = TABLE["holdout"].check(
        TABLE["holdout"].usual if holdout is None else holdout, len(known)
    )
    every = given_spaces(found, known)
    processes = Processes.of(
        None if distributed is None else arguments.flag(distributed, "distributed")
    )
    with processes.together():
        keeping = _keeping(checkpoint, checkpoint_every, resume, where, processes)
        options: Any = {"holdout": share, "keeping": keeping, "processes": processes}
        one = Pass(known, every, pairs, reference, folds, where, seed, prove, **options)
        return one.over(data, progress)


def _keeping(
    checkpoint: str | Path | None,
    every: float,
    resume: bool,
    device: Device | None,
    processes: Processes,
) -> Keeping | None:
    """Where a pass is kept, as `collect` is told; raises as it does."""
    resume = arguments.flag(resume, "resume")
    every = arguments.number(every, "checkpoint_every", "a number of seconds")
    if not (every >= 0 and math.isfinite(every)):
        message = f"checkpoint_every must be a number of seconds >= 0, got {every}"
        raise ValueError(message)
    if checkpoint is None:
        if resume:
            message = "resume needs a checkpoint to go on from"
            raise ValueError(message)
        return None
    path = arguments.path(checkpoint, "checkpoint")
    if path.suffix != ".safetensors" or not path.absolute().parent.is_dir():
        message = (
            f"checkpoint must end in .safetensors and be in a folder that is there, got {path}"
        )
        raise ValueError(message)
    there = checkpoints_there(path)
    if there and not resume:
        message = (
            f"checkpoint {there[0]} is there, of a collection that has not ended or whose result "
            "was not saved: go on from it with resume=True, or delete it"
        )
        raise FileExistsError(message)
    world = processes.world
    own = [checkpoint_of_process(path, rank, world) for rank in range(world)]
    if other := [file for file in there if file not in own]:
        message = (
            f"checkpoint {other[0]} is of a collection by another number of processes, here there "
            f"{'is one' if world == 1 else f'are {world}'}: resume with as many, or delete it"
        )
        raise ValueError(message)
    path = own[processes.rank]
    remove_partial(path)
    return Keeping(path, every, Checkpoint.load(path, device) if path.exists() else None)


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
