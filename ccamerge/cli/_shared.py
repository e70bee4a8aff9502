"""What several commands need."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccamerge.config.data_files import DataFiles
from ccamerge.config.importing import ConfigError, Factory
from ccamerge.config.model import Architecture, Config, Pretrained
from ccamerge.core.device import DEVICE_PATTERN, Device, obstacle, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("ccamerge")


class UsageError(ValueError):
    """The command line asks for something impossible."""


def note(args: argparse.Namespace, text: str) -> None:
    """Tell the person at the terminal; results go to stdout, this to stderr."""
    if not args.quiet:
        print(f"ccamerge: {text}", file=sys.stderr)


def show_progress(args: argparse.Namespace) -> bool:
    """Progress bars are for people: not with --quiet, not into a file or pipe."""
    return not args.quiet and sys.stderr.isatty()


def to_json(value: Any) -> str:
    """Write standard JSON: what is not finite becomes null, since JSON has no word for it."""

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(k): clean(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        if isinstance(item, float) and not math.isfinite(item):
            return None
        return item

    return json.dumps(clean(value), indent=2, default=str, allow_nan=False)


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `ccamerge.memory_limit` is called with."""
    parser.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="such as 8G: what is large lies in files that are mapped into memory, and less is "
        "worked on at once; refused where that does not do",
    )
    parser.add_argument(
        "--scratch",
        metavar="FOLDER",
        type=Path,
        help="for these files, on a disk; default: where OUT is",
    )


class Batches:
    """What a data factory returns, made anew for each pass if it can be read only once.

    Random numbers are seeded before each pass: every network sees the same data. Local files are
    checked against one of the networks.
    """

    def __init__(self, factory: Factory | DataFiles, seed: int, model: nn.Module) -> None:
        self._factory = factory
        self._seed = seed
        self._fresh: Any = self._make()
        if isinstance(factory, DataFiles):
            factory.check(self._fresh, model)
        self._once = iter(self._fresh) is self._fresh

    def _make(self) -> Iterable[Any]:
        seed_everything(self._seed)
        made = self._factory()
        if not isinstance(made, Iterable):
            text = f"{self._factory.path} returned a {type(made).__name__}, expected batches"
            raise ConfigError([f"{self._factory.source}: {text}"])
        return made

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the data from others: that of local files, or the function's name."""
        if isinstance(self._factory, DataFiles):
            return dict(self._fresh.fingerprint)
        arguments = {name: repr(value) for name, value in self._factory.arguments.items()}
        return {"kind": self._factory.path, "arguments": arguments}

    def __iter__(self) -> Iterator[Any]:
        made, self._fresh = self._fresh, None if self._once else self._fresh
        made = self._make() if made is None else made
        seed_everything(self._seed)
        return iter(made)


def build(architecture: Architecture) -> nn.Module:
    """Make a new network, in evaluation mode: with initial parameters, or those of its folder."""
    from torch import nn

    if isinstance(architecture, Pretrained):
        return _pretrained(architecture)
    made = architecture()
    if not isinstance(made, nn.Module):
        text = f"{architecture.path} returned a {type(made).__name__}, expected a torch.nn.Module"
        raise ConfigError([f"{architecture.source}: {text}"])
    return made.eval()


def _pretrained(architecture: Pretrained, dtype: torch.dtype | None = None) -> nn.Module:
    from ccamerge.checkpoints.pretrained import load

    return load(architecture.folder, trust_remote_code=architecture.trust_remote_code, dtype=dtype)


def as_merged(config: Config, networks: Sequence[nn.Module]) -> list[nn.Module]:
    """The networks as a merge sees them: with heads of their own if they are to be untied."""
    from ccamerge.graph.tracing.untying import untied

    if config.settings.ties == "keep":
        return list(networks)
    return [untied(network, f"models[{index}]") for index, network in enumerate(networks)]


