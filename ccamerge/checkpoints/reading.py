"""Reading and writing parameters: safetensors, and torch's own files without running their code."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ccamerge.checkpoints.files import CheckpointError, Tell, read, shard_hint
from ccamerge.checkpoints.ties import conflicts, tied_pairs, written
from ccamerge.checkpoints.wrappings import name_hint, shorten, wrapped_in
from ccamerge.core import arguments
from ccamerge.core.tensorfile import save_tensors

__all__ = [
    "CheckpointError",
    "check_file",
    "check_state",
    "load_into",
    "load_shapes",
    "load_state",
    "save_state",
    "unwrapped",
]

log = logging.getLogger("ccamerge")

COUNTER = "num_batches_tracked"
"""BatchNorm's, which nothing but training reads: it may be missing, or of any real dtype."""


def load_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the parameters in a checkpoint file, onto the CPU.

    Parameters
    ----------
    path : a ``.safetensors`` file; a ``.safetensors.index.json`` with its shards beside it; a
        folder with either of them under the name ``model``; or a ``.pt``, ``.pth``, ``.bin`` or
        ``.ckpt`` written by torch that holds a dict of tensors, by itself or under a usual key
        (``ccamerge.checkpoints.wrappings.WRAPPERS``). Torch's files are always read with
        ``weights_only=True``: code in them is refused, not run.

    Raises
    ------
    CheckpointError
        If the file is missing, empty, truncated, corrupt, would run code, holds no tensors or
        several sets of parameters that differ; if a folder or index does not lead to one
        checkpoint, or a shard or a tensor of it is missing.
    """
    return read(arguments.path(path, "path"), "cpu", log.info)


def load_shapes(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Do as `load_state` with tensors on the meta device: names, shapes and dtypes only.

    Of a safetensors file only the header is read.
    """
    return read(arguments.path(path, "path"), "meta", log.debug)


def load_into(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Set all parameters and buffers of a module from a checkpoint file.

    Strict: names and shapes must agree, except that BatchNorm's ``num_batches_tracked`` may be
    missing, and of tied parameters those suffice that hold all elements. What data parallelism,
    ``torch.compile`` or Lightning put before or into all names is taken away where they then fit,
    and a warning in the log says so. Floating-point numbers are converted to the module's
    precision; other dtypes must be of the module's kind. On an error the module is left as it was.

    Raises
    ------
    CheckpointError
        As `load_state`, or if names, shapes or dtypes differ from the module's, numbers are too
        large for its precision, or tied names have different values; the first few are listed.
    """
    module, path = arguments.module(module, "module"), arguments.path(path, "path")
    state = unwrapped(load_state(path), _names(module), path, log.warning)
    check_state(state, module, path)
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        message = f"{path}: cannot be loaded into {type(module).__name__}: {error}"
        raise CheckpointError(message) from error


def check_file(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Tensor]:
    """Check as `load_into` what can be checked without reading more of the file than it takes.

    Values are read where a module's tied parameters all are in the file.

    Returns
    -------
    As `load_shapes`.

    Raises
    ------
    CheckpointError
        As `load_into`.
    """
    own = _names(module)
    shapes = unwrapped(load_shapes(path), own, path, log.debug)
    check_state(shapes, module, path)
    if tied_pairs(_tensors(module), shapes):
        check_state(unwrapped(load_state(path), own, path, log.debug), module, path)
    return shapes


def unwrapped(
    state: dict[str, Tensor], own: Collection[str], path: str | os.PathLike[str], tell: Tell
) -> dict[str, Tensor]:
    """A state under a network's own names, if a usual wrapper put something before or into them.

    Parameters
    ----------
    state : of a file
    own : the network's names
    path : names the file in what ``tell``, a logger's method, is told of what was taken away
    """
    extra = wrapped_in(state, own)
    if not extra:
        return state
    tell("%s: names were taken without %r, which a wrapper put there", path, extra)
    if all(key.startswith(extra) for key in state):
        return {key.removeprefix(extra): value for key, value in state.items()}
    return {key.replace(extra, ""): value for key, value in state.items()}


def check_state(
    state: Mapping[str, Tensor], module: nn.Module, path: str | os.PathLike[str]
) -> None:
    """Raise `CheckpointError` unless a state's names, shapes and dtypes are the module's.

    Parameters
    ----------
    state : tensors, whose values are checked too unless they are on the meta device
    module : that the state is for
    path : names the file in the message
    """
    own = _tensors(module)
    wanted = {k: v for k, v in own.items() if k.rpartition(".")[2] != COUNTER}
    there = written(own, {k for k in state if k in own})
    missing = [k for k in wanted if k not in there]
    unexpected = [k for k in state if k not in own]
    both = [k for k in state if k in own]
    shapes = [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in both
        if state[k].shape != own[k].shape
    ]
    kinds = [_wrong_kind(k, state[k], own[k]) for k in both]
    problems = [
        f"{title} {shorten(names)}"
        for title, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("wrong shape:", shapes),
            ("wrong dtype:", [text for text in kinds if text]),
        )
        if names
    ]
    if missing or unexpected:
        given = [k for k in state if k.rpartition(".")[2] != COUNTER]
        hints = (name_hint(given, list(wanted)), shard_hint(Path(path)))
        problems += [hint for hint in hints if hint]
    if not problems:
        problems = _wrong_values(state, own)
    if problems:
        message = f"{path}: does not fit {type(module).__name__}: " + "; ".join(problems)
        raise CheckpointError(message)


def _names(module: nn.Module) -> list[str]:
    return [key for key, value in module.state_dict().items() if isinstance(value, Tensor)]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, which values can be loaded into."""
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    for key, value in own.items():
        if value.device.type == "meta" or nn.parameter.is_lazy(value):
            what = "on the meta device" if value.device.type == "meta" else "not initialised yet"
            message = f"{type(module).__name__}: {key} is {what}, nothing can be loaded into it"
            raise CheckpointError(message)
    return own


def _wrong_kind(key: str, value: Tensor, own: Tensor) -> str | None:
    """Why a tensor of the file cannot stand for one of the module, by their dtypes."""
    found, expected = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, own.dtype))
    if value.layout != torch.strided:
        return f"{key} is {str(value.layout).removeprefix('torch.')}, expected a dense tensor"
    if value.dtype == own.dtype and not value.is_quantized:
        return None
    kinds = [_kind(dtype) for dtype in (value.dtype, own.dtype)]
    if key.rpartition(".")[2] == COUNTER and kinds[0] in ("real", "whole"):
        return None
    if kinds[0] == kinds[1] and kinds[0] in ("real", "complex"):
        return None
    if kinds == ["whole", "whole"] and torch.promote_types(value.dtype, own.dtype) == own.dtype:
        return None
    hint = ""
    if kinds[1] in ("real", "complex") and kinds[0] in ("whole", "code"):
        hint = " (codes of quantised numbers? dequantise them where their scales are known)"
    return f"{key} is {found}, expected {expected}{hint}"


