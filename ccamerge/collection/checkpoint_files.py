"""How the files are called that keep a pass while it is under way; without torch, for commands."""

from __future__ import annotations

import glob
from pathlib import Path

SUFFIX = ".safetensors"


def checkpoint_beside(out: Path) -> Path:
    """The file that keeps the pass whose result will be ``out``."""
    return out.with_name(f"{out.name.removesuffix(SUFFIX)}.checkpoint{SUFFIX}")


def checkpoint_of_process(path: Path, rank: int, world: int) -> Path:
    """The file of one of several processes: itself if there is only one."""
    if world == 1:
        return path
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}-{rank}-of-{world}{SUFFIX}")


def checkpoints_there(path: Path) -> list[Path]:
    """Files that `checkpoint_of_process` names, of any number of processes."""
    stem = glob.escape(path.name.removesuffix(SUFFIX))
    several = sorted(path.parent.glob(f"{stem}-*-of-*{SUFFIX}"))
    return [path] * path.exists() + several
