"""Commands that several processes run together, as ``torchrun`` starts them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that say which process this is, and where the others are."""


def several_processes() -> bool:
    """Whether this is one of several processes that were started together."""
    return all(os.environ.get(name) for name in _TOLD) and os.environ["WORLD_SIZE"] != "1"


@contextmanager
def sharing(args: argparse.Namespace) -> Iterator[bool]:
    """Let `ccamerge.collect` find the other processes inside, if there are any.

    Gives whether this is the first of them, which alone writes, and tells what it does; "cuda" is
    another device in each process of a machine.
    """
    if not several_processes():
        yield True
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("gloo")
    try:
        first = distributed.get_rank() == 0
        args.quiet = args.quiet or not first
        yield first
    finally:
        distributed.destroy_process_group()
