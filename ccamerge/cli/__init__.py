"""The command ``ccamerge``: one file a subcommand.

Torch takes seconds to import, so nothing here imports it until a subcommand has checked its
arguments and its configuration.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ccamerge import __version__
from ccamerge.cli import _collect, _demo, _evaluate, _info, _inspect, _merge, _page
from ccamerge.cli._processes import several_processes
from ccamerge.cli._shared import UsageError
from ccamerge.config.importing import ConfigError, current_folder_importable

_EPILOG = """\
a first merge:
  ccamerge inspect merge.yml --verify        which features can be aligned, and is that right
  ccamerge merge merge.yml merged --dry-run  what it will take; nothing is computed
  ccamerge merge merge.yml merged            the merged network in merged/model.safetensors
  ccamerge evaluate merge.yml --checkpoint merged
  ccamerge report merged                     a page with pictures in merged/report.html

many merges from one pass over the data:
  ccamerge collect merge.yml stats.safetensors
  (add "moments: stats.safetensors" to merge.yml, then change ridge, method or weights at will)

Try `ccamerge demo` for a complete example on data that is already here, and `ccamerge COMMAND
--help` for each command and the configuration's format (`ccamerge merge --help`).

exit status: 0 done; 1 a check or the merge failed; 2 wrong usage, configuration or input files;
130 interrupted.
"""


_SHARED = (_collect.NAME, _merge.NAME)
"""Commands that several processes may share."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other error is reported."""

    def error(self, message: str) -> NoReturn:
        text = f"{message} (see `{self.prog} --help`)"
        raise UsageError(text)


def build_parser() -> argparse.ArgumentParser:
    """Describe the whole command line."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="log each step; show tracebacks of errors"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars and notes")
    group.add_argument(
        "--threads", type=int, metavar="N", help="threads to compute with (default: all cores)"
    )
    parser = _Parser(
        prog="ccamerge",
        description="Merge trained neural networks of one architecture into one, by aligning their "
        "features with canonical correlation analysis.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"ccamerge {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for module in (_inspect, _collect, _merge, _evaluate, _page, _demo, _info):
        sub = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : arguments, without the program's name; default ``sys.argv[1:]``

    Returns
    -------
    The exit status: 0 done; 1 a check or the merge failed; 2 wrong usage, configuration or input
    files; 130 interrupted.
    """
    args = argparse.Namespace(verbose=False, quiet=False, threads=None)
    try:
        build_parser().parse_args(argv, namespace=args)
        if args.command not in _SHARED and several_processes():
            message = f"`ccamerge {args.command}` is for one process: start it without torchrun"
            raise UsageError(message)
        # For the whole command: data, metrics and networks may import when they are used.
        with _logging(args), current_folder_importable(), _memory(args):
            if args.threads is not None:
                _set_threads(args.threads)
            return int(args.run(args))
    except KeyboardInterrupt:
        print("ccamerge: interrupted; no file is left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the boundary: every error becomes a message and a status
        return _report(error, verbose=args.verbose)


def _report(error: Exception, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    numerical = type(error).__name__ == "LinAlgError"  # NumPy's, a ValueError, by name: not loaded
    expected = isinstance(error, (ValueError, TypeError, OSError))
    text = str(error) or type(error).__name__
    if isinstance(error, KeyError) or not (expected or numerical):
        text = f"{type(error).__name__}: {error}"
        text += "" if verbose else " (-v shows the traceback)"
    lines = error.problems if isinstance(error, ConfigError) else (text,)
    for line in lines:
        print(f"ccamerge: error: {line}", file=sys.stderr)
    return 2 if expected and not numerical else 1


@contextmanager
def _memory(args: argparse.Namespace) -> Iterator[None]:
    """Make do with as much memory as a command is given, if it can be told."""
    limit, folder = (getattr(args, name, None) for name in ("memory_limit", "scratch"))
    if limit is None and folder is None:
        yield
        return
    from ccamerge.core.scratch import memory_limit

    with memory_limit(limit, args.out.absolute().parent if folder is None else folder):
        yield


def _set_threads(count: int) -> None:
    if count < 1:
        message = f"--threads must be at least 1, got {count}"
        raise UsageError(message)
    import torch

    from ccamerge.core.threads import set_num_threads

    set_num_threads(count)
    torch.set_num_threads(count)


@contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Show the package's log while the command runs only: main may be called by a program."""
    logger = logging.getLogger("ccamerge")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("ccamerge: %(message)s"))
    before = logger.level
    logger.setLevel(
        logging.DEBUG if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    )
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
