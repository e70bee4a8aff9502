"""Moments of several models' features: all that a merge needs to know of the data."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.device import DeviceLike, resolve
from ccamerge.core.moments import Moments
from ccamerge.core.tensorfile import load_tensors, save_tensors
from ccamerge.graph.networks.inspection import spaces_of_call
from ccamerge.graph.networks.parameters import Parameters, Shapes, parameters_of
from ccamerge.graph.networks.widths import extended
from ccamerge.graph.space import Space, Spaces
from ccamerge.graph.tracing.batches import batch_size, structure_from

Pairs = Literal["reference", "all"]

_FORMAT = "ccamerge-moments-6"


@dataclasses.dataclass(repr=False)
class Statistics(Brief):
    """Moments of several models on the same data, sufficient for any merge of them.

    Attributes
    ----------
    matched : for each space, a `Moments` over the models for each fold of the data, over all
        taps that are matched as if they were more samples; with the crosses that ``pairs`` says
    outputs : for each space and each tap whose variance repair restores, a `Moments` with each
        model's own covariance
    inputs : whole batches of flattened model inputs, kept for repair on the device they came on
    turns : for each of these, which positions of feature maps were counted (see
        `ccamerge.collection.positions`)
    models : number of models
    samples : number of inputs counted
    pairs, reference : which cross-covariances there are
    structure : of a call's arguments, as `torch.utils._pytree` writes it
    fingerprint : of each model's program and parameters; a merge checks them
    proved : whether their spaces were proved (see `spaces`)
    held : whole batches of flattened inputs of which nothing was counted, to judge merges by
    data : what tells the data from others, such as the ``fingerprint`` of `ccamerge.data`, if it is
        known
    found : the models' spaces by the shapes of their parameters; derived again when they are asked
        for where a file was loaded
    """

    matched: dict[str, list[Moments]]
    outputs: dict[str, dict[str, Moments]]
    inputs: list[list[Any]]
    turns: list[int]
    models: int
    samples: int
    pairs: Pairs
    reference: int
    structure: str
    fingerprint: dict[str, list[str]]
    proved: bool = True
    held: list[list[Any]] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    found: dict[Shapes, Spaces] = dataclasses.field(default_factory=dict)

    def _parts(self) -> Mapping[str, Any]:
        return {
            "models": self.models,
            "samples": self.samples,
            "pairs": self.pairs,
            "reference": self.reference,
            "folds": max(map(len, self.matched.values()), default=0),
            "device": self.device,
            "features": {name: folds[0].dims for name, folds in self.matched.items()},
            "kept": f"{len(self.inputs)} batches of inputs",
            "held out": f"{sum(map(batch_size, self.held))} inputs",
        }

    @property
    def device(self) -> str:
        """Where the moments are: "cpu" or "cuda:N"."""
        return next((m.device for folds in self.matched.values() for m in folds), "cpu")

    def to(self, device: DeviceLike | None) -> Statistics:
        """These statistics with all moments on a device; kept inputs stay where they are."""
        return self._mapped(lambda moments: moments.to(device))

    def _mapped(self, change: Callable[[Moments], Moments]) -> Statistics:
        """The same of changed moments."""
        matched = {s: [change(m) for m in folds] for s, folds in self.matched.items()}
        outputs = {
            s: {tap: change(m) for tap, m in taps.items()} for s, taps in self.outputs.items()
        }
        return dataclasses.replace(self, matched=matched, outputs=outputs)

    def spaces_of(self, model: nn.Module | Parameters) -> Spaces:
        """The spaces of one of the models, from the kept inputs if they are not known yet.

        Raises
        ------
        ValueError
            If the kept inputs hold objects of a class that is not imported, or the model cannot be
            traced for them.
        """
        parameters = model
        if isinstance(parameters, nn.Module):
            parameters = parameters_of(parameters, "the model")
        shapes = parameters.shapes
        if shapes not in self.found:
            batches = [*self.inputs, *self.held]
            calls = [self.call(leaves) for leaves in batches]
            found = [spaces_of_call(parameters, *calls[0], prove=self.proved)]
            for leaves, (args, kwargs) in zip(batches, calls, strict=True):
                if not found[0].program.accepts(leaves):
                    found = extended(found, [parameters], args, kwargs, self.proved)
            self.found[shapes] = found[0]
        return self.found[shapes]

    def call(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments of a call with one of ``inputs`` or ``held``."""
        spec = structure_from(self.structure)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return args, kwargs

    def pooled(self, space: Space, without: int | None = None) -> Moments:
        """The moments of a space over all data, or over all but one fold."""
        parts = [m for k, m in enumerate(self.matched[space.name]) if k != without]
        total = copy.deepcopy(parts[0])
        for other in parts[1:]:
            total.merge(other)
        return total

    def subset(self, models: Sequence[int], reference: int | None = None) -> Statistics:
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
        given = arguments.items(models, "models", "a list of models' indices")
        chosen = [arguments.index(m, f"models[{p}]", self.models) for p, m in enumerate(given)]
        if len(set(chosen)) != len(chosen) or len(chosen) < 2:
            message = f"models must be two or more distinct indices, got {chosen}"
            raise ValueError(message)
        if reference is None:
            reference = chosen.index(self.reference) if self.reference in chosen else 0
        reference = arguments.index(reference, "reference", len(chosen))
        prints = {kind: [of[i] for i in chosen] for kind, of in self.fingerprint.items()}
        return dataclasses.replace(
            self._mapped(lambda moments: moments.subset(chosen, reference)),
            models=len(chosen),
            reference=reference,
            fingerprint=prints,
        )

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, beside and renamed into place."""
        target = arguments.path(path, "path")
        tensors, header = self.packed()
        metadata = {"format": _FORMAT, "header": json.dumps(header)}
        if self.data:  # beside the header, of which every version reads what it knows and no more
            metadata["data"] = json.dumps(self.data)
        save_tensors(target, tensors, metadata)

    def packed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything as named arrays and tensors, and what JSON holds; see `unpacked`."""
        tensors: dict[str, Any] = {}
        for space, folds in self.matched.items():
            for fold, moments in enumerate(folds):
                for key, value in moments.state_dict().items():
                    tensors[json.dumps(["matched", space, fold, key])] = value
        for space, taps in self.outputs.items():
            for tap, moments in taps.items():
                for key, value in moments.state_dict().items():
                    tensors[json.dumps(["outputs", space, tap, key])] = value
        structure: dict[str, list[list[Any]]] = {"inputs": [], "held": []}
        for kind, rows in structure.items():
            for index, leaves in enumerate(getattr(self, kind)):
                for position, leaf in enumerate(leaves):
                    if isinstance(leaf, Tensor):
                        tensors[json.dumps([kind, index, position])] = leaf
                rows.append([None if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        header = {
            "models": self.models,
            "samples": self.samples,
            "pairs": self.pairs,
            "reference": self.reference,
            "structure": self.structure,
            "fingerprint": self.fingerprint,
            **structure,
            "turns": self.turns,
            "proved": self.proved,
        }
        return tensors, header

    @classmethod
    def load(cls, path: str | Path, device: DeviceLike | None = None) -> Statistics:
        """Read what `save` wrote, moments onto a device (default: the CPU).

        Raises
        ------
        ValueError
            If it is anything else; the message names the file.
        """
        path, device = arguments.path(path, "path"), resolve(device)
        tensors, metadata = load_tensors(path)
        if (found := metadata.get("format")) != _FORMAT:
            message = f"{path}: not a file of collected moments ({found!r})"
            if (found or "").startswith(_FORMAT.rstrip("0123456789")):
                message = f"{path}: {found!r}, but this version reads {_FORMAT!r}: collect again"
            raise ValueError(message)
        try:
            found_data = dict(json.loads(metadata.get("data", "{}")))
            header = {**json.loads(metadata["header"]), "data": found_data}
            return cls.unpacked(tensors, header, device)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            message = f"{path}: damaged, what it holds does not fit together: {error!r}"
            raise ValueError(message) from error

    @classmethod
    def unpacked(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: DeviceLike | None
    ) -> Statistics:
        """From what `packed` returned, moments on a device.

        Raises
        ------
        ValueError, KeyError, IndexError, TypeError, AttributeError
            If the parts do not fit together.
        """
        states: dict[str, dict[str, dict[Any, dict[str, Any]]]] = {"matched": {}, "outputs": {}}
        batches = {kind: [list(row) for row in header[kind]] for kind in ("inputs", "held")}
        for name, tensor in tensors.items():
            kind, *where = json.loads(name)
            if kind in batches:
                batches[kind][where[0]][where[1]] = tensor
            else:
                space, part, key = where
                states[kind].setdefault(space, {}).setdefault(part, {})[key] = tensor.numpy()
        matched = {
            space: [Moments.from_state(state, device) for _, state in sorted(folds.items())]
            for space, folds in states["matched"].items()
        }
        outputs = {
            space: {tap: Moments.from_state(state, device) for tap, state in taps.items()}
            for space, taps in states["outputs"].items()
        }
        return cls(matched=matched, outputs=outputs, **{**header, **batches})
