"""Statistics counted beside the forward passes, so that neither waits for the other.

On a GPU the operations of the networks are on the caller's stream and what counts their values is
on a stream of its own. Values must live until they are counted. Instead of leaving that to the
allocator (``record_stream``), whose memory would then depend on how far the host runs ahead, they
are held for a few operations more; by then the caller's stream waits until they are counted, and
memory that comes free is reused in the order of that stream. The host waits for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ccamerge.core.device import Device

LEAD = 4
"""Counted values that the forward passes may be ahead of their counting: enough to have work for
both streams at any time."""


class SideStream:
    """A side stream for what is counted; on the CPU everything is done at once."""

    def __init__(self, device: Device | None) -> None:
        self._side = None if device is None else device.side_stream()
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    @contextmanager
    def counting(self, values: Any) -> Iterator[None]:
        """What is launched inside reads ``values``, which earlier work on the caller's stream made.

        Leaving waits for the count before the last `LEAD` on the caller's stream.
        """
        if self._side is None:
            yield
            return
        main = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            yield
            self._held.append((self._side.record_event(), values))
        while len(self._held) > LEAD:
            main.wait_event(self._held[0][0])
            self._held.popleft()

    def join(self) -> None:
        """What is launched on the caller's stream from here on finds everything counted."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)
        self._held.clear()
