"""Checkpoints on disk: which files one consists of, and reading them without running their code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import torch
from torch import Tensor

from ccamerge.checkpoints.layout import dtype_named
from ccamerge.checkpoints.wrappings import parameter_sets, several_sets, shorten

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"
FOLDER_FILES = ("model.safetensors.index.json", "model.safetensors")
"""What a folder is read by; it must hold one of them."""

Tell = Callable[..., None]
"""A logger's method: takes a message and what it is filled with."""


class CheckpointError(ValueError):
    """A checkpoint file cannot be used; the message names the file and what to do."""


def files_of(path: Path) -> list[Path]:
    """The files that a checkpoint consists of: one, or an index and its shards.

    Raises
    ------
    CheckpointError
        If there is no such file, a folder or an index does not say which files to read, or shards
        are missing.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        message = f"{path}: no such file"
        raise CheckpointError(message)
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    return [path, *sorted(set(_weight_map(path).values()))]


def read(path: Path, device: str, tell: Tell) -> dict[str, Tensor]:
    """All tensors of a checkpoint, "cpu" with their values or "meta" without.

    ``tell`` is told under which keys they were found.

    Raises
    ------
    CheckpointError
        See `ccamerge.checkpoints.load_state`.
    """
    files = files_of(path)
    one = len(files) == 1
    state = _read_file(files[0], device, tell) if one else _read_shards(files[0], device, tell)
    if not state:
        message = f"{path}: holds no tensors"
        raise CheckpointError(message)
    return state


def _in_folder(folder: Path) -> Path:
    """The file that a folder is read by."""
    found = [folder / name for name in FOLDER_FILES if (folder / name).exists()]
    if len(found) == 1:
        return found[0]
    message = f"{folder}: is a folder; name the checkpoint file in it"
    if found:
        message += f", which is one of {' and '.join(p.name for p in found)}"
        raise CheckpointError(message)
    there = sorted(p.name for p in folder.iterdir() if _is_checkpoint(p))
    if any(_SHARD.search(name) for name in there):
        message += (
            f": it holds shards of a checkpoint ({shorten(there)}), but no {FOLDER_FILES[0]} that "
            "says which"
        )
    elif there:
        message += f": {shorten(there)}"
    raise CheckpointError(message)


_SHARD = re.compile(r"-\d+-of-\d+\.\w+$")
"""How names of shards end."""


def _is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() in (".safetensors", *TORCH_SUFFIXES) or path.name.endswith(
        INDEX_SUFFIX
    )


def shard_hint(path: Path) -> str | None:
    """What to do if a file that does not suffice is one shard of several."""
    if not _SHARD.search(path.name):
        return None
    indices = sorted(path.parent.glob(f"*.safetensors{INDEX_SUFFIX}"))
    which = indices[0].name if indices else f"the index, such as {FOLDER_FILES[0]},"
    return f"by its name it is one shard of several: name {which} instead"


def _weight_map(index: Path) -> dict[str, Path]:
    """For each tensor that an index of shards lists the shard, which is there."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{index}: cannot be read as an index of shards: {error}"
        raise CheckpointError(message) from error
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(name, str) for name in listed.values())
    ):
        message = f'{index}: is no index of shards: expected {{"weight_map": {{name: file, ...}}}}'
        raise CheckpointError(message)
    names = sorted(set(listed.values()))
    outside = [name for name in names if _leads_outside(name)]
    if outside:
        message = f"{index}: shards must lie in its folder, not at {shorten(outside)}"
        raise CheckpointError(message)
    other = [name for name in names if not name.lower().endswith(".safetensors")]
    if other:
        message = (
            f"{index}: lists shards that are no safetensors files ({shorten(other)}), and a "
            "checkpoint in several files is read from safetensors only: load it where it was made "
            "and save it with ccamerge.checkpoints.save_state(model.state_dict(), "
            '"model.safetensors")'
        )
        raise CheckpointError(message)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        message = f"{index}: {len(missing)} of {len(names)} shards missing: {shorten(missing)}"
        raise CheckpointError(message)
    return {key: index.parent / name for key, name in listed.items()}


def _leads_outside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name


