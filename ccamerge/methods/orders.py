"""The best one-to-one matching of two models' features."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ccamerge.methods.base import AlignmentProblem


def best_order(problem: AlignmentProblem) -> np.ndarray[Any, Any]:
    """For each reference feature (p,) the own one matched with it; constant ones correlate 0."""
    a = np.sqrt(np.maximum(problem.reference.diagonal(), 0.0))
    b = np.sqrt(np.maximum(problem.own.diagonal(), 0.0))
    scale = np.outer(a, b)
    correlation = np.divide(problem.cross, scale, out=np.zeros_like(problem.cross), where=scale > 0)
    return np.asarray(linear_sum_assignment(correlation, maximize=True)[1])
