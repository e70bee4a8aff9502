"""Functions run in processes of one group of `torch.distributed`, for tests.

``python -m tests.together MODULE FUNCTION WORLD FOLDER`` forks them after torch was imported, which
takes most of the time. Each calls the function with its rank and the folder.
"""

from __future__ import annotations

import datetime
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

import ccamerge


def together(function: Callable[[int, Path], None], world: int, folder: Path) -> list[str]:
    """Run a function of a module in so many processes; what each failed with, or nothing."""
    (folder / "store").unlink(missing_ok=True)
    alone = environment_in(folder)
    command = [sys.executable, "-m", "tests.together", function.__module__, function.__name__]
    done = subprocess.run(
        [*command, str(world), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=alone,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return [(folder / f"{rank}.error").read_text() for rank in range(world)]


def environment_in(folder: Path) -> dict[str, str]:
    """For ``python -m tests...`` in a folder: these tests, and the package that is tested.

    Where the tests lie, the package's sources would hide what is installed.
    """
    tests = folder / "tests"
    if not tests.exists():
        tests.symlink_to(Path(__file__).parent)
    here = os.pathsep.join([str(Path(ccamerge.__file__).parents[1]), *filter(None, sys.path)])
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": here, **one}


def _one(function: Callable[[int, Path], None], rank: int, world: int, folder: Path) -> None:
    error = "ended without a word"
    try:
        torch.set_num_threads(1)
        ccamerge.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=60),
        )
        function(rank, folder)
        error = ""
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    finally:
        (folder / f"{rank}.error").write_text(error)
        os._exit(0)


def main(module: str, name: str, world: int, folder: Path) -> None:
    """Fork, and wait for all."""
    function = getattr(importlib.import_module(module), name)
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            _one(function, rank, world, folder)
        children.append(child)
    deadline = time.monotonic() + 150
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                for each in children:
                    os.kill(each, 9)
                message = "they hang"
                raise TimeoutError(message)
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
