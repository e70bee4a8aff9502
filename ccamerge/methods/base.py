"""What a method receives and returns, and the table of methods by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ccamerge.apply import FeatureMap
from ccamerge.graph.spaces import Space
from ccamerge.moments import Moments

Array = np.ndarray[Any, Any]
Mode = Literal["reference", "universe"]


@dataclasses.dataclass(frozen=True)
class AlignmentProblem:
    """One space of one model against the reference.

    Covariances are float64: ``reference`` (p, p) and ``own`` (q, q) of each side, ``cross`` (p, q)
    with rows of the reference. ``name`` is for messages. One of ``ridge`` and ``gamma`` is a
    number if the method is to regularise.
    """

    name: str
    reference: Array
    own: Array
    cross: Array
    ridge: float | None = None
    gamma: float | None = None


@dataclasses.dataclass(frozen=True)
class Solution:
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


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The spaces that a method is to align, and what it may know about them.

    Attributes
    ----------
    spaces : to be aligned, of the reference
    moments : for each of them by name, the `Moments` of all models' features, whose ``dims`` are
        the models' own; the blocks that the method said it needs are there
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

    def each_pair(
        self, solve: Callable[[Sequence[AlignmentProblem]], Sequence[Solution]]
    ) -> Solutions:
        """Solve each model against the reference, all spaces and models in one call."""
        problems, places = [], []
        for space in self.spaces:
            moments = self.moments[space.name]
            reference = moments.cov(self.reference)
            for model in range(len(self.states)):
                if model == self.reference:
                    continue
                places.append((space.name, model))
                problems.append(
                    AlignmentProblem(
                        f"space {space.name!r}, models[{model}]",
                        reference,
                        moments.cov(model),
                        moments.cov(self.reference, model),
                        self.ridges.get(space.name),
                        self.gamma,
                    )
                )
        found = self.identities()
        for (name, model), solution in zip(places, solve(problems), strict=True):
            found[name][model] = solution
        return found

    def identities(self) -> Solutions:
        """The map that changes nothing, for each space and model."""
        return {
            space.name: [Solution(FeatureMap.identity(space.size)) for _ in self.states]
            for space in self.spaces
        }


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of `METHODS`.

    ``solve(alignment, **options)`` returns `Solutions`; ``options`` are its keyword parameters
    with their defaults. ``modes`` are those it knows, ``pairs`` the blocks it needs in the
    reference mode; in the universe mode all are there. ``permutes`` says that its maps are
    permutations, which spaces can carry that carry nothing else; ``rectangular``, that in the
    reference mode they lead from any number of features to the reference's; ``regularised``, that
    it wants a ridge for each space. ``ready`` raises ImportError if the method cannot run for lack
    of a package.
    """

    name: str
    solve: Callable[..., Solutions]
    modes: tuple[Mode, ...]
    pairs: Literal["reference", "all"]
    permutes: bool
    rectangular: bool
    regularised: bool
    options: Mapping[str, Any]
    ready: Callable[[], object]


METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    modes: tuple[Mode, ...] = ("reference",),
    pairs: Literal["reference", "all"] = "reference",
    permutes: bool = False,
    rectangular: bool = False,
    regularised: bool = False,
    ready: Callable[[], object] = lambda: None,
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
            name, solve, modes, pairs, permutes, rectangular, regularised, options, ready
        )
        return solve

    return add


def matched_correlations(problem: AlignmentProblem, forward: Array) -> Array:
    """Correlations between each reference feature and the mapped own one, best first.

    A feature that is constant on either side counts as zero.
    """
    top = np.einsum("pq,qp->p", problem.cross, forward)
    mapped = np.einsum("qp,qr,rp->p", forward, problem.own, forward, optimize=True)
    scale = np.sqrt(np.maximum(mapped, 0.0) * np.maximum(problem.reference.diagonal(), 0.0))
    safe = np.divide(top, scale, out=np.zeros_like(top), where=scale > 0)
    return np.sort(safe)[::-1]
