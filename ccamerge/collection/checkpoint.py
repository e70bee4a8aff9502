"""A pass over data that is under way, kept in a file so that it can go on after it was killed."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccamerge.collection.statistics import Statistics
from ccamerge.core.device import DeviceLike
from ccamerge.core.tensorfile import load_tensors, save_tensors
from ccamerge.graph.networks.fingerprints import state_fingerprint

_FORMAT = "ccamerge-collection-1"

_SEEN = "seen"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was counted of the batches so far, and what it takes to count the rest.

    Attributes
    ----------
    statistics : so far, with the inputs kept and held out
    made_of : models and settings that those who go on must share, by the words for them
    seen : the fingerprint of each batch so far, in their order
    choices : the state of what chooses inputs to keep, and to hold out, as JSON has it
    """

    statistics: Statistics
    made_of: Mapping[str, Any]
    seen: list[bytes]
    choices: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write a file; what was there stays until it is complete.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        tensors, header = self.statistics.packed()
        tensors[_SEEN] = torch.tensor(list(b"".join(self.seen)), dtype=torch.uint8)
        text = json.dumps({"statistics": header, "made_of": self.made_of, "choices": self.choices})
        digest = _digest(tensors, text)
        save_tensors(path, tensors, {"format": _FORMAT, "header": text, "digest": digest})

    @classmethod
    def load(cls, path: Path, device: DeviceLike | None) -> Checkpoint:
        """Read what `save` wrote, moments onto a device.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another file, of another version, or damaged; the message names it.
        """
        tensors, metadata = load_tensors(path)
        if (found := metadata.get("format")) != _FORMAT:
            message = f"{path}: no collection under way ({found!r})"
            if (found or "").startswith(_FORMAT.rstrip("0123456789")):
                message = (
                    f"{path}: {found!r}, but this version reads {_FORMAT!r}: go on with the "
                    "version that wrote it, or begin anew"
                )
            raise ValueError(message)
        text = metadata.get("header", "")
        if _digest(tensors, text) != metadata.get("digest"):
            message = f"{path}: damaged, its content is not what was written: begin anew"
            raise ValueError(message)
        header, size = json.loads(text), 8
        seen = bytes(tensors.pop(_SEEN).tolist())
        return cls(
            Statistics.unpacked(tensors, header["statistics"], device),
            header["made_of"],
            [seen[k : k + size] for k in range(0, len(seen), size)],
            header["choices"],
        )


def _digest(tensors: Mapping[str, Any], text: str) -> str:
    """Of all that a file holds: safetensors notices a missing end, but no other damage."""
    content: dict[str, Tensor] = {key: torch.as_tensor(value) for key, value in tensors.items()}
    return state_fingerprint({**content, "": torch.tensor(list(text.encode()), dtype=torch.uint8)})


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """In which of the values here those there differ, as messages say it; empty if in none."""
    return "; ".join(
        f"{name} is {value!r}, there {there.get(name)!r}"
        for name, value in here.items()
        if there.get(name) != value
    )


class Keeping:
    """Where a pass keeps itself, and how often.

    Parameters
    ----------
    path : of the file
    every : seconds between two writes, at least; the first is as long after the beginning
    before : what is there already, to go on from
    """

    def __init__(self, path: Path, every: float, before: Checkpoint | None) -> None:
        self.path, self.before = path, before
        self._every, self._last = every, time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._last >= self._every

    def write(self, checkpoint: Checkpoint) -> None:
        """Write the file, or warn: the pass itself needs none; then the next is due in a while."""
        try:
            checkpoint.save(self.path)
        except OSError as error:
            message = f"{error}: the pass goes on, but is not kept any further"
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self._last = time.monotonic()

    def check(self, made_of: Mapping[str, Any]) -> None:
        """ValueError, which says what differs, if the file is of other models or settings.

        ``made_of`` may be of some of what is known of both.
        """
        if self.before is not None and (odd := differences(made_of, self.before.made_of)):
            message = f"{self.path} is of another collection: {odd}"
            raise ValueError(message)

    def check_batch(self, index: int, fingerprint: bytes) -> bool:
        """Whether a batch is counted already; ValueError if another was in its place."""
        if self.before is None or index >= len(self.before.seen):
            return False
        if self.before.seen[index] != fingerprint:
            message = (
                f"{self.path} is of other data: batch {index} is not the one that was counted; "
                "the data, and their order, must be the same each time"
            )
            raise ValueError(message)
        return True

    def check_end(self, count: int) -> None:
        """ValueError if there were fewer batches than are counted already."""
        if self.before is not None and count < len(self.before.seen):
            message = (
                f"{self.path} is of other data: {len(self.before.seen)} batches are counted in "
                f"it, and now there are {count}"
            )
            raise ValueError(message)
