"""From a model to its spaces: traced, folded, derived, and proved on a few samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.core import arguments
from ccamerge.graph.attention.cores import Core, attends
from ccamerge.graph.attention.heads import Heads
from ccamerge.graph.attention.probing import attention_of
from ccamerge.graph.derivation import Derivation
from ccamerge.graph.folding import fold_all_but_batch_norm, fold_batch_norm
from ccamerge.graph.folds import Fold
from ccamerge.graph.forming import formed
from ccamerge.graph.groups import FIXED
from ccamerge.graph.networks.parameters import Parameters, parameters_of
from ccamerge.graph.networks.trial import Trial, uncovered
from ccamerge.graph.space import Space, Spaces
from ccamerge.graph.tracing.batches import batch_size, moved, split_batch
from ccamerge.graph.tracing.exporting import Free
from ccamerge.graph.tracing.program import Program, trace

FEW = 2
"""Samples that a proof takes."""


def spaces(model: nn.Module, example_inputs: Any, *, prove: bool = True) -> Spaces:
    """Derive the feature spaces of a model from its own computation.

    Whatever the model returns keeps its basis, but for hidden states, attention and caches that
    models of transformers return beside logits: they are no results (`results_of`), and a merged
    network returns its own.

    Parameters
    ----------
    model : any module that ``torch.export`` can follow; neither modified nor kept
    example_inputs : one batch as `merge` takes it: a tensor, a tuple or list whose first item is
        the input, or a dict of keyword inputs. Two or more samples make the result independent of
        the batch size.
    prove : whether to try, on a few of the samples, that mapping each space by a random element of
        its group changes no output and takes features where they are said to go. A space of which
        that is not true is pinned, with the reason in its notes.

    Returns
    -------
    Spaces, whose ``str`` is a table.

    Raises
    ------
    ValueError
        If the model cannot be traced; the message carries the tracer's reason.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> def network():
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ...     )
    >>> print(spaces(network(), torch.randn(8, 4)))  # doctest: +NORMALIZE_WHITESPACE
    space      size  maps         exact under                          taps
    0             8  general      positive scaling and permutation     2
    2             3  fixed        identity                             1
                     network output
    0.input       4  fixed        identity                             0
                     linear: meets a fixed axis
    """
    parameters = parameters_of(arguments.module(model, "model"), "model")
    call = split_batch(example_inputs, parameters.plain)
    return spaces_of_call(parameters, *call, prove=prove)


def spaces_of_call(
    model: Parameters,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    prove: bool = True,
    who: str = "the model",
    free: Free = "some",
) -> Spaces:
    """As `spaces`, from the arguments of a call; see `trace` for ``who`` and what is ``free``."""
    traced = trace(model.plain, args, kwargs, who, free)
    unfolded, gains = fold_all_but_batch_norm(traced, model.tensors)
    program, norms = fold_batch_norm(unfolded)
    frozen = {
        key: f"{key} is of {str(value.dtype).removeprefix('torch.')}"
        for key, value in model.tensors.items()
        if not (value.is_floating_point() or value.is_complex())
    }
    folds = (*gains, *norms)
    trial: Trial | None = None
    attention: list[tuple[Core, Heads]] = []
    if attends(program):
        trial = _trial(program, folds, model, args, kwargs)
        learned = [key for key, _ in model.plain.named_parameters(remove_duplicate=False)]
        attention = attention_of(trial.program, trial.state, trial.leaves, learned)
    walk = Derivation(program, frozen, attention)
    found = formed(walk.facts, walk.attended, folds, unfolded)
    if not prove or not found.spaces:
        return found
    return proved(found, trial or _trial(program, folds, model, args, kwargs))


def _trial(
    program: Program,
    folds: tuple[Fold, ...],
    model: Parameters,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Trial:
    """A folded program on a few samples, on the CPU."""
    cpu = torch.device("cpu")
    program, call = program.to(cpu), moved((args, dict(kwargs)), cpu)
    inputs = [few_leaves(program, *call), program.flatten_inputs(*call)]
    return Trial.of(program, model.folded(folds, cpu), inputs)


def proved(found: Spaces, trial: Trial) -> Spaces:
    """The spaces that hold on a few samples; the others are pinned, and say what was seen."""
    loose = {key for key, _ in uncovered(found)}
    wrong = {
        space.name: "it holds a part of a parameter's axis whose rest is unknown"
        for space in found.spaces
        if any(slot.parameter in loose for slot in space.slots)
    }
    generator = torch.Generator().manual_seed(0)
    maps = found.random_maps(generator)

    def fault(spaces: list[Space]) -> str:
        seen = trial.mapped(spaces, maps)
        if not trial.allows(seen.output):
            return f"a map that should be exact changes the output by {seen.output:.1e}"
        missed = max(seen.missed.values(), default=0.0)
        if not trial.allows(missed):
            return f"a map that should be exact leaves its features {missed:.1e} from where it says"
        return ""

    kept = [space for space in found.spaces if space.name not in wrong]
    if fault(kept):
        for own in found.together():
            if why := fault([space for space in own if space.name not in wrong]):
                wrong.update(dict.fromkeys((space.name for space in own), why))
        kept = [space for space in kept if space.name not in wrong]
        if kept and (why := fault(kept)):
            wrong.update(dict.fromkeys((space.name for space in kept), f"together: {why}"))
    return pinned(found, wrong)


def pinned(found: Spaces, reasons: Mapping[str, str]) -> Spaces:
    """The spaces with some of them, by name, left as they are, and those that depend on them."""
    if not reasons:
        return found
    reasons = dict(reasons)
    for heads in found.attention:
        for name in [name for name in heads.spaces if name in reasons]:
            why = f"its maps depend on those of {name!r}: {reasons[name]}"
            reasons.update({other: reasons.get(other, why) for other in heads.spaces})
    open_spaces, fixed, axes = [], list(found.fixed), dict(found.pinned)
    for space in found.spaces:
        if space.name not in reasons:
            open_spaces.append(space)
            continue
        why = reasons[space.name]
        fixed.append(dataclasses.replace(space, group=FIXED, exact=FIXED, notes=(why,)))
        for slot in space.slots:
            axes.setdefault((slot.parameter, slot.dim), why)
    return dataclasses.replace(
        found,
        spaces=tuple(open_spaces),
        fixed=tuple(fixed),
        pinned=axes,
        attention=tuple(h for h in found.attention if not reasons.keys() & set(h.spaces)),
    )


def few_leaves(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The inputs of a call cut to a few samples."""
    size = batch_size(args, kwargs)
    cut = lambda x: x[:FEW] if isinstance(x, Tensor) and x.shape[:1] == (size,) else x  # noqa: E731
    return program.flatten_inputs(*pytree.tree_map(cut, (args, kwargs)))
