"""``ccamerge merge`` of checkpoints that are averaged as they stand: no network, no data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ccamerge.cli._output import appearing, header_of, write_about
from ccamerge.cli._plan import print_models
from ccamerge.cli._shared import note, show_progress
from ccamerge.config.importing import ConfigError
from ccamerge.config.model import Config

if TYPE_CHECKING:
    from ccamerge.checkpoints.writing import FolderWriter
    from ccamerge.merging.streaming import StreamedAverage

_MOST_THREADS = 16
"""More than that wait for the disk."""


def run_streamed(args: argparse.Namespace, config: Config) -> int:
    """Average and write, or print what that takes."""
    import torch

    from ccamerge.checkpoints.writing import FolderWriter
    from ccamerge.core.scratch import check_memory
    from ccamerge.core.stopwatch import Stopwatch
    from ccamerge.merging.streaming import StreamedAverage, opened, report_of
    from ccamerge.methods.weights import shares_of_parameters

    settings, reference, count = config.settings, config.reference, len(config.models)
    _check(config)
    order = [reference, *(i for i in range(count) if i != reference)]
    with opened([config.models[i] for i in order]) as readers:
        names = list(readers[0].shapes)
        try:
            shares = shares_of_parameters(settings.weights, settings.t, count, reference, names)
        except ValueError as error:
            config.fail("parameters.weights", str(error).removeprefix("weights: "))
        average = StreamedAverage(
            readers,
            {name: [row[i] for i in order] for name, row in shares.items()},
            None if config.dtype is None else getattr(torch, config.dtype),
            min(torch.get_num_threads(), _MOST_THREADS),
        )
        check_memory(average.memory, f"the average takes {average.memory / 2**20:.0f} MiB")
        if args.dry_run:
            _print_plan(args, config, average)
            return 0
        watch, made = Stopwatch(None), average.tensors
        with appearing(args.out) as folder:
            with (
                watch("average"),
                FolderWriter(folder, made, args.out_shard_size, header_of(config)) as writer,
            ):
                reasons = _run(config, average, writer, show_progress(args))
            usual = shares_of_parameters(_usual(config), settings.t, count, reference, [""])[""]
            report = report_of(watch, usual, reference, reasons)
            write_about(args, config, folder, report, made)
    if not args.quiet:
        print(report)
    note(args, f"wrote {args.out}")
    return 0


def _usual(config: Config) -> Sequence[float] | None:
    """The models' weights where no pattern gives others."""
    weights = config.settings.weights
    return None if isinstance(weights, Mapping) else weights


def _run(
    config: Config, average: StreamedAverage, writer: FolderWriter, progress: bool
) -> dict[str, str]:
    try:
        return average.run(writer, progress=progress)
    except OverflowError as error:
        config.fail("dtype", f"{error}; choose another")


def _check(config: Config) -> None:
    """Check all files before anything is read.

    Raises
    ------
    ConfigError
        With a line for each that cannot be used, or is not like base_model's.
    """
    from ccamerge.checkpoints.comparing import difference
    from ccamerge.checkpoints.pretrained import check_not_quantised
    from ccamerge.checkpoints.reading import CheckpointError, load_shapes

    problems, shapes = [], []
    for index, path in enumerate(config.models):
        try:
            check_not_quantised(path)
            shapes.append(load_shapes(path))
        except CheckpointError as error:
            problems.append(config.problem(f"models[{index}].model", str(error)))
    if problems:
        raise ConfigError(problems)
    base = config.reference
    for index, (path, own) in enumerate(zip(config.models, shapes, strict=True)):
        text = difference(
            path, own, config.models[base], shapes[base], precisions=config.dtype is not None
        )
        if text is not None:
            problems.append(config.problem(f"models[{index}].model", text))
    if problems:
        raise ConfigError(problems)


def _print_plan(args: argparse.Namespace, config: Config, average: StreamedAverage) -> None:
    from ccamerge.checkpoints.layout import shards, size_words
    from ccamerge.checkpoints.writing import SHARD_SIZE

    files = len(shards(average.tensors, args.out_shard_size or SHARD_SIZE))
    print("method      average of the parameters as they stand; no network, no data")
    print_models(config, config.settings)
    print(
        f"reads       {size_words(average.read)}, and the models' files once more for their SHA-256"
    )
    print(
        f"writes      {size_words(average.written)}: {len(average.tensors)} tensors in "
        f"{files} {'file' if files == 1 else 'files'}"
    )
    print(
        f"memory      {average.memory / 2**20:.0f} MiB at most, beside Python and torch; "
        f"threads: {average.threads}"
    )
