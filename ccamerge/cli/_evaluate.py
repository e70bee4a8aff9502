"""``ccamerge evaluate``: the models, their ensemble, and what can be merged of them, compared."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ccamerge.cli._settings import (
    check_settings,
    check_sources,
    loaded_settings,
    method_name,
    statistics,
)
from ccamerge.cli._shared import (
    Batches,
    UsageError,
    add_device,
    at_least,
    check_checkpoints,
    check_parent,
    chosen_device,
    load_merged,
    load_models,
    note,
    seed_everything,
    show_progress,
    to_json,
    write_text,
)
from ccamerge.config.importing import ConfigError
from ccamerge.config.model import Config, Evaluation
from ccamerge.config.reader import load_config
from ccamerge.config.settings import METHODS as NAMES
from ccamerge.config.settings import Settings

NAME = "evaluate"
HELP = "a metric and a loss of the models, of their ensemble, of each method and on the way"
DESCRIPTION = """\
Measures a metric and a loss on the configuration's "evaluation" batches: of each model, of their
ensemble (what a merge can hope for at a fraction of the cost), of merged checkpoints, and of the
models merged by each method asked for, with the configuration's other settings and from one pass
over its data. --barrier merges on the way from base_model (t = 0) to the others (1), too: the
barrier is how far the loss there rises above the straight line between the models' own. Maps that
are not exact (see `ccamerge inspect`) raise the end t = 1 itself."""
EPILOG = """\
examples:
  ccamerge evaluate merge.yml
  ccamerge evaluate merge.yml --checkpoint merged-cca merged-average --json
  ccamerge evaluate merge.yml --methods cca permutation average --barrier
  ccamerge evaluate merge.yml --methods all --barrier 21 --out comparison.json

of the configuration:
  evaluation:
    factory: mypackage.data:test   # returns batches (inputs, labels), or dicts with "labels"
    arguments: {count: 10000}
    metric: accuracy               # default; cross_entropy; or a function of yours
    better: higher                 # values of the metric; or lower
    loss: cross_entropy            # default; or a function of yours; what barriers are of
    ensemble: probabilities        # what of the models is averaged; or outputs; or none
Labels are whole numbers, one for each place of the outputs but the last axis, the classes; -100
does not count (padding). Those of tokens belong to the output at their own position.
Local files serve as well, as they do for data: labels are the next tokens of text, the folders of
images, and of arrays what "labels" names.

A metric of yours, "package.module:function", takes (outputs, batch) and returns a tensor with a
number for each sample; they are averaged over all batches:
  def squared_error(outputs, batch):
      return (outputs - batch[1]).square().mean(-1)

The rest of the configuration: `ccamerge merge --help`."""


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
    parser.add_argument(
        "--methods",
        nargs="*",
        action="extend",
        metavar="METHOD",
        help="merge by these and evaluate what comes out: names, "
        '"package.module:function", or all; without names: by the configuration\'s merge_method '
        f"({', '.join(NAMES)})",
    )
    parser.add_argument(
        "--barrier",
        nargs="?",
        type=at_least(3),
        const=11,
        default=0,
        metavar="POINTS",
        help="merge by each of the methods at so many points of the way, too (default 11)",
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the JSON to a file, which is replaced"
    )


def run(args: argparse.Namespace) -> int:
    """Print or write the comparison."""
    config = load_config(args.config)
    evaluation, wanted = _examined(args, config)
    between = [dataclasses.replace(s, t=0.5) for s in wanted.values() if args.barrier]
    device = chosen_device(args, config)

    import ccamerge
    from ccamerge.core.device import memory_of
    from ccamerge.evaluation.metrics import metric_named

    for name in ("metric", "loss"):
        metric_named(getattr(evaluation, name), config.place(f"evaluation.{name}"))
    seed_everything(config.settings.seed)
    memory = memory_of(device)
    models = [model.to(memory) for model in load_models(config)]
    data = Batches(evaluation.data, config.settings.seed, models[0])
    others = {}
    for given in args.checkpoint:
        others[str(given)] = load_merged(config, given).to(memory)
    moments = None
    if wanted:
        moments, seconds = statistics(args, config, models, [*wanted.values(), *between], device)
        note(args, f"collected the moments in {seconds:.2f} s")
    folder = config.source.absolute().parent
    comparison = ccamerge.compare(
        models,
        data,
        statistics=moments,
        methods={name: vars(settings) for name, settings in wanted.items()},
        points=args.barrier,
        metric=evaluation.metric,
        better=evaluation.better,
        loss=evaluation.loss,
        ensemble=evaluation.ensemble,
        names=[
            str(path.relative_to(folder) if path.is_relative_to(folder) else path)
            for path in config.models
        ],
        others=others,
        progress=show_progress(args),
        reference=config.reference,
    )
    text = to_json(comparison.to_dict())
    print(text if args.json else comparison)
    if args.out is not None:
        write_text(args.out, text + "\n")
        note(args, f"wrote {args.out}")
    return 0


def _examined(args: argparse.Namespace, config: Config) -> tuple[Evaluation, dict[str, Settings]]:
    """What to measure, and the settings of each merge; all is checked that needs no data."""
    evaluation = config.evaluation
    if evaluation is None:
        config.fail("evaluation", "missing; it says where batches (inputs, labels) are")
    if args.out is not None:
        check_parent(args.out)
        if args.out.is_dir():
            message = f"--out: {args.out} is a folder, expected a file"
            raise UsageError(message)
    _ = config.architecture  # to be told now if it is not said
    merging = args.methods is not None or args.barrier > 0
    if merging:
        check_sources(config)
    for architecture in config.architectures:
        architecture.load()
    evaluation.data.load()
    wanted = _wanted(config, args.methods or []) if merging else {}
    between = [dataclasses.replace(s, t=0.5) for s in wanted.values() if args.barrier]
    for settings in (*wanted.values(), *between):
        check_settings(config, settings)
    check_checkpoints(config, args.checkpoint)
    return evaluation, wanted


def _wanted(config: Config, given: list[str]) -> dict[str, Settings]:
    """Settings for each method, all else as configured; without names the configuration's own.

    Raises
    ------
    ConfigError
        With a line for each method that cannot run.
    """
    from ccamerge.methods import METHODS
    from ccamerge.methods.alignment import check_ready

    own = loaded_settings(config)
    if not given:
        return {own.method_words: own}
    names = dict.fromkeys(
        name
        for word in given
        for name in (METHODS if word == "all" else [method_name(word, config, "--methods")])
    )
    problems, able = [], []
    for name in names:
        try:
            check_ready(name)
            if own.mode not in METHODS[name].modes:
                message = f"method {name!r} does not know mode {own.mode!r}"
                raise ValueError(message)
        except (ValueError, ImportError) as error:
            problems.append(f"--methods: {error}")
        else:
            able.append(name)
    if problems and able:
        problems.append(f"--methods: these can run: {' '.join(able)}")
    options = own.options or {}
    if unknown := set(options) - {key for method in METHODS.values() for key in method.options}:
        text = f"{', '.join(map(repr, sorted(unknown)))} is not known to any method"
        problems.append(config.problem("parameters.options", text))
    if problems:
        raise ConfigError(problems)
    return {
        name: dataclasses.replace(
            own,
            method=name,
            options={k: v for k, v in options.items() if k in METHODS[name].options},
        )
        for name in names
    }
