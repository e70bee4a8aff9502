"""Options of commands whose pass over the data can go on after the command was killed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ccamerge.cli._shared import UsageError, note
from ccamerge.collection.checkpoint_files import checkpoint_beside, checkpoints_there
from ccamerge.config.kinds import limit_of

_NEVER = "never"


def add_checkpoint_arguments(parser: argparse.ArgumentParser, kept: str) -> None:
    """Declare the options; ``kept`` is the name of the file that keeps the pass."""

    def parse(text: str) -> float | None:
        if text == _NEVER:
            return None
        found = limit_of(text)
        if found is None or found[1] != "seconds":
            message = f"expected a time such as 300s or 5min, or {_NEVER}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return found[0]

    parser.add_argument(
        "--checkpoint-every",
        type=parse,
        default=300.0,
        metavar="TIME",
        help=f"how often to keep what is counted in {kept}, which is removed at the end: such as "
        f"300s (default), 5min, or {_NEVER}",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a collection that was killed, if there is one: batches counted already "
        "are read and compared, not counted again; ends with the bytes of an undisturbed run",
    )


def resumes(args: argparse.Namespace) -> bool:
    """Whether there is something to go on with, and it is asked for."""
    return bool(args.resume and checkpoints_there(checkpoint_beside(args.out)))


def check_checkpoints_there(args: argparse.Namespace) -> None:
    """Fail if the files of an earlier collection would be lost that nobody said to give up."""
    if args.resume and args.checkpoint_every is None:
        message = f"--resume goes on with what is kept, and --checkpoint-every {_NEVER} keeps none"
        raise UsageError(message)
    there = checkpoints_there(checkpoint_beside(args.out))
    if there and not (args.resume or args.force):
        message = (
            f"{there[0]} keeps a collection that has not ended: --resume goes on with it, --force "
            "begins anew"
        )
        raise UsageError(message)


def checkpoint_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `ccamerge.collect` takes; earlier files go if the command is to begin anew."""
    if not args.resume:
        remove_checkpoints(args.out)
    elif not resumes(args):
        note(args, f"nothing to resume, there is no {checkpoint_beside(args.out)}: beginning anew")
    if args.checkpoint_every is None:
        return {}
    return {
        "checkpoint": checkpoint_beside(args.out),
        "checkpoint_every": args.checkpoint_every,
        "resume": args.resume,
    }


def remove_checkpoints(out: Path) -> None:
    """Once the result is there, or is to be made anew."""
    for path in checkpoints_there(checkpoint_beside(out)):
        path.unlink(missing_ok=True)
