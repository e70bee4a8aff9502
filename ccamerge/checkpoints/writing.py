"""Parameters into a folder, in one safetensors file or in shards, in parts of any order."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ccamerge.checkpoints.files import FOLDER_FILES
from ccamerge.checkpoints.layout import (
    Place,
    bytes_of,
    header,
    shard_names,
    shards,
    size_words,
)

SHARD_SIZE = 50 * 10**9
"""Bytes of a shard at most, as transformers has it."""

_UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What file systems answer that cannot set room aside."""


class FolderWriter:
    """Files of known tensors, made at their full length and filled in parts, by any thread.

    Room is set aside for all of them before anything is written, so that a disk that is too full
    shows at once. A file whose last part has been written is put on disk while others are filled;
    leaving the context waits for all, and writes the index of shards. On an error files stay as
    they are: whoever made the folder takes it away.

    Parameters
    ----------
    folder : to write into
    tensors : dtypes and shapes by name, such as tensors on the meta device; files and the index
        have them in this order
    most : bytes of a shard at most, but for a tensor that is larger by itself; default `SHARD_SIZE`
    metadata : of each file's header, beside ``format``

    Raises
    ------
    OSError
        If there is no room, or a file cannot be written; the message names it.
    TypeError
        For a dtype that safetensors files cannot hold.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        most: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._folder = folder
        groups = shards(tensors, SHARD_SIZE if most is None else most)
        self._names = dict(zip(shard_names(len(groups)), groups, strict=True))
        self._files: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._where: dict[str, tuple[str, Place]] = {}
        self._lock = threading.Lock()
        self._flushing = ThreadPoolExecutor(1)
        self._flushed: list[Future[None]] = []
        self._total = sum(map(bytes_of, tensors.values()))
        try:
            for file, names in self._names.items():
                self._make(file, names, {"format": "pt", **(metadata or {})})
        except BaseException:
            self._close()
            raise

    def _make(self, file: str, names: list[str], metadata: Mapping[str, str]) -> None:
        head, where, length = header({name: self._tensors[name] for name in names}, metadata)
        path = self._folder / file
        try:
            self._files[file] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            _set_aside(self._files[file], length)
            _write_at(self._files[file], memoryview(head), 0)
        except OSError as error:
            raise self._failed(file, error) from error
        self._where |= {name: (file, place) for name, place in where.items()}
        self._left[file] = length - len(head)

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Fill in a part of a tensor, whose elements count from ``start``; each once.

        ``values`` is on the CPU, of the tensor's dtype.
        """
        file, place = self._where[name]
        plain = values.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = plain.view(torch.uint8).numpy().data
        offset = start * values.element_size()
        if values.dtype != self._tensors[name].dtype or offset + data.nbytes > place.size:
            message = f"{name!r}: a part of {values.dtype} does not fit into the file"
            raise ValueError(message)
        try:
            _write_at(self._files[file], data, place.start + offset)
        except OSError as error:
            raise self._failed(file, error) from error
        with self._lock:
            self._left[file] -= data.nbytes
            if not self._left[file]:
                self._flushed.append(self._flushing.submit(self._flush, file))

    def _flush(self, file: str) -> None:
        try:
            os.fsync(self._files[file])  # the name must not outlive the content in a power loss
        except OSError as error:
            raise self._failed(file, error) from error

    def _failed(self, file: str, error: OSError) -> OSError:
        path = self._folder / file
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return OSError(error.errno, f"cannot write {path}: {error.strerror or error}")
        room = os.statvfs(self._folder)
        free = room.f_bavail * room.f_frsize
        return OSError(
            error.errno,
            f"cannot write {path}: no space left on the device: the files take "
            f"{size_words(self._total)} in all, and {size_words(free)} are free now",
        )

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()

    def _finish(self) -> None:
        for future in self._flushed:
            future.result()
        for file in self._names:
            if self._left[file]:
                message = f"{self._folder / file}: {self._left[file]} bytes were never written"
                raise RuntimeError(message)
            if not any(map(bytes_of, (self._tensors[name] for name in self._names[file]))):
                self._flush(file)
        if len(self._names) > 1:
            count = sum(math.prod(value.shape) for value in self._tensors.values())
            content = {
                "metadata": {"total_parameters": count, "total_size": self._total},
                "weight_map": {name: file for name, (file, _) in sorted(self._where.items())},
            }
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (self._folder / FOLDER_FILES[0]).write_text(text, encoding="utf-8")

    def _close(self) -> None:
        self._flushing.shutdown()
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()


def _set_aside(handle: int, length: int) -> None:
    """Make a file as long as it will be, with room on the disk where that can be had."""
    try:
        os.posix_fallocate(handle, 0, length)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        os.ftruncate(handle, length)


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count
