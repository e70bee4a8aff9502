"""``ccamerge demo``: a complete example from training to figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ccamerge.cli._shared import UsageError, at_least, check_parent, note, show_progress

NAME = "demo"
HELP = "a complete example: train, merge by each method, compare"
DESCRIPTION = """\
Without options, trains small networks that each know half of the handwritten digits that come with
scikit-learn, and merges them: by each method, by default, and refined towards their ensemble.
Accuracies stand beside the networks' own, their ensemble's, and those of one of the networks
refined for the same time; a minute or two without a GPU. With --data and --zoo, merges the ResNet20
networks in a folder of checkpoints, evaluated on CIFAR-10."""
EPILOG = """\
examples:
  ccamerge demo
  ccamerge demo --models 2 4 8 --out digits
  ccamerge demo --data cifar-folder --zoo zoo-folder --models 2"""

_EXTRA = ("sklearn", "matplotlib", "PIL")  # of the extra "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("ccamerge-demo"),
        help="folder for results and figures (default: ccamerge-demo)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with CIFAR-10 and cifar10.py to load it"
    )
    parser.add_argument(
        "--zoo", type=Path, metavar="DIR", help="folder with resnet20-*.safetensors"
    )
    parser.add_argument(
        "--samples", type=at_least(1), metavar="N", help="calibration images of --data"
    )
    parser.add_argument(
        "--models", type=at_least(2), nargs="+", metavar="N", help="how many networks to merge"
    )
    parser.add_argument(
        "--widths", type=at_least(1), nargs="+", metavar="W", help="hidden units of the digits'"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")


def run(args: argparse.Namespace) -> int:
    """Run the digits' example, or CIFAR-10's."""
    if (args.data is None) != (args.zoo is None):
        message = "--data and --zoo belong together: images and the networks trained on them"
        raise UsageError(message)
    for option, folder in (("--data", args.data), ("--zoo", args.zoo)):
        if folder is not None and not folder.is_dir():
            message = f"{option}: there is no folder {folder}"
            raise UsageError(message)
    check_parent(args.out)
    if args.out.exists() and not args.out.is_dir():
        message = f"--out: {args.out} is a file, expected a folder"
        raise UsageError(message)
    if args.zoo is not None and args.widths is not None:
        message = "--widths is for the digits' networks; those in --zoo have theirs"
        raise UsageError(message)
    if args.zoo is None and args.samples is not None:
        message = "--samples is for --data; the digits are few enough to be used all"
        raise UsageError(message)
    names = ("data", "zoo", "samples", "models", "widths")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    try:
        _run_demo(args, given)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in _EXTRA:
            raise
        message = f"the demo needs {missing}: pip install 'ccamerge[demo]'"
        raise UsageError(message) from error
    note(args, f"results are in {args.out}")
    return 0


def _run_demo(args: argparse.Namespace, given: dict[str, Any]) -> None:
    if args.zoo is None:
        from ccamerge.cli.demo import digits

        digits.run(args.out, seed=args.seed, quiet=not show_progress(args), **given)
    else:
        from ccamerge.cli.demo import cifar

        cifar.run(args.out, seed=args.seed, quiet=not show_progress(args), **given)
