"""``ccamerge evaluate``: accuracies of the models, their ensemble and what was merged of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ccamerge.cli._shared import (
    Batches,
    build,
    check_checkpoints,
    load_models,
    note,
    seed_everything,
    to_json,
)
from ccamerge.config import load_config

NAME = "evaluate"
HELP = "accuracy of the models, of their ensemble and of merged checkpoints"
DESCRIPTION = """\
Measures accuracy on the configuration's "evaluation" batches (inputs, labels): of each model, of
their ensemble (the mean of their probabilities: what a merge can hope for at a fraction of the
cost) and of each merged checkpoint given."""
EPILOG = """\
examples:
  ccamerge evaluate merge.yml
  ccamerge evaluate merge.yml --checkpoint merged-cca merged-average --json

The configuration's format: `ccamerge merge --help`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="configuration (YAML)")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE|OUT",
        help="merged checkpoints: files, or folders that `ccamerge merge` made",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the accuracies."""
    config = load_config(args.config)
    if config.evaluation is None:
        config.fail("evaluation", "missing; it says where batches (inputs, labels) are")
    config.architecture.load()
    config.evaluation.data.load()
    files = [p / "model.safetensors" if p.is_dir() else p for p in args.checkpoint]
    check_checkpoints(config, files)

    import ccamerge
    from ccamerge.checkpoints import load_into

    seed_everything(config.settings.seed)
    data = Batches(config.evaluation.data, config.settings.seed)
    models = load_models(config)
    accuracies: dict[str, dict[str, float]] = {"models": {}, "ensemble": {}, "checkpoints": {}}
    for path, model in zip(config.models, models, strict=True):
        accuracies["models"][str(path)] = ccamerge.evaluate(model, data)
        note(args, f"evaluated {path}")
    ensemble = ccamerge.evaluate(models, data)
    accuracies["ensemble"][f"ensemble of {len(models)}"] = ensemble
    note(args, "evaluated their ensemble")
    for given, path in zip(args.checkpoint, files, strict=True):
        merged = build(config.architecture)
        load_into(merged, path)
        accuracies["checkpoints"][str(given)] = ccamerge.evaluate(merged, data)
        note(args, f"evaluated {given}")
    if args.json:
        print(to_json({**accuracies, "ensemble": ensemble}))
        return 0
    rows = [row for kind in accuracies.values() for row in kind.items()]
    width = max(len(name) for name, _ in rows)
    print(f"{'':<{width}}  accuracy")
    for name, accuracy in rows:
        print(f"{name:<{width}}  {accuracy:>8.2%}")
    return 0
