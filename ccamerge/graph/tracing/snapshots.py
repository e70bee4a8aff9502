"""What modules are, kept bit for bit and restored: running them without leaving a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """What modules are: their attributes, flags and hooks, and every tensor, bit for bit.

    Attributes are restored as objects; tensors, lists, dicts and sets among them with what they
    held.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor, Tensor, bool, Tensor | None]] = {}
        for module in modules:
            own = vars(module)
            self._attributes.append((own, dict(own)))
            for value in own.values():
                self._keep(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self._tensors and not nn.parameter.is_lazy(value):
                data = value.detach()
                content = data.clone()
                gradient = value.grad if value.is_leaf else None  # torch warns of others
                needs_gradient = value.requires_grad
                self._tensors[id(value)] = (value, data, content, needs_gradient, gradient)
        elif isinstance(value, (list, dict, set)) and id(value) not in self._contents:
            self._contents[id(value)] = (value, copy.copy(value))
            items = value.values() if isinstance(value, dict) else value
            for item in items:
                if not isinstance(item, nn.Module):
                    self._keep(item)

    def restore(self) -> None:
        """Make everything what it was."""
        for own, before in self._attributes:
            own.clear()
            own.update(before)
        for value, before in self._contents.values():
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)
        with torch.no_grad():
            for value, data, content, needs_gradient, gradient in self._tensors.values():
                if not _dense(value):
                    continue
                if not torch.equal(bits(data), bits(content)):
                    data.copy_(content)  # only then: it tells autograd that the value changed
                if value.data_ptr() != data.data_ptr() or value.shape != data.shape:
                    value.data = data
                if value.is_leaf and value.requires_grad != needs_gradient:
                    value.requires_grad_(needs_gradient)
                if value.is_leaf and value.grad is not gradient:
                    value.grad = gradient


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a dense tensor, in order; they share its memory if it is contiguous."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


def _dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards the module and all within it is bit for bit what it was.

    A forward may count, cache or average into buffers and attributes.
    """
    modules = list(model.modules())
    snapshot = Snapshot(modules)
    try:
        model.eval()
        yield
    finally:
        snapshot.restore()
