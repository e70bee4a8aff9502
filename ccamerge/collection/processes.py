"""The processes that share a pass over data: who counts what, and how all of it comes together.

Process r of n counts batches r, r + n, ... Every process sees every batch, and decides alike which
inputs are held out and kept; what was counted is added up at the end, in the order of the
processes. Meanwhile they meet through the store of ``torch.distributed`` alone, and wait for nobody
but at the first batch: one that fails tells the others there, and they look at each batch.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from ccamerge.collection.checkpoint import differences
from ccamerge.core.moments import Moments

PATIENCE = 1800.0
"""Seconds that a process may take for one batch, or come later than another, before the others
take it for lost."""

_LOOK = 0.02
"""Seconds between two looks at what one waits for."""

_FAREWELL = 10.0
"""Seconds that a process which failed waits for others to learn of it: it may keep the store."""

_HINT = "; each has to call collect with the same arguments, or with distributed=False to be alone"

_runs = itertools.count()


class Processes:
    """One of the processes that share a pass; by itself if ``world`` is 1.

    Attributes
    ----------
    rank, world : which of how many
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None) -> None:
        self.rank, self.world = rank, world
        self._beats = 0
        if world > 1:  # the same number in all: each takes part in every shared pass
            prefix = f"ccamerge/collect/{next(_runs)}"
            self._store = distributed.distributed_c10d.PrefixStore(prefix, store)

    @classmethod
    def of(cls, wanted: bool | None) -> Processes:
        """Those of ``torch.distributed``; this one alone if they are not wanted, or there are none.

        Raises
        ------
        ValueError
            If they are wanted by name and ``torch.distributed`` is not initialised.
        """
        there = distributed.is_available() and distributed.is_initialized()
        if wanted and not there:
            message = "distributed=True needs torch.distributed.init_process_group first"
            raise ValueError(message)
        if wanted is False or not there or distributed.get_world_size() == 1:
            return cls()
        store = distributed.distributed_c10d._get_default_store()
        return cls(distributed.get_rank(), distributed.get_world_size(), store)

    def counts(self, index: int) -> bool:
        """Whether a batch is this process's to count."""
        return index % self.world == self.rank

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside is told to the others, which then fail, too."""
        if self.world == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # the store may be what failed
                self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        text = str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else "")
        told = {"rank": self.rank, "text": text or type(error).__name__}
        self._store.compare_set("failed", "", json.dumps(told))
        self._store.set(f"knows/{self.rank}", "")
        everyone = [f"knows/{other}" for other in range(self.world)]
        until = time.monotonic() + _FAREWELL
        while not self._store.check(everyone) and time.monotonic() < until:
            time.sleep(_LOOK)

    def look(self) -> None:
        """Show that this process goes on; RuntimeError, with its message, if another has failed."""
        if self.world == 1:
            return
        self._beats += 1
        try:
            self._store.set(f"beats/{self.rank}", str(self._beats))
            failed = (
                json.loads(self._store.get("failed")) if self._store.check(["failed"]) else None
            )
        except RuntimeError as error:
            message = f"process {self.rank} lost the others, one has probably ended: {error}"
            raise RuntimeError(message) from error
        if failed is not None:
            message = f"process {failed['rank']} of {self.world} failed: {failed['text']}"
            raise RuntimeError(message)

    def check_same(self, name: str, here: Mapping[str, Any]) -> None:
        """Wait for all; ValueError, which says what differs, unless they have the same.

        ``name`` is of this meeting, ``here`` as JSON has it.
        """
        if self.world == 1:
            return
        self._store.set(f"{name}/{self.rank}", json.dumps(here))
        for other in range(self.world):
            there = json.loads(self._awaited(f"{name}/{other}", other))
            if odd := differences(here, there):
                message = f"process {self.rank} is not at what process {other} is: {odd}{_HINT}"
                raise ValueError(message)

    def _awaited(self, key: str, other: int) -> bytes:
        """What a process puts into the store; RuntimeError if one fails, or this is lost."""
        shown, since = b"", time.monotonic()
        self.look()
        while not self._store.check([key]):
            time.sleep(_LOOK)
            self.look()
            beats = f"beats/{other}"
            now = self._store.get(beats) if self._store.check([beats]) else b""
            if now != shown:
                shown, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                message = f"process {other} of {self.world} has not been heard of for "
                message += f"{PATIENCE:g} s{_HINT}"
                raise RuntimeError(message)
        return bytes(self._store.get(key))

    def add_up(self, every: Sequence[Moments]) -> list[Moments]:
        """The moments of all processes together, the same bytes in each.

        Each adds to those of process 0 in turn: the sums are the same for the same number of
        processes. All pass through the memory of the CPU, one after the other.
        """
        if self.world == 1:
            return list(every)
        group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(seconds=PATIENCE))
        try:
            return [self._added(moments, group) for moments in every]
        finally:
            distributed.destroy_process_group(group)

    def _added(self, moments: Moments, group: Any) -> Moments:
        flat = _flat(moments)
        if self.rank:
            distributed.send(flat, 0, group)
        else:
            for other in range(1, self.world):
                distributed.recv(flat, other, group)
                moments.merge(_moments(flat, moments))
            flat = _flat(moments)
        distributed.broadcast(flat, 0, group)
        return _moments(flat, moments) if self.rank else moments


def _flat(moments: Moments) -> torch.Tensor:
    """All that moments hold that adding changes, float64; counts below 2^53 are exact."""
    state = moments.state_dict()
    parts = [np.ravel(part) for part in state.values() if part.dtype == np.float64]
    return torch.from_numpy(np.concatenate([[float(state["count"])], *parts]))


def _moments(flat: torch.Tensor, like: Moments) -> Moments:
    """Moments from what `_flat` made of some that are like others in dims, pairs and device."""
    state, at = like.state_dict(), 1
    values = flat.numpy()
    for key, part in state.items():
        if part.dtype == np.float64:
            state[key] = values[at : at + part.size].reshape(part.shape)
            at += part.size
    state["count"] = np.array(int(values[0]), dtype=np.int64)
    return Moments.from_state(state, like.device)
