"""``--dry-run``: what a command would do and take, before it does."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ccamerge.cli._settings import check_for_spaces
from ccamerge.cli._shared import (
    add_device,
    add_input_shape,
    as_merged,
    example_inputs,
    load_models,
)
from ccamerge.config.model import Config
from ccamerge.config.settings import Settings
from ccamerge.core.device import Device

if TYPE_CHECKING:
    from torch import nn

    from ccamerge.collection.statistics import Pairs


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `print_plan` reads: what to plan, and for which device."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print the plan (spaces, bytes, flops, pinned axes), write nothing",
    )
    add_device(parser)
    add_input_shape(parser, "for --dry-run; by default the first batch of the data is looked at")


def print_plan(
    args: argparse.Namespace,
    config: Config,
    settings: Settings,
    networks: Sequence[nn.Module],
    device: Device | None,
    pairs: Pairs | None = None,
    folds: int | None = None,
) -> None:
    """Print the plan; no data is read if --input-shape is given.

    ``networks`` are of each model, with any parameters; without any they are loaded. ``pairs`` and
    ``folds`` are those that the merge needs if they are not given.
    """
    import ccamerge
    from ccamerge.collection.collecting import FOLDS
    from ccamerge.collection.working_set import working_set
    from ccamerge.core.scratch import anonymous
    from ccamerge.graph.networks.parameters import same_architecture
    from ccamerge.graph.networks.widths import spaces_of_models
    from ccamerge.graph.tracing.batches import split_batch
    from ccamerge.methods.alignment import pairs_needed

    networks = as_merged(config, networks or load_models(config))
    example = example_inputs(args.input_shape, config.data, networks[0])
    call = split_batch(example, networks[0])
    every = spaces_of_models(same_architecture(networks), *call)
    check_for_spaces(config, settings, every)
    pairs = pairs or pairs_needed(settings.method, settings.mode)
    print(f"method      {settings.method_words}")
    print(f"mode        {settings.mode}")
    print(f"device      {'cpu' if device is None else device.title}")
    print_models(config, settings)
    print(f"statistics  {config.moments or 'from the data'}")
    needed, what = working_set(every, every[0].program.flatten_inputs(*call))
    least = (anonymous() + needed) / 2**20
    print(f"memory      a --memory-limit of {least:.0f} MiB does, as far as is known: {what}\n")
    print(ccamerge.plan(every, pairs=pairs, folds=folds or FOLDS, reference=config.reference))


def print_models(config: Config, settings: Settings) -> None:
    """Print which models there are, with their weights."""
    for index, path in enumerate(config.models):
        mark = "  (reference)" if index == config.reference else ""
        weights = settings.weights
        weight = "by patterns" if isinstance(weights, Mapping) else f"{(weights or [])[index]:.4g}"
        print(f"model       {path}  weight {weight}{mark}")
