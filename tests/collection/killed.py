"""Collections that are killed, with SIGKILL, at random moments, and resumed until they end.

``python -m tests.collection.killed --kills 50`` runs `ccamerge collect --resume` in children of its
own, with ``--processes 2`` in pairs that share the pass, until so many were killed. Whenever one
ends by itself its file must have the bytes of an undisturbed run, and nothing may be left beside.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ccamerge.checkpoints.reading import save_state
from ccamerge.cli import main as ccamerge

MODULE = '''\
"""A user's module: networks whose moments take a while to write, and batches that take one to read.
"""
import time
import torch
from torch import nn


def network():
    first = nn.Linear(8, 192), nn.ReLU(), nn.Linear(192, 160), nn.ReLU()
    return nn.Sequential(*first, nn.Linear(160, 4))


def batches():
    generator = torch.Generator().manual_seed(0)
    for index in range(40):
        time.sleep(0.01)
        yield torch.randn(5 + index % 7, 8, generator=generator)
'''

CONFIG = """\
models:
  - model: 0.safetensors
  - model: 1.safetensors
architecture: {factory: killed_module:network}
data: {factory: killed_module:batches}
"""


OFTEN = ("--checkpoint-every", "0.001s")
"""After every batch, so that many kills come while a file is written."""


def make(folder: Path) -> None:
    """A project: a module, two networks and a configuration."""
    (folder / "killed_module.py").write_text(MODULE)
    (folder / "merge.yml").write_text(CONFIG)
    namespace: dict[str, object] = {}
    exec(MODULE, namespace)
    for seed in range(2):
        torch.manual_seed(seed)
        state = namespace["network"]().state_dict()  # type: ignore[operator]
        save_state(state, folder / f"{seed}.safetensors")


def collect(*options: str) -> int:
    """The command, with one thread, since children are forked; its status."""
    return ccamerge(
        ["collect", "merge.yml", "stats.safetensors", "--quiet", "--threads", "1", *options]
    )


def start(world: int, *options: str) -> list[int]:
    """A collection in children, as torchrun would start them; their processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            os.environ.update(where, RANK=str(rank), WORLD_SIZE=str(world))
            status = 1
            try:
                status = collect(*options)
            finally:
                os._exit(status)
        children.append(child)
    return children


def end_within(children: Sequence[int], seconds: float) -> bool:
    """Whether children end by themselves in some time, and well; else they are killed."""
    deadline, left = time.monotonic() + seconds, list(children)
    while left and time.monotonic() < deadline:
        found, status = os.waitpid(left[0], os.WNOHANG)
        if found:
            assert status == 0, f"a collection failed: {os.waitstatus_to_exitcode(status)}"
            left.pop(0)
        else:
            time.sleep(0.002)
    for child in left:
        os.kill(child, signal.SIGKILL)
    ended = [os.waitpid(child, 0)[1] == 0 for child in left]  # of all, or they stay as zombies
    return all(ended)


def main(kills: int, seed: int, processes: int) -> tuple[int, int]:
    """Kill so many; the collections that ended, and the kills that found a checkpoint."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        os.chdir(folder)
        try:
            return _killed(folder, kills, random.Random(seed), processes)
        finally:
            os.chdir(here)


def _killed(folder: Path, kills: int, draws: random.Random, world: int) -> tuple[int, int]:
    result = folder / "stats.safetensors"
    before = {p.name for p in folder.iterdir()}
    assert collect() == 0  # here, so that children find everything imported
    result.unlink()
    begun = time.monotonic()
    assert end_within(start(world, *OFTEN), 120)
    usual = time.monotonic() - begun
    whole = result.read_bytes()
    result.unlink()
    ended = found = done = 0
    while done < kills or ended == 0:
        wait = draws.uniform(0, 1.2 * usual) if done < kills else 120.0
        if not end_within(start(world, "--resume", *OFTEN), wait):
            done, kept = done + 1, any(folder.glob("stats.checkpoint*"))
            found += kept
            if kept or not result.exists():
                continue  # else all was done but for the process's end
        ended += 1
        assert result.read_bytes() == whole, f"other bytes after {done} kills"
        left = {p.name for p in folder.iterdir()} - before - {"__pycache__"}
        assert left == {result.name}, left
        result.unlink()
    return ended, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    print("collections ended: {}, kills that left a checkpoint: {}".format(*main(**vars(given))))
