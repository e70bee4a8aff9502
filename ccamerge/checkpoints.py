"""Reading and writing parameters: safetensors, and torch's own files without running their code."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from ccamerge.tensorfile import save_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
NESTED_KEYS = ("state_dict", "model")  # where training loops keep the parameters among other things
_SHOWN = 5  # names listed in a message before "and N more"


class CheckpointError(ValueError):
    """A checkpoint file cannot be used; the message names the file and what to do."""


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the parameters in a checkpoint file, onto the CPU.

    Parameters
    ----------
    path : a ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` written by torch
        that holds a dict of tensors, by itself or under "state_dict" or "model". Torch's files are
        always read with ``weights_only=True``: code in them is refused, not run.

    Raises
    ------
    CheckpointError
        If the file is missing, a folder, empty, truncated, corrupt, would run code, or holds no
        tensors.
    """
    return _load(path, "cpu")


def load_shapes(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Do as `load_state` with tensors on the meta device: names, shapes and dtypes only.

    Of a safetensors file only the header is read.
    """
    return _load(path, "meta")


def load_into(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Set all parameters and buffers of a module from a checkpoint file.

    Strict: names and shapes must agree, except that BatchNorm's ``num_batches_tracked`` may be
    missing, and of tied parameters one suffices. On an error the module is left as it was.

    Raises
    ------
    CheckpointError
        As `load_state`, or if names or shapes differ from the module's; the first few are listed.
    """
    state = load_state(path)
    check_state(state, module, path)
    module.load_state_dict(state, strict=False)


def check_state(
    state: Mapping[str, Tensor], module: nn.Module, path: str | os.PathLike[str]
) -> None:
    """Raise `CheckpointError` unless a state's names and shapes are the module's.

    ``path`` only names the file in the message.
    """
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    loaded = {_storage(own[k]) for k in state if k in own}
    missing = [
        k
        for k, v in own.items()
        if k not in state
        and k.rpartition(".")[2] != "num_batches_tracked"
        and _storage(v) not in loaded
    ]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} has shape {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    problems = [
        f"{title} {_shorten(names)}"
        for title, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("wrong shape:", shapes),
        )
        if names
    ]
    if not problems:
        return
    for prefix in ("module.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            problems.append(
                f"every name begins with {prefix!r}: save the state of the wrapped module instead"
            )
    message = f"{path}: does not fit {type(module).__name__}: " + "; ".join(problems)
    raise CheckpointError(message)


def save_state(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write parameters to a safetensors file, which appears complete or not at all.

    Parameters
    ----------
    state : tensors of any device and layout; not modified. Tensors that share memory (tied
        parameters) are written one by one, so that every name can be read back.
    path : replaced if it exists
    metadata : stored in the file's header

    Raises
    ------
    TypeError
        If a value is not a dense tensor.
    OSError
        If the file cannot be written; nothing is left behind.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            message = f"state[{key!r}] must be a dense tensor, got {kind}"
            raise TypeError(message)
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    save_tensors(Path(path), tensors, {"format": "pt", **(metadata or {})})


def _load(path: str | os.PathLike[str], device: str) -> dict[str, Tensor]:
    path = Path(path)
    if path.is_dir():
        message = f"{path}: is a folder; name the checkpoint file in it"
        raise CheckpointError(message)
    if not path.exists():
        message = f"{path}: no such file"
        raise CheckpointError(message)
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        message = (
            f"{path}: unknown kind of checkpoint {suffix!r}; "
            f"expected .safetensors, {', '.join(TORCH_SUFFIXES)}"
        )
        raise CheckpointError(message)
    try:
        with path.open("rb") as file:  # the readers' errors about permissions are less clear
            empty = not file.read(1)
        if empty:
            message = f"{path}: the file is empty"
            raise CheckpointError(message)
        state = (
            _read_safetensors(path, device)
            if suffix == ".safetensors"
            else _read_torch(path, device)
        )
    except OSError as error:
        message = f"{path}: cannot be read: {error}"
        raise CheckpointError(message) from error
    if not state:
        message = f"{path}: holds no tensors"
        raise CheckpointError(message)
    return state


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            if device == "cpu":
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: torch.empty(
                    part.get_shape(), dtype=_DTYPES.get(part.get_dtype()), device="meta"
                )
                for key, part in slices.items()
            }
    except safetensors.SafetensorError as error:
        message = f"{path}: truncated, corrupt or not a safetensors file: {error}"
        raise CheckpointError(message) from error


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_torch(path: Path, device: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():  # about pickle protocols: the outcome says what matters
            warnings.simplefilter("ignore")
            content = torch.load(path, weights_only=True, map_location=device)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"asks to call {wanted[1]}"
            if wanted
            else "is damaged or holds other things than tensors"
        )
        message = (
            f"{path}: refused, because it {what}, and loading that could run code. If you trust "
            "the file, load it where it was made and save the parameters alone: "
            'torch.save(model.state_dict(), "model.pt")'
        )
        raise CheckpointError(message) from error
    except Exception as error:  # a damaged pickle or archive can raise anything
        message = f"{path}: truncated, corrupt or not written by torch.save: {_first_line(error)}"
        raise CheckpointError(message) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the dict of tensors in what torch.load returned."""
    if not isinstance(content, Mapping):
        message = f"{path}: holds a {type(content).__name__}, expected a dict of tensors"
        raise CheckpointError(message)
    candidates = [
        content,
        *(content[k] for k in NESTED_KEYS if isinstance(content.get(k), Mapping)),
    ]
    for candidate in candidates:
        if candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(k): v for k, v in candidate.items()}
    inner = candidates[-1]
    if not inner:
        return {}
    others = [f"{k} ({type(v).__name__})" for k, v in inner.items() if not isinstance(v, Tensor)]
    message = (
        f"{path}: holds no dict of tensors, by itself or under "
        f"{' or '.join(map(repr, NESTED_KEYS))}; not tensors: {_shorten(others)}"
    )
    raise CheckpointError(message)


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tied tensors, different for others (those without memory included)."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
