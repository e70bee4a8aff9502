"""Models as if every tensor they compute with were a plain parameter or buffer.

Reparametrised weights (weight norm, spectral norm, pruning and their kind) are merged as what they
compute, and put back into the reference's reparametrisation at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.graph.tracing.modules import copied, tensors_of
from ccamerge.graph.tracing.reparametrisations import (
    Limit,
    Reparametrisation,
    close,
    reparametrisations_of,
)

_LIMITS = "_limits_of_plain_tensors"
"""Attribute of a plain copy that has the limits of what it is a copy of."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """A reparametrised tensor, by every name that its module has; tied ones have one ``value``."""

    source: Reparametrisation
    prefixes: tuple[str, ...]
    value: Tensor

    @property
    def keys(self) -> list[str]:
        """The names of the plain tensor."""
        return [prefix + self.source.name for prefix in self.prefixes]


def computed_tensors(model: nn.Module, who: str = "the model") -> list[Computed]:
    """The reparametrised tensors of a model.

    Raises
    ------
    ValueError
        If what one stores is used elsewhere, too, but for tensors tied as a whole: it could not be
        changed alone.
    """
    prefixes: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in path.split("."):  # what is within belongs to its tensor
            prefixes.setdefault(id(module), []).append(f"{path}." if path else "")
            modules[id(module)] = module
    found: list[Computed] = []
    by_originals: dict[tuple[int, ...], Computed] = {}
    for key, module in modules.items():
        for source in reparametrisations_of(module, who):
            originals = tuple(id(t) for t in source.originals())
            value, twin = source.value(), by_originals.get(originals)
            if twin is not None and torch.equal(twin.value, value):
                value = twin.value
            item = Computed(source, tuple(prefixes[key]), value)
            by_originals.setdefault(originals, item)
            found.append(item)
    if found:
        _check_unshared(model, found, who)
    return found


def _check_unshared(model: nn.Module, found: Sequence[Computed], who: str) -> None:
    owned: dict[int, str] = {}
    values: dict[int, Tensor] = {}
    for item in found:
        for tensor in item.source.originals():
            if values.setdefault(id(tensor), item.value) is not item.value:
                raise ValueError(_shared(who, item.keys[0], owned[id(tensor)]))
        owned.update((id(tensor), item.keys[0]) for tensor in item.source.tensors())
    names = _stored(model, found)
    for key, value in model.state_dict(keep_vars=True).items():
        if key not in names and id(value) in owned:
            raise ValueError(_shared(who, key, owned[id(value)]))


def _shared(who: str, key: str, other: str) -> str:
    return (
        f"{who} uses what {other!r} is computed from for {key!r}, too, so that neither can be "
        "merged alone; take the reparametrisation off (for example by "
        "torch.nn.utils.parametrize.remove_parametrizations)"
    )


def _stored(model: nn.Module, found: Sequence[Computed]) -> set[str]:
    """Keys of the ``state_dict`` of what is stored for computed tensors."""
    return {
        key
        for key in model.state_dict()
        for item in found
        for prefix in item.prefixes
        if key.startswith(prefix) and item.source.owns(key.removeprefix(prefix))
    }


def plain(model: nn.Module, who: str) -> nn.Module:
    """The model with plain tensors: itself if it has no others, else a copy.

    Raises
    ------
    ValueError
        If the model cannot be copied, or a tensor cannot be made plain by itself; the message
        begins with ``who``.
    """
    if not computed_tensors(model, who):
        return model
    twin = copied(model, who).eval()
    limits: dict[str, Limit] = {}
    made: dict[int, nn.Parameter | Tensor] = {}
    for item in computed_tensors(twin, who):
        if (limit := item.source.limit()) is not None:
            limits.update(dict.fromkeys(item.keys, limit))
        if id(item.value) not in made:
            original = item.source.originals()[0]
            value: nn.Parameter | Tensor = item.value
            if isinstance(original, nn.Parameter):
                value = nn.Parameter(value, original.requires_grad and value.is_floating_point())
            made[id(item.value)] = value
        item.source.strip(made[id(item.value)])
    setattr(twin, _LIMITS, limits)
    return twin


def limits_of(model: nn.Module) -> Mapping[str, Limit]:
    """What a plain copy's tensors cannot become, since what it is a copy of cannot hold it."""
    found: Mapping[str, Limit] = getattr(model, _LIMITS, {})
    return found


def put_back(
    model: nn.Module,
    state: Mapping[str, Tensor],
    models: Sequence[nn.Module] = (),
    weights: Callable[[str], Sequence[float]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Store the plain values of a model's reparametrised tensors; the rest of it is left alone.

    Parameters
    ----------
    model : changed in place
    state : plain values by name; of several names of a tensor the first in it counts
    models, weights : what was averaged, the reference first, and the shares of a tensor. Where
        there is no way back from a value, the average of what is stored may be what gives it.

    Returns
    -------
    held : what the model then computes, by name
    lost : by name, where that is not what it should be
    """
    held: dict[str, Tensor] = {}
    lost: dict[str, str] = {}
    position = {key: index for index, key in enumerate(state)}
    sources = [{k: i.source for i in computed_tensors(m) for k in i.keys} for m in models]
    for item in computed_tensors(model):
        keys = [key for key in item.keys if key in position]
        if not keys:
            continue
        key = min(keys, key=position.__getitem__)
        wanted = state[key].to(item.value)
        shares = weights(key) if weights else ()
        if shares and not shares[0]:
            item.source.widen(wanted)
        value = item.source.assign(wanted)
        if shares and not close(value, wanted) and all(key in known for known in sources):
            value = item.source.blend([known[key] for known in sources], shares, wanted)
        held[key] = value
        if not close(value, wanted):
            share = float((value - wanted).norm() / wanted.norm().clamp_min(1e-300))
            what = "is the reference's" if torch.equal(value, item.value) else "differs"
            lost[key] = f"{what}: under {item.source.title}, off the average by {share:.0%}"
    return held, lost


def take_plain(model: nn.Module, plain_model: nn.Module) -> dict[str, str]:
    """Give a model the values of a plain one, in place; what it cannot hold, by name."""
    tensors = tensors_of(plain_model)
    own = tensors_of(model, keep_vars=True)
    with torch.no_grad():
        for key in tensors.keys() & own.keys():
            own[key].copy_(tensors[key])
    return put_back(model, tensors)[1]


def ties(state: Mapping[str, Tensor]) -> set[frozenset[str]]:
    """The names of a state that are one tensor, by groups."""
    names: dict[Any, set[str]] = {}
    for key, value in state.items():
        if value.numel():
            place = (value.device, value.data_ptr(), value.shape, value.stride())
            names.setdefault(place, set()).add(key)
    return {frozenset(found) for found in names.values() if len(found) > 1}
