"""Networks of many families, as small as each allows, with inputs for them: a table a source.

A table is a dict of builders by name. A builder returns a `Case`; nothing is built, and no package
imported, before it is called for.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Sample = Callable[[int, torch.Generator], Any]
"""A batch of so many samples."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with random weights and what it takes; ``samples`` in a batch are plenty."""

    model: nn.Module
    sample: Sample
    samples: int = 8


Table = Mapping[str, Callable[[], Case]]

SOURCES = ("plain", "hugging_face", "torchvision", "timm")


def table_of(source: str) -> Table:
    """The builders of a source; ImportError if it has a package that is not there."""
    found: Table = importlib.import_module(f"families.{source}_table").TABLE
    return found


def features(*shape: int) -> Sample:
    """Normal numbers of a shape, which images are, too."""
    return lambda count, generator: torch.randn(count, *shape, generator=generator)


def plenty(size: int) -> int:
    """Images of so many pixels along a side that hardly a channel is silent on all of them.

    Where a channel is, a permuted copy cannot be told from another network, whoever merges it.
    """
    return max(8, min(48, 48 * 32**2 // size**2))


def tokens(vocabulary: int, *shape: int) -> Sample:
    """Whole numbers below the size of a vocabulary; none is 0 or 1, which often are special."""
    return lambda count, generator: torch.randint(
        2, vocabulary, (count, *shape), generator=generator
    )


def named(**samples: Sample) -> Sample:
    """Keyword inputs."""
    return lambda count, generator: {
        name: sample(count, generator) for name, sample in samples.items()
    }


def several(*samples: Sample) -> Sample:
    """Positional inputs."""
    return lambda count, generator: [[sample(count, generator) for sample in samples]]


def ones(*shape: int) -> Sample:
    """Of whole numbers, such as a mask that leaves all in."""
    return lambda count, generator: torch.ones(count, *shape, dtype=torch.int64)


def doubled(value: Any) -> Any:
    """Floating-point tensors in double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: doubled(item) for key, item in value.items()}
    return type(value)(map(doubled, value)) if isinstance(value, (list, tuple)) else value
