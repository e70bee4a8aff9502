"""What checkpoints cost a collection, and what a second process brings it; one thread each.

``python benchmarks/collecting.py``: pairs of ResNet20s, 5,000 images of CIFAR-10 (see `cases.zoo`).
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import Zoo, zoo
from torch import distributed

import ccamerge

TURNS = 3

KINDS: dict[str, dict[str, Any]] = {
    "no checkpoint": {},
    "every 300 s (batches hashed)": {"checkpoint_every": 300.0},
    "every 5 s": {"checkpoint_every": 5.0},
    "after every batch": {"checkpoint_every": 0.0},
}

Times = tuple[float, float]


def collected(given: Zoo, **options: Any) -> Times:
    """Seconds on the wall and of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    ccamerge.collect(given.models[:2], given.batches, pairs="all", progress=False, **options)
    return time.perf_counter() - wall, time.process_time() - cpu


def checkpoints(folder: Path) -> None:
    """Each kind in turn, so that a busy machine slows them alike."""
    given, path = zoo(5000), folder / "checkpoint.safetensors"
    found: dict[str, list[Times]] = {name: [] for name in KINDS}
    for turn in range(TURNS + 1):
        for name, options in KINDS.items():
            path.unlink(missing_ok=True)
            kept = {"checkpoint": path, **options} if options else {}
            times = collected(given, **kept)
            if turn:  # the first traces, and loads what is imported late
                found[name].append(times)
    for name, times in found.items():
        print(f"{name:30} {_medians(times)}", flush=True)
    start = time.perf_counter()
    collected(given, checkpoint=path, resume=True)
    size = path.stat().st_size / 1e6
    print(f"resumed at the end in {time.perf_counter() - start:.2f} s, a file of {size:.0f} MB")


def _medians(times: Sequence[Times]) -> str:
    wall, cpu = (statistics.median(kind) for kind in zip(*times, strict=True))
    return f"wall {wall:6.2f} s  processor {cpu:6.2f} s"


def shared(world: int, folder: Path) -> None:
    """The same by several processes."""

    def one(rank: int) -> None:
        given = zoo(5000)
        if world > 1:
            store = f"file://{folder}/store-{world}"
            limit = datetime.timedelta(minutes=10)
            distributed.init_process_group(
                "gloo", init_method=store, rank=rank, world_size=world, timeout=limit
            )
        times = [collected(given) for _ in range(TURNS + 1)][1:]
        print(f"process {rank} of {world}: {_medians(times)}", flush=True)

    _in_children(one, world)


def _in_children(function: Callable[[int], None], count: int) -> None:
    """Each in a session of its own: a scheduler may share the processor out by sessions."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.setsid()
            torch.set_num_threads(1)
            ccamerge.set_num_threads(1)
            function(rank)
            status = 0
        finally:
            os._exit(status)
    for child in children:
        _, ended = os.waitpid(child, 0)
        assert ended == 0


if __name__ == "__main__":
    print("load of the machine: {:.1f}, {:.1f}, {:.1f}".format(*os.getloadavg()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        for number in (1, 2):
            shared(number, Path(name))
        _in_children(lambda _: checkpoints(Path(name)), 1)
