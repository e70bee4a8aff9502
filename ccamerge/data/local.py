"""What data from local files have in common: a choice by a seed, batches, a fingerprint."""

from __future__ import annotations

import abc
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ccamerge.data.files import fingerprint_of

log = logging.getLogger("ccamerge")


class LocalData(abc.ABC):
    """Batches from local files, as often as they are iterated over.

    Parameters
    ----------
    files : that batches are taken from
    settings : all that decides which batches these are
    """

    def __init__(self, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
        self.files = tuple(files)
        self.settings = dict(settings)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells these batches from others, without reading any: files and settings, as JSON.

        Of files names and sizes count, not what they hold.
        """
        found = {"kind": type(self).__name__, **fingerprint_of(self.files), **self.settings}
        plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples come back as lists
        return plain

    @abc.abstractmethod
    def check(self, model: nn.Module | None = None) -> None:
        """Find the samples, and compare them with what a model takes.

        Raises
        ------
        DataError
            If there are none, or the model does not take them.
        """

    @abc.abstractmethod
    def _samples(self) -> int:
        """How many samples there are to batch."""

    @abc.abstractmethod
    def _batch(self, places: range) -> Any:
        """The samples of these places, as one batch."""

    def __len__(self) -> int:
        return len(spans(self._samples(), self.settings["batch_size"]))

    def __iter__(self) -> Iterator[Any]:
        return map(self._batch, spans(self._samples(), self.settings["batch_size"]))


def spans(count: int, size: int) -> list[range]:
    """Places of samples, batch by batch.

    A single one that would be left joins the batch before it: there are networks that treat an
    axis of one in another way.
    """
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], count]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def choice(total: int, wanted: int | None, seed: int, what: str, usual: int | None) -> list[int]:
    """Which of ``total`` things are taken, in a random order: each is as likely as any other.

    All are if there are not more than are ``wanted``, of which a warning tells, or than are
    ``usual`` if nothing is said (None: all).
    """
    if wanted is not None and wanted > total:
        log.warning("%d %s were asked for, but there are %d: all are used", wanted, what, total)
    count = min(total, wanted or usual or total)
    return random.Random(seed).sample(range(total), count)
