"""Merge trained neural networks by aligning their features with canonical correlation analysis."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccamerge import data as data
    from ccamerge.collection.collecting import collect
    from ccamerge.collection.cost import plan
    from ccamerge.collection.statistics import Statistics
    from ccamerge.core.canonical import CCAResult, cca, cca_batch
    from ccamerge.core.cuda import cuda_status
    from ccamerge.core.decompositions import (
        generalized_eigh,
        generalized_eigh_batch,
        polar,
        polar_batch,
        whiten,
    )
    from ccamerge.core.moments import Moments, update_many
    from ccamerge.core.scratch import memory_limit
    from ccamerge.core.threads import num_threads, set_num_threads
    from ccamerge.core.universes import UniverseResult, universe, universe_batch
    from ccamerge.evaluation.comparing import compare
    from ccamerge.evaluation.evaluating import evaluate
    from ccamerge.evaluation.interpolation import barrier
    from ccamerge.graph.feature_map import FeatureMap
    from ccamerge.graph.networks.inspection import spaces
    from ccamerge.graph.networks.verification import verify
    from ccamerge.graph.space import Space, Spaces
    from ccamerge.merging.merging import MergeResult, merge
    from ccamerge.methods import METHODS
    from ccamerge.reporting.results import Barrier, Comparison

__version__ = "0.1.0"

# Loaded when first asked for: importing torch takes seconds, `ccamerge --help` should not.
_HOMES = {
    "ccamerge.core.threads": ("num_threads", "set_num_threads"),
    "ccamerge.graph.feature_map": ("FeatureMap",),
    "ccamerge.collection.statistics": ("Statistics",),
    "ccamerge.collection.collecting": ("collect",),
    "ccamerge.evaluation.comparing": ("compare",),
    "ccamerge.core.cuda": ("cuda_status",),
    "ccamerge.evaluation.evaluating": ("evaluate",),
    "ccamerge.graph.networks.inspection": ("spaces",),
    "ccamerge.graph.space": ("Space", "Spaces"),
    "ccamerge.evaluation.interpolation": ("barrier",),
    "ccamerge.reporting.results": ("Barrier", "Comparison"),
    "ccamerge.merging.merging": ("MergeResult", "merge"),
    "ccamerge.methods": ("METHODS",),
    "ccamerge.core.moments": ("Moments", "update_many"),
    "ccamerge.core.scratch": ("memory_limit",),
    "ccamerge.collection.cost": ("plan",),
    "ccamerge.core.decompositions": (
        "generalized_eigh",
        "generalized_eigh_batch",
        "polar",
        "polar_batch",
        "whiten",
    ),
    "ccamerge.core.canonical": ("CCAResult", "cca", "cca_batch"),
    "ccamerge.core.universes": ("UniverseResult", "universe", "universe_batch"),
    "ccamerge.graph.networks.verification": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Barrier",
    "CCAResult",
    "Comparison",
    "FeatureMap",
    "MergeResult",
    "Moments",
    "Space",
    "Spaces",
    "Statistics",
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
    "memory_limit",
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


_OLD = {"Collected": "Statistics"}


def __getattr__(name: str) -> Any:
    if name in _OLD:
        message = f"ccamerge.{name} is called ccamerge.{_OLD[name]} now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[__name__], _OLD[name])
    if name == "data":  # the package, so that nobody has to import it for itself
        return importlib.import_module("ccamerge.data")
    if name not in _HOME_OF:
        message = f"module 'ccamerge' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
