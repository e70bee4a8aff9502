"""Safetensors files that are whole or absent: written beside and renamed into place."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write arrays or tensors to ``path``; what was there stays until the new file is complete.

    The bytes depend on the tensors and the metadata alone, not on the order that they come in.

    Raises
    ------
    OSError
        If the target cannot be written (no folder, no permission, no space); nothing is left.
    TypeError
        For a dtype that such files cannot hold.
    """
    path = Path(path)
    ready = {
        k: (v if isinstance(v, Tensor) else torch.from_numpy(np.asarray(v, order="C")))
        .detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        for k, v in tensors.items()
    }
    seen: set[int] = set()
    for key, value in ready.items():  # safetensors refuses tensors that share memory
        start = value.untyped_storage().data_ptr()
        if start in seen:
            ready[key] = value.clone()
        seen.add(start)
    if not path.parent.is_dir():
        message = f"cannot write {path}: {path.parent} is not a folder"
        raise FileNotFoundError(message)
    try:  # a folder, since safetensors writes a file of its own name first, beside what it is told
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise OSError(error.errno, message) from error
    temporary = os.path.join(folder, path.name)
    try:
        safetensors.torch.save_file(ready, temporary, metadata=dict(metadata))
        _sort_header(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # the name must not outlive the content in a power loss
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        message = f"cannot write {path}: {error}"
        raise OSError(message) from error
    except KeyError as error:
        message = f"cannot write {path}: safetensors files cannot hold {error}"
        raise TypeError(message) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Remove what writers of a file that were killed have left beside it.

    Nobody may be writing it meanwhile.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _RANDOM}"):
        shutil.rmtree(left, ignore_errors=True)


_RANDOM = 8
"""Characters that `tempfile.mkdtemp` adds to a name."""


def _sort_header(path: str) -> None:
    """Put the metadata in order, which safetensors writes in that of a hash map.

    The tensors' data stay where they are: the header keeps its length, which spaces fill up.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        ordered = {"__metadata__": dict(sorted(metadata.items())), **dict(tensors)}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:  # not as long as both escape alike
            message = f"the header of {path} would grow from {length} to {len(text)} bytes"
            raise RuntimeError(message)
        file.seek(8)
        file.write(text.ljust(length))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated or not safetensors; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        message = f"{path}: no such file"
        raise FileNotFoundError(message)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            return {key: opened.get_tensor(key) for key in opened.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path}: not a readable safetensors file ({error})"
        raise ValueError(message) from error
