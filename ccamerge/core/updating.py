"""Features on their way into moments: several moments in one native call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from ccamerge import _core
from ccamerge.core import arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ccamerge.core.device import Device
    from ccamerge.core.moments import Moments


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
    from ccamerge.graph.tracing.batches import moved

    return moved(mask.contiguous(), device.memory)  # type: ignore[no-any-return]


def _readable(array: Any) -> Any:
    """Strip what torch refuses to export: gradient history and a pending negation."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():
        array = array.resolve_neg()
    return array
