"""Feature spaces of a model: which axes of which weights and activations share a basis."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from ccamerge.core.brief import Brief
from ccamerge.graph.attention.heads import Heads
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.folds import Fold
from ccamerge.graph.groups import Group
from ccamerge.graph.tracing.program import Program


class Role(enum.Enum):
    """What a parameter's axis does with the features of a space mapped by ``x -> x T``."""

    WRITE = "write"  # W -> T^T W
    READ = "read"  # W -> W T^{-T}
    SCALE = "scale"  # multiplies features one by one: only changes of signs and order commute
    NORM = "norm"  # as WRITE, of a normalisation whose affine part `repair` estimates anew
    VARIANCE = "variance"  # the running variance of such a normalisation


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a parameter's axis holds a space.

    Elements ``start`` to ``start + outer*size*inner`` of ``dim``, seen as ``(outer, size, inner)``;
    ``rows`` limits it to a range of axis 0. With ``blocks`` it has not one element for each feature
    but for each of that many equal blocks of them, such as heads, whose order alone it follows.
    """

    parameter: str
    dim: int
    role: Role
    start: int
    outer: int
    inner: int
    rows: tuple[int, int] | None = None
    blocks: int | None = None

    def count(self, size: int) -> int:
        """The number of elements that are told apart, of a space of ``size`` features."""
        return size if self.blocks is None else self.blocks

    def extent(self, size: int) -> int:
        """The number of elements of its axis that it takes, for a space of ``size`` features."""
        return self.outer * self.count(size) * self.inner


@dataclasses.dataclass(frozen=True)
class Tap:
    """Features of a space on an edge of the program.

    Elements ``start`` to ``start + size`` of axis ``dim`` of the value of ``node``: ``part`` in the
    order of what is concatenated there.

    ``kind`` is "write" (a linear operation's output), "norm" (a remaining normalisation's),
    "activation" (an element-wise function's) or "sum" (of several such values). ``beside`` says
    that other features that may be reordered lie on another axis: as samples they are in another
    order in each model, so that nothing is matched there.
    """

    node: str
    kind: str
    dim: int
    start: int
    size: int
    part: int = 0
    beside: bool = False

    @property
    def name(self) -> str:
        """Unique within a space, and the same in networks of other widths."""
        return f"{self.node}[{self.part}]" if self.part else self.node


KERNEL = "position in the kernel"
"""Why no space holds the spatial axes of a convolution's weight."""


@dataclasses.dataclass(frozen=True, repr=False)
class Space(Brief):
    """A set of axes that must be transformed together.

    ``group`` is what its parameters can carry; ``exact`` holds the maps under which the network's
    function is preserved exactly, everything beyond being an approximation.
    """

    name: str
    size: int
    group: Group
    exact: Group
    notes: tuple[str, ...]
    slots: tuple[Slot, ...]
    taps: tuple[Tap, ...]

    def _parts(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "group": self.group.name,
            "exact": self.exact.words,
            "notes": self.notes,
            "slots": [f"{slot.parameter} axis {slot.dim}" for slot in self.slots],
            "taps": [tap.name for tap in self.taps],
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Spaces(Brief):
    """What `spaces` found out about a model.

    ``program`` is the model's graph with gains and BatchNorms folded (``folds``), ``unfolded`` that
    with every BatchNorm as it is; ``spaces`` the mergeable feature spaces in the order of the
    graph; ``fixed`` those that must keep their basis; ``pinned`` the reason for each axis
    ``(parameter, dim)`` that no space holds; ``attention`` are the heads whose spaces have maps
    that depend on each other.
    """

    program: Program
    unfolded: Program
    folds: tuple[Fold, ...]
    spaces: tuple[Space, ...]
    fixed: tuple[Space, ...]
    pinned: dict[tuple[str, int], str]
    attention: tuple[Heads, ...] = ()

    def _parts(self) -> Mapping[str, Any]:
        return {
            "open": {space.name: space.size for space in self.spaces},
            "fixed": {space.name: space.size for space in self.fixed},
            "pinned": f"{len(self.pinned)} axes of parameters",
            "folds": len(self.folds),
        }

    def __iter__(self) -> Any:
        return iter(self.spaces)

    def __len__(self) -> int:
        return len(self.spaces)

    def __getitem__(self, name: str) -> Space:
        for space in self.spaces:
            if space.name == name:
                return space
        message = f"no space named {name!r}; there are {', '.join(s.name for s in self.spaces)}"
        raise KeyError(message)

    @property
    def attended(self) -> frozenset[str]:
        """The names of spaces that attention divides into heads."""
        return frozenset(name for heads in self.attention for name in heads.spaces)

    def together(self) -> list[list[Space]]:
        """The open spaces, those by one whose maps do not depend on others."""
        joint = [[self[name] for name in heads.spaces] for heads in self.attention]
        return [[space] for space in self.spaces if space.name not in self.attended] + joint

    def random_maps(
        self, generator: torch.Generator, of: Literal["exact", "group"] = "exact"
    ) -> dict[str, FeatureMap]:
        """Random maps of all open spaces, of the groups that are exact or that they can carry."""
        maps = {
            space.name: getattr(space, of).random(space.size, generator)
            for space in self.spaces
            if space.name not in self.attended
        }
        sizes = {space.name: space.size for space in self.spaces}
        for heads in self.attention:
            maps |= heads.maps(heads.random(generator), sizes)
        return {space.name: maps[space.name] for space in self.spaces}

    def aligned_shares(self) -> tuple[float, float, float]:
        """Shares of parameters that spaces hold along all their axes, along some, and along none.

        Axes of one element, and positions in kernels, do not count.
        """
        held = {(slot.parameter, slot.dim) for space in self.spaces for slot in space.slots}
        counts = [0, 0, 0]
        for key, shape in self.program.parameter_shapes.items():
            axes = [
                (key, dim)
                for dim, size in enumerate(shape)
                if size > 1 and self.pinned.get((key, dim)) != KERNEL
            ]
            found = sum(axis in held for axis in axes)
            counts[2 if not found else int(found < len(axes))] += math.prod(shape)
        total = max(1, sum(counts))
        return counts[0] / total, counts[1] / total, counts[2] / total

    def __str__(self) -> str:
        width = max([len(s.name) for s in (*self.spaces, *self.fixed)] + [5])
        lines = [f"{'space':<{width}}  {'size':>6}  {'maps':<12} {'exact under':<36} taps"]
        for s in (*self.spaces, *self.fixed):
            maps = f"{s.group.name:<12} {s.exact.words:<36}"
            lines.append(f"{s.name:<{width}}  {s.size:>6}  {maps} {len(s.taps)}")
            lines += [f"{'':<{width}}          {note}" for note in s.notes]
        return "\n".join(lines)
