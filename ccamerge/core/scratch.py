"""Merging in little memory: large results in mapped files, and bounds on what is worked on at once.

The system writes the pages of such a file out when memory is wanted for others, and reads them
again when somebody looks at them: what is kept for later then takes room in a folder, and memory
only while it is worked on.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccamerge import _core
from ccamerge.core import arguments

LARGE = 1 << 20
"""Bytes from which a result goes into a file."""

_MMAP_THRESHOLD = -3
_USUALLY = 32 << 20
"""What glibc's own threshold rises to."""

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclasses.dataclass(frozen=True)
class _Scarcity:
    """The folder for large results, and the bytes of memory that there are, if that is known."""

    folder: Path
    limit: int | None


_NOW: ContextVar[_Scarcity | None] = ContextVar("scarcity", default=None)


@contextlib.contextmanager
def scarce(folder: Path | None, limit: int | None = None) -> Iterator[None]:
    """Inside, what is `kept` and large, and moments made, lie in files of a folder.

    They have no name, and vanish with what they hold. ``limit`` is what `most` goes by. Without a
    folder all stays as it is.
    """
    if folder is None:
        yield
        return
    before = _NOW.get()
    token = _NOW.set(_Scarcity(folder, limit))
    _core.set_scratch(str(folder), LARGE)
    _give_back_from(LARGE)
    try:
        yield
    finally:
        _NOW.reset(token)
        _core.set_scratch("" if before is None else str(before.folder), LARGE)
        _give_back_from(LARGE if before is not None else _USUALLY)


def _give_back_from(size: int) -> None:
    """Have the C library give blocks of so many bytes back to the system once they are freed.

    By itself it keeps ever larger ones: a gigabyte of freed covariances was seen to stay.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)


@contextlib.contextmanager
def memory_limit(
    limit: int | str | None, scratch: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Inside, `merge` and what it consists of make do with little memory.

    Moments, maps and parameters that are computed and large lie in files of a folder, which are
    mapped into memory and vanish with what they hold; fewer inputs are walked, and fewer spaces
    solved, at once. What the models themselves take is the caller's: those whose tensors are mapped
    files take none. The numbers are the same but for the inputs that are kept and walked.

    Parameters
    ----------
    limit : bytes, or words such as "8G", of the process' memory that lies in no file; it is refused
        where batches, spaces or parameters are too large for it. None knows no limit, and has what
        is large in files all the same if there is a folder.
    scratch : the folder, on a disk; default: that for temporary files. Where this is memory itself,
        as `/dev/shm` is, nothing is gained.

    Raises
    ------
    TypeError, ValueError
        If the limit is no size, or the folder none that can be written to.
    OSError
        Once the folder is full.
    """
    if limit is None and scratch is None:
        yield
        return
    size = None if limit is None else size_of(limit, "memory_limit")
    folder = arguments.path(tempfile.gettempdir() if scratch is None else scratch, "scratch")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        message = f"scratch must be a folder that can be written to, got {folder}"
        raise ValueError(message)
    with scarce(folder.absolute(), size):
        yield


def anonymous() -> int:
    """Bytes of this process' memory that lie in no file; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE)
        return 1024 * int(found[1]) if found else 0
    return 0


def check_memory(needed: int, what: str) -> None:
    """ValueError if so many bytes more than there are in use are beyond the limit."""
    now = _NOW.get()
    if now is None or now.limit is None:
        return
    total = anonymous() + needed
    if total > now.limit:
        message = (
            f"memory_limit is {now.limit / 2**20:.0f} MiB, but {total / 2**20:.0f} MiB are needed "
            f"at least: {anonymous() / 2**20:.0f} are in use, and {what}"
        )
        raise ValueError(message)


def most(usual: int, share: float) -> int:
    """Bytes that something may take at once: as usual, or a share of the limit if that is less."""
    now = _NOW.get()
    return usual if now is None or now.limit is None else min(usual, int(share * now.limit))


def kept(value: Tensor) -> Tensor:
    """A tensor to be held on to: in a file if it is large and memory is `scarce`, else itself.

    Raises
    ------
    OSError
        If the folder has no room; the message names it.
    """
    now = _NOW.get()
    if now is None or value.nbytes < LARGE or value.device.type != "cpu":
        return value
    flat = _mapped(now.folder, value.numel(), value.dtype)
    # As it is if it fills its memory without gaps, else in rows.
    return flat.as_strided(value.shape, torch.empty_like(value, device="meta").stride()).copy_(
        value
    )


def _mapped(folder: Path, count: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor (count,) in a file without a name."""
    size = count * dtype.itemsize
    name: str | None = None
    try:
        handle, name = tempfile.mkstemp(prefix="ccamerge-", dir=folder)
        try:
            # Room is taken at once: a file with holes would end the process when it is written to.
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)
        return torch.from_file(name, shared=True, size=count, dtype=dtype)
    except OSError as error:
        message = f"no room for {size} bytes in {folder}: {error.strerror}"
        raise OSError(error.errno, message) from error
    finally:
        if name is not None:
            Path(name).unlink()


def size_of(value: Any, name: str) -> int:
    """Bytes from a number of them or words such as "8G", "500 MiB".

    Raises
    ------
    TypeError, ValueError
        If it is neither, or less than one; the message names the argument.
    """
    expected = 'bytes, or words such as "8G"'
    if not isinstance(value, str):
        found = float(arguments.integer(value, name, expected))
    else:
        words = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?\s*", value, re.IGNORECASE)
        found = float(words[1]) * 2 ** _UNITS[words[2].upper()] if words else 0.0
    if not 1 <= found < 2**63:
        message = f"{name} must be {expected}, got {arguments.shown(value)}"
        raise ValueError(message)
    return int(found)
