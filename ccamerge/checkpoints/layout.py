"""How a safetensors file lies on disk: its length's eight bytes, its header, then the tensors."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of dtypes in headers, and torch's; an older torch may not have all."""

_CODES = {name: code for code, name in DTYPES.items()}
_ALIGNED = 8  # bytes; what safetensors pads headers to


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file: ``size`` bytes from ``start``."""

    start: int
    size: int


def places(path: Path) -> dict[str, Place]:
    """Where each tensor lies in a safetensors file, which is known to be a whole one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            found[name] = Place(8 + length + start, stop - start)
    return found


def bytes_of(value: Tensor) -> int:
    """How many a tensor takes in a file; it may be on the meta device."""
    return math.prod(value.shape) * value.element_size()


def size_words(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size // 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.2f} KB"


def header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Place], int]:
    """The beginning of a file with some tensors, where each lies in it, and the file's length.

    Tensors of larger elements come first, as safetensors orders them, so that all are aligned.

    Raises
    ------
    TypeError
        For a dtype that such files cannot hold.
    """
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offsets: dict[str, Place] = {}
    stop = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        value, start = tensors[name], stop
        code = _CODES.get(str(value.dtype).removeprefix("torch."))
        if code is None:
            message = f"{name!r} is of {value.dtype}, which safetensors files cannot hold"
            raise TypeError(message)
        stop += bytes_of(value)
        entries[name] = {
            "dtype": code,
            "shape": list(value.shape),
            "data_offsets": [start, stop],
        }
        offsets[name] = Place(start, stop - start)
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    data = 8 + len(text)
    found = {name: Place(data + place.start, place.size) for name, place in offsets.items()}
    return len(text).to_bytes(8, "little") + text, found, data + stop


def shards(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Names by the files that they go to, in their order.

    As `huggingface_hub.split_torch_state_dict_into_shards` does it: a file takes tensors until the
    next would make it longer than ``most`` bytes; one that is longer by itself has a file.
    """
    found: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, value in tensors.items():
        own = bytes_of(value)
        if own > most:
            found.append([name])
            continue
        if size + own > most:
            found.append(current)
            current, size = [], 0
        current.append(name)
        size += own
    return [names for names in (*found, current) if names]


def shard_names(count: int) -> Sequence[str]:
    """The files that so many shards go to, as transformers names them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def dtype_named(code: str) -> torch.dtype | None:
    """Torch's dtype of a header's; None if this torch has none."""
    found = getattr(torch, DTYPES.get(code, ""), None)
    return found if isinstance(found, torch.dtype) else None
