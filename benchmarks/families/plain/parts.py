"""What networks in plain torch are made of, and their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

D, CLASSES, LENGTH, WORDS, SIDE = 16, 5, 6, 30, 12
"""Width, classes, length of sequences, vocabulary, and pixels along a side."""

Make = Callable[[int], nn.Module]
"""A layer for so many features."""


class Fn(nn.Module):
    """A network of named parts and how they are used: ``forward(parts, inputs...)``."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def lin(a: int = D, b: int = D, **kw: Any) -> nn.Linear:
    return nn.Linear(a, b, **kw)


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.norm = body, norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.body(x))


class LastAxis(nn.Module):
    """A layer for features on the last axis, of feature maps with channels first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)
