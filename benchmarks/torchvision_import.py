"""Importing torchvision beside a torch that it was not built for, as timm and transformers do.

The registry's torchvision is built for CUDA. Beside the CPU torch its native operators do not load,
and describing them to torch ends the import: "operator torchvision::nms does not exist". No network
of the benchmarks uses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def _absent_operators_left_out() -> Iterator[None]:
    described = torch.library.register_fake

    def leniently(operator: Any, *args: Any, **kwargs: Any) -> Any:
        describe = described(operator, *args, **kwargs)

        def attempt(function: Callable[..., Any]) -> Callable[..., Any]:
            try:
                found: Callable[..., Any] = describe(function)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                return function
            return found

        return attempt if callable(describe) and not args else describe

    torch.library.register_fake = leniently
    try:
        yield
    finally:
        torch.library.register_fake = described


def import_torchvision() -> None:
    """Import torchvision, if it is there, before somebody else does it."""
    try:
        with _absent_operators_left_out():
            import torchvision  # noqa: F401
    except ImportError:
        return
