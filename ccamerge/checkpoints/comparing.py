"""Checkpoints beside each other: whether they hold parameters of one architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ccamerge.checkpoints.pretrained import CONFIG
from ccamerge.checkpoints.wrappings import shorten


def difference(
    path: Path,
    shapes: Mapping[str, Tensor],
    base: Path,
    others: Mapping[str, Tensor],
    *,
    widths: bool = False,
    precisions: bool = False,
) -> str | None:
    """Why a checkpoint cannot be merged with another; None if it can.

    Parameters
    ----------
    path, base : files or folders, which the message names
    shapes, others : what `ccamerge.checkpoints.reading.load_shapes` says of them
    widths : whether sizes may differ; the number of axes may not
    precisions : whether floating-point numbers may be of different precision
    """
    kinds = [_model_type(one) for one in (path, base)]
    if None not in kinds and kinds[0] != kinds[1]:
        return (
            f"{path}: is of another architecture, model_type {kinds[0]!r} in its {CONFIG}, than "
            f"{base}, {kinds[1]!r}"
        )
    lacks, more = others.keys() - shapes.keys(), shapes.keys() - others.keys()
    if lacks or more:
        parts = [
            f"{title} {shorten(sorted(names))}"
            for title, names in (("it lacks", lacks), ("it alone has", more))
            if names
        ]
        return f"{path}: is of another architecture than {base}: {'; '.join(parts)}"
    wrong = [
        f"{key} has shape {tuple(shapes[key].shape)}, there {tuple(value.shape)}"
        for key, value in others.items()
        if (shapes[key].dim() != value.dim() if widths else shapes[key].shape != value.shape)
    ]
    if wrong:
        return f"{path}: differs in shape from {base}: {shorten(wrong, 3)}"
    odd = [
        f"{key} is {_name(shapes[key])}, there {_name(value)}"
        for key, value in others.items()
        if shapes[key].dtype != value.dtype and not (precisions and _real(shapes[key], value))
    ]
    if not odd:
        return None
    hint = ""
    if all(_real(shapes[key], others[key]) for key in others):
        hint = '; say which to write, such as "dtype: bfloat16", or convert one'
    return f"{path}: differs in dtype from {base}: {shorten(odd, 3)}{hint}"


def _model_type(path: Path) -> str | None:
    """What a folder's configuration says that it is; None without one that can be read."""
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        return content.get("model_type") if isinstance(content, dict) else None
    except (OSError, ValueError):
        return None


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _real(*values: Tensor) -> bool:
    """Whether all hold numbers that differ in nothing but precision, or are of one dtype."""
    return len({v.dtype for v in values}) == 1 or all(v.dtype in _REAL for v in values)
