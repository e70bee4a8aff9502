"""Batched float64 solves: CCA maps, polar factors, whitening, generalised eigenproblems.

Every function takes second moments, NumPy arrays or torch CPU tensors of any real dtype, and
returns float64 NumPy arrays. A batch is one native call that runs on the core's own threads.

A covariance ``S`` of order ``d`` is regularised as ``C = S + gamma I``. Give either ``gamma``
itself, or the dimensionless ``ridge``, from which ``gamma = ridge * trace(S) / d`` follows for each
side by itself; never both. Neither means none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from ccamerge import _core
from ccamerge._threads import single_blas_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "CCAResult",
    "PolarResult",
    "WhiteningResult",
    "cca",
    "cca_batch",
    "generalized_eigh",
    "generalized_eigh_batch",
    "polar",
    "polar_batch",
    "whiten",
]


@dataclass(frozen=True)
class CCAResult:
    """One solved pair of feature spaces, ``X`` (p features, the reference) and ``Y`` (q features).

    Attributes
    ----------
    map : (q, p); row features of Y times it approximate X
    inverse : (p, q); from X's features to Y's, the exact inverse of ``map`` when p equals q
    correlations : (k,) canonical correlations, descending, k = min(p, q); on request
    x_weights, y_weights : (p, k) and (q, k) canonical weights, on request: ``Wx.T @ Cx @ Wx = I``,
        ``Wy.T @ Cy @ Wy = I`` and ``Wx.T @ Sxy @ Wy = diag(correlations)``
    rank : of the whitened cross moment, as far as its rounding errors let it be told. Below
        min(p, q) the map is not unique; the directions that nothing correlates with are joined as
        near the identity as can be.
    x_condition, y_condition : estimated condition numbers of the regularised covariances, 1-norm
    method : what produced the polar factor: "qdwh", or "svd" when singular values are near zero
    """

    map: Array
    inverse: Array
    correlations: Array | None
    x_weights: Array | None
    y_weights: Array | None
    rank: int
    x_condition: float
    y_condition: float
    method: Literal["qdwh", "svd"]


class PolarResult(NamedTuple):
    """Polar factor ``q`` (m, n), numerical ``rank`` and the ``method`` that produced it."""

    q: Array
    rank: int
    method: Literal["qdwh", "svd"]


class WhiteningResult(NamedTuple):
    """Whitening matrix ``w`` (d, d) with ``w.T @ C @ w = I``, and the ``condition`` of C."""

    w: Array
    condition: float


def _as_matrix(value: Any, name: str) -> Array:
    """Return ``value`` as a C-order float64 matrix, a view where it already is one."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        if value.device.type != "cpu":
            message = f"{name} must be on the CPU, got a tensor on {value.device}"
            raise TypeError(message)
        if value.is_complex():
            message = f"{name} must be real, got {value.dtype}"
            raise TypeError(message)
        value = value.detach().double().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        message = f"{name} must be a real array, got dtype {array.dtype}"
        raise TypeError(message)
    if array.ndim != 2 or 0 in array.shape:
        message = f"{name} must be a non-empty matrix, got shape {array.shape}"
        raise ValueError(message)
    return np.ascontiguousarray(array, dtype=np.float64)