def _kind(dtype: torch.dtype) -> str:
    """What numbers of a dtype are; "code" are those that mean nothing without a scale."""
    if dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return "real"
    if dtype.is_complex:
        return "complex"
    if dtype == torch.bool:
        return "bool"
    whole = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
    return "whole" if str(dtype).removeprefix("torch.") in whole else "code"


def _wrong_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Values that the module could not take as they are; names, shapes and dtypes fit."""
    values = {k: v for k, v in state.items() if v.device.type != "meta"}
    large = [k for k, v in values.items() if overflows(v, own[k].dtype)]
    problems = []
    if large:
        named = [f"{k} in {str(own[k].dtype).removeprefix('torch.')}" for k in large]
        problems.append(f"numbers too large for the module's precision: {shorten(named)}")
    tied = [f"{a} and {b}" for a, b in conflicts(own, values)]
    if tied:
        problems.append(
            f"tied in the network, but with different values in the file: {shorten(tied)}; untie "
            "them in the network, or leave the one that is not meant out of the file"
        )
    return problems


def overflows(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite numbers become infinite in another floating-point or complex dtype."""
    if not (value.is_floating_point() or value.is_complex()) or not (
        dtype.is_floating_point or dtype.is_complex
    ):
        return False
    if torch.finfo(dtype).max >= torch.finfo(value.dtype).max:
        return False
    return bool((value.isfinite() & ~value.to(dtype).isfinite()).any())


def save_state(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write parameters to a safetensors file, which appears complete or not at all.

    The same parameters and metadata give the same bytes.

    Parameters
    ----------
    state : tensors of any device and layout; not modified. Tensors that share memory (tied
        parameters) are written one by one, so that every name can be read back.
    path : replaced if it exists
    metadata : stored in the file's header

    Raises
    ------
    TypeError
        If a value is not a dense tensor, or of a type that safetensors does not know.
    OSError
        If the file cannot be written; nothing is left behind.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in arguments.mapping(state, "state", "a dict of tensors").items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            message = f"state[{key!r}] must be a dense tensor, got {kind}"
            raise TypeError(message)
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    about = arguments.mapping({} if metadata is None else metadata, "metadata", "a dict of strings")
    for key, text in about.items():
        arguments.string(text, f"metadata[{key!r}]")
    save_tensors(path, tensors, {"format": "pt", **about})
