"""Parameters of models: read, folded and hashed once for as long as nobody changes them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ccamerge.core import arguments
from ccamerge.graph.folds import Fold
from ccamerge.graph.networks.fingerprints import state_fingerprint
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.tracing.modules import check_state, tensors_of
from ccamerge.graph.tracing.plain import limits_of, plain, ties
from ccamerge.graph.tracing.reparametrisations import Limit

Shapes = frozenset[tuple[str, tuple[int, ...]]]

Ties = set[frozenset[str]]


class Parameters:
    """The parameters and buffers of a model, and what follows from them.

    Nothing here keeps the model alive, nor does it outlive it.

    Attributes
    ----------
    tensors : of the model with plain weights (see `plain`), which share their memory with it
    """

    def __init__(self, model: nn.Module, who: str) -> None:
        check_state(model, who)
        self._model = weakref.ref(model)
        self._marks = _marks(model)
        twin = plain(model, who)
        self._twin = None if twin is model else twin
        self.tensors: Mapping[str, Tensor] = tensors_of(twin)
        self._folded: dict[tuple[Fold, ...], Mapping[str, Tensor]] = {}

    @property
    def model(self) -> nn.Module:
        """The model as it was given."""
        model = self._model()
        if model is None:
            message = "the model of these parameters is gone"
            raise ReferenceError(message)
        return model

    @property
    def plain(self) -> nn.Module:
        """The model with plain weights: itself, or a copy."""
        return self.model if self._twin is None else self._twin

    @cached_property
    def shapes(self) -> Shapes:
        """The shape of every parameter and buffer, and which are one tensor.

        That is all that models of equal widths share.
        """
        tied = frozenset((" is ".join(sorted(names)), ()) for names in self.ties)
        return tied | {(key, tuple(value.shape)) for key, value in self.tensors.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every byte."""
        return state_fingerprint(self.tensors)

    @cached_property
    def ties(self) -> Ties:
        """The names that are one tensor, by groups."""
        return ties(self.tensors)

    @cached_property
    def limits(self) -> Mapping[str, Limit]:
        """What tensors cannot become."""
        return limits_of(self.plain)

    def folded(self, folds: tuple[Fold, ...], device: torch.device) -> Mapping[str, Tensor]:
        """The parameters for the folded program; kept if they are where the model is.

        What folding leaves alone then shares its memory with the model. A copy on another device
        would be one too many once who asked for it is done.
        """
        if any(value.device != device for value in self.tensors.values()):
            return folded_state(self.tensors, folds, device)
        if folds not in self._folded:
            self._folded[folds] = folded_state(self.tensors, folds, device)
        return self._folded[folds]

    def current(self) -> bool:
        """Whether the model's tensors are what they were."""
        try:
            return self._marks == _marks(self.model)
        except (RuntimeError, NotImplementedError, TypeError):  # no plain tensors any more
            return False


_KNOWN: weakref.WeakKeyDictionary[nn.Module, Parameters] = weakref.WeakKeyDictionary()


def parameters_of(model: nn.Module, who: str) -> Parameters:
    """The parameters of a model; made anew only if something in it has changed."""
    known = _KNOWN.get(model)
    if known is None or not known.current():
        known = _KNOWN[model] = Parameters(model, who)
    return known


def _marks(model: nn.Module) -> dict[str, Any]:
    """What tells whether tensors have been written to, whoever did it.

    Torch counts what is written to a tensor, but not what is written to its ``data`` or by others
    who share its memory: so sums over all bits and a few elements count, too, which take a small
    part of the time of a digest.
    """
    state = model.state_dict(keep_vars=True)
    return {key: _mark(value) for key, value in state.items() if isinstance(value, Tensor)}


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SOME = 64
"""Elements of a tensor that are compared one by one."""


def _mark(value: Tensor) -> tuple[Any, ...]:
    version = -1 if value.is_inference() else value._version
    place = (value.data_ptr(), version, value.shape, value.stride(), value.dtype)
    found = value.detach().resolve_conj().resolve_neg()
    if found.is_complex():
        found = torch.view_as_real(found)
    bits = found.view(_BITS[found.element_size()])
    step = max(1, math.ceil(bits.numel() / _SOME))
    some = bits.reshape(-1)[::step].tolist() if bits.is_contiguous() else []
    return (*place, int(bits.sum(dtype=torch.int64)) if bits.numel() else 0, tuple(some))


def same_architecture(models: Sequence[nn.Module]) -> list[Parameters]:
    """The parameters of two or more models of equal names and dtypes; or a ValueError."""
    models = arguments.modules(models)
    if len(models) < 2:
        message = f"models must hold at least two models, got {len(models)}"
        raise ValueError(message)
    every = [parameters_of(model, f"models[{index}]") for index, model in enumerate(models)]
    first = every[0].tensors
    for index, own in enumerate(every[1:], start=1):
        who, other = f"models[{index}]", own.tensors
        if first.keys() != other.keys():
            odd = sorted(first.keys() ^ other.keys())[:3]
            message = (
                f"{who} has another architecture than models[0]: "
                f"only one of them has {', '.join(map(repr, odd))}"
            )
            raise ValueError(message)
        for key, value in first.items():
            if value.dtype != other[key].dtype:
                message = (
                    f"{who} has {key!r} in {other[key].dtype}, models[0] in "
                    f"{value.dtype}; convert them to one dtype first"
                )
                raise ValueError(message)
        _check_ties((who, own.ties), ("models[0]", every[0].ties))
        _check_limits((who, own.limits), ("models[0]", every[0].limits))
    return every


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
