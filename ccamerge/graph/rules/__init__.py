"""The entries of `ccamerge.graph.operations`, above all their rules, in a file for each kind.

A rule says how the axes of an operation's result follow from those of its operands, and records in
`Facts` what its parameters do; nothing is guessed. To support a new operation, add an entry to the
file of its kind, or to a file of your own.
"""

from __future__ import annotations

from ccamerge.graph.operations import OPERATIONS, features_dim, operation
from ccamerge.graph.rules import (
    choosing,
    distances,
    elementwise,
    linear,
    normalisation,
    positions,
    recurrent,
    reductions,
    shapes,
)

__all__ = [
    "OPERATIONS",
    "choosing",
    "distances",
    "elementwise",
    "features_dim",
    "linear",
    "normalisation",
    "operation",
    "positions",
    "recurrent",
    "reductions",
    "shapes",
]
