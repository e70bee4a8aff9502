"""Networks of fixed widths, made narrower while they are built."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

CLASSES = 10
"""Of all classifiers that are narrowed: layers of so many features keep their size."""


def _narrow(size: int, factor: int) -> int:
    return size if size in (1, 3, CLASSES) else max(1, size // factor)


def _convolution(factor: int, given: tuple[Any, ...]) -> tuple[Any, ...]:
    inputs, outputs, *others = given
    groups = others[6]
    narrow = _narrow(inputs, factor), _narrow(outputs, factor)
    others[6] = narrow[0] if groups == inputs else math.gcd(groups, *narrow)
    return *narrow, *others


def _first(factor: int, given: tuple[Any, ...]) -> tuple[Any, ...]:
    size, *others = given
    return _narrow(size, factor) if isinstance(size, int) else size, *others


def _linear(factor: int, given: tuple[Any, ...]) -> tuple[Any, ...]:
    inputs, outputs, *others = given
    return _narrow(inputs, factor), _narrow(outputs, factor), *others


_KINDS: dict[Any, Callable[[int, tuple[Any, ...]], tuple[Any, ...]]] = {
    _ConvNd: _convolution,
    _NormBase: _first,
    nn.LayerNorm: _first,
    nn.Linear: _linear,
}


@contextmanager
def narrowed(factor: int) -> Iterator[None]:
    """Divide the widths of layers that are made meanwhile.

    For networks of convolutions whose code has its widths in the layers alone. Groups become fewer
    where they must; sizes of 1, 3 and `CLASSES` stay.
    """
    made = {kind: kind.__init__ for kind in _KINDS}

    def patched(kind: Any) -> Callable[..., None]:
        original = made[kind]

        @functools.wraps(original)
        def init(self: Any, *given: Any, **named: Any) -> None:
            # What comes by name goes by place first: the sizes are the first parameters of each.
            names = original.__code__.co_varnames[1 + len(given) :]
            while names and names[0] in named and names[0] not in ("bias", "eps"):
                given, names = (*given, named.pop(names[0])), names[1:]
            original(self, *_KINDS[kind](factor, given), **named)

        return init

    for kind in _KINDS:
        kind.__init__ = patched(kind)
    try:
        yield
    finally:
        for kind, original in made.items():
            kind.__init__ = original