def _read_shards(index: Path, device: str, tell: Tell) -> dict[str, Tensor]:
    where = _weight_map(index)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        found = _read_file(shard, device, tell)
        wanted = {key for key, path in where.items() if path == shard}
        for what, keys in (
            ("lacks", wanted - found.keys()),
            ("holds, though the index does not say so,", found.keys() - wanted),
        ):
            if keys:
                message = f"{index}: shard {shard.name} {what} {shorten(sorted(keys))}"
                raise CheckpointError(message)
        state.update(found)
    return {key: state[key] for key in where}


def _read_file(path: Path, device: str, tell: Tell) -> dict[str, Tensor]:
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        message = (
            f"{path}: unknown kind of checkpoint {suffix!r}; "
            f"expected .safetensors, {', '.join(TORCH_SUFFIXES)}, or .safetensors{INDEX_SUFFIX} "
            "for shards"
        )
        raise CheckpointError(message)
    try:
        with path.open("rb") as file:  # the readers' errors about permissions are less clear
            empty = not file.read(1)
        if empty:
            message = f"{path}: the file is empty"
            raise CheckpointError(message)
        if suffix == ".safetensors":
            return _read_safetensors(path, device)
        return _read_torch(path, device, tell)
    except OSError as error:
        message = f"{path}: cannot be read: {error}"
        raise CheckpointError(message) from error


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            if device == "cpu":
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: torch.empty(
                    part.get_shape(), dtype=_dtype(part.get_dtype(), key, path), device="meta"
                )
                for key, part in slices.items()
            }
    except safetensors.SafetensorError as error:
        message = f"{path}: truncated, corrupt or not a safetensors file: {error}"
        raise CheckpointError(message) from error


def _dtype(name: str, key: str, path: Path) -> torch.dtype:
    found = dtype_named(name)
    if found is None:
        message = f"{path}: {key!r} is of type {name}, which cannot be read with this torch"
        raise CheckpointError(message)
    return found


def _read_torch(path: Path, device: str, tell: Tell, *, mapped: bool = False) -> dict[str, Tensor]:
    try:
        found = parameter_sets(_unpickled(path, device, mapped=mapped))
        if len(found) > 1 and device == "meta":  # only values tell whether they are the same
            found = parameter_sets(_unpickled(path, "cpu"))
            found = {k: {n: v.to(device) for n, v in s.items()} for k, s in found.items()}
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        message = f"{path}: {error}"
        raise CheckpointError(message) from error
    if len(found) > 1:
        message = f"{path}: {several_sets(found)}"
        raise CheckpointError(message)
    for place, state in found.items():
        if place:
            tell("%s: the parameters are under %s", path, " / ".join(place))
        return {str(k): v for k, v in state.items()}
    return {}


def mapped(path: Path, tell: Tell) -> dict[str, Tensor]:
    """All tensors of a torch file, that are read from it when they are used, if it can be mapped.

    Raises
    ------
    CheckpointError
        As `read`.
    """
    return _read_torch(path, "cpu", tell, mapped=zipfile.is_zipfile(path))


def _unpickled(path: Path, device: str, *, mapped: bool = False) -> Any:
    """What torch.load gives."""
    try:
        with warnings.catch_warnings():  # about pickle protocols: the outcome says what matters
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location=device, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"asks to call {wanted[1]}"
            if wanted
            else "is damaged or holds other things than tensors"
        )
        message = (
            f"{path}: refused, because it {what}, and loading that could run code: it holds a "
            "whole module, or other objects beside the parameters. If you trust the file, load it "
            "where it was made, torch.load(path, weights_only=False), and save the parameters "
            'alone: torch.save(model.state_dict(), "model.pt")'
        )
        raise CheckpointError(message) from error
    except Exception as error:  # a damaged pickle or archive can raise anything
        if "TorchScript" in str(error):
            message = (
                f"{path}: holds a TorchScript module: save its parameters alone, "
                'torch.save(torch.jit.load(path).state_dict(), "model.pt")'
            )
            raise CheckpointError(message) from error
        message = f"{path}: truncated, corrupt or not written by torch.save: {_first_line(error)}"
        raise CheckpointError(message) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
