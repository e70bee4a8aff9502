"""
Native core of ccamerge: streamed moments and batched solves on the CPU.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['Moments', 'cuda_built', 'kernel_in_use', 'kernel_names', 'most_threads', 'num_threads', 'num_threads_reason', 'polar_batch', 'runs_on_torch_threads', 'select_kernels', 'set_num_threads', 'set_scratch', 'solve_cca_batch', 'solve_gevp_batch', 'solve_universe_batch', 'update_many', 'whiten']
class Moments:
    """
    Streamed count, means and second moments of models' features.
    """
    def __init__(self, dims: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], pairs: str, reference: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def block_pairs(self) -> list[tuple[int, int]]:
        """
        The collected blocks, (row, column).
        """
    def count(self) -> int:
        """
        Samples seen.
        """
    def covariance(self, row: typing.SupportsInt | typing.SupportsIndex, column: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
        """
        Second central moment over count, (d_row, d_column).
        """
    def has(self, row: typing.SupportsInt | typing.SupportsIndex, column: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether the block is collected.
        """
    def mean(self, model: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float64]:
        """
        Mean, (d,).
        """
    def merge(self, other: Moments) -> None:
        """
        Adds another's samples.
        """
    def restore(self, count: typing.SupportsInt | typing.SupportsIndex, means: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], shifts: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], blocks: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]]) -> None:
        """
        Sets everything; blocks in block_pairs() order.
        """
    def state(self) -> tuple:
        """
        All of it at one moment: count, means, shifts and centred second moments, not divided.
        """
    def subset(self, models: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], pairs: str, reference: typing.SupportsInt | typing.SupportsIndex) -> Moments:
        """
        Moments of some models.
        """
    @property
    def dims(self) -> list[int]:
        """
        Features of each model.
        """
    @property
    def pairs(self) -> str:
        """
        Which cross blocks are collected.
        """
    @property
    def reference(self) -> int:
        """
        The reference model's index.
        """
def kernel_in_use() -> str:
    """
    The instruction set in use.
    """
def kernel_names() -> list[str]:
    """
    Instruction sets that the inner loops can use here.
    """
def num_threads() -> int:
    """
    Threads the core uses: what set_num_threads said, else the least of the cores this process may run on, its cgroup's quota, OMP_NUM_THREADS and torch's own number.
    """
def num_threads_reason() -> str:
    """
    What decided num_threads().
    """
def polar_batch(matrices: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], names: collections.abc.Sequence[str]) -> list:
    ...
def runs_on_torch_threads() -> bool:
    """
    Whether the threads are torch's while cores are free, instead of the core's own.
    """
def select_kernels(name: str) -> None:
    """
    Chooses the inner loops, for tests and comparisons.
    """
def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets the number of threads, in 1..most_threads.
    """
def set_scratch(folder: str, bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Have moments made from now on keep blocks of at least so many bytes in files of a folder; an empty folder means memory.
    """
def solve_cca_batch(problems: collections.abc.Sequence[tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64]]], names: collections.abc.Sequence[str], values: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], absolute: bool, correlations: bool, weights: bool) -> list:
    ...
def solve_gevp_batch(problems: collections.abc.Sequence[tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.SupportsInt | typing.SupportsIndex]], names: collections.abc.Sequence[str], value: typing.SupportsFloat | typing.SupportsIndex, absolute: bool) -> list:
    ...
def solve_universe_batch(problems: collections.abc.Sequence[tuple[collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float64]], collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], typing.SupportsFloat | typing.SupportsIndex | None]], names: collections.abc.Sequence[str], absolute: bool, reference: typing.SupportsInt | typing.SupportsIndex, tolerance: typing.SupportsFloat | typing.SupportsIndex, sweeps: typing.SupportsInt | typing.SupportsIndex) -> list:
    ...
def update_many(updates: collections.abc.Sequence[tuple[Moments, collections.abc.Sequence]], axes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], mask: numpy.typing.NDArray[numpy.bool] | None) -> None:
    """
    Adds features, one sequence of arrays for each Moments; all or nothing.
    """
def whiten(s: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], value: typing.SupportsFloat | typing.SupportsIndex, absolute: bool, symmetric: bool, name: str) -> tuple:
    ...
cuda_built: bool = True
most_threads: int = 1024
