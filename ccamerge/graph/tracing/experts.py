"""Experts of transformers, each run for all tokens.

What transformers runs sorts tokens by their expert, in an order that is another one in each model;
other ways pick weights for each token. Here each expert is a network of its own, which sees every
token in the order in which they come, and weighs nothing where it was not chosen: the same
function, of which the features can be told apart and compared between models.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MARKS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")
"""What transformers gives a module that holds experts in tensors with one axis for all of them."""


def write_out_experts(model: nn.Module) -> None:
    """Have the experts of a model, which is changed, run one after the other for all tokens."""
    for module in model.modules():
        marked = all(hasattr(module, name) for name in (*_MARKS, "num_experts"))
        if marked and not getattr(module, "_is_expert_parallel", False):
            module.forward = functools.partial(_each, module)


def _each(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The sum of what each of the chosen experts makes of a token.

    Parameters
    ----------
    experts : the module
    hidden : (tokens, features)
    chosen : (tokens, chosen), the numbers of experts
    weights : (tokens, chosen), of their outputs
    """
    nothing = weights.new_zeros(hidden.shape[0], experts.num_experts)
    shares = nothing.scatter_add(1, chosen, weights)
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    made = []
    for number in range(experts.num_experts):
        x = _linear(experts, first, number, hidden)
        x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
        x = _linear(experts, "down_proj", number, x)
        if experts.has_post_expert_norm:
            x = experts.post_expert_norm(x)
        made.append(x * shares[:, number, None])
    return torch.stack(made).sum(0).to(hidden.dtype)


def _linear(experts: Any, name: str, number: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[number]
    bias = getattr(experts, f"{name}_bias")[number] if experts.has_bias else None
    return F.linear(x, weight.T if experts.is_transposed else weight, bias)
