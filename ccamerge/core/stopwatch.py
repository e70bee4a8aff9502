"""What each stage of a merge takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ccamerge.core.device import Device


class Stopwatch:
    """Seconds spent in each stage, and the process's largest resident memory up to its end.

    What a stage left to do on a device counts as its own.
    """

    def __init__(self, device: Device | None) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Take the time of what happens inside."""
        start = time.perf_counter()
        yield
        if self._device is not None:
            self._device.synchronize()
        self.seconds[stage] = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on Linux
        self.peak_bytes[stage] = peak * 1024
