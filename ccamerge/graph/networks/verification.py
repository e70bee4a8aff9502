"""Five checks that a model's feature spaces are right; run them on any architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.core import arguments
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.maps import MappedParameters
from ccamerge.graph.networks.inspection import few_leaves, spaces_of_call
from ccamerge.graph.networks.parameters import parameters_of
from ccamerge.graph.networks.trial import Mapped, Trial, change, uncovered
from ccamerge.graph.rules import operation
from ccamerge.graph.space import Role, Spaces
from ccamerge.graph.tracing.batches import moved, split_batch
from ccamerge.graph.tracing.modules import check_state, copied
from ccamerge.graph.tracing.program import Program

CHANGED = 1e-6
"""Relative change that half of a transformation must at least make."""

NOTHING = "nothing to check: no space is open"


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its name, whether it passed, and what was measured."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}"


def verify(model: nn.Module, example_inputs: Any, *, seed: int = 0) -> list[Check]:
    """Prove, for one model, that its feature spaces are right.

    1. *symmetry*: a random element of each space's exact symmetry group leaves the output unchanged
       (relative 1e-10 in float64, or what rounding does to this network);
    2. *linear twin*: with non-linearities and normalisation replaced by the identity, a random
       well-conditioned invertible map on every space leaves it unchanged;
    3. *mutation*: transforming only what writes, or only what reads, a space changes it;
    4. *coverage*: every axis of every parameter belongs to a space or is pinned with a reason;
    5. *recovery*: a transformed copy has the features that it should at every place where they are
       matched, and the inverse maps make it the model again.

    Outputs are judged on a few of the given inputs and on new ones of the same shape and spread.
    All is computed in float64, casts in the forward included, where the network allows that.

    Parameters
    ----------
    model : any module that can be traced; not modified. A copy is checked, on the CPU.
    example_inputs : one batch, as `merge` takes it
    seed : of the random maps

    Returns
    -------
    The five checks, in order. What `merge` would pin for failing the first is a failure here.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> def network():
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ...     )
    >>> [(check.name, check.passed) for check in verify(network(), torch.randn(8, 4))]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('symmetry', True), ('linear twin', True), ('mutation', True), ('coverage', True),
     ('recovery', True)]
    """
    cpu = torch.device("cpu")
    model, seed = arguments.module(model, "model"), arguments.seed(seed)
    check_state(model, "model")
    twin, example_inputs = copied(model, "model").cpu().eval(), moved(example_inputs, cpu)
    parameters = parameters_of(twin, "model")
    args, kwargs = split_batch(example_inputs, parameters.plain)
    found = spaces_of_call(parameters, args, kwargs, prove=False)
    generator = torch.Generator().manual_seed(seed)
    state = parameters.folded(found.folds, cpu)
    few, whole = few_leaves(found.program, args, kwargs), found.program.flatten_inputs(args, kwargs)
    trials = [Trial.of(found.program, state, [few, whole])]
    trials += _on_new_inputs(trials[0], generator)
    exact = found.random_maps(generator)
    seen = [trial.mapped(found.spaces, exact) for trial in trials]
    return [
        _symmetry(trials, seen, found, exact),
        _linear_twin(trials, found, generator),
        _mutation(trials, found, generator),
        _coverage(found),
        _recovery(trials, seen, found, exact),
    ]


def _on_new_inputs(trial: Trial, generator: torch.Generator) -> Iterator[Trial]:
    """The trial on inputs of the same shape and spread, if the network takes them."""

    def scatter(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 2 or x.numel() == 0:
            return x
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator).to(x.dtype)
            return x.mean() + noise * x.std(correction=0).clamp_min(1e-3)
        return x.flatten()[torch.randperm(x.numel(), generator=generator)].view_as(x)

    leaves = [scatter(leaf) for leaf in trial.leaves]
    try:
        other = Trial(trial.program, trial.state, leaves)
    except (RuntimeError, IndexError):
        return
    if all(bool(x.isfinite().all()) for x in other.outputs):
        yield other


def _preserved(
    name: str,
    trials: Sequence[Trial],
    changes: Sequence[float],
    found: Spaces,
    maps: Mapping[str, FeatureMap],
) -> Check:
    """Whether what maps of all spaces changed is rounding; which of them do more, if not."""
    if not maps:
        return Check(name, True, NOTHING)
    detail = f"output changes by {max(changes):.1e} under {len(maps)} random {name} maps"
    if all(trial.allows(amount) for trial, amount in zip(trials, changes, strict=True)):
        return Check(name, True, detail)
    guilty = [
        space.name
        for own in found.together()
        if not all(t.allows(t.changed(MappedParameters(t.state, own, maps))) for t in trials)
        for space in own
    ]
    detail += f"; alone by that of {', '.join(guilty)}" if guilty else "; by none alone"
    return Check(name, False, detail)


def _symmetry(
    trials: Sequence[Trial], seen: Sequence[Mapped], found: Spaces, exact: Mapping[str, FeatureMap]
) -> Check:
    return _preserved("symmetry", trials, [of.output for of in seen], found, exact)


def _linear_twin(trials: Sequence[Trial], found: Spaces, generator: torch.Generator) -> Check:
    kept = frozenset(name for heads in found.attention for name in heads.nodes)
    program = linear_twin(trials[0].program, kept)
    maps = found.random_maps(generator, "group")
    twins = [Trial(program, trial.state, trial.leaves) for trial in trials] if maps else []
    changes = [twin.changed(MappedParameters(twin.state, found.spaces, maps)) for twin in twins]
    return _preserved("linear twin", twins, changes, found, maps)


def linear_twin(program: Program, kept: Collection[str] = ()) -> Program:
    """The program without its non-linearities, but those of the nodes ``kept``.

    Element-wise functions, normalisations and shifts by a number become the identity, maxima over
    space means. What no parameter goes into, such as the numbers of buckets of positions, stays.
    """
    features = set(program.parameters)
    nodes = []
    for node in program.nodes:
        if not features.isdisjoint(node.refs()):
            features.add(node.name)
            twin = None if node.name in kept else operation(node).twin
            node = twin(node) if twin else node
        nodes.append(node)
    return dataclasses.replace(program, nodes=tuple(nodes))


def _mutation(trials: Sequence[Trial], found: Spaces, generator: torch.Generator) -> Check:
    if not found.spaces:
        return Check("mutation", True, NOTHING)
    # Any map will do, as half of one is to be seen, and all spaces together: each by itself would
    # take two passes. Features on which no output depends are no fault.
    maps = {s.name: GENERAL.random(s.size, generator) for s in found.spaces}
    halves = {"writers": frozenset(Role) - {Role.READ}, "readers": frozenset({Role.READ})}
    seen = {
        half: max(t.changed(MappedParameters(t.state, found.spaces, maps, roles)) for t in trials)
        for half, roles in halves.items()
    }
    silent = [half for half, amount in seen.items() if not amount > CHANGED]
    detail = f"half a transformation changes the output by {min(seen.values()):.1e} or more"
    if len(silent) == 1:
        detail = f"no change from transforming only the {silent[0]}"
    elif silent:
        detail = "the output does not depend on these features here"
    return Check("mutation", len(silent) != 1, detail)


def _coverage(found: Spaces) -> Check:
    missing = [f"{key} axis {dim}" for key, dim in uncovered(found)]
    axes = sum(len(found.program.shapes[name]) for name in found.program.parameters)
    detail = f"{axes} axes, each in a space or pinned with a reason"
    if missing:
        detail = f"neither in a space nor pinned: {', '.join(missing[:5])}"
    return Check("coverage", not missing, detail)


def _recovery(
    trials: Sequence[Trial], seen: Sequence[Mapped], found: Spaces, exact: Mapping[str, FeatureMap]
) -> Check:
    if not found.spaces:
        return Check("recovery", True, NOTHING)
    lost = {
        name: away
        for trial, of in zip(trials, seen, strict=True)
        for name, away in of.missed.items()
        if not trial.allows(away)
    }
    state = trials[0].state
    back = {name: FeatureMap(m.inverse, m.forward) for name, m in exact.items()}
    again = MappedParameters(MappedParameters(state, found.spaces, exact), found.spaces, back)
    returned = max(change([state[key]], [again[key]]) for key in state)
    worst = max(away for of in seen for away in of.missed.values())
    detail = (
        f"features of a transformed copy are off by {worst:.1e}, and its parameters, mapped back, "
        f"by {returned:.1e}"
    )
    if lost:
        detail += f"; spaces: {', '.join(lost)}"
    return Check("recovery", not lost and trials[0].allows(returned), detail)
