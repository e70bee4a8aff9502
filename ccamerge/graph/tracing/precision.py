"""The precision of torch's float32 operations on CUDA devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def no_tf32() -> Iterator[None]:
    """Keep convolutions and products of float32 in float32 inside, then as they were before."""
    conv: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    name: str = "allow_tf32"
    off: Any = False
    try:
        before = [getattr(of, name) for of in (conv, products)]
    except RuntimeError:  # torch's finer switches are in use, and do not fit these two
        conv, name, off = conv.conv, "fp32_precision", "ieee"
        before = [getattr(of, name) for of in (conv, products)]
    try:
        for of in (conv, products):
            setattr(of, name, off)
        yield
    finally:
        for of, value in zip((conv, products), before, strict=True):
            setattr(of, name, value)
