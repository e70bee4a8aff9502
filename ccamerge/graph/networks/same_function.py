"""Whether models compute what their programs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.graph.networks.network import Network
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.exporting import results_of
from ccamerge.graph.tracing.modules import undisturbed
from ccamerge.graph.tracing.precision import no_tf32
from ccamerge.graph.tracing.program import Program


def check_same_function(
    networks: Sequence[Network], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise ValueError unless each model computes what its program does with its parameters.

    Equal parameter names and shapes do not make equal networks: this runs both on a few samples, or
    on all where samples are not apart, the model where it is, the program where its parameters and
    the inputs are; without TF32, in which networks that compute the same come out too far apart.
    Each model runs twice, since what draws random numbers may escape the trace.
    """
    leaves = networks[0].program.flatten_inputs(args, dict(kwargs))
    few = networks[0].program.few(leaves)
    for index, network in enumerate(networks):
        who, model, program = f"models[{index}]", network.model, network.program
        with no_tf32():
            try:
                theirs = [_call(model, program, few) for _ in range(2)]
            except (IndexError, RuntimeError):  # an input holds indices of other samples
                if few is leaves:
                    raise
                few = leaves
                theirs = [_call(model, program, few) for _ in range(2)]
            with torch.inference_mode():
                ours = pytree.tree_leaves(program.run(network.state, few))
        if not len(ours) == len(theirs[0]) == len(theirs[1]):
            message = f"{who} returns another number of values than the traced program of models[0]"
            raise ValueError(message)
        for a, b, again in zip(ours, *theirs, strict=True):
            if not isinstance(b, Tensor) or not b.is_floating_point():
                continue
            # Rounding of folded BatchNorm is far below, in half precision some units; NaN is above.
            limit = max(1e-3, 8 * max(torch.finfo(b.dtype).eps, program.eps))
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
    return pytree.tree_leaves(results_of(undisturbed(model, args, kwargs)))


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest, relative to the largest value; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    b = b.to(a.device)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
