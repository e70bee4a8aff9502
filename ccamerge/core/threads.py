"""The native core's threads, and one BLAS thread under them.

OpenBLAS worker threads that spin below our own made solves up to fifty times slower on a busy
machine, so every native call that computes runs with a single BLAS thread and parallelises over
blocks itself. The limit is process-wide, hence counted: it is lifted when the last call ends.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

from ccamerge import _core
from ccamerge._core import num_threads
from ccamerge.core import arguments

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

__all__ = ["num_threads", "set_num_threads", "single_blas_thread"]


def set_num_threads(count: int) -> None:
    """Set the number of threads of the native core, whatever limits it otherwise.

    Parameters
    ----------
    count
        In 1..1024; more than there are cores gain nothing.
    """
    found = arguments.integer(count, "count")
    if not 1 <= found <= _core.most_threads:
        message = f"count must be in 1..{_core.most_threads}, got {arguments.shown(found)}"
        raise ValueError(message)
    _core.set_num_threads(found)


class _SingleBlasThread:
    """Reentrant, thread-safe context manager: BLAS runs on one thread while anyone is inside.

    A signal handler may enter and leave it between any two steps of the thread that it interrupts.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside = 0
        self._controller: ThreadpoolController | None = None
        self._limit: Any = None
        os.register_at_fork(after_in_child=self._forked)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._limit is None:
                if self._controller is None:  # SciPy's BLAS was loaded by importing _core
                    self._controller = ThreadpoolController()
                limit = self._controller.limit(limits=1, user_api="blas")
                if self._limit is None:  # else a handler's call has set it, from what it was before
                    self._limit = limit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._lift()

    def _lift(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.restore_original_limits()

    def _forked(self) -> None:
        """Forget the calls of the parent's other threads, which are not here."""
        self._lock = threading.RLock()
        self._inside = 0
        self._lift()


single_blas_thread = _SingleBlasThread()
