"""``--dry-run``: what a command would do and take, before it does."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Literal

from ccamerge.cli._shared import add_input_shape, example_inputs
from ccamerge.config import Config

if TYPE_CHECKING:
    from torch import nn


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `print_plan` reads."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan (spaces, bytes, flops, pinned axes), write nothing",
    )
    add_input_shape(parser, "for --dry-run; by default the first batch of the data is looked at")


def print_plan(
    args: argparse.Namespace,
    config: Config,
    network: nn.Module,
    pairs: Literal["reference", "all"] = "reference",
) -> None:
    """Print the plan; no data is read if --input-shape is given."""
    import ccamerge

    found = ccamerge.spaces(network, example_inputs(args.input_shape, config.data))
    print(f"method      {config.merge_method}")
    for index, (path, weight) in enumerate(zip(config.models, config.weights, strict=True)):
        mark = "  (reference)" if index == config.reference else ""
        print(f"model       {path}  weight {weight:.4g}{mark}")
    print(f"statistics  {config.moments or 'from the data'}\n")
    print(ccamerge.plan(found, models=len(config.models), pairs=pairs))
