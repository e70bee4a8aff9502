"""``ccamerge merge``: several checkpoints into one, with a card that says how."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import shutil
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ccamerge.cli import _settings_help
from ccamerge.cli._checkpoints import (
    add_checkpoint_arguments,
    check_checkpoints_there,
    checkpoint_options,
    remove_checkpoints,
    resumes,
)
from ccamerge.cli._plan import add_plan_arguments, print_plan
from ccamerge.cli._processes import sharing
from ccamerge.cli._settings import check_settings, check_sources, loaded_settings, statistics
from ccamerge.cli._shared import (
    UsageError,
    check_checkpoints,
    check_parent,
    chosen_device,
    load_models,
    note,
    seed_everything,
    show_progress,
    to_json,
)
from ccamerge.config.model import Config
from ccamerge.config.reader import load_config
from ccamerge.config.settings import METHODS, TABLE, Settings
from ccamerge.reporting.plots import PICTURES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME = "merge"
HELP = "merge checkpoints as a configuration says"
DESCRIPTION = """\
Merges the configuration's models into one network, as large as base_model, and writes the folder
OUT: model.safetensors, README.md (a model card), report.json, config.yml. The folder appears
complete or not at all.

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
    arguments: {width: 1}
  data:                                # a function that returns calibration batches: tensors,
    factory: mypackage.data:calibration  # (inputs, ...) or dicts; labels are not looked at
    arguments: {count: 5000}
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

methods: $methods;
or "package.module:function", a function of yours decorated with ccamerge.methods.register

checkpoints: .safetensors, alone or in shards (name the .safetensors.index.json, or the folder with
it); .pt, .pth, .bin or .ckpt of torch, which are read without running their code.

Functions are imported from installed packages and from the current folder.""").substitute(
    method=f"{TABLE['method'].usual:22}",
    words=TABLE["method"].words,
    usual=_settings_help.usual(),
    others=_settings_help.others(),
    patterns=_settings_help.by_patterns(),
    methods=", ".join(METHODS),
)


FILES = ("model.safetensors", "README.md", "report.json", "config.yml")
LATER = ("evaluation.json", "report.html", "pictures")
"""What other commands may have added to a merge's folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="configuration (YAML)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace an earlier merge in OUT")
    add_checkpoint_arguments(parser, "OUT.checkpoint.safetensors")
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and write."""
    config = load_config(args.config)
    _check_target(args.out, force=args.force or resumes(args))
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
    networks = check_checkpoints(config)
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
    _write(args, config, result.model.state_dict(), report)
    if kept:
        remove_checkpoints(args.out)
    if not args.quiet:
        print(report)
    note(args, f"wrote {args.out}")
    if report.fidelity is not None:
        note(args, report.fidelity.verdict())
    return 0


def _check_target(out: Path, *, force: bool) -> None:
    check_parent(out)
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        message = f"{out} exists; name another folder, or --force to replace an earlier merge"
        raise UsageError(message)
    if out.is_symlink() or not out.is_dir() or _foreign(out):
        message = f"--force replaces only the folder of an earlier merge, which {out} is not"
        raise UsageError(message)


def _foreign(out: Path) -> set[str]:
    """Names in a folder that no command of ours would have written there."""
    found = {p.name for p in out.iterdir()} - {*FILES, *LATER}
    if (out / "pictures").is_dir():
        found |= {p.name for p in (out / "pictures").iterdir()} - {f"{n}.png" for n in PICTURES}
    return found


def _write(args: argparse.Namespace, config: Config, state: dict[str, Tensor], report: Any) -> None:
    """All files into a folder beside the target, renamed when they are complete."""
    from ccamerge.checkpoints.reading import save_state
    from ccamerge.reporting.model_card import model_card, sources, versions

    out = args.out.absolute()
    state = _converted(args, config, state)
    merged, used = sources(config, report.weights, out), versions()
    record = {
        "versions": used,
        "config": config.to_dict(out),
        "sources": [vars(source) for source in merged],
        "report": report.to_dict(),
    }
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        metadata = {"ccamerge": used["ccamerge"], "merge_method": config.settings.method_words}
        save_state(state, partial / "model.safetensors", metadata)
        (partial / "config.yml").write_text(config.to_yaml(out), encoding="utf-8")
        (partial / "report.json").write_text(to_json(record) + "\n", encoding="utf-8")
        chosen = "merge" if report.fidelity is None else report.fidelity.chosen
        card = model_card(config, merged, report.to_markdown(), used, out, chosen)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _converted(
    args: argparse.Namespace, config: Config, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The merged parameters in the types that they are to be written in.

    Raises
    ------
    ConfigError
        If there are numbers that such a type cannot hold.
    """
    import torch

    from ccamerge.checkpoints.reading import overflows
    from ccamerge.checkpoints.ties import tied_pairs

    if config.dtype is not None:
        dtype = getattr(torch, config.dtype)
        chosen = {key: dtype for key, value in state.items() if value.is_floating_point()}
    else:
        chosen = _dtypes(args, config)
        for one, other in (pair for a, b in tied_pairs(state, state) for pair in ((a, b), (b, a))):
            if other in chosen:  # of tied parameters a checkpoint may hold one only
                chosen.setdefault(one, chosen[other])
    converted = {}
    for key, value in state.items():
        dtype = chosen.get(key, value.dtype)
        if not (
            (value.is_floating_point() and dtype.is_floating_point)
            or (value.is_complex() and dtype.is_complex)
        ):
            dtype = value.dtype
        if overflows(value, dtype):
            name = str(dtype).removeprefix("torch.")
            text = f"{key} of the merged network has numbers too large for {name}; choose another"
            config.fail("dtype", text)
        converted[key] = value.to(dtype)
    return converted


def _dtypes(args: argparse.Namespace, config: Config) -> dict[str, torch.dtype]:
    """Each tensor's type in the models' checkpoints; the widest if they differ, which is noted."""
    import torch

    from ccamerge.checkpoints.reading import load_shapes

    found: dict[str, torch.dtype] = {}
    odd: dict[str, str] = {}
    for index, path in enumerate(config.models):
        for key, value in load_shapes(path).items():
            if not (value.is_floating_point() or value.is_complex()):
                continue
            before = found.setdefault(key, value.dtype)
            found[key] = torch.promote_types(before, value.dtype)
            if value.dtype != before:
                names = [str(dtype).removeprefix("torch.") for dtype in (value.dtype, before)]
                odd.setdefault(key, f"{names[0]} in models[{index}], {names[1]} before it")
    if odd:
        key, text = next(iter(odd.items()))
        note(
            args,
            f"the models' checkpoints differ in dtype ({key}: {text}; {len(odd)} in all): "
            "model.safetensors has the widest, unless the configuration says a dtype",
        )
    return found


def _replace(partial: Path, out: Path) -> None:
    """Put a complete folder in the place of none, or of an earlier one."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{secrets.token_hex(4)}")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
