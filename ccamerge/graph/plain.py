"""Reparametrised weights: merged as what they compute, and put back.

Weight norm keeps a direction and a length, spectral norm a weight and its leading singular vectors,
pruning a weight and a mask: averaged one by one, such pieces are no longer what they were. A plain
copy of a model has the weight itself in their place; its function is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ccamerge.graph.modules import copied

_KEPT = 1e-4
"""Relative change of a weight, when it is put back, that is called none."""


def plain(model: nn.Module, who: str) -> nn.Module:
    """The model with plain weights: itself if it has no others, else a copy."""
    if next(_reparametrised(model), None) is None:
        return model
    result = copied(model, who).eval()
    for module, name, hook in list(_reparametrised(result)):
        if hook is None:
            continue
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, name)
        else:
            prune.remove(module, name)
    for module in result.modules():
        if parametrize.is_parametrized(module):
            _unparametrised(module)
    return result


def _unparametrised(module: nn.Module) -> None:
    """Leave a module of its original class, with the tensors that its parametrisations compute.

    torch's own removal changes the class, which copies share with the module they are of.
    """
    steps: Any = module._modules.pop("parametrizations")
    computed = {name: _computed(steps[name]).clone() for name in steps}
    module.__class__ = type(module).__bases__[0]
    for name, value in computed.items():
        module.register_parameter(name, nn.Parameter(value))


def put_back(model: nn.Module, merged: nn.Module) -> dict[str, str]:
    """Give a reparametrised model the weights of a plain one, in place.

    Returns
    -------
    For each weight that its parametrisation cannot hold, by name, what became of it.
    """
    lost: dict[str, str] = {}
    paths = {id(module): path for path, module in model.named_modules()}
    tensors = merged.state_dict()
    special = [
        (paths[id(module)], module, name, hook) for module, name, hook in _reparametrised(model)
    ]
    with torch.no_grad():
        own = model.state_dict(keep_vars=True)
        for key, value in tensors.items():
            if isinstance(value, Tensor) and key in own:
                own[key].copy_(value)
        for path, module, name, hook in special:
            key = f"{path}.{name}" if path else name
            wanted = tensors[key]
            found = _set(module, name, hook, wanted)
            off = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
            if not off <= _KEPT:
                lost[key] = f"its parametrisation holds another weight, {off:.1e} away"
    return lost


def _set(module: Any, name: str, hook: Any, wanted: Tensor) -> Tensor:
    """Make a module compute a weight as nearly as it can; what it computes then."""
    if isinstance(hook, WeightNorm):
        getattr(module, name + "_v").copy_(wanted)
        lengths = getattr(module, name + "_g")
        other = [dim for dim in range(wanted.dim()) if dim != hook.dim % wanted.dim()]
        size = wanted.norm() if hook.dim == -1 else wanted.norm(dim=other, keepdim=True)
        lengths.copy_(size.reshape(lengths.shape))
        setattr(module, name, hook.compute_weight(module))
    elif isinstance(hook, SpectralNorm):
        getattr(module, name + "_orig").copy_(wanted)
        matrix = hook.reshape_weight_to_matrix(wanted)
        u, v = _singular_vectors(matrix)
        getattr(module, name + "_u").copy_(u)
        if hasattr(module, name + "_v"):
            getattr(module, name + "_v").copy_(v)
        setattr(module, name, hook.compute_weight(module, do_power_iteration=False))
    elif hook is not None:  # pruned: the reference's mask
        getattr(module, name + "_orig").copy_(wanted)
        setattr(module, name, hook.apply_mask(module))
    else:
        steps = module.parametrizations[name]
        try:
            steps.right_inverse(wanted)
        except (NotImplementedError, RuntimeError, ValueError):
            return _computed(steps)  # it has none: the reference's weight stays
        for step in steps:
            if hasattr(step, "_power_method") and hasattr(step, "_u"):
                matrix = step._reshape_weight_to_matrix(wanted)
                u, v = _singular_vectors(matrix)
                step._u.copy_(u)
                step._v.copy_(v)
        return _computed(steps)
    result: Tensor = getattr(module, name).detach()
    return result


def _computed(steps: Any) -> Tensor:
    """What a list of parametrisations computes."""
    result: Tensor = steps().detach()
    return result


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors."""
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, 0].to(matrix.dtype), v[0].to(matrix.dtype)


def _reparametrised(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Modules, names of the tensors that they compute, and what does so.

    That is a hook, or None for torch's parametrisations.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                yield module, name, None
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                yield module, hook.name, hook
            elif isinstance(hook, prune.BasePruningMethod):
                yield module, hook._tensor_name, hook
