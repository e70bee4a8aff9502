"""The folder that a merge writes: what it holds, and how it appears complete or not at all."""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ccamerge.cli._shared import UsageError, check_parent, note, to_json
from ccamerge.config.model import Config, Pretrained
from ccamerge.reporting.plots import PICTURES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ccamerge.reporting.report import Report

log = logging.getLogger("ccamerge")

FILES = ("model.safetensors", "README.md", "report.json", "config.yml")
LATER = ("evaluation.json", "report.html", "pictures")
"""What other commands may have added to a merge's folder."""

_PARAMETERS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def add_shard_size(parser: argparse.ArgumentParser) -> None:
    """Declare the option for the size of the files that parameters are written to."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)", text)
        size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
        if size < 1:
            message = f"expected a size such as 5GB, 500MB or 2GiB, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return size

    parser.add_argument(
        "--out-shard-size",
        type=parse,
        metavar="SIZE",
        help="write parameters in shards of this size at most, such as 5GB, with an index, where "
        "they take more (default 50GB, as transformers has it)",
    )


def check_target(out: Path, *, force: bool) -> None:
    """Raise UsageError unless a merge may be written there."""
    check_parent(out)
    for left in sorted(out.absolute().parent.glob(f"{glob.escape(out.name)}.partial-*")):
        log.warning("%s is left of a merge that was killed: delete it, if none is at work", left)
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        message = f"{out} exists; name another folder, or --force to replace an earlier merge"
        raise UsageError(message)
    if out.is_symlink() or not out.is_dir() or _foreign(out):
        message = f"--force replaces only the folder of an earlier merge, which {out} is not"
        raise UsageError(message)


def check_room(config: Config, out: Path) -> None:
    """Raise UsageError if the disk has not the room that the merged network will take, about.

    Better now than after the merge; a tensor that is untied comes to it.
    """
    import torch

    from ccamerge.checkpoints.layout import size_words
    from ccamerge.checkpoints.reading import load_shapes

    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    needed = 0
    for value in load_shapes(config.models[config.reference]).values():
        chosen = dtype if dtype is not None and value.is_floating_point() else value.dtype
        needed += value.numel() * chosen.itemsize
    room = os.statvfs(out.absolute().parent)
    free = room.f_bavail * room.f_frsize
    if free < needed:
        message = (
            f"cannot write {out}: it will take {size_words(needed)} or more, and "
            f"{size_words(free)} are free"
        )
        raise UsageError(message)


def _foreign(out: Path) -> set[str]:
    """Names in a folder that no command of ours would have written there."""
    from ccamerge.checkpoints.carried import carried
    from ccamerge.checkpoints.pretrained import CONFIG

    found = {p.name for p in out.iterdir()} - {*FILES, *LATER}
    found = {name for name in found if not _PARAMETERS.fullmatch(name)}
    if {"report.json", "config.yml"} <= {p.name for p in out.iterdir()}:
        found -= {CONFIG, *carried(found, code=True)}
    if (out / "pictures").is_dir():
        found |= {p.name for p in (out / "pictures").iterdir()} - {f"{n}.png" for n in PICTURES}
    return found


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside the target, to be filled; put in its place when all is there and on disk.

    On an error nothing is left of it.
    """
    out = out.absolute()
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _flush(path)
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(out.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_network(
    args: argparse.Namespace, config: Config, model: nn.Module, report: Report
) -> None:
    """Write a merge's folder, with the merged network's parameters as base_model's files are."""
    from ccamerge.checkpoints.writing import FolderWriter

    state = _converted(args, config, _filed(args, config, model))
    with appearing(args.out) as folder:
        with FolderWriter(folder, state, args.out_shard_size, header_of(config)) as writer:
            for name, value in state.items():
                writer.write(name, value.cpu())
        kept = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        write_about(args, config, folder, report, state, untied=bool(report.untied) and not kept)


def header_of(config: Config) -> dict[str, str]:
    """What a merge's files of parameters say in their headers."""
    from ccamerge import __version__

    return {"ccamerge": __version__, "merge_method": config.settings.method_words}


def write_about(
    args: argparse.Namespace,
    config: Config,
    folder: Path,
    report: Report,
    written: Mapping[str, Tensor],
    *,
    untied: bool = False,
) -> None:
    """Write what stands beside a merge's parameters.

    Parameters
    ----------
    folder : where they are, until it is put in the place of ``args.out``
    written : the parameters, or tensors on the meta device like them
    untied : whether a head has got a weight of its own, which the configuration is to say
    """
    from ccamerge.checkpoints.carried import carry, hub_folder
    from ccamerge.checkpoints.files import FOLDER_FILES
    from ccamerge.reporting.model_card import model_card, sources, versions

    out = args.out.absolute()
    merged, used = sources(config, report.weights, out), versions()
    record = {
        "versions": used,
        "config": config.to_dict(out),
        "sources": [vars(source) for source in merged],
        "report": report.to_dict(),
    }
    base = hub_folder(config.models[config.reference])
    if base is not None:
        carry(base, folder, written, untied=untied, code=_trusted(config))
    (folder / "config.yml").write_text(config.to_yaml(out), encoding="utf-8")
    (folder / "report.json").write_text(to_json(record) + "\n", encoding="utf-8")
    chosen = "merge" if report.fidelity is None else report.fidelity.chosen
    [parameters] = [name for name in FOLDER_FILES if (folder / name).exists()]
    card = model_card(config, merged, report.to_markdown(), used, out, chosen, parameters)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _trusted(config: Config) -> bool:
    return any(isinstance(a, Pretrained) and a.trust_remote_code for a in config.architectures)


def _filed(args: argparse.Namespace, config: Config, model: nn.Module) -> dict[str, Tensor]:
    """A merged network's parameters, under base_model's names where it is a folder of a hub's."""
    from ccamerge.checkpoints.carried import hub_folder
    from ccamerge.checkpoints.pretrained import as_filed
    from ccamerge.checkpoints.reading import load_shapes, unwrapped
    from ccamerge.checkpoints.wrappings import shorten

    state = model.state_dict()
    base = config.models[config.reference]
    if hub_folder(base) is None:
        return state
    names = unwrapped(load_shapes(base), state, base, log.debug)
    found = as_filed(model, state, names)
    if lost := [name for name in names if name not in found]:
        text = "the network does not have these of base_model, so the merge has not, either"
        note(args, f"{text}: {shorten(lost)}")
    return found


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
        chosen = _dtypes(args, config, state)
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


def _dtypes(
    args: argparse.Namespace, config: Config, names: Collection[str]
) -> dict[str, torch.dtype]:
    """Each tensor's type in the models' checkpoints; the widest if they differ, which is noted."""
    import torch

    from ccamerge.checkpoints.reading import load_shapes, unwrapped

    found: dict[str, torch.dtype] = {}
    odd: dict[str, str] = {}
    for index, path in enumerate(config.models):
        for key, value in unwrapped(load_shapes(path), names, path, log.debug).items():
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
