"""Modules as a user has them: what stands in their state, copies, and runs that leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.core.scratch import kept


def tensors_of(model: nn.Module, keep_vars: bool = False) -> dict[str, Tensor]:
    """The tensors in a model's ``state_dict``; extra state is left out."""
    state = model.state_dict(keep_vars=keep_vars)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def check_state(model: nn.Module, who: str) -> None:
    """Raise ValueError if a state holds what cannot be merged.

    Extra state is not looked at here: it is the reference's.
    """
    for key, value in model.state_dict().items():
        name = key.rpartition(".")[2]
        what = ""
        if name == "_extra_state":
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            what = f"a {kind} and no tensor"
            if "_packed_params" in key or "Params" in kind or isinstance(value, torch.dtype):
                what = f"of a quantised module ({kind}); merge before quantising"
        elif nn.parameter.is_lazy(value):
            what = "not initialised; run the model once"
        elif value.is_meta:
            what = "on the meta device; load its values first"
        elif value.layout is not torch.strided:
            what = f"of layout {value.layout}; convert it by to_dense() first"
        elif value.is_quantized:
            what = "quantised; merge before quantising"
        if what:
            message = f"{who} cannot be merged: {key!r} is {what}"
            raise ValueError(message)


def extra_state(model: nn.Module) -> dict[str, Any]:
    """What modules keep in a state beside tensors, by key."""
    state = model.state_dict()
    return {key: value for key, value in state.items() if key.endswith("_extra_state")}


def copied(model: nn.Module, who: str, share: bool = False) -> nn.Module:
    """A deep copy; ValueError that names the attribute if there is none.

    Tensors that modules compute and keep (by hooks that normalise or prune weights) are copied as
    values: after a backward pass they are results of a graph, which torch does not copy. With
    ``share`` parameters and buffers are the model's own, for who only looks at them: a copy of a
    large model takes as much memory again.
    """
    memo: dict[int, Any] = {}
    for own in (*model.parameters(), *model.buffers()):
        if share and own.is_leaf:
            memo[id(own)] = own
        elif type(own) in (nn.Parameter, Tensor) and own.is_leaf:
            there = kept(own.detach())
            if there.data_ptr() != own.data_ptr():
                memo[id(own)] = (
                    nn.Parameter(there, own.requires_grad)
                    if isinstance(own, nn.Parameter)
                    else there
                )
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        message = (
            f"{who} cannot be copied: {_culprit(model)} ({error}); remove it while merging, or "
            "give the class a __deepcopy__"
        )
        raise ValueError(message) from error


def _culprit(model: nn.Module) -> str:
    """The first attribute of a module that cannot be copied."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f"attribute {'.'.join(filter(None, (path, name)))!r}"
    return type(model).__name__


def undisturbed(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a model returns in evaluation mode; its buffers and modes stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with evaluating(model), torch.inference_mode():
        return torch.func.functional_call(model, buffers, args, dict(kwargs))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode inside, then each module in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
