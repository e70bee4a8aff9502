"""Streamed means and second moments of several models' features, in one pass over the data.

``update`` reads the features where they lie, in any layout; ``merge`` adds what another process or
run has seen. Everything is kept in float64 and centred, by the pairwise formula of Chan, Golub &
LeVeque (1983), so a mean a million times the standard deviation does no harm. On a CUDA device it
all stays in the device's memory, and an update waits for nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from ccamerge import _core
from ccamerge.core import arguments
from ccamerge.core.device import Device, moved_tensor, resolve
from ccamerge.core.moments_file import PAIRS, entry, load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    import numpy.typing as npt
    from torch import Tensor

    from ccamerge.core.device import DeviceLike
    from ccamerge.core.moments_file import Pairs

    FloatArray: TypeAlias = npt.NDArray[np.float64]

__all__ = ["Moments", "check_many", "update_many"]


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
    device : optional
        "cpu" (default), "cuda", "cuda:N", or "auto" for CUDA where it is usable: where features
        are and moments stay.

    Raises
    ------
    ValueError
        For no models, a dimension below 1, an unknown ``pairs`` or an index out of range.
    RuntimeError
        If the device cannot be used, or has too little memory.

    Notes
    -----
    Memory is 8 bytes for each element of each block, ``d_i * d_j``; on a device it is torch's.
    Calls from several threads are safe; those that change the same object wait for each other. On
    a device work is put on the current stream of torch (of CuPy, for its arrays); who uses several
    streams has to order them, as for any tensor. Copies by pickle come back on the CPU.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37 (1983).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> moments = Moments([3, 2])
    >>> for _ in range(4):  # batches of two models' features
    ...     x = rng.normal(size=(50, 3))
    ...     moments.update([x, x[:, :2] + 1.0])
    >>> moments.count, moments.cov(0).shape, moments.cov(0, 1).shape
    (200, (3, 3), (3, 2))
    >>> np.allclose(moments.mean(1), moments.mean(0)[:2] + 1.0)
    True
    """

    __slots__ = ("_device", "_known", "_native")

    def __init__(
        self,
        dims: Sequence[int],
        *,
        pairs: Pairs = "reference",
        reference: int = 0,
        device: DeviceLike | None = None,
    ) -> None:
        where = resolve(device)
        given = arguments.items(dims, "dims", "a list with each model's number of features")
        sizes = [arguments.integer(d, f"dims[{i}]") for i, d in enumerate(given)]
        arguments.string(pairs, "pairs", "'reference', 'all' or 'none'")
        reference = arguments.integer(reference, "reference")
        if where is None:
            self._take(_core.Moments(sizes, pairs=pairs, reference=reference), None)
        else:
            from ccamerge import _cuda

            with where.active():
                made = _cuda.Moments(
                    sizes, pairs, reference, where.allocate, where.index, where.stream()
                )
            self._take(made, where)

    def _take(self, native: Any, device: Device | None) -> None:
        self._native = native  # _core's or _cuda's, whose calls differ by the stream at their end
        self._device = device
        # On a device: samples, or None while an update may have met a value that is not finite.
        self._known: int | None = None

    def _stream(self) -> tuple[int] | tuple[()]:
        """What native calls that touch memory take last: on a device the current stream."""
        return () if self._device is None else (self._device.stream(),)

    @property
    def device(self) -> str:
        """Where the moments are: "cpu" or "cuda:N"."""
        return "cpu" if self._device is None else str(self._device)

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
        """Samples seen so far; on a device this waits for them, as `check` does."""
        return int(self._native.count(*self._stream()))

    def update(
        self,
        features: Sequence[Any],
        *,
        axis: int | Sequence[int] = -1,
        mask: Any = None,
        label: str = "",
    ) -> None:
        """Add samples.

        Parameters
        ----------
        features : sequence of N arrays
            One for each model, of equal shape but for the feature axes, which have ``d_i`` entries;
            float16, bfloat16, float32 or float64; NumPy, torch, CuPy or anything with
            ``__dlpack__`` in the memory of the moments' device, with any strides. They are read in
            place and not changed.
        axis : int or tuple of int
            The feature axis: -1 for ``(n, C)`` and ``(B, T, C)``, 1 for ``(B, C, H, W)``. Several,
            as for the patches that a convolution reads, make features in row-major order of the
            axes as they are listed.
        mask : bool array, optional
            True for the samples to use, in the shape of the features without the feature axes, or
            flat. Values of other samples do not matter, NaN included. A mask in CPU memory is
            copied to the device.
        label : str, optional
            What messages about features that are not finite begin with.

        Raises
        ------
        ValueError
            For shapes that do not fit, arrays in other memory than the moments', or features that
            are not finite; the message names the model. The moments are then as they were. On a
            device, values are not known without waiting: see `check`.
        TypeError
            For something that is not an array or of another dtype.

        Notes
        -----
        Products are formed in float32 over at most 256 centred samples (in float64 throughout if
        any model's features are float64) and added in float64. The result does not depend on the
        number of threads. An interrupt (Ctrl-C) leaves the moments as they were or is answered
        when the update is complete.

        On a device the call returns when the work is put on the stream; features may be freed or
        overwritten there at once. Float32 is split into 16-bit parts whose products are summed to
        float32's accuracy on the matrix units; 16-bit features are multiplied in their own type if
        all are, and are not very few. The units round sums towards zero: relative to the mean
        square about the shift, by some 3e-6 for float32 and 8e-6 for 16-bit types (an H200). The
        shift of 16-bit features is zero unless they all lie between half and twice their mean.
        Workspace is a 64th of the device's memory at most, or 2 GiB.
        """
        update_many([(self, features)], axis=axis, mask=mask, label=label)

    def check(self) -> None:
        """Wait for all updates; on the CPU there is nothing to wait for.

        Raises
        ------
        ValueError
            If an update met a value that is not finite: the message names the model and the
            feature, and begins with the update's ``label``. That update and those after it changed
            nothing; the moments are those of before, and can be used.
        """
        check_many([self])

    def merge(self, other: Moments) -> None:
        """Add the samples that ``other`` has seen, as if they had been seen here.

        Moments on another device are copied over first.

        Raises
        ------
        ValueError
            If dims, pairs or reference differ.
        """
        other = arguments.instance(other, Moments, "other", "Moments")
        other = other.to(self._device)
        other.check()
        self._native.merge(other._native, *self._stream())
        self._known = None

    def to(self, device: DeviceLike | None) -> Moments:
        """These moments if they are on the device, else a copy there."""
        where = resolve(device)
        return self if where == self._device else Moments.from_state(self.state_dict(), where)

    def mean(self, i: int) -> FloatArray:
        """Mean of model ``i``'s features, ``(d_i,)``; ValueError before the first sample."""
        i = arguments.integer(i, "i")
        mean: FloatArray = self._native.mean(i, *self._stream())
        return mean

    def mean_tensor(self, i: int) -> Tensor:
        """As `mean`, as a float64 tensor where the moments are."""
        if self._device is None:
            import torch

            return torch.from_numpy(self.mean(i))
        return self._read_into(self._native.mean_into, i)

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
        i = arguments.integer(i, "i")
        j = i if j is None else arguments.integer(j, "j")
        cov: FloatArray = self._native.covariance(i, j, *self._stream())
        return cov

    def cov_tensor(self, i: int, j: int | None = None) -> Tensor:
        """As `cov`, as a float64 tensor where the moments are.

        On a device only the first call after an update waits, for `check`.
        """
        j = i if j is None else j
        if self._device is None:
            import torch

            return torch.from_numpy(self.cov(i, j))
        return self._read_into(self._native.covariance_into, i, j)

    def _read_into(self, native: Callable[..., None], *models: int) -> Tensor:
        """What a native function writes of some models into a tensor on the device."""
        import torch

        assert self._device is not None
        self.check()
        if self._known == 0:
            msg = "no samples yet: call update() first"
            raise ValueError(msg)
        for i in models:
            if not 0 <= i < len(self.dims):
                msg = f"model index must be from 0 to {len(self.dims) - 1}, got {i}"
                raise ValueError(msg)
        shape = [self.dims[i] for i in models]
        with self._device.active():
            out = torch.empty(shape, dtype=torch.float64, device=self._device.memory)
            native(*models, out, *self._stream())
        return out

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
        given = arguments.items(models, "models", "a list of models' indices")
        chosen = [arguments.integer(m, f"models[{place}]") for place, m in enumerate(given)]
        if reference is None:
            reference = chosen.index(self.reference) if self.reference in chosen else 0
        reference = arguments.integer(reference, "reference")
        self.check()
        subset = object.__new__(Moments)
        native = self._native.subset(chosen, self.pairs, reference, *self._stream())
        subset._take(native, self._device)
        return subset

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as copies in NumPy arrays; ``from_state`` is the inverse.

        Taken at one moment: updates in other threads come before or after it.

        Returns
        -------
        dict
            ``dims`` (N,), ``pairs`` (its index in "none", "reference", "all"), ``reference`` and
            ``count``, int64; ``mean.i`` and ``shift.i`` (d_i,), ``m2.i.j`` (d_i, d_j), float64.
        """
        count, means, shifts, blocks = self._native.state(*self._stream())
        state: dict[str, npt.NDArray[Any]] = {
            "dims": np.array(self.dims, dtype=np.int64),
            "pairs": np.array(PAIRS.index(self.pairs), dtype=np.int64),
            "reference": np.array(self.reference, dtype=np.int64),
            "count": np.array(count, dtype=np.int64),
        }
        for i, (mean, shift) in enumerate(zip(means, shifts, strict=True)):
            state[f"mean.{i}"], state[f"shift.{i}"] = mean, shift
        for (i, j), block in zip(self._native.block_pairs(), blocks, strict=True):
            state[f"m2.{i}.{j}"] = block
        return state

    @classmethod
    def from_state(
        cls, state: Mapping[str, npt.NDArray[Any]], device: DeviceLike | None = None
    ) -> Moments:
        """Moments from what ``state_dict`` returned, on a device (default: the CPU).

        Raises
        ------
        ValueError
            If entries are missing, unknown, of a wrong shape or dtype, or not finite.
        """
        state = arguments.mapping(state, "state", "a dict of arrays, as from state_dict")
        dims = [int(d) for d in entry(state, "dims", np.int64, 1)]
        pairs = int(entry(state, "pairs", np.int64, 0))
        count = int(entry(state, "count", np.int64, 0))
        if not 0 <= pairs < len(PAIRS):
            msg = f"pairs must be from 0 to {len(PAIRS) - 1}, got {pairs}"
            raise ValueError(msg)
        moments = cls(
            dims,
            pairs=PAIRS[pairs],
            reference=int(entry(state, "reference", np.int64, 0)),
            device=device,
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
            [entry(state, f"mean.{i}", np.float64, 1) for i in models],
            [entry(state, f"shift.{i}", np.float64, 1) for i in models],
            [entry(state, name, np.float64, 2) for name in names],
            *moments._stream(),
        )
        return moments

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, beside ``path`` first and then renamed into place."""
        save_state(arguments.path(path, "path"), self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: DeviceLike | None = None) -> Moments:
        """Read what ``save`` wrote, onto a device (default: the CPU).

        Raises
        ------
        ValueError
            For a damaged, foreign or newer file, naming it.
        FileNotFoundError if there is none.
        """
        path = arguments.path(path, "path")
        state = load_state(path)
        try:
            return cls.from_state(state, device)
        except (ValueError, KeyError, TypeError) as error:
            msg = f"cannot load moments from {os.fspath(path)!r}: {error}"
            raise ValueError(msg) from error

    def __getstate__(self) -> dict[str, npt.NDArray[Any]]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._take(Moments.from_state(state)._native, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Moments:
        return self.subset(range(len(self.dims)), self.reference)

    def __repr__(self) -> str:
        dims = list(self.dims)
        shown = dims if len(dims) <= 16 else f"[{', '.join(map(str, dims[:16]))}, ... {len(dims)}]"
        return (
            f"Moments(dims={shown}, pairs={self.pairs!r}, "
            f"reference={self.reference}, count={self.count}"
            f"{'' if self._device is None else f', device={self.device!r}'})"
        )


def update_many(
    updates: Sequence[tuple[Moments, Sequence[Any]]],
    *,
    axis: int | Sequence[int] = 1,
    mask: Any = None,
    label: str = "",
) -> None:
    """Update many moments in one native call, all or nothing but for what `check` tells later.

    Parameters
    ----------
    updates : sequence of (Moments, features)
        As for ``Moments.update``, all on one device; each with its own sample shape.
    axis, mask, label
        As for ``Moments.update``, the same for all.

    Raises
    ------
    ValueError, TypeError
        As ``Moments.update``; every accumulator is then as it was. On a device, features that are
        not finite stop the updates of the moments that they are for, and of no others.
    """
    updates, each = list(updates), "a list with one array for each model"
    items = [
        (moments._native, [_readable(a) for a in arguments.items(features, "features", each)])
        for moments, features in updates
    ]
    places = {moments._device for moments, _ in updates}
    if len(places) > 1:
        msg = f"updates must be for one device, got {', '.join(sorted(map(str, places)))}"
        raise ValueError(msg.replace("None", "cpu"))
    expected = "a whole number or a list of them"
    axes = arguments.items([axis] if isinstance(axis, SupportsIndex) else axis, "axis", expected)
    axes = [arguments.integer(a, "axis", expected) for a in axes]
    label = arguments.string(label, "label")
    device = next(iter(places), None)
    if device is not None:
        from ccamerge import _cuda

        with device.queue(array for _, features in items for array in features) as stream:
            on_device = None if mask is None else _mask_on(device, mask)
            for moments, _ in updates:
                moments._known = None  # also if the call fails half way
            _cuda.update_many(items, axes, on_device, stream, label)
        return
    if mask is not None:
        mask = np.ascontiguousarray(mask)
        if mask.dtype != np.bool_:
            msg = f"mask must be bool, got {mask.dtype}"
            raise TypeError(msg)
    try:
        _core.update_many(items, axes=axes, mask=mask)
    except ValueError as error:
        if not label:
            raise
        msg = f"{label}: {error}"
        raise ValueError(msg) from error


def check_many(many: Sequence[Moments]) -> None:
    """Wait once for all updates of moments on one device; on the CPU there is nothing to wait for.

    Raises
    ------
    ValueError
        As ``Moments.check``, for the first that met a value that is not finite.
    """
    waiting = [moments for moments in many if moments._device and moments._known is None]
    if not waiting:
        return
    from ccamerge import _cuda

    device = waiting[0]._device
    assert device is not None
    with device.active():
        counts = _cuda.check_many([moments._native for moments in waiting], device.stream())
    for moments, count in zip(waiting, counts, strict=True):
        moments._known = count


def _mask_on(device: Device, mask: Any) -> Tensor:
    """A mask as a tensor in a device's memory."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if not isinstance(mask, torch.Tensor):
        foreign = hasattr(mask, "__dlpack__") and not isinstance(mask, np.ndarray)
        mask = from_dlpack(mask) if foreign else torch.tensor(np.ascontiguousarray(mask))
    if mask.dtype != torch.bool:
        msg = f"mask must be bool, got {str(mask.dtype).removeprefix('torch.')}"
        raise TypeError(msg)
    return moved_tensor(mask.contiguous(), device.memory)


def _readable(array: Any) -> Any:
    """Strip what torch refuses to export: gradient history and a pending negation."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():
        array = array.resolve_neg()
    return array
