"""What the batched solves share: matrices and regularisers as they are passed on, and to whom.

Solves run on the CPU, from NumPy to NumPy, or on a CUDA device, from torch's tensors to tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ccamerge import _core
from ccamerge.core import arguments
from ccamerge.core.device import array_device, resolve
from ccamerge.core.threads import single_blas_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ccamerge.core.device import DeviceLike

Array: TypeAlias = Any
"""A result, in float64: an array of NumPy, or a tensor of torch where a device solved it."""


class Solver:
    """Solves a call's problems where its matrices are, or where the caller wants it.

    Parameters
    ----------
    device : as users give it; None is where the matrices are
    matrices : all matrices of the call, as users give them

    Raises
    ------
    As `ccamerge.core.device.resolve`.
    """

    def __init__(self, device: DeviceLike | None, matrices: Iterable[Any]) -> None:
        self._chosen = device is not None
        self.device = resolve(device)
        if not self._chosen:
            self.device = next((d for d in map(array_device, matrices) if d is not None), None)
        # The core sees what problems share as shared. Each object is held: its id stays its own.
        self._seen: dict[int, tuple[Any, Any]] = {}

    def matrix(self, value: Any, name: str) -> Any:
        """A matrix in C order and float64, converted once; a view where it already is that."""
        known = self._seen.get(id(value))
        if known is None:
            convert = _as_array if self.device is None else self._as_tensor
            known = self._seen[id(value)] = (value, convert(value, name))
        return known[1]

    def square(self, value: Any, name: str) -> Any:
        """As `matrix`; ValueError unless it is square."""
        matrix = self.matrix(value, name)
        if matrix.shape[0] != matrix.shape[1]:
            message = f"{name} must be square, got shape {tuple(matrix.shape)}"
            raise ValueError(message)
        return matrix

    def run(self, function: str, *arguments: Any) -> Any:
        """What a function of the native module returns; a device's arrays as tensors."""
        if self.device is None:
            with single_blas_thread:
                return getattr(_core, function)(*arguments)
        from ccamerge import _cuda

        device = self.device
        native = getattr(_cuda, function)
        with device.active(), single_blas_thread:  # what is rare is solved on the CPU
            found = native(*arguments, device.allocate, device.index, device.stream())
        return self._read(found)

    def _read(self, found: Any) -> Any:
        """Results with tensors in the place of (memory, offset, shape)."""
        if isinstance(found, tuple) and hasattr(found[0], "data_ptr"):
            assert self.device is not None
            return self.device.view(*found)
        if isinstance(found, (list, tuple)):
            return [self._read(item) for item in found]
        return found

    def _as_tensor(self, value: Any, name: str) -> Tensor:
        import torch
        from torch.utils.dlpack import from_dlpack

        assert self.device is not None
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
        elif array_device(value) is not None:
            tensor = from_dlpack(value)
        else:
            tensor = torch.from_numpy(np.require(_as_array(value, name), requirements="W"))
        if tensor.is_complex() or tensor.dtype == torch.bool:
            message = f"{name} must be real, got {tensor.dtype}"
            raise TypeError(message)
        _check_matrix(tensor.shape, name)
        if tensor.device != self.device.memory and not self._chosen:
            message = (
                f"{name} must be on {self.device} like others, got an array on {tensor.device}; "
                f"with device='{self.device}' it is copied"
            )
            raise TypeError(message)
        return tensor.to(self.device.memory, torch.float64).contiguous()


def _as_array(value: Any, name: str) -> NDArray[np.float64]:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        if value.device.type != "cpu":
            message = f"{name} must be on the CPU, got a tensor on {value.device}"
            raise TypeError(message)
        if value.is_complex() or str(value.dtype) == "torch.bool":
            message = f"{name} must be real, got {value.dtype}"
            raise TypeError(message)
        value = value.detach().double().numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise arguments.wrong(name, "a real matrix", value) from None
    if array.dtype.kind not in "fiu":
        message = f"{name} must be a real array, got dtype {array.dtype}"
        raise TypeError(message)
    _check_matrix(array.shape, name)
    return np.require(array, np.float64, ["C", "A"])


def _check_matrix(shape: Sequence[int], name: str) -> None:
    if len(shape) != 2 or 0 in shape:
        message = f"{name} must be a non-empty matrix, got shape {tuple(shape)}"
        raise ValueError(message)


def regularisers(
    ridge: float | Sequence[float] | None, gamma: float | Sequence[float] | None
) -> tuple[list[float], bool, bool]:
    """Return the values, whether they are absolute (gamma), and whether a sweep was asked for."""
    if ridge is not None and gamma is not None:
        message = "give ridge or gamma, not both"
        raise ValueError(message)
    absolute = gamma is not None
    name, given = ("gamma", gamma) if absolute else ("ridge", 0.0 if ridge is None else ridge)
    expected = "a number or a sequence of numbers"
    sweep = isinstance(given, (list, tuple, range)) or getattr(given, "ndim", 0) > 0
    nested = isinstance(given, (list, tuple)) and any(isinstance(v, (list, tuple)) for v in given)
    if nested or getattr(given, "ndim", 0) > 1:
        message = f"{name} must be {expected}, got {given!r}"
        raise ValueError(message)
    if sweep:
        every = arguments.items(given, name, expected)
        values = [arguments.number(v, f"{name}[{i}]") for i, v in enumerate(every)]
    else:
        values = [arguments.number(given, name, expected)]
    if not values:
        message = f"{name} must not be an empty sequence"
        raise ValueError(message)
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            message = f"{name} must be finite and not negative, got {value}"
            raise ValueError(message)
    return values, absolute, sweep


def one_regulariser(ridge: float | None, gamma: float | None) -> tuple[float, bool]:
    """The value, and whether it is absolute; TypeError for a sweep."""
    values, absolute, sweep = regularisers(ridge, gamma)
    if sweep:
        message = f"{'gamma' if absolute else 'ridge'} must be a number, got a sequence"
        raise TypeError(message)
    return values[0], absolute


def prefixes_of(name: str, items: Sequence[Any], width: int) -> list[str]:
    """Check that every problem is a tuple of ``width`` and return what errors call each."""
    for i, item in enumerate(arguments.items(items, name, f"a list of tuples of {width} matrices")):
        if not isinstance(item, (tuple, list)) or len(item) != width:
            message = f"{name}[{i}] must be a tuple of {width} matrices, got {type(item).__name__}"
            raise TypeError(message)
    return [f"{name}[{i}]: " for i in range(len(items))]
