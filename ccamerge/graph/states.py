"""Parameters of models as the folded program wants them, and whether models belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge import arguments
from ccamerge.graph.batches import batch_size, model_device, moved
from ccamerge.graph.modules import check_state, tensors_of, undisturbed
from ccamerge.graph.plain import plain
from ccamerge.graph.precision import no_tf32
from ccamerge.graph.program import Program
from ccamerge.graph.spaces import Spaces


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
    return models


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

    Equal parameter names and shapes do not make equal networks: this runs both on a few samples,
    the model where it is, the program where its parameters and the inputs are; without TF32, in
    which networks that compute the same come out too far apart.
    """
    size = batch_size(args, kwargs)
    few = lambda x: x[:4] if isinstance(x, Tensor) and x.shape[:1] == (size,) else x  # noqa: E731
    fewer = pytree.tree_map(few, (args, dict(kwargs)))
    try:
        leaves = found[0].program.flatten_inputs(*fewer)
        _run(found[0].program, states[0], leaves)
        args, kwargs = fewer
    except (RuntimeError, ValueError, TypeError, IndexError):  # it fixes how many there are
        leaves = found[0].program.flatten_inputs(args, dict(kwargs))
    for index, (model, spaces, state) in enumerate(zip(models, found, states, strict=True)):
        there, named = moved((args, kwargs), model_device(model))
        with no_tf32():
            ours = _run(spaces.program, state, leaves)
            theirs = pytree.tree_leaves(undisturbed(model, there, named))
            again = pytree.tree_leaves(undisturbed(model, there, named))
        if not all(_alike(a, b) for a, b in zip(theirs, again, strict=True)):
            message = (
                f"models[{index}] does not give the same output twice for the same input: "
                "something random in its forward cannot be merged; make it depend on self.training"
            )
            raise ValueError(message)
        for a, b in zip(ours, theirs, strict=True):
            if not isinstance(b, Tensor) or not b.is_floating_point():
                continue
            b = b.to(a.device)
            scale = b.abs().max().clamp_min(1e-30)
            error = ((a - b).abs().max() / scale).item()
            # Rounding of folded BatchNorm is far below, in half precision some units; NaN is above.
            if not error <= max(1e-3, 8 * torch.finfo(b.dtype).eps):
                if not torch.isfinite(b).all():
                    message = (
                        f"models[{index}] gives outputs that are not finite on the first batch"
                    )
                else:
                    message = (
                        f"models[{index}] does not compute what the traced program of models[0] "
                        f"does (relative difference {error:.1e}): another architecture, or a "
                        "forward that depends on its input"
                    )
                raise ValueError(message)


def _alike(a: Any, b: Any) -> bool:
    """Whether two runs agree to rounding, of values that are not finite too."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return True
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()), equal_nan=True)


def _run(program: Program, state: Mapping[str, Tensor], leaves: list[Any]) -> list[Any]:
    with torch.inference_mode():
        return pytree.tree_leaves(program.run(state, leaves))


def fast_layout(value: Any) -> Any:
    """Images and convolution kernels with channels last, which convolutions prefer.

    Moments read either layout in place. Anything else is returned as it is.
    """
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
