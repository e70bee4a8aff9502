"""The packages that the families come from, which need not be there."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch


def available(package: str) -> None:
    """Skip a test, with the reason, if a package cannot be imported."""
    if package:
        if why := _torchvision():
            pytest.skip(why)
        pytest.importorskip(package, reason="comes with the transformers extra")


@functools.cache
def _torchvision() -> str:
    """Let torchvision be imported where it can be; why it cannot, if it is there but fails.

    timm needs it, transformers imports it where it finds it. One that was built for another torch,
    as the CUDA build beside the CPU's, does not load its operators, and then fails at declaring
    what they do to shapes: none of the families uses them, so declared by name they will do.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return ""
    except RuntimeError as error:
        if "does not exist" not in str(error):
            return str(error)
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "() -> ()")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        return str(error)
    return ""
