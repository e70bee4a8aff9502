"""Rows of arrays in a file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ccamerge.config.data_files import checked
from ccamerge.config.importing import did_you_mean
from ccamerge.data.files import DataError, Paths, files_of
from ccamerge.data.local import LocalData, choice

ARRAY_KINDS = (".npz", ".npy", ".safetensors")

_AT_ONCE = 1 << 20  # bytes of a compressed array that are unpacked at once


class Arrays(LocalData):
    """Batches of rows of arrays from a local ``.npz``, ``.npy`` or ``.safetensors``.

    An array's first axis counts samples. Rows are read as they are needed, but for ``.npz``, in
    which they cannot be found without reading those before: what is drawn of it is read once, by
    and by, and kept (an array whose columns lie together is read whole). Floating-point numbers of
    double or half precision become torch's default type (float32), which networks have, whole
    numbers int64; those of one byte stay.

    Parameters
    ----------
    file : that holds them
    key : the array's name, not needed where there is but one; several make batches dicts of the
        network's keyword arguments by these names
    labels : name of an array of labels: batches are ``(inputs, labels)``, or have ``labels``
    count : rows; default all. If there are fewer than are asked for, a warning says how many.
    batch_size : rows of a batch
    seed : of the choice and the order, in which each row is as likely as any other

    Raises
    ------
    DataError
        If the file or an array is not there, cannot be read, is not of numbers, or arrays have
        different lengths.
    """

    def __init__(
        self,
        file: Paths,
        key: str | Sequence[str] | None = None,
        *,
        labels: str | None = None,
        count: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> None:
        given = {"key": key, "labels": labels, "count": count, "batch_size": batch_size}
        settings = checked("arrays", {**given, "seed": seed})
        found = files_of(file, "file", ARRAY_KINDS)
        if len(found) != 1:
            message = f"{file}: expected one file, got {len(found)}"
            raise DataError(message)
        self._path = found[0]
        super().__init__(found, settings)
        self._rows: dict[str, Rows] | None = None
        self._names: list[str] = []

    def check(self, model: nn.Module | None = None) -> None:
        """Find the arrays; see `LocalData`."""
        self._arrays()

    def _samples(self) -> int:
        self._arrays()
        return len(self._places)

    def _batch(self, places: range) -> Any:
        found = {name: rows(places) for name, rows in self._arrays().items()}
        labels = found.pop(self.settings["labels"], None)
        if isinstance(self.settings["key"], tuple):
            return found if labels is None else {**found, "labels": labels}
        [inputs] = found.values()
        return inputs if labels is None else (inputs, labels)

    def _arrays(self) -> dict[str, Rows]:
        """What gives the rows at places among those that were drawn, by array."""
        if self._rows is None:
            try:
                self._rows = self._opened()
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
                if isinstance(error, DataError):
                    raise
                message = f"{self._path}: cannot be read: {error}"
                raise DataError(message) from error
        return self._rows

    def _opened(self) -> dict[str, Rows]:
        kind = self._path.suffix.lower()
        openers: dict[str, type[_File]] = {".npz": _Npz, ".npy": _Npy}
        file = openers.get(kind, _Safetensors)(self._path)
        names = self._wanted(list(file.shapes))
        lengths = {name: (file.shapes[name] or (0,))[0] for name in names}
        total = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1 or not total:
            text = ", ".join(f"{name!r} has {n}" for name, n in lengths.items())
            message = f"{self._path}: arrays must have equally many rows, one or more: {text}"
            raise DataError(message)
        count, seed = self.settings["count"], self.settings["seed"]
        self._places = choice(total, count, seed, f"rows of {self._path}", None)
        return {name: file.rows(name, self._places) for name in names}

    def _wanted(self, there: list[str]) -> list[str]:
        """The names of arrays to read."""
        key, labels = self.settings["key"], self.settings["labels"]
        if key is None:
            others = [name for name in there if name != labels]
            if len(others) != 1:
                message = f"{self._path}: give key, one of {', '.join(map(repr, there))}"
                raise DataError(message)
            key = others[0]
        names = [*(key if isinstance(key, tuple) else [key]), *([labels] if labels else [])]
        for name in names:
            if name not in there:
                text = ", ".join(map(repr, there))
                hint = did_you_mean(name, there)
                message = f"{self._path}: there is no array {name!r}; arrays there: {text}{hint}"
                raise DataError(message)
        return names


Rows = Callable[[range], Tensor]


class _File(Protocol):
    """Arrays of one kind of file: their shapes by name."""

    shapes: dict[str, tuple[int, ...]]

    def __init__(self, path: Path) -> None: ...

    def rows(self, name: str, places: Sequence[int]) -> Rows:
        """What gives rows of an array, by their places among ``places``."""


class _Safetensors:
    """Arrays of a safetensors file."""

    def __init__(self, path: Path) -> None:
        opened: Any = safe_open
        self._file = opened(path, framework="pt")
        names = self._file.keys()
        self.shapes = {n: tuple(self._file.get_slice(n).get_shape()) for n in names}

    def rows(self, name: str, places: Sequence[int]) -> Rows:
        """As `_File`."""
        whole = self._file.get_slice(name)
        return lambda of: _usual(torch.cat([whole[p : p + 1] for p in (places[i] for i in of)]))


class _Npy:
    """The one array of an ``.npy``, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shapes = {path.stem: self._array.shape}

    def rows(self, name: str, places: Sequence[int]) -> Rows:
        """As `_File`."""
        return lambda of: _tensor(self._array[[places[i] for i in of]], name)


