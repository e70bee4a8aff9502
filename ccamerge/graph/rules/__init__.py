"""One rule for each operation: how the axes of its result follow from those of its operands.

A rule receives the node and the `Derivation` under way. It equates axes, records which axes of
which parameters write, read or scale the features of an axis, and returns the axes of the result.
An operation without a rule pins every live axis it touches; nothing is guessed. To support a new
operation, add a rule to the file of its kind.
"""

from __future__ import annotations

from ccamerge.graph.rules import elementwise, linear, normalisation, reductions, shapes
from ccamerge.graph.rules.elementwise import ACTIVATIONS, ELEMENTWISE
from ccamerge.graph.rules.linear import CONTRACTIONS
from ccamerge.graph.rules.reductions import REDUCTIONS
from ccamerge.graph.rules.registry import MOVES, RULES
from ccamerge.graph.rules.shapes import SHAPE_ONLY

__all__ = [
    "ACTIVATIONS",
    "CONTRACTIONS",
    "ELEMENTWISE",
    "MOVES",
    "REDUCTIONS",
    "RULES",
    "SHAPE_ONLY",
    "elementwise",
    "linear",
    "normalisation",
    "reductions",
    "shapes",
]
