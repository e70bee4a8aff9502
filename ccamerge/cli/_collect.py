"""``ccamerge collect``: one pass over the data, for as many merges as wanted."""

from __future__ import annotations

import argparse
from pathlib import Path

from ccamerge.cli._checkpoints import (
    add_checkpoint_arguments,
    check_checkpoints_there,
    checkpoint_options,
    remove_checkpoints,
    resumes,
)
from ccamerge.cli._plan import add_plan_arguments, print_plan
from ccamerge.cli._processes import sharing
from ccamerge.cli._settings import loaded_settings
from ccamerge.cli._shared import (
    Batches,
    UsageError,
    add_memory,
    as_merged,
    check_checkpoints,
    check_parent,
    chosen_device,
    load_models,
    note,
    seed_everything,
    show_progress,
)
from ccamerge.config.model import Config
from ccamerge.config.reader import load_config
from ccamerge.config.settings import Settings

NAME = "collect"
HELP = "stream the statistics that merges need out of one pass over the data"
DESCRIPTION = """\
Runs the models side by side over the calibration data and writes the moments of their features to
OUT.safetensors. Its size depends on the networks, not on the amount of data. Name it as "moments:"
in the configuration, and merges with another ridge, method or weights need no data.

What is counted is kept in OUT.checkpoint.safetensors every five minutes. If the command is killed,
the same with --resume goes on from there: models, data and settings must be the same, which is
checked, and the result is the same to the last bit.

Started by torchrun, several processes share the pass, on one machine or more: each reads all
batches and counts every n-th, the first writes. OUT must be in a folder that all of them see, or at
least have."""
EPILOG = """\
examples:
  ccamerge collect merge.yml stats.safetensors --dry-run
  ccamerge collect merge.yml stats.safetensors
  ccamerge collect merge.yml stats.safetensors --pairs all   # any base_model later
  ccamerge collect merge.yml stats.safetensors --resume      # after it was killed
  torchrun --nproc-per-node 2 -m ccamerge collect merge.yml stats.safetensors

The configuration's format: `ccamerge merge --help`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="configuration (YAML)")
    parser.add_argument("out", metavar="OUT.safetensors", type=Path, help="file to write")
    parser.add_argument(
        "--pairs",
        choices=("reference", "all"),
        help="which pairs of models: each with base_model, or all with all; default: what the "
        "configuration's mode and method need",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=2,
        metavar="N",
        help="parts of the data whose moments are kept apart (default 2, which ridge: auto needs "
        "at least); they cost memory and no time",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace OUT if it exists, and what was kept of it"
    )
    add_checkpoint_arguments(parser, "OUT.checkpoint.safetensors")
    add_memory(parser)
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the moments."""
    config = load_config(args.config)
    if config.data is None:
        config.fail("data", "missing; `ccamerge collect` reads the calibration data")
    if args.out.suffix != ".safetensors":
        message = f"OUT must end in .safetensors, got {args.out}"
        raise UsageError(message)
    if args.out.is_dir() or (args.out.exists() and not (args.force or resumes(args))):
        message = f"{args.out} exists" + ("" if args.out.is_dir() else "; --force replaces it")
        raise UsageError(message)
    check_parent(args.out)
    check_checkpoints_there(args)
    if args.folds < 1:
        message = f"--folds must be at least 1, got {args.folds}"
        raise UsageError(message)
    if args.folds < 2 and config.settings.ridge == "auto":
        config.fail("parameters.ridge", "auto needs --folds 2 or more: it judges on held-out data")
    for architecture in config.architectures:
        architecture.load()
    config.data.load()
    settings = loaded_settings(config)
    with sharing(args) as first:
        return _collect(args, config, settings, first)


def _collect(args: argparse.Namespace, config: Config, settings: Settings, first: bool) -> int:
    """Write the moments, or the plan, if this is the first of some processes."""
    assert config.data is not None
    device = chosen_device(args, config)
    networks = check_checkpoints(config)
    seed_everything(settings.seed)
    if args.dry_run:
        if first:
            print_plan(args, config, settings, networks, device, args.pairs, args.folds)
        return 0
    import ccamerge
    from ccamerge.core.tensorfile import remove_partial
    from ccamerge.methods.alignment import pairs_needed

    pairs = args.pairs or pairs_needed(settings.method, settings.mode)
    models = as_merged(config, load_models(config))
    data = Batches(config.data, settings.seed, models[0])
    collected = ccamerge.collect(
        models,
        data,
        reference=config.reference,
        pairs=pairs,
        folds=args.folds,
        progress=show_progress(args),
        seed=settings.seed,
        prove=settings.prove,
        device=device or "cpu",
        holdout=settings.holdout,
        **checkpoint_options(args),
    )
    if not first:
        return 0
    collected.data = data.fingerprint
    remove_partial(args.out)
    collected.save(args.out)
    remove_checkpoints(args.out)
    size = args.out.stat().st_size
    note(
        args,
        f"wrote {args.out}: {collected.samples} samples, pairs: {pairs}, folds: {args.folds}, "
        f"{size / 1e6:.1f} MB",
    )
    return 0