def check_checkpoints(
    config: Config, more: Sequence[Path] = (), *, widths: bool = True
) -> list[nn.Module]:
    """Check names, shapes, dtypes and ties in all files before anything is computed.

    Parameters
    ----------
    config : whose models are checked
    more : checkpoints of merged networks
    widths : whether the models' widths may differ

    Returns
    -------
    For each model a network with initial parameters, one for all that are made in the same way;
    none where they are made from folders.

    Raises
    ------
    ConfigError
        With a line for each file that cannot be used.
    """
    from ccamerge.checkpoints.reading import CheckpointError, check_file

    if isinstance(config.architecture, Pretrained):
        _check_folders(config, more, widths)
        return []
    networks = _initial(config)
    merged = as_merged(config, [networks[config.reference]]) * len(more)
    problems: list[str] = []
    files = zip([*config.models, *more], [*networks, *merged], strict=True)
    for index, (path, network) in enumerate(files):
        try:
            check_file(path, network)
        except CheckpointError as error:
            problems.append(_of_model(config, index, str(error)))
    if problems:
        raise ConfigError(problems)
    return networks


def _of_model(config: Config, index: int, text: str) -> str:
    """A problem with one of the models' files, or with one that was given beside them."""
    listed = index < len(config.models)
    return config.problem(f"models[{index}].model", text) if listed else text


def _check_folders(config: Config, more: Sequence[Path], widths: bool) -> None:
    """Check folders of transformers, each by itself and then beside base_model's."""
    from ccamerge.checkpoints.comparing import difference
    from ccamerge.checkpoints.pretrained import check
    from ccamerge.checkpoints.reading import CheckpointError

    one = config.architecture
    assert isinstance(one, Pretrained)
    problems, shapes = [], []
    for index, path in enumerate([*config.models, *more]):
        try:
            shapes.append(check(path, trust_remote_code=one.trust_remote_code))
        except CheckpointError as error:
            problems.append(_of_model(config, index, str(error)))
    if problems:
        raise ConfigError(problems)
    base = config.reference
    for index, (path, own) in enumerate(zip(config.models, shapes, strict=False)):
        text = difference(
            path,
            own,
            config.models[base],
            shapes[base],
            widths=widths,
            precisions=config.dtype is not None,
        )
        if text is not None:
            problems.append(_of_model(config, index, text))
    if problems:
        raise ConfigError(problems)


def _initial(config: Config) -> list[nn.Module]:
    """For each model a network that its factory makes, one for all that are made the same way."""
    networks: list[nn.Module] = []
    for index, architecture in enumerate(config.architectures):
        first = config.architectures.index(architecture)
        networks.append(networks[first] if first < index else build(architecture))
    return networks


def load_models(config: Config) -> list[nn.Module]:
    """Make the networks to merge, with their parameters."""
    from ccamerge.checkpoints.reading import load_into

    models = []
    dtype = _shared_dtype(config)
    for path, architecture in zip(config.models, config.architectures, strict=True):
        if isinstance(architecture, Pretrained):
            network = _pretrained(architecture, dtype)
        else:
            network = build(architecture)
            load_into(network, path)
        log.info("loaded %s", path)
        models.append(network)
    return models


def load_merged(config: Config, path: Path) -> nn.Module:
    """A network that was merged of the configuration's models."""
    from ccamerge.checkpoints.reading import load_into

    one = config.architecture
    if isinstance(one, Pretrained):  # its own configuration says whether its head is tied
        return _pretrained(dataclasses.replace(one, folder=path), _shared_dtype(config))
    [network] = as_merged(config, [build(one)])
    load_into(network, path)
    return network


def _shared_dtype(config: Config) -> torch.dtype | None:
    """What all networks from folders compute in: the widest of theirs and the one to be written."""
    if not isinstance(config.architecture, Pretrained):
        return None
    import torch

    from ccamerge.checkpoints.pretrained import widest
    from ccamerge.checkpoints.reading import load_shapes

    every = [widest(load_shapes(path)) for path in config.models]
    if config.dtype is not None:
        every.append(getattr(torch, config.dtype))
    return functools.reduce(torch.promote_types, every)


