"""CCA: maps between two models' features from their second moments, in float64, in batches.

Functions here and in `ccamerge.core.decompositions` and `ccamerge.core.universes` take NumPy arrays
or torch tensors of any real dtype and return float64 NumPy arrays; a batch is one native call that
runs on the core's own threads. Given CUDA tensors, of torch or CuPy, or ``device="cuda"``, they
solve on the device and return float64 torch tensors there, which CuPy reads without a copy by
DLPack.

A covariance ``S`` of order ``d`` is regularised as ``C = S + gamma I``. Give either ``gamma``
itself, or the dimensionless ``ridge``, from which ``gamma = ridge * trace(S) / d`` follows for each
side by itself; never both. Neither means none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from ccamerge.core import arguments
from ccamerge.core.brief import Brief
from ccamerge.core.solver import Array, Solver, one_regulariser, prefixes_of, regularisers

if TYPE_CHECKING:
    from ccamerge.core.device import DeviceLike


__all__ = ["CCAResult", "cca", "cca_batch"]


@dataclass(frozen=True, repr=False)
class CCAResult(Brief):
    """One solved pair of feature spaces, ``X`` (p features, the reference) and ``Y`` (q features).

    Arrays are NumPy's, or torch tensors on the device that solved the pair.

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


def _solve(
    problems: Sequence[tuple[Any, Any, Any]],
    prefixes: list[str],
    values: list[float],
    absolute: bool,
    correlations: bool,
    weights: bool,
    device: DeviceLike | None,
) -> list[list[CCAResult]]:
    correlations = arguments.flag(correlations, "correlations")
    weights = arguments.flag(weights, "weights")
    solver = Solver(device, (matrix for problem in problems for matrix in problem))
    arrays = []
    for (sxx, syy, sxy), prefix in zip(problems, prefixes, strict=True):
        x = solver.square(sxx, prefix + "Sxx")
        y = solver.square(syy, prefix + "Syy")
        cross = solver.matrix(sxy, prefix + "Sxy")
        if cross.shape != (len(x), len(y)):
            message = (
                f"{prefix}Sxy must have shape {(len(x), len(y))} to match Sxx and Syy, "
                f"got {tuple(cross.shape)}"
            )
            raise ValueError(message)
        arrays.append((x, y, cross))
    flat = solver.run("solve_cca_batch", arrays, prefixes, values, absolute, correlations, weights)
    results = [CCAResult(*fields) for fields in flat]
    n = len(values)
    return [results[i : i + n] for i in range(0, len(results), n)]


def cca(
    Sxx: Any,
    Syy: Any,
    Sxy: Any,
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    correlations: bool = False,
    weights: bool = False,
    device: DeviceLike | None = None,
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
    device : where to solve, such as "cuda"; matrices elsewhere are copied there. Default: on the
        device of CUDA tensors among them, else on the CPU

    Returns
    -------
    CCAResult

    Raises
    ------
    ValueError
        For shapes that do not match, non-finite or asymmetric input, or a bad regularisation.
    TypeError
        For input that is not real, or on several devices if none is named.
    RuntimeError
        If the device cannot be used.
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

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(500, 3))
    >>> y = x[:, [1, 0, 2]] * [1.0, 1.0, 2.0]  # the same features, in another basis
    >>> cov = np.cov(x.T, y.T)
    >>> found = cca(cov[:3, :3], cov[3:, 3:], cov[:3, 3:], correlations=True)
    >>> np.allclose(y @ found.map, x)
    True
    >>> np.allclose(found.correlations, 1)
    True
    """
    value, absolute = one_regulariser(ridge, gamma)
    return _solve([(Sxx, Syy, Sxy)], [""], [value], absolute, correlations, weights, device)[0][0]


@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: float | None = None,
    gamma: float | None = None,
    correlations: bool = False,
    weights: bool = False,
    device: DeviceLike | None = None,
) -> list[CCAResult]: ...
@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: Sequence[float],
    gamma: None = None,
    correlations: bool = False,
    weights: bool = False,
    device: DeviceLike | None = None,
) -> list[list[CCAResult]]: ...
@overload
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: None = None,
    gamma: Sequence[float],
    correlations: bool = False,
    weights: bool = False,
    device: DeviceLike | None = None,
) -> list[list[CCAResult]]: ...
def cca_batch(
    problems: Sequence[tuple[Any, Any, Any]],
    *,
    ridge: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    correlations: bool = False,
    weights: bool = False,
    device: DeviceLike | None = None,
) -> list[CCAResult] | list[list[CCAResult]]:
    """Solve many pairs, and optionally a sweep of regularisations, in one native call.

    Parameters
    ----------
    problems : (Sxx, Syy, Sxy) each, as for `cca`; sizes may differ. A covariance that is the same
        object in several problems, such as the reference's, is factored once.
    ridge, gamma : as for `cca`; a sequence asks for a sweep
    correlations, weights, device : as for `cca`

    Returns
    -------
    list of CCAResult, or for a sweep a list for each problem with a CCAResult for each value.

    Raises
    ------
    As `cca` does; messages start with the problem, as in ``problems[3]: Sxx``.
    """
    values, absolute, sweep = regularisers(ridge, gamma)
    prefixes = prefixes_of("problems", problems, 3)
    results = _solve(problems, prefixes, values, absolute, correlations, weights, device)
    return results if sweep else [row[0] for row in results]
