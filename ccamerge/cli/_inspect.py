"""``ccamerge inspect``: a network's feature spaces, and the proof that they are right."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccamerge.cli._shared import UsageError, add_input_shape, build, example_inputs, to_json
from ccamerge.config.data_files import DataFiles
from ccamerge.config.importing import FACTORY_PATTERN, Factory
from ccamerge.config.model import Architecture, Pretrained
from ccamerge.config.reader import load_config, parse_value

NAME = "inspect"
HELP = "show which features of a network can be aligned, and prove it"
DESCRIPTION = """\
Derives a network's feature spaces from its own computation: which axes of which parameters share
a basis, what may be done to them, and what is pinned and why. With --verify, checks numerically
that the derivation is right for this network; the exit status is 1 if a check fails."""
EPILOG = """\
examples:
  ccamerge inspect merge.yml --verify
  ccamerge inspect mypackage.networks:resnet20 --arg width=2 --input-shape 2,3,32,32
  ccamerge inspect mypackage.networks:bert --input-shape 2,16:int 2,16:int --json
  ccamerge inspect runs/llama --input-shape 2,16:int

Modules are imported from the current folder too."""

_SHOWN = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help='a configuration, "package.module:function" that returns the network, or a folder '
        "that transformers builds it from",
    )
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument for the function, read as YAML; may be repeated",
    )
    add_input_shape(parser, "with a configuration, the first batch of its data by default")
    parser.add_argument("--verify", action="store_true", help="run the checks, too")
    parser.add_argument("--seed", type=int, default=0, help="of the checks (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 if a check fails."""
    architecture, data = _target(args)
    architecture.load()
    import torch

    import ccamerge

    torch.manual_seed(args.seed)
    model = build(architecture)
    example = example_inputs(args.input_shape, data, model)
    found = ccamerge.spaces(model, example)
    checks = ccamerge.verify(model, example, seed=args.seed) if args.verify else []
    if args.json:
        print(to_json(_as_dict(found, checks)))
    else:
        print(found)
        _print_pinned(found.pinned)
        if checks:
            print("\nchecks")
        for check in checks:
            print(f"  {check}")
    return 0 if all(check.passed for check in checks) else 1


def _print_pinned(pinned: Mapping[tuple[str, int], str]) -> None:
    """One line a reason: networks have few reasons and many axes."""
    reasons: dict[str, list[str]] = {}
    for (parameter, dim), reason in pinned.items():
        reasons.setdefault(reason, []).append(f"{parameter} axis {dim}")
    if reasons:
        print("\npinned axes of parameters")
    for reason, axes in reasons.items():
        more = f" and {len(axes) - _SHOWN} more (--json has them)" if len(axes) > _SHOWN else ""
        print(f"  {reason}: {', '.join(axes[:_SHOWN])}{more}")


def _target(args: argparse.Namespace) -> tuple[Architecture, Factory | DataFiles | None]:
    path = Path(args.target)
    if path.suffix in (".yml", ".yaml") or path.is_file():
        if args.arg:
            message = "--arg is for a function; a configuration has architecture.arguments"
            raise UsageError(message)
        config = load_config(path)
        return config.architecture, config.data
    if path.is_dir():
        return Pretrained(path, source="TARGET"), None
    if not FACTORY_PATTERN.fullmatch(args.target):
        message = (
            'TARGET: expected a configuration file or a folder, or "package.module:function", '
            f"got {args.target!r}"
        )
        raise UsageError(message)
    arguments = {}
    for item in args.arg:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            message = f"--arg: expected NAME=VALUE, got {item!r}"
            raise UsageError(message)
        arguments[name] = parse_value(value)
    return Factory(args.target, arguments, "TARGET"), None


def _as_dict(found: Any, checks: list[Any]) -> dict[str, Any]:
    pinned: dict[str, dict[str, str]] = {}
    for (parameter, dim), reason in found.pinned.items():
        pinned.setdefault(parameter, {})[str(dim)] = reason
    return {
        "spaces": [_plain(space) for space in found.spaces],
        "fixed": [_plain(space) for space in found.fixed],
        "pinned": pinned,
        "checks": [_plain(check) for check in checks],
    }


def _plain(value: Any) -> Any:
    """Dataclasses and enumerations as JSON can hold them."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
