"""What a method receives and returns, and the table of methods by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal

import numpy as np
import torch
from torch import Tensor

from ccamerge.config.settings import Mode
from ccamerge.core.brief import Brief
from ccamerge.core.determined import ROUNDING
from ccamerge.core.device import Device, memory_of, resolve
from ccamerge.core.moments import Moments
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL, Group
from ccamerge.graph.space import Space
from ccamerge.methods.likeness import likeness

Array = np.ndarray[Any, Any]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Matrix = TypeVar("Matrix", default=Array)
else:
    from typing import TypeVar

    Matrix = TypeVar("Matrix")


@dataclasses.dataclass(frozen=True, repr=False)
class AlignmentProblem(Brief, Generic[Matrix]):
    """One space of one model against the reference.

    Covariances are float64: ``reference`` (p, p) and ``own`` (q, q) of each side, ``cross`` (p, q)
    with rows of the reference; NumPy arrays, or tensors for a method that asks for these. ``name``
    is for messages. One of ``ridge`` and ``gamma`` is a number if the method is to regularise.
    ``samples`` is what the covariances are of, ``rounding`` the relative error of their entries.
    ``likeness`` gives numbers (p, q) from 0 to 1, to choose by among what the data leave equal;
    None prefers features of the same number.
    """

    name: str
    reference: Matrix
    own: Matrix
    cross: Matrix
    ridge: float | None = None
    gamma: float | None = None
    samples: int = sys.maxsize
    rounding: float = torch.finfo(torch.float64).eps
    likeness: Callable[[], Tensor] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Solution(Brief):
    """A map of own features to the reference's, and what is worth reporting about it.

    ``correlations`` are those between matched features after the map, best first; ``details``
    goes into the report as it is.
    """

    feature_map: FeatureMap
    correlations: Array | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


Solutions = dict[str, list[Solution]]
"""For each space by name, a solution for each model. The reference's is the identity map, unless
the method has none ("zipit")."""


@dataclasses.dataclass(frozen=True, repr=False)
class Alignment(Brief):
    """The spaces that a method is to align, and what it may know about them.

    Attributes
    ----------
    spaces : to be aligned, of the reference
    moments : for each of them by name, the `Moments` of all models' features, whose ``dims`` are
        the models' own; the blocks that the method said it needs are there. They and the states
        are on a device only if the method said that it works there.
    states : each model's parameters and buffers, BatchNorm folded; not to be written to
    reference : the model whose features all maps lead to
    mode : "reference" aligns each model with the reference, "universe" all with all
    ridges : for each space, ``gamma = ridge * trace / d`` of each side; empty if ``gamma`` is given
        or the method is not regularised
    gamma : absolute regulariser
    weights : for each space, how much of each model goes into the merged one, summing to one; the
        universe mode weighs pairs of models by them. Empty means equal.
    """

    spaces: Sequence[Space]
    moments: Mapping[str, Moments]
    states: Sequence[Mapping[str, Tensor]]
    reference: int
    mode: Mode = "reference"
    ridges: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gamma: float | None = None
    weights: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> Device | None:
        """Where the moments are, and where maps are to be."""
        return resolve(next((m.device for m in self.moments.values()), None))

    @property
    def rounding(self) -> float:
        """Relative error of covariances: products of features below float64 are in float32."""
        states = (value for state in self.states for value in state.values())
        double = all(v.dtype is torch.float64 for v in states if v.is_floating_point())
        return torch.finfo(torch.float64).eps if double else ROUNDING

    def likeness(self, space: Space, first: int, second: int) -> Tensor:
        """How alike the features of two models (rows and columns) are without looking at data.

        From 0 to 1: by their weights (`ccamerge.methods.likeness`), or where these cannot be
        compared by their number alone.
        """
        found = likeness(space, self.states[first], self.states[second])
        if found is None:
            dims = self.moments[space.name].dims
            memory = memory_of(self.device)
            found = torch.eye(dims[first], dims[second], dtype=torch.float64, device=memory)
        return found

    def each_pair(
        self, solve: Callable[[Sequence[AlignmentProblem]], Sequence[Solution]]
    ) -> Solutions:
        """Solve each model against the reference, all spaces and models in one call."""
        return self._each_pair(solve, lambda moments, i, j: moments.cov(i, j))

    def each_pair_of_tensors(
        self, solve: Callable[[Sequence[AlignmentProblem[Tensor]]], Sequence[Solution]]
    ) -> Solutions:
        """As `each_pair`, of covariances that are tensors where the moments are."""
        return self._each_pair(solve, lambda moments, i, j: moments.cov_tensor(i, j))

    def _each_pair(
        self,
        solve: Callable[[Sequence[AlignmentProblem[Matrix]]], Sequence[Solution]],
        cov: Callable[[Moments, int, int], Matrix],
    ) -> Solutions:
        problems, places = [], []
        for space in self.spaces:
            moments = self.moments[space.name]
            reference = cov(moments, self.reference, self.reference)
            for model in range(len(self.states)):
                if model == self.reference:
                    continue
                places.append((space.name, model))
                problems.append(
                    AlignmentProblem(
                        f"space {space.name!r}, models[{model}]",
                        reference,
                        cov(moments, model, model),
                        cov(moments, self.reference, model),
                        self.ridges.get(space.name),
                        self.gamma,
                        moments.count,
                        self.rounding,
                        functools.partial(self.likeness, space, self.reference, model),
                    )
                )
        found = self.identities()
        for (name, model), solution in zip(places, solve(problems), strict=True):
            found[name][model] = solution
        return found

    def identities(self) -> Solutions:
        """The map that changes nothing, for each space and model."""
        memory = memory_of(self.device)
        sizes = {space.size for space in self.spaces}
        unchanged = {size: FeatureMap.identity(size, memory).kept() for size in sizes}
        return {
            space.name: [Solution(unchanged[space.size]) for _ in self.states]
            for space in self.spaces
        }


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of `METHODS`.

    ``solve(alignment, **options)`` returns `Solutions`; ``options`` are its keyword parameters with
    their defaults. ``modes`` are those it knows, ``pairs`` the blocks it needs in the reference
    mode; in the universe mode all are there. ``maps`` is the group that its maps are of, which a
    space must be able to carry; ``rectangular`` says that in the reference mode they lead from any
    number of features to the reference's; ``regularised``, that it wants a ridge for each space;
    ``on_device``, that it takes moments and gives maps on a CUDA device, too; ``local``, that it
    asks for nothing but the moments of a space, so that it may align what lies within a head of
    attention. ``ready`` raises
    ImportError if the method cannot run for lack of a package. ``limits`` has, for each option that
    not every number is good for, what raises ValueError when called with such a value and the
    option's name.
    """

    name: str
    solve: Callable[..., Solutions]
    modes: tuple[Mode, ...]
    pairs: Literal["reference", "all"]
    maps: Group
    rectangular: bool
    regularised: bool
    on_device: bool
    local: bool
    options: Mapping[str, Any]
    ready: Callable[[], object]
    limits: Mapping[str, Callable[[Any, str], object]]


METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    modes: tuple[Mode, ...] = ("reference",),
    pairs: Literal["reference", "all"] = "reference",
    maps: Group = GENERAL,
    rectangular: bool = False,
    regularised: bool = False,
    on_device: bool = False,
    local: bool = False,
    ready: Callable[[], object] = lambda: None,
    limits: Mapping[str, Callable[[Any, str], object]] = MappingProxyType({}),
) -> Callable[[Callable[..., Solutions]], Callable[..., Solutions]]:
    """Make a method known under a name, in Python, YAML and on the command line.

    It is decorated ``solve(alignment, *, option=default) -> Solutions``; see `Method`.
    """

    def add(solve: Callable[..., Solutions]) -> Callable[..., Solutions]:
        options = {
            p.name: p.default
            for p in inspect.signature(solve).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        METHODS[name] = Method(
            name,
            solve,
            modes,
            pairs,
            maps,
            rectangular,
            regularised,
            on_device,
            local,
            options,
            ready,
            limits,
        )
        return solve

    return add


def matched_correlations(problem: AlignmentProblem[Any], forward: Array | Tensor) -> Array:
    """Correlations between each reference feature and the mapped own one, best first.

    A feature that is constant on either side counts as zero. Arrays or tensors, all in one place.
    """
    cross, own, reference, forward = (
        torch.as_tensor(m) for m in (problem.cross, problem.own, problem.reference, forward)
    )
    top = (cross * forward.T).sum(1)
    mapped = (forward * (own @ forward)).sum(0)
    rho = over_deviations(top, mapped * reference.diagonal().clamp_min(0))
    return np.asarray(rho.sort(descending=True).values.cpu().numpy())


def over_deviations(covariance: Tensor, variances: Tensor) -> Tensor:
    """Covariances over the square roots of products of variances; zero where these are not > 0."""
    scale = variances.clamp_min(0).sqrt()
    return torch.where(scale > 0, covariance / scale, 0.0)
