"""The universe of many models in plain NumPy float64: the side to beat. Nothing imports ccamerge.

The same algorithm written as its formulas read: whitening with symmetric roots, leading
eigenvectors of the whole matrix of blocks, and the block polar ascent by SVDs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Moments = tuple[Sequence[Array], Sequence[Array]]


def polar(a: Array) -> Array:
    """Orthonormal factor by the SVD."""
    u, _, vt = np.linalg.svd(a)
    return u @ vt


def root_pair(s: Array, ridge: float) -> tuple[Array, Array]:
    """``C^{1/2}`` and ``C^{-1/2}`` of the regularised covariance."""
    values, vectors = np.linalg.eigh(s + ridge * np.trace(s) / len(s) * np.eye(len(s)))
    return (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T


def universe(
    moments: Moments, ridge: float, tolerance: float, max_sweeps: int = 200
) -> tuple[list[Array], list[float]]:
    """Maps ``(d, d)`` of each model to the first, and the objective after each sweep."""
    own, crosses = moments
    n, d = len(own), len(own[0])
    roots = [root_pair(s, ridge) for s in own]
    joint = np.zeros((n, d, n, d))
    for (i, j), cross in zip(itertools.combinations(range(n), 2), crosses, strict=True):
        block = roots[i][1] @ cross @ roots[j][1]
        joint[i, :, j], joint[j, :, i] = block, block.T
    flat = joint.reshape(n * d, n * d)
    vectors = np.linalg.eigh(flat)[1][:, -d:]
    turns = np.stack([polar(v) for v in vectors.reshape(n, d, d)])
    objectives = [float(np.vdot(turns, (flat @ turns.reshape(n * d, d))) / 2)]
    for _ in range(max_sweeps):
        for i in range(n):
            turns[i] = polar(flat[i * d : (i + 1) * d] @ turns.reshape(n * d, d))
        objectives.append(float(np.vdot(turns, (flat @ turns.reshape(n * d, d))) / 2))
        if objectives[-1] - objectives[-2] <= tolerance * objectives[-1]:
            break
    maps = [roots[i][1] @ turns[i] @ turns[0].T @ roots[0][0] for i in range(n)]
    return maps, objectives