class _Converter:
    """Converts each object once, so that the core sees what problems share as shared."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Array]] = {}  # holds the object: its id stays its own

    def __call__(self, value: Any, name: str) -> Array:
        known = self._seen.get(id(value))
        if known is None:
            known = self._seen[id(value)] = (value, _as_matrix(value, name))
        return known[1]

    def square(self, value: Any, name: str) -> Array:
        array = self(value, name)
        if array.shape[0] != array.shape[1]:
            message = f"{name} must be square, got shape {array.shape}"
            raise ValueError(message)
        return array


def _regularisers(
    ridge: float | Sequence[float] | None, gamma: float | Sequence[float] | None
) -> tuple[list[float], bool, bool]:
    """Return the values, whether they are absolute (gamma), and whether a sweep was asked for."""
    if ridge is not None and gamma is not None:
        message = "give ridge or gamma, not both"
        raise ValueError(message)
    absolute = gamma is not None
    name, given = ("gamma", gamma) if absolute else ("ridge", 0.0 if ridge is None else ridge)
    sweep = np.ndim(given) > 0  # type: ignore[arg-type]
    if np.ndim(given) > 1:  # type: ignore[arg-type]
        message = f"{name} must be a number or a sequence of numbers, got {given!r}"
        raise ValueError(message)
    try:
        values = [float(v) for v in given] if sweep else [float(given)]  # type: ignore[union-attr,arg-type]
    except (TypeError, ValueError):
        message = f"{name} must be a number or a sequence of numbers, got {given!r}"
        raise TypeError(message) from None
    if not values:
        message = f"{name} must not be an empty sequence"
        raise ValueError(message)
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            message = f"{name} must be finite and not negative, got {value}"
            raise ValueError(message)
    return values, absolute, sweep


def _one_regulariser(ridge: float | None, gamma: float | None) -> tuple[float, bool]:
    values, absolute, sweep = _regularisers(ridge, gamma)
    if sweep:
        message = f"{'gamma' if absolute else 'ridge'} must be a number, got a sequence"
        raise TypeError(message)
    return values[0], absolute


def _solve(
    problems: Sequence[tuple[Any, Any, Any]],
    prefixes: list[str],
    values: list[float],
    absolute: bool,
    correlations: bool,
    weights: bool,
) -> list[list[CCAResult]]:
    convert = _Converter()
    arrays = []
    for (sxx, syy, sxy), prefix in zip(problems, prefixes, strict=True):
        x = convert.square(sxx, prefix + "Sxx")
        y = convert.square(syy, prefix + "Syy")
        cross = convert(sxy, prefix + "Sxy")
        if cross.shape != (len(x), len(y)):
            message = (
                f"{prefix}Sxy must have shape {(len(x), len(y))} to match Sxx and Syy, "
                f"got {cross.shape}"
            )
            raise ValueError(message)
        arrays.append((x, y, cross))
    with single_blas_thread:
        flat = _core.solve_cca_batch(arrays, prefixes, values, absolute, correlations, weights)
    results = [CCAResult(*fields) for fields in flat]
    n = len(values)
    return [results[i : i + n] for i in range(0, len(results), n)]


def _prefixes(name: str, items: Sequence[Any], width: int) -> list[str]:
    """Check that every problem is a tuple of ``width`` and return what errors call each."""
    for i, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != width:
            message = f"{name}[{i}] must be a tuple of {width} matrices, got {type(item).__name__}"
            raise TypeError(message)
    return [f"{name}[{i}]: " for i in range(len(items))]


def cca(
    Sxx: Any,
    Syy: Any,
    Sxy: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    correlations: bool = False,
    weights: bool = False,
) -> CCAResult:
    """Solve canonical correlation analysis for one pair and return the maps between the spaces.

    Parameters
    ----------
    Sxx : (p, p) symmetric; second moment of the reference's features X
    Syy : (q, q) symmetric; second moment of the other features Y
    Sxy : (p, q); cross moment, X's features in rows
    ridge, gamma : regularisation, not negative; see the module's head. Default none.
    correlations : also return the canonical correlations
    weights : also return them and the canonical weights

    Returns
    -------
    CCAResult

    Raises
    ------
    ValueError
        For shapes that do not match, non-finite or asymmetric input, or a bad regularisation.
    TypeError
        For input that is not real, or not on the CPU.
    numpy.linalg.LinAlgError
        If a regularised covariance is not positive definite, or its condition number exceeds 1e13.
        The message says what ridge would do.

    Notes
    -----
    With Cholesky factors ``C = L L^T``, ``K = Lx^-1 Sxy Ly^-T`` and its polar factor ``P``, the map
    is ``Ly^-T P^T Lx^T`` and its inverse ``Lx^-T P Ly^T``: the map of CCA Merge, whose symmetric
    square roots give the same. No inverse is formed. The map's relative error is about
    ``eps * sqrt(condition) / correlations[-1]``.

    Source: Horoi et al., ICML 2024 (arXiv 2407.05385); polar factor by Nakatsukasa, Bai & Gygi
    (2010).
    """
    value, absolute = _one_regulariser(ridge, gamma)
    return _solve([(Sxx, Syy, Sxy)], [""], [value], absolute, correlations, weights)[0][0]


@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    correlations: bool = False,
    weights: bool = False,
) -> list[CCAResult]: ...
@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: Sequence[float],
    gamma: None = None,
    correlations: bool = False,
    weights: bool = False,
) -> list[list[CCAResult]]: ...
@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: None = None,
    gamma: Sequence[float],
    correlations: bool = False,
    weights: bool = False,
) -> list[list[CCAResult]]: ...
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    correlations: bool = False,
    weights: bool = False,
) -> list[CCAResult] | list[list[CCAResult]]:
    """Solve many pairs, and optionally a sweep of regularisations, in one native call.

    Parameters
    ----------
    problems : (Sxx, Syy, Sxy) each, as for `cca`; sizes may differ. A covariance that is the same
        object in several problems, such as the reference's, is factored once.
    ridge, gamma : as for `cca`; a sequence asks for a sweep
    correlations, weights : as for `cca`

    Returns
    -------
    list of CCAResult, or for a sweep a list for each problem with a CCAResult for each value.

    Raises
    ------
    As `cca` does; messages start with the problem, as in ``problems[3]: Sxx``.
    """
    values, absolute, sweep = _regularisers(ridge, gamma)
    prefixes = _prefixes("problems", problems, 3)
    results = _solve(problems, prefixes, values, absolute, correlations, weights)
    return results if sweep else [row[0] for row in results]


def polar_batch(matrices: Sequence[Any]) -> list[PolarResult]:
    """Orthonormal polar factors of many matrices in one native call; see `polar`.

    Parameters
    ----------
    matrices : (m, n) each; sizes may differ

    Returns
    -------
    list of PolarResult
    """
    names = [f"matrices[{i}]" for i in range(len(matrices))]
    arrays = [_as_matrix(a, name) for a, name in zip(matrices, names, strict=True)]
    with single_blas_thread:
        return [PolarResult(*fields) for fields in _core.polar_batch(arrays, names)]


def polar(A: Any) -> Array:
    """Return the orthonormal polar factor: the nearest matrix to A with orthonormal columns.

    Parameters
    ----------
    A : (m, n) real

    Returns
    -------
    (m, n) float64; orthonormal columns if m >= n, else orthonormal rows. Where A is rank-deficient
    the factor is not unique, and the one returned maps the null spaces on each other as near the
    identity as can be.

    Raises
    ------
    ValueError, TypeError
        If A is not a finite real matrix on the CPU.

    Notes
    -----
    Scaled Halley iteration (QDWH; Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal. Appl. 2010), and
    the SVD where singular values are too near zero for it. O(m n min(m, n)).
    """
    array = _as_matrix(A, "A")
    with single_blas_thread:
        factor: Array = _core.polar_batch([array], ["A"])[0][0]
    return factor


def whiten(
    S: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    kind: Literal["symmetric", "cholesky"] = "symmetric",
) -> WhiteningResult:
    """Whiten a covariance: ``w.T @ (S + gamma I) @ w = I``.

    Parameters
    ----------
    S : (d, d) symmetric
    ridge, gamma : regularisation; see the module's head
    kind : "symmetric" for the inverse square root, which moves features least (ZCA), or "cholesky"
        for ``L^-T``, upper triangular and several times cheaper

    Returns
    -------
    WhiteningResult
        The condition is exact in the 2-norm for "symmetric", estimated in the 1-norm for
        "cholesky".

    Raises
    ------
    As `cca` does.
    """
    if kind not in ("symmetric", "cholesky"):
        message = f"kind must be 'symmetric' or 'cholesky', got {kind!r}"
        raise ValueError(message)
    value, absolute = _one_regulariser(ridge, gamma)
    array = _Converter().square(S, "S")
    with single_blas_thread:
        return WhiteningResult(*_core.whiten(array, value, absolute, kind == "symmetric", "S"))


def _generalized(
    problems: Sequence[tuple[Any, Any]],
    prefixes: list[str],
    ridge: float | None,
    gamma: float | None,
    k: int | None,
) -> list[tuple[Array, Array]]:
    value, absolute = _one_regulariser(ridge, gamma)
    if k is not None and (not isinstance(k, (int, np.integer)) or k < 1):
        message = f"k must be a positive integer or None, got {k!r}"
        raise ValueError(message)
    convert = _Converter()
    arrays = []
    for (a, b), prefix in zip(problems, prefixes, strict=True):
        left = convert.square(a, prefix + "A")
        right = convert.square(b, prefix + "B")
        if left.shape != right.shape:
            message = f"{prefix}B must have A's shape {left.shape}, got {right.shape}"
            raise ValueError(message)
        wanted = len(left) if k is None else int(k)
        if wanted > len(left):
            message = f"{prefix}k must be at most the order {len(left)}, got {k}"
            raise ValueError(message)
        arrays.append((left, right, wanted))
    with single_blas_thread:
        return [tuple(pair) for pair in _core.solve_gevp_batch(arrays, prefixes, value, absolute)]


def generalized_eigh(
    A: Any,
    B: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    k: int | None = None,
) -> tuple[Array, Array]:
    """Largest eigenpairs of ``A v = w (B + gamma I) v``.

    Parameters
    ----------
    A : (n, n) symmetric
    B : (n, n) symmetric; positive definite once regularised
    ridge, gamma : regularisation of B; see the module's head
    k : how many, default all n

    Returns
    -------
    w : (k,) eigenvalues, descending
    V : (n, k) eigenvectors, ``V.T @ (B + gamma I) @ V = I``; the largest entry of each is positive

    Raises
    ------
    As `cca` does.

    Notes
    -----
    Cholesky factor of B + gamma I, then an ordinary symmetric eigenproblem (Golub & Van Loan,
    4th ed., algorithm 8.7.1).
    """
    return _generalized([(A, B)], [""], ridge, gamma, k)[0]


def generalized_eigh_batch(
    problems: Sequence[tuple[Any, Any]],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    k: int | None = None,
) -> list[tuple[Array, Array]]:
    """Solve `generalized_eigh` for many (A, B), whose sizes may differ, in one native call.

    Parameters
    ----------
    problems : (A, B) each
    ridge, gamma, k : as for `generalized_eigh`

    Returns
    -------
    list of (w, V)

    Raises
    ------
    As `cca` does; messages start with the problem, as in ``problems[3]: B``.
    """
    return _generalized(problems, _prefixes("problems", problems, 2), ridge, gamma, k)
