"""Tensors that a module computes from others that it stores: what they are, and storing a value.

Weight norm, spectral norm, pruning and their kind. What is stored has constraints, or stands for
the same value in many ways, so that its average entry by entry is no weight at all.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ccamerge.graph.tracing.snapshots import Snapshot, untouched

# Private in torch, and without public names; a torch that has others takes the general way.
_OrthogonalMap = getattr(parametrizations, "_Orthogonal", ())
_SpectralMap = getattr(parametrizations, "_SpectralNorm", ())
_WeightMap = getattr(parametrizations, "_WeightNorm", ())


Hook = TypeVar("Hook")


@dataclasses.dataclass(frozen=True)
class Limit:
    """What cannot be done to a tensor: it holds no other value than its kind allows.

    ``movable`` says that its values may be permuted along every axis, else they stay.
    """

    movable: bool
    why: str


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree but for rounding; never if either is not finite."""
    scale = float(b.norm())
    return bool((a - b).norm() <= 64 * torch.finfo(b.dtype).eps * scale)


class Reparametrisation(abc.ABC):
    """A tensor ``name`` of a module, and what the module stores in its place."""

    module: nn.Module
    name: str
    title: str

    @abc.abstractmethod
    def owns(self, key: str) -> bool:
        """Whether a key of the module's ``state_dict`` is stored for this tensor."""

    @abc.abstractmethod
    def originals(self) -> list[Tensor]:
        """The stored tensors that the value is a function of."""

    @abc.abstractmethod
    def tensors(self) -> list[Tensor]:
        """Everything that is stored."""

    @abc.abstractmethod
    def value(self) -> Tensor:
        """The tensor as the module has it in evaluation mode; nothing is changed."""

    @abc.abstractmethod
    def strip(self, value: nn.Parameter | Tensor) -> None:
        """Make the tensor a plain parameter or buffer of the module."""

    @abc.abstractmethod
    def twin(self) -> Reparametrisation:
        """The same with a copy of what is stored, on a module of its own."""

    @abc.abstractmethod
    def snapshot(self) -> Snapshot:
        """What is stored, to be restored."""

    @abc.abstractmethod
    def _store(self, value: Tensor) -> None:
        """Store what stands for a value, or for the nearest that there is."""

    def refresh(self) -> None:  # noqa: B027 - most have nothing to refresh
        """Bring what was computed from stored tensors up to date."""

    def assign(self, value: Tensor) -> Tensor:
        """Store what stands for a value, and return what that gives.

        If it is not finite, or nothing can be stored, or what is stored already comes closer, that
        stays.
        """
        before = self.value()
        if torch.equal(before, value):
            return before
        snapshot = self.snapshot()
        try:
            with torch.no_grad(), _own_random_numbers(value):
                self._store(value.detach().clone())
            after = self.value()
        except Exception:  # inverses are the user's code, and need not exist
            after = torch.full_like(before, torch.nan)
        if not after.isfinite().all() or (after - value).norm() > (before - value).norm():
            snapshot.restore()
            after = before
        self.refresh()
        return after

    def widen(self, value: Tensor) -> None:  # noqa: B027 - most hold as much as they can
        """Let go of what only suits another value."""

    def blend(
        self, sources: Sequence[Reparametrisation], shares: Sequence[float], value: Tensor
    ) -> Tensor:
        """Store the mean of what others store if that comes closer to a value; what is given then.

        So are averages kept that go through a linear map without an inverse.
        """
        before, snapshot = self.value(), self.snapshot()
        rows = zip(self.originals(), *(s.originals() for s in sources), strict=True)
        with torch.no_grad():
            for own, *theirs in rows:
                own.copy_(sum(w * t for w, t in zip(shares, theirs, strict=True) if w))
        after = self.value()
        if not (after - value).norm() < (before - value).norm():
            snapshot.restore()
            after = before
        self.refresh()
        return after

    def limit(self) -> Limit | None:
        """What values the tensor cannot take; None if any can be stored.

        Found out by trying, on a copy.
        """
        value = self.value()
        if not value.is_floating_point() and not value.is_complex():
            return Limit(False, f"{self.title} of {value.dtype}")
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
        other = value + noise * value.abs().mean()
        size = float(other.norm().clamp_min(1e-30))
        # A bound on the norm, from above or below, is met by some of them, whatever the value.
        if all(self._holds(scale * other) for scale in (1.0, 1e-3 / size, 1e3 / size)):
            return None
        rolled = (value.roll(1, dim) for dim, size in enumerate(value.shape) if size > 1)
        movable = isinstance(self, _Pruned) or all(map(self._holds, rolled))
        kept = "permutations" if movable else "its own basis"
        return Limit(movable, f"{self.title} keeps {kept} only")

    def _holds(self, value: Tensor) -> bool:
        return close(self.twin().assign(value), value)


