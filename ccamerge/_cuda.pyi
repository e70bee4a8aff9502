"""Moments and batched solves on CUDA devices.

Memory is the caller's, by DLPack or from `allocate`; work is put on a stream, given by its address.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy
import numpy.typing

Allocate: TypeAlias = Callable[[int], Any]
FloatArray: TypeAlias = numpy.typing.NDArray[numpy.float64]
Part: TypeAlias = tuple[Any, int, tuple[int, ...]]
"""Of memory that `allocate` returned: the memory, an offset in bytes, and a shape; float64."""

emulated: bool

class Device:
    """A CUDA device."""

    @property
    def name(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def multiprocessors(self) -> int: ...

def devices() -> list[Device]: ...
def runtime_version() -> int: ...
def load_libraries(cublas: Sequence[str], cusolver: Sequence[str]) -> None: ...

class Moments:
    """Streamed count, means and second moments of models' features."""

    def __init__(
        self,
        dims: Sequence[int],
        pairs: str,
        reference: int,
        allocate: Allocate,
        device: int,
        stream: int,
    ) -> None: ...
    @property
    def dims(self) -> list[int]: ...
    @property
    def pairs(self) -> str: ...
    @property
    def reference(self) -> int: ...
    @property
    def device(self) -> int: ...
    def has(self, row: int, column: int) -> bool: ...
    def block_pairs(self) -> list[tuple[int, int]]: ...
    def count(self, stream: int) -> int: ...
    def mean(self, model: int, stream: int) -> FloatArray: ...
    def covariance(self, row: int, column: int, stream: int) -> FloatArray: ...
    def state(
        self, stream: int
    ) -> tuple[int, list[FloatArray], list[FloatArray], list[FloatArray]]: ...
    def covariance_into(self, row: int, column: int, out: Any, stream: int) -> None: ...
    def mean_into(self, model: int, out: Any, stream: int) -> None: ...
    def merge(self, other: Moments, stream: int) -> None: ...
    def subset(self, models: Sequence[int], pairs: str, reference: int, stream: int) -> Moments: ...
    def restore(
        self,
        count: int,
        means: Sequence[FloatArray],
        shifts: Sequence[FloatArray],
        blocks: Sequence[FloatArray],
        stream: int,
    ) -> None: ...

def check_many(moments: Sequence[Moments], stream: int) -> list[int]: ...
def update_many(
    updates: Sequence[tuple[Moments, Sequence[Any]]],
    axes: Sequence[int],
    mask: Any,
    stream: int,
    label: str,
) -> None: ...
def solve_cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    names: Sequence[str],
    values: Sequence[float],
    absolute: bool,
    correlations: bool,
    weights: bool,
    allocate: Allocate,
    device: int,
    stream: int,
) -> list[tuple[Any, ...]]: ...
def polar_batch(
    matrices: Sequence[Any], names: Sequence[str], allocate: Allocate, device: int, stream: int
) -> list[tuple[Any, ...]]: ...
def whiten(
    s: Any,
    value: float,
    absolute: bool,
    symmetric: bool,
    name: str,
    allocate: Allocate,
    device: int,
    stream: int,
) -> tuple[Any, ...]: ...
def solve_gevp_batch(
    problems: Sequence[tuple[Any, Any, int]],
    names: Sequence[str],
    value: float,
    absolute: bool,
    allocate: Allocate,
    device: int,
    stream: int,
) -> list[tuple[Any, ...]]: ...
def solve_universe_batch(
    problems: Sequence[tuple[Sequence[Any], Sequence[Any], Sequence[float], float | None]],
    names: Sequence[str],
    absolute: bool,
    reference: int,
    tolerance: float,
    sweeps: int,
    allocate: Allocate,
    device: int,
    stream: int,
) -> list[tuple[Any, ...]]: ...
