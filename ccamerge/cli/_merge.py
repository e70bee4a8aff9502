"""``ccamerge merge``: several checkpoints into one, with a card that says how."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from string import Template

from ccamerge.cli import _settings_help
from ccamerge.cli._checkpoints import (
    add_checkpoint_arguments,
    check_checkpoints_there,
    checkpoint_options,
    remove_checkpoints,
    resumes,
)
from ccamerge.cli._output import add_shard_size, check_room, check_target, write_network
from ccamerge.cli._plan import add_plan_arguments, print_plan
from ccamerge.cli._processes import sharing
from ccamerge.cli._settings import (
    check_settings,
    check_sources,
    loaded_settings,
    maps_widths,
    statistics,
)
from ccamerge.cli._shared import (
    add_memory,
    check_checkpoints,
    chosen_device,
    load_models,
    note,
    seed_everything,
    show_progress,
)
from ccamerge.cli._stream import run_streamed
from ccamerge.config.model import Config
from ccamerge.config.reader import load_config
from ccamerge.config.settings import METHODS, TABLE, Settings

NAME = "merge"
HELP = "merge checkpoints as a configuration says"
DESCRIPTION = """\
Merges the configuration's models into one network, as large as base_model, and writes the folder
OUT: model.safetensors, or shards of it, README.md (a model card), report.json, config.yml; from
folders of transformers also what belongs to such, so that from_pretrained loads it. The folder
appears complete or not at all.

Started by torchrun, several processes share the pass over the data, as for `ccamerge collect`; the
first does the rest."""
EPILOG = Template("""\
examples:
  ccamerge merge merge.yml merged --dry-run     check files, print spaces, bytes and flops
  ccamerge merge merge.yml merged
  ccamerge evaluate merge.yml --checkpoint merged

configuration (YAML; paths are relative to the file):
  merge_method: $method # $words
  base_model: runs/seed0.safetensors   # the reference, one of the models; default: the first
  models:
    - model: runs/seed0.safetensors
      parameters: {weight: 0.5}        # normalised to sum to one; for all models or none
    - model: runs/seed1.safetensors
      parameters: {weight: 0.5}
      arguments: {width: 1}            # of the architecture, for this model alone
  architecture:                        # a function that returns the network
    factory: mypackage.networks:resnet20
    arguments: {width: 1}              # or for folders, see below: {transformers: auto}
  data:                                # a function that returns calibration batches: tensors,
    factory: mypackage.data:calibration  # (inputs, ...) or dicts; labels are not looked at
    arguments: {count: 5000}           # or local files, see below
  evaluation:                          # optional, for evaluate, whose help tells more: a function
    factory: mypackage.data:test       # that returns batches (inputs, labels)
    metric: accuracy                   # or cross_entropy, or a function "package.module:function"
  parameters:                          # all optional; these are the defaults
$usual
  moments: stats.safetensors   # optional, from `ccamerge collect`: then no data is read
  dtype: float32               # optional, of model.safetensors; default: each tensor as in the
                               # models' checkpoints, in the widest type if these differ
  device: auto                 # optional, where to compute: cpu (default), cuda, cuda:N, or auto
                               # for CUDA where it is usable; --device counts more

more of parameters:
$others
by patterns over the names of spaces, which `ccamerge inspect` shows; the first that matches counts:
$patterns

data from local files, instead of factory and arguments; of an evaluation it has labels:
  text: corpus/*.jsonl   # or .txt, .parquet; a file, folder, pattern or list; field: text,
                         # tokenizer (default: base_model's folder), length: 512, count: 256,
                         # pack: true
  images: pictures       # a folder; size, mean and std (default: what base_model's folder says, or
                         # processor, another one), count: 2000
  arrays: inputs.npz     # or .npy, .safetensors; key: x, or several; labels: y,
                         # count (default: all)
and of each batch_size and seed: 0, which decides what is drawn

methods: $methods;
or "package.module:function", a function of yours decorated with ccamerge.methods.register

checkpoints: .safetensors, alone or in shards (name the .safetensors.index.json, or the folder with
it); .pt, .pth, .bin or .ckpt of torch, which are read without running their code. What data
parallelism, torch.compile or Lightning put into all names is taken away, and told.

folders of transformers, as save_pretrained writes them:
  base_model: runs/first
  models: [{model: runs/first}, {model: runs/second}]
  architecture: {transformers: auto}   # each network by the config.json in its folder, in the dtype
                                       # of its files; nothing is asked over a network, and code in
                                       # the folder runs only with trust_remote_code: true here
OUT then has base_model's configuration, with the dtype that is written, and its tokenizer,
generation and processor files.

the plain average, of parameters as they stand in the files:
  merge_method: average
  parameters: {repair: none}           # and weights by patterns over the names of parameters, such
                                       # as {"*.mlp.*": [3, 1]}
without data and moments needs no architecture either, and hardly any memory: tensors are read,
averaged and written in parts. Files must have the same names and shapes, and the same dtypes unless
the configuration says a dtype.

Functions are imported from installed packages and from the current folder.""").substitute(
    method=f"{TABLE['method'].usual:22}",
    words=TABLE["method"].words,
    usual=_settings_help.usual(),
    others=_settings_help.others(),
    patterns=_settings_help.by_patterns(),
    methods=", ".join(METHODS),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="configuration (YAML)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace an earlier merge in OUT")
    add_memory(parser)
    add_shard_size(parser)
    add_checkpoint_arguments(parser, "OUT.checkpoint.safetensors")
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and write."""
    config = load_config(args.config)
    check_target(args.out, force=args.force or resumes(args))
    if config.plain:
        with sharing(args) as first:
            return run_streamed(args, config) if first else 0
    if config.moments is None:
        check_checkpoints_there(args)
    check_sources(config)
    for architecture in config.architectures:
        architecture.load()
    settings = loaded_settings(config)
    check_settings(config, settings)
    with sharing(args) as first:
        return _merge(args, config, settings, first)


def _merge(args: argparse.Namespace, config: Config, settings: Settings, first: bool) -> int:
    """Merge and write, if this is the first of some processes; the others count with it."""
    device = chosen_device(args, config)
    networks = check_checkpoints(config, widths=maps_widths(settings))
    check_room(config, args.out)
    seed_everything(settings.seed)
    if args.dry_run:
        if first:
            print_plan(args, config, settings, networks, device)
        return 0
    import ccamerge

    models = load_models(config)
    kept = {} if config.moments is not None else checkpoint_options(args)
    moments, seconds = statistics(args, config, models, [settings], device, kept)
    if not first:
        return 0
    result = ccamerge.merge(
        models,
        reference=config.reference,
        statistics=moments,
        device=device or "cpu",
        progress=show_progress(args),
        **vars(settings),
    )
    times = {**result.report.seconds, "collect": seconds}
    report = dataclasses.replace(result.report, seconds=times)
    write_network(args, config, result.model, report)
    if kept:
        remove_checkpoints(args.out)
    if not args.quiet:
        print(report)
    note(args, f"wrote {args.out}")
    if report.fidelity is not None:
        note(args, report.fidelity.verdict())
    return 0
