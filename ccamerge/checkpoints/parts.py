"""Checkpoints that are larger than memory: their tensors are read in parts."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ccamerge.checkpoints.files import CheckpointError, files_of, mapped
from ccamerge.checkpoints.layout import Place, places
from ccamerge.checkpoints.reading import load_shapes

log = logging.getLogger("ccamerge")


class PartReader:
    """A checkpoint whose tensors are read in parts, by any thread; nothing is kept in memory.

    Safetensors files are read into memory of the caller's; those of torch are mapped, where they
    are of the format that can be.

    Attributes
    ----------
    shapes : tensors on the meta device, by name

    Raises
    ------
    CheckpointError
        As `ccamerge.checkpoints.load_state`.
    """

    def __init__(self, path: Path) -> None:
        self.shapes: Mapping[str, Tensor] = load_shapes(path)
        self._paths: dict[int, Path] = {}
        self._where: dict[str, tuple[int, Place]] = {}
        self._mapped: dict[str, Tensor] = {}
        files = files_of(path)
        if files[0].suffix.lower() not in (".safetensors", ".json"):
            self._mapped = mapped(files[0], log.debug)
            return
        try:
            for file in files if len(files) == 1 else files[1:]:
                handle = os.open(file, os.O_RDONLY)
                self._paths[handle] = file
                self._where |= {name: (handle, place) for name, place in places(file).items()}
        except OSError as error:
            self._close()
            message = f"{file}: cannot be read: {error.strerror}"
            if error.errno == errno.EMFILE:
                message += "; allow more at once (ulimit -n), or merge fewer shards"
            raise CheckpointError(message) from error

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(v.shape) * v.element_size() for v in self.shapes.values())

    def read(self, name: str, start: int, stop: int, memory: Tensor) -> Tensor:
        """Some elements of a tensor, counted in its order, on one axis.

        ``memory``, uint8, of at least their bytes, may hold them until it is used again.

        Raises
        ------
        CheckpointError
            If the file ends before them, or cannot be read.
        """
        like = self.shapes[name]
        if name in self._mapped:
            return self._mapped[name].reshape(-1)[start:stop]
        handle, place = self._where[name]
        size = like.element_size()
        part = memory[: (stop - start) * size]
        left, offset = part.numpy().data, place.start + start * size
        while left.nbytes:
            try:
                count = os.preadv(handle, [left], offset)
            except OSError as error:
                message = f"{self._paths[handle]}: cannot be read: {error.strerror}"
                raise CheckpointError(message) from error
            if not count:
                message = f"{self._paths[handle]}: ends within {name!r}; was it changed meanwhile?"
                raise CheckpointError(message)
            left, offset = left[count:], offset + count
        return part.view(like.dtype)

    def __enter__(self) -> PartReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for handle in self._paths:
            os.close(handle)
        self._paths.clear()
        self._mapped.clear()


def memory_for(elements: int, dtypes: set[torch.dtype]) -> Tensor:
    """Memory that `PartReader.read` can read so many elements of any of some dtypes into."""
    widest = max((dtype.itemsize for dtype in dtypes), default=1)
    return torch.empty(elements * widest, dtype=torch.uint8)
