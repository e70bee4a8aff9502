"""Streamed means and second moments of several models' features, in one pass over the data.

``update`` reads the features where they lie, in any layout; ``merge`` adds what another process or
run has seen. Everything is kept in float64 and centred, by the pairwise formula of Chan, Golub &
LeVeque (1983), so a mean a million times the standard deviation does no harm.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from ccamerge import _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, TypeAlias

    import numpy.typing as npt

    FloatArray: TypeAlias = npt.NDArray[np.float64]
    Pairs: TypeAlias = Literal["reference", "all", "none"]

__all__ = ["Moments", "update_many"]

_FORMAT = "ccamerge.moments"
_VERSION = 1


class Moments:
    """Count, means and centred second moments of ``N`` models' features.

    Parameters
    ----------
    dims : sequence of int
        Features ``d_i`` of each model.
    pairs : {"reference", "all", "none"}
        Which cross blocks to collect beside each model's own: those of the reference with every
        other model, those of all pairs, or none.
    reference : int
        Index of the reference model.

    Raises
    ------
    ValueError
        For no models, a dimension below 1, an unknown ``pairs`` or an index out of range.

    Notes
    -----
    Memory is 8 bytes for each element of each block, ``d_i * d_j``. Calls from several threads are
    safe; those that change the same object wait for each other.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37 (1983).
    """

    __slots__ = ("_native",)

    def __init__(
        self, dims: Sequence[int], *, pairs: Pairs = "reference", reference: int = 0
    ) -> None:
        self._native: _core.Moments = _core.Moments(
            [int(d) for d in dims], pairs=pairs, reference=int(reference)
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """Features of each model."""
        return tuple(self._native.dims)

    @property
    def pairs(self) -> Pairs:
        """Which cross blocks are collected."""
        return cast("Pairs", self._native.pairs)

    @property
    def reference(self) -> int:
        """Index of the reference model."""
        return int(self._native.reference)

    @property
    def count(self) -> int:
        """Samples seen so far."""
        return int(self._native.count())

    def update(
        self, features: Sequence[Any], *, axis: int | Sequence[int] = -1, mask: Any = None
    ) -> None:
        """Add samples.

        Parameters
        ----------
        features : sequence of N arrays
            One for each model, of equal shape but for the feature axes, which have ``d_i`` entries;
            float16, bfloat16, float32 or float64; NumPy, torch or anything with ``__dlpack__`` in
            CPU memory, with any strides. They are read in place and not changed.
        axis : int or tuple of int
            The feature axis: -1 for ``(n, C)`` and ``(B, T, C)``, 1 for ``(B, C, H, W)``. Several,
            as for the patches that a convolution reads, make features in row-major order of the
            axes as they are listed.
        mask : bool array, optional
            True for the samples to use, in the shape of the features without the feature axes, or
            flat. Values of other samples do not matter, NaN included.

        Raises
        ------
        ValueError
            For shapes that do not fit, arrays not in CPU memory, or features that are not finite;
            the message names the model. The moments are then as they were.
        TypeError
            For something that is not an array or of another dtype.

        Notes
        -----
        Products are formed in float32 over at most 256 centred samples (in float64 throughout if
        any model's features are float64) and added in float64. The result does not depend on the
        number of threads. An interrupt (Ctrl-C) leaves the moments as they were or is answered
        when the update is complete.
        """
        update_many([(self, features)], axis=axis, mask=mask)

    def merge(self, other: Moments) -> None:
        """Add the samples that ``other`` has seen, as if they had been seen here.

        Raises
        ------
        ValueError
            If dims, pairs or reference differ.
        """
        if not isinstance(other, Moments):
            msg = f"other must be Moments, got {type(other).__name__}"
            raise TypeError(msg)
        self._native.merge(other._native)

    def mean(self, i: int) -> FloatArray:
        """Mean of model ``i``'s features, ``(d_i,)``; ValueError before the first sample."""
        mean: FloatArray = self._native.mean(i)
        return mean

    def cov(self, i: int, j: int | None = None) -> FloatArray:
        """Covariance of the features of models ``i`` and ``j`` (``i`` itself by default).

        Returns
        -------
        (d_i, d_j) float64
            ``(X_i - mean_i)^T (X_j - mean_j) / count``.

        Raises
        ------
        ValueError
            Before the first sample, for an index out of range, or if the block was not collected.
        """
        cov: FloatArray = self._native.covariance(i, i if j is None else j)
        return cov

    def subset(self, models: Sequence[int], reference: int | None = None) -> Moments:
        """Moments of some of the models, in the given order.

        Parameters
        ----------
        models : sequence of int
            Indices of distinct models.
        reference : int, optional
            Index *within* ``models`` of the new reference. By default the old one if it is among
            them, else the first.

        Raises
        ------
        ValueError
            If a block that the subset needs was not collected.
        """
        chosen = [int(i) for i in models]
        if reference is None:
            reference = chosen.index(self.reference) if self.reference in chosen else 0
        subset = object.__new__(Moments)
        subset._native = self._native.subset(chosen, pairs=self.pairs, reference=reference)
        return subset

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as copies in NumPy arrays; ``from_state`` is the inverse.

        Returns
        -------
        dict
            ``dims`` (N,), ``pairs`` (its index in "none", "reference", "all"), ``reference`` and
            ``count``, int64; ``mean.i`` and ``shift.i`` (d_i,), ``m2.i.j`` (d_i, d_j), float64.
        """
        native = self._native
        state: dict[str, npt.NDArray[Any]] = {
            "dims": np.array(self.dims, dtype=np.int64),
            "pairs": np.array(_PAIRS.index(self.pairs), dtype=np.int64),
            "reference": np.array(self.reference, dtype=np.int64),
            "count": np.array(self.count, dtype=np.int64),
        }
        for i in range(len(self.dims)):
            state[f"mean.{i}"] = native.mean(i) if self.count else np.zeros(self.dims[i])
            state[f"shift.{i}"] = native.shift(i)
        for i, j in native.block_pairs():
            state[f"m2.{i}.{j}"] = native.second_moment(i, j)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> Moments:
        """Moments from what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If entries are missing, unknown, of a wrong shape or dtype, or not finite.
        """
        dims = [int(d) for d in _entry(state, "dims", np.int64, 1)]
        pairs = int(_entry(state, "pairs", np.int64, 0))
        count = int(_entry(state, "count", np.int64, 0))
        if not 0 <= pairs < len(_PAIRS):
            msg = f"pairs must be from 0 to {len(_PAIRS) - 1}, got {pairs}"
            raise ValueError(msg)
        moments = cls(
            dims, pairs=_PAIRS[pairs], reference=int(_entry(state, "reference", np.int64, 0))
        )
        models = range(len(dims))
        names = [f"m2.{i}.{j}" for i, j in moments._native.block_pairs()]
        expected = {"dims", "pairs", "reference", "count", *names}
        expected |= {f"{kind}.{i}" for kind in ("mean", "shift") for i in models}
        if unknown := sorted(set(state) - expected):
            msg = f"unknown entries {unknown}"
            raise ValueError(msg)
        moments._native.restore(
            count,
            [_entry(state, f"mean.{i}", np.float64, 1) for i in models],
            [_entry(state, f"shift.{i}", np.float64, 1) for i in models],
            [_entry(state, name, np.float64, 2) for name in names],
        )
        return moments

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, beside ``path`` first and then renamed into place."""
        from ccamerge.tensorfile import save_tensors  # imports torch: only where it is needed

        save_tensors(path, self.state_dict(), {"format": _FORMAT, "version": str(_VERSION)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read what ``save`` wrote.

        Raises
        ------
        ValueError
            For a damaged, foreign or newer file, naming it.
        FileNotFoundError if there is none.
        """
        from ccamerge.tensorfile import load_tensors

        tensors, meta = load_tensors(path)
        try:
            if meta.get("format") != _FORMAT:
                msg = "not written by ccamerge.Moments.save"
                raise ValueError(msg)
            if meta.get("version") != str(_VERSION):
                msg = f"version {meta.get('version')!r}, but this ccamerge reads {_VERSION}"
                raise ValueError(msg)
            return cls.from_state({key: tensor.numpy() for key, tensor in tensors.items()})
        except (ValueError, KeyError, TypeError) as error:
            msg = f"cannot load moments from {os.fspath(path)!r}: {error}"
            raise ValueError(msg) from error

    def __getstate__(self) -> dict[str, npt.NDArray[Any]]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._native = Moments.from_state(state)._native

    def __repr__(self) -> str:
        return (
            f"Moments(dims={list(self.dims)}, pairs={self.pairs!r}, "
            f"reference={self.reference}, count={self.count})"
        )


def update_many(
    updates: Sequence[tuple[Moments, Sequence[Any]]],
    *,
    axis: int | Sequence[int] = 1,
    mask: Any = None,
) -> None:
    """Update many moments in one native call, all or nothing.

    Parameters
    ----------
    updates : sequence of (Moments, features)
        As for ``Moments.update``; each with its own sample shape.
    axis, mask
        As for ``Moments.update``, the same for all.

    Raises
    ------
    ValueError, TypeError
        As ``Moments.update``; every accumulator is then as it was.
    """
    items = [
        (moments._native, [_readable(array) for array in features]) for moments, features in updates
    ]
    if mask is not None:
        mask = np.ascontiguousarray(mask)
        if mask.dtype != np.bool_:
            msg = f"mask must be bool, got {mask.dtype}"
            raise TypeError(msg)
    axes = [axis] if isinstance(axis, SupportsIndex) else list(axis)
    _core.update_many(items, axes=axes, mask=mask)


_PAIRS: tuple[Pairs, Pairs, Pairs] = ("none", "reference", "all")


def _readable(array: Any) -> Any:
    """Strip what torch refuses to export: gradient history and a pending negation."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():
        array = array.resolve_neg()
    return array


def _entry(state: Mapping[str, npt.NDArray[Any]], name: str, dtype: Any, ndim: int) -> Any:
    if name not in state:
        msg = f"entry {name!r} is missing"
        raise ValueError(msg)
    array = np.asarray(state[name])
    if array.dtype != dtype or array.ndim != ndim:
        msg = (
            f"entry {name!r} must be {np.dtype(dtype)} with {ndim} axes, "
            f"got {array.dtype} with {array.ndim}"
        )
        raise ValueError(msg)
    if dtype is np.float64 and not np.isfinite(array).all():
        msg = f"entry {name!r} is not finite"
        raise ValueError(msg)
    return array