class _Parametrised(Reparametrisation):
    """By ``torch.nn.utils.parametrize``: one or several maps in a row of one or several tensors."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        assert isinstance(module.parametrizations, nn.ModuleDict)
        found = module.parametrizations[name]
        assert isinstance(found, ParametrizationList)
        self.maps = found
        self.title = " of ".join(type(m).__name__.strip("_") for m in reversed(list(found)))

    def owns(self, key: str) -> bool:
        return key.startswith(f"parametrizations.{self.name}.")

    def originals(self) -> list[Tensor]:
        count = self.maps.ntensors
        names = ["original"] if self.maps.is_tensor else [f"original{i}" for i in range(count)]
        return [getattr(self.maps, name) for name in names]

    def tensors(self) -> list[Tensor]:
        return [*self.maps.parameters(), *self.maps.buffers()]

    def value(self) -> Tensor:
        with untouched(self.maps), torch.no_grad(), _own_random_numbers(self.originals()[0]):
            return self.maps.forward().detach().clone()

    def strip(self, value: nn.Parameter | Tensor) -> None:
        parametrised = self.module.parametrizations
        assert isinstance(parametrised, nn.ModuleDict)
        # Not by torch's own function: the class with the property is that of the model copied, too.
        del parametrised[self.name]
        if not is_parametrized(self.module):
            del self.module.parametrizations
            self.module.__class__ = type(self.module).__bases__[0]
            for name, plain in vars(self.module).pop("_plain", {}).items():
                _register(self.module, name, plain)
            _register(self.module, self.name, value)
        else:  # its class has properties for all of them until the last is gone
            vars(self.module).setdefault("_plain", {})[self.name] = value

    def twin(self) -> Reparametrisation:
        shell = nn.Module()
        shell.parametrizations = nn.ModuleDict()
        shell.parametrizations[self.name] = copy.deepcopy(self.maps)
        return _Parametrised(shell, self.name)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.maps.modules())

    def _store(self, value: Tensor) -> None:
        if isinstance(self.maps[len(self.maps) - 1], _OrthogonalMap):
            left, _, right = torch.linalg.svd(value, full_matrices=False)
            value = left @ right  # the nearest one; torch's own way takes that of a QR
        before = [tensor.clone() for tensor in self.originals()]
        self.maps.eval()
        self.maps.right_inverse(value)
        originals = self.originals()
        for original in originals:  # not in memory that a caller holds, or two of them share
            original.data = original.data.clone()
        first = self.maps[0]
        if isinstance(first, _WeightMap):
            originals[1].copy_(_with_direction(originals[1], originals[0], before[1]))
        x = first(*originals) if not isinstance(first, _SpectralMap) else originals[0]
        for index, module in enumerate(self.maps):
            if isinstance(module, _SpectralMap) and x.dim() > 1:
                u, v = _singular_vectors(module._reshape_weight_to_matrix(x))
                module._u.copy_(u)
                module._v.copy_(v)
            if index or isinstance(module, _SpectralMap):
                x = module(x)


class _Hooked(Reparametrisation, Generic[Hook]):
    """By a ``hook`` before the module's forward that sets a plain attribute."""

    suffixes: tuple[str, ...]

    def __init__(self, module: nn.Module, hook: Hook) -> None:
        self.module, self.hook = module, hook
        self.name = self._attribute()

    @abc.abstractmethod
    def _attribute(self) -> str:
        """Of the attribute that the hook sets."""

    @abc.abstractmethod
    def _computed(self) -> Tensor: ...

    def _names(self) -> list[str]:
        return [f"{self.name}_{suffix}" for suffix in self.suffixes]

    def owns(self, key: str) -> bool:
        return key in self._names()

    def tensors(self) -> list[Tensor]:
        return [getattr(self.module, name) for name in self._names()]

    def originals(self) -> list[Tensor]:
        return [t for t in self.tensors() if isinstance(t, nn.Parameter)]

    def value(self) -> Tensor:
        with torch.no_grad():
            return self._computed().detach().clone()

    def strip(self, value: nn.Parameter | Tensor) -> None:
        hooks = self.module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is self.hook]:
            del hooks[key]
        for name in self._names():
            delattr(self.module, name)
        vars(self.module).pop(self.name, None)
        _register(self.module, self.name, value)

    def twin(self) -> Reparametrisation:
        shell = nn.Module()
        for name, tensor in zip(self._names(), self.tensors(), strict=True):
            shell.register_buffer(name, tensor.detach().clone())
        return type(self)(shell, self.hook)

    def snapshot(self) -> Snapshot:
        shell = nn.Module()  # of these tensors only: the module may have many others
        vars(shell).update({name: getattr(self.module, name) for name in self._names()})
        return Snapshot([shell])

    def refresh(self) -> None:
        vars(self.module)[self.name] = self.value()