class _Npz:
    """Arrays of an ``.npz``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        with zipfile.ZipFile(path) as packed:
            self._members = {n.removesuffix(".npy"): n for n in packed.namelist()}
            for name, member in self._members.items():
                with packed.open(member) as file:
                    self.shapes[name] = _header(file, name)[0]

    def rows(self, name: str, places: Sequence[int]) -> Rows:
        """As `_File`; one pass over what may be compressed, of which those rows are kept."""
        with zipfile.ZipFile(self._path) as packed, packed.open(self._members[name]) as file:
            shape, fortran, dtype = _header(file, name)
            if fortran and len(shape) > 1:  # rows do not lie together
                kept = np.load(self._path, allow_pickle=False)[name][list(places)]
            else:
                kept = _picked(file, shape, dtype, places)
        return lambda of: _tensor(kept[of.start : of.stop], name)


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns lie together, and type of an array in NumPy's format."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        message = f"array {name!r} is of an unknown version {version}"
        raise ValueError(message)
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    if found[2].hasobject:
        message = f"array {name!r} holds objects, expected numbers"
        raise ValueError(message)
    return found


def _picked(
    file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], places: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Rows of an array that is read from its beginning to its end, some at a time."""
    kept = np.empty((len(places), *shape[1:]), dtype)
    order = np.argsort(places)
    sorted_places = np.asarray(places)[order]
    size = dtype.itemsize * int(np.prod(shape[1:]))
    step = max(1, _AT_ONCE // max(size, 1))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        raw = file.read(count * size)
        if len(raw) < count * size:
            message = f"ends after {start} rows of {shape[0]}"
            raise ValueError(message)
        part = np.frombuffer(raw, dtype).reshape(count, *shape[1:])
        first, last = np.searchsorted(sorted_places, (start, start + count))
        kept[order[first:last]] = part[sorted_places[first:last] - start]
    return kept


def _tensor(values: np.ndarray[Any, Any], name: str) -> Tensor:
    """Rows as a tensor of their own memory."""
    if values.dtype.kind not in "biufc":
        message = f"array {name!r} holds {values.dtype}, expected numbers"
        raise DataError(message)
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        values = values.astype(np.int64)
    native = values.astype(values.dtype.newbyteorder("="))
    return _usual(torch.from_numpy(native))


def _usual(values: Tensor) -> Tensor:
    """In the types that networks take."""
    if values.is_floating_point():
        return values.to(torch.get_default_dtype())
    if values.dtype in (torch.int8, torch.uint8, torch.bool) or values.is_complex():
        return values
    return values.long()
