"""Parameters of models as the folded program wants them, and whether models belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.core import arguments
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.exporting import as_pytree
from ccamerge.graph.tracing.modules import check_state, tensors_of, undisturbed
from ccamerge.graph.tracing.plain import limits_of, plain, ties
from ccamerge.graph.tracing.precision import no_tf32
from ccamerge.graph.tracing.program import Program
from ccamerge.graph.tracing.reparametrisations import Limit


def same_architecture(models: Sequence[nn.Module]) -> list[nn.Module]:
    """Two or more models of equal parameter names and dtypes, with plain weights; or a ValueError.

    A model whose weights are reparametrised comes as a copy in which they are not (see `plain`).
    """
    models = arguments.modules(models)
    if len(models) < 2:
        message = f"models must hold at least two models, got {len(models)}"
        raise ValueError(message)
    for index, model in enumerate(models):
        check_state(model, f"models[{index}]")
    models = [plain(model, f"models[{index}]") for index, model in enumerate(models)]
    first = tensors_of(models[0])
    tied, limits = ties(first), limits_of(models[0])
    for index, model in enumerate(models[1:], start=1):
        other = tensors_of(model)
        if first.keys() != other.keys():
            odd = sorted(first.keys() ^ other.keys())[:3]
            message = (
                f"models[{index}] has another architecture than models[0]: "
                f"only one of them has {', '.join(map(repr, odd))}"
            )
            raise ValueError(message)
        for key, value in first.items():
            if value.dtype != other[key].dtype:
                message = (
                    f"models[{index}] has {key!r} in {other[key].dtype}, models[0] in "
                    f"{value.dtype}; convert them to one dtype first"
                )
                raise ValueError(message)
        who = f"models[{index}]"
        _check_ties((who, ties(other)), ("models[0]", tied))
        _check_limits((who, limits_of(model)), ("models[0]", limits))
    return models


Ties = set[frozenset[str]]


def _check_ties(one: tuple[str, Ties], two: tuple[str, Ties]) -> None:
    for (who, here), (other, there) in ((one, two), (two, one)):
        if odd := here - there:
            names = " and ".join(map(repr, sorted(min(odd, key=sorted))))
            message = (
                f"{who} ties {names} to one tensor, {other} does not; tie them in all models, or "
                "in none"
            )
            raise ValueError(message)


def _check_limits(
    one: tuple[str, Mapping[str, Limit]], two: tuple[str, Mapping[str, Limit]]
) -> None:
    (who, here), (other, there) = one, two
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            a, b = (known[key].why if key in known else "none" for known in (here, there))
            message = (
                f"the reparametrisation of {key!r} differs: in {who} {a}, in {other} {b}; put all "
                "models under the same, or make it permanent in each "
                "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove)"
            )
            raise ValueError(message)


def placed(spaces: Spaces, device: torch.device) -> Spaces:
    """The spaces with programs that run on a device."""
    program, unfolded = spaces.program.to(device), spaces.unfolded.to(device)
    if program is spaces.program and unfolded is spaces.unfolded:
        return spaces
    return dataclasses.replace(spaces, program=program, unfolded=unfolded)


def folded_state(
    model: nn.Module, spaces: Spaces, device: torch.device | None = None
) -> dict[str, Tensor]:
    """The parameters and buffers of a model for the folded program, on a device if one is given.

    What folding and moving do not change is shared with the model, and not to be written to.
    """
    state = {key: value.detach().to(device) for key, value in tensors_of(model).items()}
    for fold in spaces.folds:
        fold.apply(state)
    return state


def check_same_function(
    models: Sequence[nn.Module],
    found: Sequence[Spaces],
    states: Sequence[Mapping[str, Tensor]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Raise ValueError unless each model computes what its program does with its parameters.

    Equal parameter names and shapes do not make equal networks: this runs both on a few samples, or
    on all where samples are not apart, the model where it is, the program where its parameters and
    the inputs are; without TF32, in which networks that compute the same come out too far apart.
    Each model runs twice, since what draws random numbers may escape the trace.
    """
    leaves = found[0].program.flatten_inputs(args, dict(kwargs))
    few = found[0].program.few(leaves)
    for index, (model, spaces, state) in enumerate(zip(models, found, states, strict=True)):
        who = f"models[{index}]"
        with no_tf32():
            try:
                theirs = [_call(model, spaces.program, few) for _ in range(2)]
            except (IndexError, RuntimeError):  # an input holds indices of other samples
                if few is leaves:
                    raise
                few = leaves
                theirs = [_call(model, spaces.program, few) for _ in range(2)]
            with torch.inference_mode():
                ours = pytree.tree_leaves(spaces.program.run(state, few))
        if not len(ours) == len(theirs[0]) == len(theirs[1]):
            message = f"{who} returns another number of values than the traced program of models[0]"
            raise ValueError(message)
        for a, b, again in zip(ours, *theirs, strict=True):
            if not isinstance(b, Tensor) or not b.is_floating_point():
                continue
            # Rounding of folded BatchNorm is far below, in half precision some units; NaN is above.
            limit = max(1e-3, 8 * max(torch.finfo(b.dtype).eps, spaces.program.eps))
            if not torch.isfinite(b).all():
                message = f"{who} gives outputs that are not finite"
                raise ValueError(message)
            if not _difference(again, b) <= limit:
                message = (
                    f"{who} does not give the same output twice for the same input: its forward "
                    "draws random numbers or changes the model; make it deterministic in "
                    "evaluation mode"
                )
                raise ValueError(message)
            if not (error := _difference(a, b)) <= limit:
                message = (
                    f"{who} does not compute what the traced program of models[0] does (relative "
                    f"difference {error:.1e}): another architecture, or a forward that depends on "
                    "its input"
                )
                raise ValueError(message)


def _call(model: nn.Module, program: Program, leaves: list[Any]) -> list[Any]:
    """What a model returns; a forward that writes to its inputs finds copies."""
    there = moved(leaves, model_device(model))
    copies = [x.clone() if isinstance(x, Tensor) else x for x in there]
    args, kwargs = pytree.tree_unflatten(copies, program.input_spec)
    return pytree.tree_leaves(as_pytree(undisturbed(model, args, kwargs)))


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest, relative to the largest value; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    b = b.to(a.device)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def fast_layout(value: Any) -> Any:
    """Images and convolution kernels with channels last, which convolutions prefer.

    Moments read either layout in place. Anything else is returned as it is.
    """
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
