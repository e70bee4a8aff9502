"""Merge trained neural networks by aligning their features with canonical correlation analysis."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccamerge._threads import num_threads, set_num_threads
    from ccamerge.apply import FeatureMap
    from ccamerge.collected import Collected
    from ccamerge.collecting import collect
    from ccamerge.comparing import Comparison, compare
    from ccamerge.cuda import cuda_status
    from ccamerge.evaluation import evaluate
    from ccamerge.factors import (
        generalized_eigh,
        generalized_eigh_batch,
        polar,
        polar_batch,
        whiten,
    )
    from ccamerge.graph.inspection import spaces
    from ccamerge.graph.spaces import Space, Spaces
    from ccamerge.interpolation import Barrier, barrier
    from ccamerge.merging import MergeResult, merge
    from ccamerge.methods import METHODS
    from ccamerge.moments import Moments, update_many
    from ccamerge.planning import plan
    from ccamerge.solve import CCAResult, cca, cca_batch
    from ccamerge.universe_solve import UniverseResult, universe, universe_batch
    from ccamerge.verification import verify

__version__ = "0.1.0"

# Loaded when first asked for: importing torch takes seconds, `ccamerge --help` should not.
_HOMES = {
    "ccamerge._threads": ("num_threads", "set_num_threads"),
    "ccamerge.apply": ("FeatureMap",),
    "ccamerge.collected": ("Collected",),
    "ccamerge.collecting": ("collect",),
    "ccamerge.comparing": ("Comparison", "compare"),
    "ccamerge.cuda": ("cuda_status",),
    "ccamerge.evaluation": ("evaluate",),
    "ccamerge.graph.inspection": ("spaces",),
    "ccamerge.graph.spaces": ("Space", "Spaces"),
    "ccamerge.interpolation": ("Barrier", "barrier"),
    "ccamerge.merging": ("MergeResult", "merge"),
    "ccamerge.methods": ("METHODS",),
    "ccamerge.moments": ("Moments", "update_many"),
    "ccamerge.planning": ("plan",),
    "ccamerge.factors": (
        "generalized_eigh",
        "generalized_eigh_batch",
        "polar",
        "polar_batch",
        "whiten",
    ),
    "ccamerge.solve": ("CCAResult", "cca", "cca_batch"),
    "ccamerge.universe_solve": ("UniverseResult", "universe", "universe_batch"),
    "ccamerge.verification": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Barrier",
    "CCAResult",
    "Collected",
    "Comparison",
    "FeatureMap",
    "MergeResult",
    "Moments",
    "Space",
    "Spaces",
    "UniverseResult",
    "__version__",
    "barrier",
    "cca",
    "cca_batch",
    "collect",
    "compare",
    "cuda_status",
    "evaluate",
    "generalized_eigh",
    "generalized_eigh_batch",
    "merge",
    "num_threads",
    "plan",
    "polar",
    "polar_batch",
    "set_num_threads",
    "spaces",
    "universe",
    "universe_batch",
    "update_many",
    "verify",
    "whiten",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        message = f"module 'ccamerge' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
