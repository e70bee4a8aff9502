"""Operations along positions, which mix no features: windows, differences, Fourier transforms."""

from __future__ import annotations

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import move, rule
from ccamerge.graph.rules.shared import dims_of, operand_axes
from ccamerge.graph.tracing.program import Node


@move("triu", "tril")
def _triangle(node: Node, axes: list[Axis]) -> list[Axis]:
    for axis in axes[-2:]:
        ax.pin(axis, f"cut to a triangle by {node.name}")
    return axes


@move("diff", "unfold", "rot90", "fft_fftshift", "fft_ifftshift")
def _among_positions(node: Node, axes: list[Axis]) -> list[Axis] | None:
    """Elements of other positions, or differences of them, at each position."""
    if node.shape is None or any(node.named(name) is not None for name in ("prepend", "append")):
        return None
    found = (node.named(name) for name in ("dims", "dim", "dimension"))
    dims = next((dims for dims in found if dims is not None), None)
    every = list(range(len(axes))) if dims is None else dims_of(dims, len(axes))
    for dim in every:
        ax.pin(axes[dim], f"gone along by {node.name}")
    shape = node.shape[: len(axes)]
    result = [ax.inert(n) if i in every else axes[i] for i, n in enumerate(shape)]
    return [*result, *(ax.inert(size) for size in node.shape[len(axes) :])]


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
@rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")
@rule("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")
def _fourier(node: Node, d: Facts) -> list[Axis] | None:
    """Linear in the features; an axis that is transformed holds frequencies, whose order counts."""
    if node.shape is None or d.is_static(node.args[0]):
        return None
    axes = operand_axes(node, d)
    dims = node.named("dim")
    over = dims_of(dims, len(axes)) if dims is not None else list(range(len(axes)))
    for dim in over:
        ax.pin(axes[dim], f"Fourier transform along it in {node.name}")
    return [ax.inert(n) if i in over else axes[i] for i, n in enumerate(node.shape)]


@rule("view_as_complex")
def _as_complex(node: Node, d: Facts) -> list[Axis] | None:
    if d.is_static(node.args[0]):
        return None  # a mapped parameter need not have both parts side by side, as the view asks
    axes = operand_axes(node, d)
    ax.pin(axes[-1], f"real and imaginary parts in {node.name}")
    return axes[:-1]


@move("view_as_real")
def _as_real(node: Node, axes: list[Axis]) -> list[Axis]:
    return [*axes, ax.inert(2)]


@rule("col2im")
def _folded(node: Node, d: Facts) -> list[Axis] | None:
    """Windows added up where they overlap; each feature has as many channels as a window places."""
    if node.shape is None or d.is_static(node.args[0]):
        return None
    *batch, channels, windows = operand_axes(node, d)
    ax.pin(windows, f"reordered by {node.name}")
    kept = ax.fresh(node.shape[len(batch)])
    inner = ax.axis_size(channels) // ax.axis_size(kept)
    ax.unify(channels, ((*kept[0], inner),), node.name)
    return [*batch, kept, *(ax.inert(size) for size in node.shape[len(batch) + 1 :])]


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(node: Node, d: Facts) -> list[Axis] | None:
    """Elements put back to where they were the largest, each feature's by itself."""
    if node.shape is None or not all(map(d.is_tensor, node.args[:2])):
        return None
    axes, places = operand_axes(node, d), d.axes_of(node.args[1])
    spatial = 2 if node.op.endswith("2d") else 3
    for axis, place in zip(axes, places, strict=True):
        ax.unify(axis, place, node.name)
    for axis in axes[-spatial:]:
        ax.pin(axis, f"positions of {node.name}")
    d.restrict(axes, "puts each feature at places of its own", node)
    return [*axes[:-spatial], *(ax.inert(size) for size in node.shape[-spatial:])]