def seed_everything(seed: int) -> None:
    """So that factories that draw random numbers give the same each time."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 the user's factory may use the global state
    torch.manual_seed(seed)


def example_inputs(
    shapes: Sequence[str] | None, data: Factory | DataFiles | None, model: nn.Module
) -> Any:
    """One batch to trace a network with: of the given shapes, or the data's first.

    ``shapes`` as on the command line: "2,3,32,32", or "2,16:int" for token ids.
    """
    import torch

    if not shapes:
        if data is None:
            message = "give --input-shape, such as --input-shape 2,3,32,32"
            raise UsageError(message)
        for batch in Batches(data, 0, model):
            return batch
        raise ConfigError([f"{data.source}: {data.path} returned no batch"])
    inputs = []
    for shape in shapes:
        sizes, _, kind = shape.partition(":")
        try:
            numbers = [int(s) for s in sizes.split(",")]
        except ValueError:
            numbers = [0]
        if min(numbers) < 1 or kind not in ("", "int", "float"):
            message = (
                f"--input-shape: expected sizes such as 2,3,32,32 (or 2,16:int for whole numbers), "
                f"got {shape!r}"
            )
            raise UsageError(message)
        # 0 and 1 are valid ids whatever the vocabulary
        inputs.append(torch.randint(2, numbers) if kind == "int" else torch.randn(numbers))
    return (tuple(inputs),) if len(inputs) > 1 else inputs[0]


def add_input_shape(parser: argparse.ArgumentParser, without: str) -> None:
    """Declare the option that `example_inputs` reads."""
    parser.add_argument(
        "--input-shape",
        nargs="+",
        metavar="SHAPE",
        help="shape of each input with a batch of two or more, such as 2,3,32,32, or 2,16:int for "
        f"token ids ({without})",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare the option that `chosen_device` reads."""

    def parse(text: str) -> str:
        if not DEVICE_PATTERN.fullmatch(text):
            message = f"expected cpu, cuda, cuda:N or auto, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return text

    parser.add_argument(
        "--device",
        type=parse,
        metavar="DEVICE",
        help="where to compute: cpu, cuda, cuda:N, or auto for CUDA where it is usable, which "
        "`ccamerge info` tells (default: the configuration's, else cpu)",
    )


def chosen_device(args: argparse.Namespace, config: Config) -> Device | None:
    """The device of the command line or the configuration; None is the CPU.

    Raises
    ------
    UsageError, ConfigError
        If it cannot be used; the message says why.
    """
    given = args.device or config.device
    try:
        device = resolve(given)
    except RuntimeError as error:
        if args.device is None:
            config.fail("device", str(error))
        message = f"--device: {error}"
        raise UsageError(message) from error
    if given == "auto" and device is None:
        note(args, f"computing on the CPU; CUDA: {obstacle()}")
    return device


def check_parent(path: Path) -> None:
    """Fail before the work, not after it, if a result could not be written."""
    parent = path.absolute().parent
    if not parent.is_dir():
        message = f"cannot write {path}: there is no folder {parent}"
        raise UsageError(message)
    if not os.access(parent, os.W_OK | os.X_OK):
        message = f"cannot write {path}: no permission to write in {parent}"
        raise UsageError(message)


def write_text(path: Path, text: str) -> None:
    """Write a file beside the target and rename it: what was there stays until it is complete."""
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def at_least(least: int) -> Callable[[str], int]:
    """Make the ``type`` of an option that is a whole number."""

    def parse(text: str) -> int:
        message = f"expected a whole number of {least} or more, got {text!r}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(message) from None
        if value < least:
            raise argparse.ArgumentTypeError(message)
        return value

    return parse
