"""One BLAS thread under the core's own threads.

OpenBLAS worker threads that spin below our own made solves up to fifty times slower on a busy
machine, so every native call that computes runs with a single BLAS thread and parallelises over
blocks itself. The limit is process-wide, hence counted: it is lifted when the last call ends.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

from ccamerge._core import num_threads, set_num_threads

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

__all__ = ["num_threads", "set_num_threads", "single_blas_thread"]


class _SingleBlasThread:
    """Reentrant, thread-safe context manager: BLAS runs on one thread while anyone is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._controller: ThreadpoolController | None = None
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                if self._controller is None:  # SciPy's BLAS was loaded by importing _core
                    self._controller = ThreadpoolController()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()
                self._limit = None


single_blas_thread = _SingleBlasThread()