class _HookedWeightNorm(_Hooked[WeightNorm]):
    suffixes = ("g", "v")
    title = "WeightNorm"

    def _attribute(self) -> str:
        return self.hook.name

    def _computed(self) -> Tensor:
        result: Tensor = self.hook.compute_weight(self.module)
        return result

    def _store(self, value: Tensor) -> None:
        g, v = self.tensors()
        g.copy_(torch.norm_except_dim(value, 2, self.hook.dim))
        v.copy_(_with_direction(value, g, v.clone()))


class _HookedSpectralNorm(_Hooked[SpectralNorm]):
    suffixes = ("orig", "u", "v")
    title = "SpectralNorm"

    def _attribute(self) -> str:
        return self.hook.name

    def _computed(self) -> Tensor:
        return self.hook.compute_weight(self.module, do_power_iteration=False)

    def _store(self, value: Tensor) -> None:
        original, u, v = self.tensors()
        original.copy_(value)
        vectors = _singular_vectors(self.hook.reshape_weight_to_matrix(value))
        u.copy_(vectors[0])
        v.copy_(vectors[1])


class _Pruned(_Hooked[BasePruningMethod]):
    suffixes = ("orig", "mask")
    title = "pruning"

    def _attribute(self) -> str:
        return self.hook._tensor_name

    def _computed(self) -> Tensor:
        result: Tensor = self.hook.apply_mask(self.module)
        return result

    def widen(self, value: Tensor) -> None:
        _, mask = self.tensors()
        mask.copy_(value != 0)  # the mask was of a model that no longer counts

    def _store(self, value: Tensor) -> None:
        original, mask = self.tensors()
        factor = mask.to(value.dtype)
        original.copy_(torch.where(factor != 0, value / factor, original))


def reparametrisations_of(module: nn.Module, who: str = "model") -> Iterator[Reparametrisation]:
    """Those of a module's own tensors; ``who`` is its model's name in messages.

    Raises
    ------
    ValueError
        If one is computed from what another one computes, which could not be undone.
    """
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name in module.parametrizations:
            yield _Parametrised(module, name)
    kinds: tuple[tuple[type, type], ...] = (
        (WeightNorm, _HookedWeightNorm),
        (SpectralNorm, _HookedSpectralNorm),
        (BasePruningMethod, _Pruned),
    )
    for hook in module._forward_pre_hooks.values():
        for kind, found in kinds:
            if isinstance(hook, kind):
                made = found(module, hook)
                if not all(n in module._parameters or n in module._buffers for n in made._names()):
                    message = (
                        f"{who}: {made.name!r} of a {type(module).__name__} is under {made.title}, "
                        "and what that reads is itself computed; make one of the two permanent "
                        "(prune.remove, remove_weight_norm, remove_spectral_norm)"
                    )
                    raise ValueError(message)
                yield made


def _register(module: nn.Module, name: str, value: nn.Parameter | Tensor) -> None:
    if isinstance(value, nn.Parameter):
        setattr(module, name, value)  # recurrent layers keep lists of what is set
    else:
        module.register_buffer(name, value)


@contextmanager
def _own_random_numbers(like: Tensor) -> Iterator[None]:
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def _with_direction(value: Tensor, norms: Tensor, before: Tensor) -> Tensor:
    """Slices whose norm is zero have no direction: they keep the one that they had."""
    fallback = torch.where(before == 0, torch.ones_like(before), before)
    return torch.where(norms == 0, fallback, value)


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors u, v with ``u^H M v = 1`` if there are any, else those of the largest one.

    Power iteration that has not converged underestimates a norm, and the weight divided by it has a
    norm above 1. Such a weight is kept exactly, by a vector tilted towards a second direction.
    """
    dtype = torch.promote_types(matrix.dtype, torch.float64)
    left, values, right = torch.linalg.svd(matrix.to(dtype), full_matrices=False)
    u, v = left[:, 0], right[0].conj()
    if values[0] > 1 and len(values) > 1:
        u = u / values[0] + (1 - values[0] ** -2).sqrt() * left[:, 1]
    return u, v
