"""One pass over calibration data: the moments of every tap, and a few inputs kept for repair."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from ccamerge.fingerprints import program_fingerprint, state_fingerprint
from ccamerge.graph.batches import batch_size, split_batch
from ccamerge.graph.program import Program
from ccamerge.graph.spaces import Space, Spaces, Tap, spaces_of_call
from ccamerge.graph.states import check_same_function, fast_layout, folded_state, same_architecture
from ccamerge.graph.widths import Shapes, given_spaces, shapes_of, spaces_of_models
from ccamerge.moments import Moments, update_many
from ccamerge.reservoir import Reservoir
from ccamerge.tensorfile import load_tensors, save_tensors

Pairs = Literal["reference", "all"]

KEEP_SAMPLES = 4096
"""Inputs kept for repair, whole batches, at most so many."""

KEEP_BYTES = 256 << 20
"""What they may take; of large inputs fewer are kept."""

FOLDS = 2
"""Parts of the data whose moments are kept apart, so that one can judge maps found on the other."""

_FORMAT = "ccamerge-moments-3"


def alignment_taps(space: Space) -> list[Tap]:
    """The taps whose features are matched between models.

    The features after each non-linearity, which are what the next layer reads; where a space has
    none (a linear bottleneck), whatever it has.
    """
    return [t for t in space.taps if t.kind == "activation"] or list(space.taps)


def repair_taps(space: Space) -> list[Tap]:
    """The taps whose variance `repair` restores: outputs of linear operations and norms."""
    return [t for t in space.taps if t.kind in ("write", "norm")]


@dataclasses.dataclass
class Collected:
    """Moments of several models on the same data, sufficient for any merge of them.

    Attributes
    ----------
    matched : for each space, a `Moments` over the models for each fold of the data, over all
        taps that are matched as if they were more samples; with the crosses that ``pairs`` says
    outputs : for each space and each tap whose variance repair restores, a `Moments` with each
        model's own covariance
    inputs : whole batches of flattened model inputs, kept for repair
    models : number of models
    samples : number of inputs seen
    pairs, reference : which cross-covariances there are
    structure : of a call's arguments, as `torch.utils._pytree` writes it
    fingerprint : of each model's program and parameters; a merge checks them
    found : the models' spaces by the shapes of their parameters; derived again when they are asked
        for where a file was loaded
    """

    matched: dict[str, list[Moments]]
    outputs: dict[str, dict[str, Moments]]
    inputs: list[list[Any]]
    models: int
    samples: int
    pairs: Pairs
    reference: int
    structure: str
    fingerprint: dict[str, list[str]]
    found: dict[Shapes, Spaces] = dataclasses.field(default_factory=dict)

    def spaces_of(self, model: nn.Module) -> Spaces:
        """The spaces of one of the models, from the kept inputs if they are not known yet."""
        shapes = shapes_of(model)
        if shapes not in self.found:
            spec = pytree.treespec_loads(self.structure)
            call = pytree.tree_unflatten(self.inputs[0], spec)
            self.found[shapes] = spaces_of_call(model, *call)
        return self.found[shapes]

    def pooled(self, space: Space, without: int | None = None) -> Moments:
        """The moments of a space over all data, or over all but one fold."""
        parts = [m for k, m in enumerate(self.matched[space.name]) if k != without]
        total = copy.deepcopy(parts[0])
        for other in parts[1:]:
            total.merge(other)
        return total

    def subset(self, models: Sequence[int], reference: int | None = None) -> Collected:
        """The statistics of some of the models, in the given order, without a pass over data.

        Parameters
        ----------
        models : indices of two or more distinct models
        reference : index *within* ``models`` of the reference; by default the old one if it is
            among them, else the first

        Raises
        ------
        ValueError
            If the cross-covariances that this needs were not collected (see ``pairs``).
        """
        chosen = list(models)
        if reference is None:
            reference = chosen.index(self.reference) if self.reference in chosen else 0
        matched = {
            space: [m.subset(chosen, reference) for m in folds]
            for space, folds in self.matched.items()
        }
        outputs = {
            space: {tap: m.subset(chosen, reference) for tap, m in taps.items()}
            for space, taps in self.outputs.items()
        }
        prints = {kind: [of[i] for i in chosen] for kind, of in self.fingerprint.items()}
        return dataclasses.replace(
            self,
            matched=matched,
            outputs=outputs,
            models=len(chosen),
            reference=reference,
            fingerprint=prints,
        )

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, beside and renamed into place."""
        tensors: dict[str, Any] = {}
        for space, folds in self.matched.items():
            for fold, moments in enumerate(folds):
                for key, value in moments.state_dict().items():
                    tensors[json.dumps(["matched", space, fold, key])] = value
        for space, taps in self.outputs.items():
            for tap, moments in taps.items():
                for key, value in moments.state_dict().items():
                    tensors[json.dumps(["outputs", space, tap, key])] = value
        structure = []
        for index, leaves in enumerate(self.inputs):
            row = []
            for position, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    tensors[json.dumps(["inputs", index, position])] = leaf
                row.append(None if isinstance(leaf, Tensor) else leaf)
            structure.append(row)
        header = {
            "models": self.models,
            "samples": self.samples,
            "pairs": self.pairs,
            "reference": self.reference,
            "structure": self.structure,
            "fingerprint": self.fingerprint,
            "inputs": structure,
        }
        save_tensors(path, tensors, {"format": _FORMAT, "header": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> Collected:
        """Read what `save` wrote; ValueError naming the file if it is anything else."""
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != _FORMAT:
            message = f"{path}: not a file of collected moments ({metadata.get('format')!r})"
            raise ValueError(message)
        header = json.loads(metadata["header"])
        states: dict[str, dict[str, dict[Any, dict[str, Any]]]] = {"matched": {}, "outputs": {}}
        inputs: list[list[Any]] = [list(row) for row in header.pop("inputs")]
        for name, tensor in tensors.items():
            kind, *where = json.loads(name)
            if kind == "inputs":
                inputs[where[0]][where[1]] = tensor
            else:
                space, part, key = where
                states[kind].setdefault(space, {}).setdefault(part, {})[key] = tensor.numpy()
        matched = {
            space: [Moments.from_state(state) for _, state in sorted(folds.items())]
            for space, folds in states["matched"].items()
        }
        outputs = {
            space: {tap: Moments.from_state(state) for tap, state in taps.items()}
            for space, taps in states["outputs"].items()
        }
        return cls(matched=matched, outputs=outputs, inputs=inputs, **header)


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
) -> Collected:
    """Stream the moments of several models' features out of one pass over calibration data.

    Of feature maps with 16 rows and columns or more, every second row and column is counted.

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

    Returns
    -------
    Collected, whose size depends on the spaces and not on the data.

    Raises
    ------
    ValueError
        For fewer than two models, different architectures, a batch of another shape, no data, or
        a value that is not finite; the message names the model, the space and the batch.
    """
    models = same_architecture(models)
    if isinstance(data, (Tensor, np.ndarray, Mapping, str)):  # iterable, but not over batches
        message = f"data must be an iterable of batches, got one {type(data).__name__}"
        raise TypeError(message)
    if not 0 <= reference < len(models):
        message = f"reference must be in 0..{len(models) - 1}, got {reference}"
        raise ValueError(message)
    if folds < 1:
        message = f"folds must be at least 1, got {folds}"
        raise ValueError(message)
    every = given_spaces(found, models)
    result: Collected | None = None
    reservoir = Reservoir(KEEP_SAMPLES, KEEP_BYTES, seed)
    watched: list[_Watched] = []
    states: list[dict[str, Tensor]] = []
    bar = tqdm(data, desc="collect", unit="batch", disable=not progress)
    for index, batch in enumerate(bar):
        args, kwargs = split_batch(batch, models[0])
        if result is None:
            every = every or spaces_of_models(models, args, kwargs)
            states = [
                {key: fast_layout(value) for key, value in folded_state(model, own).items()}
                for model, own in zip(models, every, strict=True)
            ]
            result, watched = _empty(every, models, pairs, reference, folds)
        program = every[0].program
        leaves = [fast_layout(x) for x in _checked_leaves(program, args, kwargs, index)]
        size = batch_size(args, kwargs)
        runs = [(s.program, state, leaves) for s, state in zip(every, states, strict=True)]
        _accumulate(runs, watched[index % folds], index)
        if index == 0:  # after the moments, which name the space if something is not finite
            check_same_function(models, every, states, args, kwargs)
        reservoir.offer(leaves, size)
        result.samples += size
    if result is None:
        message = "data is empty: no batch came from it"
        raise ValueError(message)
    result.inputs = reservoir.batches
    return result


Run = tuple[Program, Mapping[str, Tensor], list[Any]]
"""A program, its parameters and its inputs."""

_Watched = dict[str, list[tuple[str, Sequence[Tap], Moments]]]
"""For a node, what is to be counted of its values: where it is in each model's."""


def _empty(
    found: Sequence[Spaces],
    models: Sequence[nn.Module],
    pairs: Pairs,
    reference: int,
    folds: int,
) -> tuple[Collected, list[_Watched]]:
    """Nothing counted yet, and what to watch in the batches of each fold."""
    count = len(models)
    matched: dict[str, list[Moments]] = {}
    outputs: dict[str, dict[str, Moments]] = {}
    watched: list[_Watched] = [{} for _ in range(folds)]
    for space in zip(*(own.spaces for own in found), strict=True):  # each model's
        name, sizes = space[0].name, [own.size for own in space]
        matched[name] = [Moments(sizes, pairs=pairs, reference=reference) for _ in range(folds)]
        outputs[name] = {
            tap.name: Moments(sizes, pairs="none", reference=reference)
            for tap in repair_taps(space[0])
        }
        for fold, moments in zip(watched, matched[name], strict=True):
            for taps in zip(*map(alignment_taps, space), strict=True):
                fold.setdefault(taps[0].node, []).append((name, taps, moments))
            for taps in zip(*map(repair_taps, space), strict=True):
                own = outputs[name][taps[0].name]
                fold.setdefault(taps[0].node, []).append((name, taps, own))
    fingerprint = {
        "programs": [program_fingerprint(own.program) for own in found],
        "models": [state_fingerprint(model.state_dict()) for model in models],
    }
    structure = pytree.treespec_dumps(found[0].program.input_spec)
    known = {shapes_of(model): own for model, own in zip(models, found, strict=True)}
    result = Collected(
        matched, outputs, [], count, 0, pairs, reference, structure, fingerprint, known
    )
    return result, watched


def _accumulate(runs: Sequence[Run], watched: _Watched, index: int) -> None:
    """Run all models side by side, so that a tap's features live only until they are counted."""
    with torch.inference_mode():
        for name, values in lockstep(runs):
            for space, taps, moments in watched.get(name, ()):
                dim = taps[0].dim
                parts = [
                    thinned(value.narrow(dim, tap.start, tap.size), dim)
                    for value, tap in zip(values, taps, strict=True)
                ]
                try:
                    update_many([(moments, parts)], axis=dim)
                except ValueError as error:
                    message = f"space {space!r}, tap {taps[0].name!r}, batch {index}: {error}"
                    raise ValueError(message) from error


THIN_FROM = 16
"""Rows and columns of a feature map from which every second one is enough."""


def thinned(value: Tensor, dim: int) -> Tensor:
    """Every second row and column (a view) of a large feature map.

    Neighbouring pixels are alike, and there are far more of them than features.
    """
    return value[thinning(value, dim)]


def thinning(value: Tensor, dim: int) -> tuple[slice, ...]:
    """The index that `thinned` takes of a value with features on axis ``dim``."""
    return tuple(
        slice(None, None, 2 if axis not in (0, dim) and size >= THIN_FROM else None)
        if value.dim() == 4
        else slice(None)
        for axis, size in enumerate(value.shape)
    )


def lockstep(
    runs: Sequence[Run],
) -> Generator[tuple[str, list[Any]], list[Any] | None, None]:
    """Advance several runs together, yielding each node's name and values.

    Their programs have the same operations by the same names; widths may differ. As with
    `Program.steps`, the receiver may ``send`` a list of replacements.
    """
    steps = [program.steps(state, leaves) for program, state, leaves in runs]
    replies: list[Any] = [None] * len(steps)
    for _ in runs[0][0].nodes:
        moved = [s.send(reply) for s, reply in zip(steps, replies, strict=True)]
        sent = yield moved[0][0].name, [value for _, value in moved]
        replies = [None] * len(steps) if sent is None else sent


def _checked_leaves(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], index: int
) -> list[Any]:
    try:
        leaves = program.flatten_inputs(args, kwargs)
    except ValueError as error:
        message = f"batch {index}: {error}"
        raise ValueError(message) from error
    for name, leaf in zip(program.inputs, leaves, strict=True):
        expected = program.shapes.get(name)
        if expected is None or not isinstance(leaf, Tensor):
            continue
        if tuple(leaf.shape[1:]) != expected[1:]:
            message = (
                f"batch {index}: input {name!r} has shape {tuple(leaf.shape)}, "
                f"expected (batch, {', '.join(map(str, expected[1:]))})"
            )
            raise ValueError(message)
    return leaves
