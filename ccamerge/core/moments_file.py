"""What moments are as plain arrays: the entries of their state, and the file that holds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal, TypeAlias

    import numpy.typing as npt

    Pairs: TypeAlias = Literal["reference", "all", "none"]
    State: TypeAlias = Mapping[str, npt.NDArray[Any]]

_FORMAT = "ccamerge.moments"
_VERSION = 1

PAIRS: tuple[Pairs, Pairs, Pairs] = ("none", "reference", "all")
"""A state holds the index in it."""


def entry(state: State, name: str, dtype: Any, ndim: int) -> Any:
    """An entry; ValueError if it is missing, of another dtype or number of axes, or not finite."""
    if name not in state:
        msg = f"entry {name!r} is missing"
        raise ValueError(msg)
    array = np.require(state[name], requirements="A")
    if array.dtype != dtype or array.ndim != ndim:
        msg = (
            f"entry {name!r} must be {np.dtype(dtype)} with {ndim} axes, "
            f"got {array.dtype} with {array.ndim}"
        )
        raise ValueError(msg)
    if dtype is np.float64 and not np.isfinite(array).all():
        msg = f"entry {name!r} is not finite"
        raise ValueError(msg)
    return array


def save_state(path: str | os.PathLike[str], state: State) -> None:
    """Write a safetensors file, beside ``path`` first and then renamed into place."""
    from ccamerge.core.tensorfile import save_tensors  # imports torch: only where it is needed

    save_tensors(path, state, {"format": _FORMAT, "version": str(_VERSION)})


def load_state(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read what `save_state` wrote; ValueError, naming the file, for a foreign or newer one."""
    from ccamerge.core.tensorfile import load_tensors

    tensors, meta = load_tensors(path)
    msg = None
    if meta.get("format") != _FORMAT:
        msg = "not written by ccamerge.Moments.save"
    elif meta.get("version") != str(_VERSION):
        msg = f"version {meta.get('version')!r}, but this ccamerge reads {_VERSION}"
    if msg is not None:
        msg = f"cannot load moments from {os.fspath(path)!r}: {msg}"
        raise ValueError(msg)
    return {key: tensor.numpy() for key, tensor in tensors.items()}
