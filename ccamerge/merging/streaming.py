"""The plain average of checkpoints that need not fit into memory, part by part of each tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ccamerge.checkpoints.layout import bytes_of
from ccamerge.checkpoints.parts import PartReader, memory_for
from ccamerge.checkpoints.writing import FolderWriter
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.merging.averaging import mean_of
from ccamerge.reporting.report import Report

PART = 1 << 18
"""Elements that are averaged at once: in double precision a core's cache holds about so many."""

_TEMPORARIES = 3
"""Arrays in double precision that averaging a part takes beside the models' parts."""


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class StreamedAverage:
    """The weighted mean of checkpoints of the same names and shapes, as they stand in their files.

    Attributes
    ----------
    readers : of the models, the reference first, of which is taken what has no mean
    weights : for each name the models' shares in the same order, summing to one
    dtype : of the floating-point numbers that are written; None keeps the reference's
    threads : that read, average and write parts side by side
    """

    readers: Sequence[PartReader]
    weights: Mapping[str, Sequence[float]]
    dtype: torch.dtype | None = None
    threads: int = 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What comes out, as tensors on the meta device."""
        return {
            name: value.to(self.dtype) if self.dtype and value.is_floating_point() else value
            for name, value in self.readers[0].shapes.items()
        }

    @property
    def read(self) -> int:
        """Bytes that are read, of tensors that have a share and of the reference's."""
        return sum(
            bytes_of(reader.shapes[name])
            for index, reader in enumerate(self.readers)
            for name, shares in self.weights.items()
            if index == 0 or shares[index]
        )

    @property
    def written(self) -> int:
        """Bytes that are written."""
        return sum(map(bytes_of, self.tensors.values()))

    @property
    def memory(self) -> int:
        """Bytes that the parts at work take at most; files of torch that are mapped not counted."""
        models = sum(memory_for(1, self._dtypes(reader)).numel() for reader in self.readers)
        return self.threads * PART * (models + 8 * _TEMPORARIES)

    def run(self, writer: FolderWriter, *, progress: bool = False) -> dict[str, str]:
        """Average everything into files, made of `tensors`.

        Returns
        -------
        Why some tensors are not the mean, or not everywhere, by name; see `mean_of`.

        Raises
        ------
        OverflowError
            If there are numbers that ``dtype`` cannot hold; the message names the tensor.
        CheckpointError, OSError
            If a file cannot be read or written to its end.
        """
        reasons: dict[str, str] = {}
        parts, lock, stop = self._parts(), threading.Lock(), threading.Event()
        bar = tqdm(
            total=self.written,
            desc="average",
            unit="B",
            unit_scale=True,
            disable=not progress,
        )

        def work() -> None:
            memory = [memory_for(PART, self._dtypes(reader)) for reader in self.readers]
            while not stop.is_set():
                with lock:
                    part = next(parts, None)
                if part is None:
                    return
                try:
                    mean, why = self._mean(part, memory)
                    writer.write(part.name, mean, part.start)
                except BaseException:
                    stop.set()
                    raise
                with lock:
                    bar.update(mean.nbytes)
                    if why:
                        reasons.setdefault(part.name, why)

        with bar, _one_thread_each(), ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(work) for _ in range(self.threads)]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()  # whoever waits here may be interrupted
        return {name: reasons[name] for name in self.readers[0].shapes if name in reasons}

    def _parts(self) -> Iterator[_Part]:
        for name, value in self.readers[0].shapes.items():
            for start in range(0, value.numel(), PART):
                yield _Part(name, start, min(start + PART, value.numel()))

    def _mean(self, part: _Part, memory: Sequence[Tensor]) -> tuple[Tensor, str]:
        weights = self.weights[part.name]
        values = {
            index: reader.read(part.name, part.start, part.stop, memory[index])
            for index, reader in enumerate(self.readers)
            if index == 0 or weights[index]
        }
        shares = [(value, weights[index]) for index, value in values.items() if weights[index]]
        try:
            return mean_of(values[0], shares, self.dtype)
        except OverflowError as error:
            message = f"{part.name} of the average has {error}"
            raise OverflowError(message) from error

    @staticmethod
    def _dtypes(reader: PartReader) -> set[torch.dtype]:
        return {value.dtype for value in reader.shapes.values()}


def report_of(
    watch: Stopwatch, weights: Sequence[float], reference: int, reasons: dict[str, str]
) -> Report:
    """What such an average did; ``weights`` in the models' order, where no pattern gives others."""
    return Report(
        method="average",
        options={},
        mode="reference",
        gamma=None,
        reference=reference,
        weights=list(weights),
        repair="none",
        norm="fold",
        samples=0,
        seconds=watch.seconds,
        spaces=[],
        repaired=[],
        fitted=[],
        skipped={},
        walked=0,
        kept=0,
        fixed={},
        pinned={},
        peak_bytes=watch.peak_bytes,
        aligned=[0.0, 0.0, 1.0],
        from_reference=reasons,
    )


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let each thread that calls torch compute by itself, instead of in a team of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[PartReader]]:
    """Readers of some checkpoints, closed at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(PartReader(path)) for path in paths]
