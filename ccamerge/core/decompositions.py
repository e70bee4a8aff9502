"""Polar factors, whitening matrices and generalised eigenproblems, in float64 and in batches.

Input, devices and regularisation are as in `ccamerge.core.canonical`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ccamerge.core import arguments
from ccamerge.core.brief import named
from ccamerge.core.solver import Array, Solver, one_regulariser, prefixes_of

if TYPE_CHECKING:
    from ccamerge.core.device import DeviceLike


__all__ = [
    "PolarResult",
    "WhiteningResult",
    "generalized_eigh",
    "generalized_eigh_batch",
    "polar",
    "polar_batch",
    "whiten",
]


class PolarResult(NamedTuple):
    """Polar factor ``q`` (m, n), numerical ``rank`` and the ``method`` that produced it."""

    q: Array
    rank: int
    method: Literal["qdwh", "svd"]

    def __repr__(self) -> str:
        return named(self, self._asdict())


class WhiteningResult(NamedTuple):
    """Whitening matrix ``w`` (d, d) with ``w.T @ C @ w = I``, and the ``condition`` of C."""

    w: Array
    condition: float

    def __repr__(self) -> str:
        return named(self, self._asdict())


def polar_batch(matrices: Sequence[Any], *, device: DeviceLike | None = None) -> list[PolarResult]:
    """Orthonormal polar factors of many matrices in one native call; see `polar`.

    Parameters
    ----------
    matrices : (m, n) each; sizes may differ
    device : as for `ccamerge.cca`

    Returns
    -------
    list of PolarResult
    """
    matrices = arguments.items(matrices, "matrices", "a list of matrices")
    names = [f"matrices[{i}]" for i in range(len(matrices))]
    solver = Solver(device, matrices)
    arrays = [solver.matrix(a, name) for a, name in zip(matrices, names, strict=True)]
    return [PolarResult(*fields) for fields in solver.run("polar_batch", arrays, names)]


def polar(A: Any, *, device: DeviceLike | None = None) -> Array:
    """Return the orthonormal polar factor: the nearest matrix to A with orthonormal columns.

    Parameters
    ----------
    A : (m, n) real
    device : as for `ccamerge.cca`

    Returns
    -------
    (m, n) float64; orthonormal columns if m >= n, else orthonormal rows. Where A is rank-deficient
    the factor is not unique, and the one returned maps the null spaces on each other as near the
    identity as can be.

    Raises
    ------
    ValueError, TypeError
        If A is not a finite real matrix.

    Notes
    -----
    Scaled Halley iteration (QDWH; Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal. Appl. 2010), and
    the SVD where singular values are too near zero for it. O(m n min(m, n)).
    """
    solver = Solver(device, [A])
    factor: Array = solver.run("polar_batch", [solver.matrix(A, "A")], ["A"])[0][0]
    return factor


def whiten(
    S: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    kind: Literal["symmetric", "cholesky"] = "symmetric",
    device: DeviceLike | None = None,
) -> WhiteningResult:
    """Whiten a covariance: ``w.T @ (S + gamma I) @ w = I``.

    Parameters
    ----------
    S : (d, d) symmetric
    ridge, gamma : regularisation; as for `ccamerge.cca`
    kind : "symmetric" for the inverse square root, which moves features least (ZCA), or "cholesky"
        for ``L^-T``, upper triangular and several times cheaper
    device : as for `ccamerge.cca`

    Returns
    -------
    WhiteningResult
        The condition is exact in the 2-norm for "symmetric", estimated in the 1-norm for
        "cholesky".

    Raises
    ------
    As `ccamerge.cca` does.
    """
    expected = "'symmetric' or 'cholesky'"
    if arguments.string(kind, "kind", expected) not in ("symmetric", "cholesky"):
        message = f"kind must be {expected}, got {kind!r}"
        raise ValueError(message)
    value, absolute = one_regulariser(ridge, gamma)
    solver = Solver(device, [S])
    array = solver.square(S, "S")
    return WhiteningResult(*solver.run("whiten", array, value, absolute, kind == "symmetric", "S"))


def _generalized(
    problems: Sequence[tuple[Any, Any]],
    prefixes: list[str],
    ridge: float | None,
    gamma: float | None,
    k: int | None,
    device: DeviceLike | None,
) -> list[tuple[Array, Array]]:
    value, absolute = one_regulariser(ridge, gamma)
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if k is not None and (not whole or k < 1):
        message = f"k must be a positive integer or None, got {k!r}"
        raise ValueError(message)
    solver = Solver(device, (matrix for problem in problems for matrix in problem))
    arrays = []
    for (a, b), prefix in zip(problems, prefixes, strict=True):
        left = solver.square(a, prefix + "A")
        right = solver.square(b, prefix + "B")
        if left.shape != right.shape:
            message = f"{prefix}B must have A's shape {tuple(left.shape)}, got {tuple(right.shape)}"
            raise ValueError(message)
        wanted = len(left) if k is None else int(k)
        if wanted > len(left):
            message = f"{prefix}k must be at most the order {len(left)}, got {k}"
            raise ValueError(message)
        arrays.append((left, right, wanted))
    found = solver.run("solve_gevp_batch", arrays, prefixes, value, absolute)
    return [(values, vectors) for values, vectors in found]


def generalized_eigh(
    A: Any,
    B: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    k: int | None = None,
    device: DeviceLike | None = None,
) -> tuple[Array, Array]:
    """Largest eigenpairs of ``A v = w (B + gamma I) v``.

    Parameters
    ----------
    A : (n, n) symmetric
    B : (n, n) symmetric; positive definite once regularised
    ridge, gamma : regularisation of B, as for `ccamerge.cca`
    k : how many, default all n
    device : as for `ccamerge.cca`

    Returns
    -------
    w : (k,) eigenvalues, descending
    V : (n, k) eigenvectors, ``V.T @ (B + gamma I) @ V = I``; the largest entry of each is positive

    Raises
    ------
    As `ccamerge.cca` does.

    Notes
    -----
    Cholesky factor of B + gamma I, then an ordinary symmetric eigenproblem (Golub & Van Loan,
    4th ed., algorithm 8.7.1).
    """
    return _generalized([(A, B)], [""], ridge, gamma, k, device)[0]


def generalized_eigh_batch(
    problems: Sequence[tuple[Any, Any]],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    k: int | None = None,
    device: DeviceLike | None = None,
) -> list[tuple[Array, Array]]:
    """Solve `generalized_eigh` for many (A, B), whose sizes may differ, in one native call.

    Parameters
    ----------
    problems : (A, B) each
    ridge, gamma, k, device : as for `generalized_eigh`

    Returns
    -------
    list of (w, V)

    Raises
    ------
    As `ccamerge.cca` does; messages start with the problem, as in ``problems[3]: B``.
    """
    return _generalized(problems, prefixes_of("problems", problems, 2), ridge, gamma, k, device)
