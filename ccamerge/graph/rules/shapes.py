"""Operations that move elements and leave their values."""

from __future__ import annotations

import math

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import full_name, move, rule
from ccamerge.graph.rules.shared import broadcast, dims_of, operand_axes
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Ref

CASTS = tuple(map(full_name, ("to", "_to_copy", "type_as")))
"""They give the same elements in another dtype."""

KEPT = (
    *map(full_name, ("clone", "contiguous", "detach", "alias", "dropout", "feature_dropout")),
    *map(full_name, ("lift_fresh_copy", "positive")),
)
"""They give their operand in evaluation mode."""

VIEWS = (
    *map(full_name, ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")),
    *map(full_name, ("_unsafe_view", "view_as", "reshape_as")),
)
"""They give the same elements in the same order, on other axes."""


@rule(
    *("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "size", "dim", "numel"),
    *("sym_constrain_range", "sym_constrain_range_for_size", "_assert_async", "_assert_scalar"),
    "_assert_tensor_metadata",
    sizes=True,
)
def _shape_alone(node: Node, d: Facts) -> list[Axis]:
    """They read the shape of their operand and nothing else."""
    d.made_of(node, [])
    return [ax.inert(size) for size in node.shape or ()]


@rule("zeros", "zeros_like", "new_zeros")
@rule("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill", "scalar_tensor")
@rule("zero", "empty", "empty_like", "new_empty", "empty_permuted")
def _one_number(node: Node, d: Facts) -> list[Axis] | None:
    """The same number everywhere, whatever features it meets; of zeros any map is allowed."""
    value = node.args[1] if node.op == "aten.fill" else None
    if node.shape is None or (isinstance(value, Ref) and d.is_weight(value)):
        return None
    axes = [ax.idle(size) for size in node.shape]
    zeros = "zero" in node.op or (value == 0 and not isinstance(value, Ref))
    if not zeros:
        d.restrict(axes, "one number for many features", node)
    d.made_of(node, [])
    return axes


@move(*CASTS, *KEPT, "neg", "real", "imag")
def _same(node: Node, axes: list[Axis]) -> list[Axis]:
    return axes


@move(*VIEWS)
def _reshape(node: Node, axes: list[Axis]) -> list[Axis] | None:
    return ax.reshape(axes, list(node.shape), node.name) if node.shape is not None else None


@move("permute", "transpose", "t", "movedim", "swapaxes", "mT", "numpy_T")
def _permute(node: Node, axes: list[Axis]) -> list[Axis] | None:
    order = list(range(len(axes)))
    if node.op == "aten.permute":
        order = dims_of(node.args[1], len(axes))
    elif node.op == "aten.movedim":
        source, to = (dims_of(a, len(axes)) for a in node.args[1:3])
        order = [i for i in order if i not in source]
        for position, dim in sorted(zip(to, source, strict=True)):
            order.insert(position, dim)
    elif node.op == "aten.numpy_T":
        order.reverse()
    elif len(axes) > 1:
        given = node.op in ("aten.transpose", "aten.swapaxes")
        a, b = dims_of(node.args[1:3], len(axes)) if given else (len(axes) - 2, len(axes) - 1)
        order[a], order[b] = order[b], order[a]
    return [axes[i] for i in order]


@rule("expand", "expand_as", "broadcast_to", "copy")
def _expand(node: Node, d: Facts) -> list[Axis] | None:
    """An operand in a larger shape; what is repeated along it is the same for all features."""
    shown = node.args[int(node.op == "aten.copy")]
    if node.shape is None or not d.is_tensor(shown):
        return None
    axes = d.axes_of(shown)
    axes = [ax.inert(1)] * (len(node.shape) - len(axes)) + axes
    for dim, (axis, size) in enumerate(zip(axes, node.shape, strict=True)):
        if ax.axis_size(axis) != size:
            ax.pin(axis, f"one feature repeated by {node.name}")
            axes[dim] = ax.idle(size)
            d.restrict([axes[dim]], "one number for many features", node)
    d.made_of(node, [broadcast(source, node.shape) for source in d.sources_of(shown)])
    return axes


@rule("repeat", "tile")
def _repeat(node: Node, d: Facts) -> list[Axis] | None:
    """The whole of each axis again and again: an outer number before each of its segments."""
    if node.shape is None or not d.is_tensor(node.args[0]):
        return None
    shape, result = node.shape, []

    def repeated(axes: list[Axis]) -> list[Axis]:
        axes = [ax.inert(1)] * (len(shape) - len(axes)) + axes
        return [a * (size // ax.axis_size(a)) for a, size in zip(axes, shape, strict=True)]

    for axis in repeated(operand_axes(node, d)):
        alike = ax.axis_size(axis) > 1 and set(axis) == {(1,)}
        result.append(ax.idle(len(axis)) if alike else axis)
        if alike:
            d.restrict(result[-1:], "one number for many features", node)
    d.made_of(node, [repeated(source) for source in d.sources_of(node.args[0])])
    return result


@move("repeat_interleave")
def _repeat_interleave(node: Node, axes: list[Axis]) -> list[Axis] | None:
    dim = node.argument(2, "dim")
    if not isinstance(node.args[1], int) or dim is None:
        return None
    dim = dims_of(dim, len(axes))[0]
    repeated = tuple((*segment, node.args[1]) for segment in ax.resolve(axes[dim]))
    return [*axes[:dim], repeated, *axes[dim + 1 :]]


@rule("pixel_shuffle")
def _pixel_shuffle(node: Node, d: Facts) -> list[Axis] | None:
    """Each feature has its own block of channels, which become positions."""
    if node.shape is None or d.is_static(node.args[0]):
        return None
    *batch, channels, height, width = operand_axes(node, d)
    inner = int(node.args[1]) ** 2
    kept = ax.fresh(node.shape[-3])
    ax.unify(channels, ((*kept[0], inner),), node.name)
    for axis in (height, width):
        ax.pin(axis, f"reordered by {node.name}")
    return [*batch, kept, *(ax.inert(size) for size in node.shape[-2:])]


@rule("channel_shuffle")
def _channel_shuffle(node: Node, d: Facts) -> list[Axis] | None:
    """From groups of channels to their first ones, their second ones and so on."""
    if node.shape is None or d.is_static(node.args[0]):
        return None
    batch, channels, *rest = operand_axes(node, d)
    groups = int(node.args[1])
    kept = ax.fresh(node.shape[1] // groups)
    ax.unify(channels, ((groups, *kept[0]),), node.name)
    return [batch, ((*kept[0], groups),), *rest]


@rule("pixel_unshuffle", "im2col")
def _unfolded(node: Node, d: Facts) -> list[Axis] | None:
    """Positions become channels of the feature that they are of."""
    if node.shape is None or d.is_static(node.args[0]):
        return None
    *batch, channels, height, width = operand_axes(node, d)
    for axis in (height, width):
        ax.pin(axis, f"reordered by {node.name}")
    rest = node.shape[len(batch) + 1 :]
    inner = node.shape[len(batch)] // ax.axis_size(channels)
    own = tuple((*segment, inner) for segment in ax.resolve(channels))
    return [*batch, own, *(ax.inert(size) for size in rest)]


@move("flip", "roll")
def _reorder(node: Node, axes: list[Axis]) -> list[Axis]:
    dims = node.args[1] if node.op == "aten.flip" else node.argument(2, "dims", [])
    for dim in dims_of(dims, len(axes)) or range(len(axes)):
        ax.pin(axes[dim], f"reordered by {node.name}")
    return axes


@move("split", "split_with_sizes", "chunk")
def _split(node: Node, axes: list[Axis]) -> list[list[Axis]]:
    dim = dims_of(node.argument(2, "dim", 0), len(axes))[0]
    total, amount = ax.axis_size(axes[dim]), node.args[1]
    if node.op == "aten.chunk":
        amount = math.ceil(total / amount)
    sizes = list(amount) if isinstance(amount, (list, tuple)) else [amount] * (total // amount)
    if sum(sizes) < total:
        sizes.append(total - sum(sizes))
    pieces, rest = [], axes[dim]
    for size in sizes[:-1]:
        cut = ax.split(rest, size)
        if cut is None:
            ax.pin(axes[dim], f"cut apart by {node.name}")
            pieces, rest = [ax.inert(size) for size in sizes[:-1]], ax.inert(sizes[-1])
            break
        piece, rest = cut
        pieces.append(piece)
    return [[*axes[:dim], piece, *axes[dim + 1 :]] for piece in (*pieces, rest)]


@move("slice", "narrow")
def _slice(node: Node, axes: list[Axis]) -> list[Axis] | None:
    if node.shape is None:
        return None
    dim = dims_of(node.argument(1, "dim", 0), len(axes))[0]
    size, total = node.shape[dim], ax.axis_size(axes[dim])
    if size == total and int(node.argument(4, "step", 1)) == 1:
        return axes
    piece = ax.inert(size)
    if not ax.is_inert(axes[dim]):
        found = None
        start, step = node.argument(2, "start", 0) or 0, int(node.argument(4, "step", 1))
        if step > 1 and total == size * step and isinstance(start, int):
            parts = ax.take_apart(axes[dim], [size, step]) or [axes[dim]]
            ax.pin(parts[-1], f"one feature alone in {node.name}")
            found = parts[0] if len(parts) > 1 else None
        elif step == 1 and isinstance(start, int):
            first = ax.split(axes[dim], max(0, start + total) if start < 0 else start)
            second = ax.split(first[1], size) if first is not None else None
            found = second[0] if second is not None else None
        if found is None:
            ax.pin(axes[dim], f"cut apart by {node.name}")
        else:
            piece = found
    return [*axes[:dim], piece, *axes[dim + 1 :]]


@move("select")
def _select(node: Node, axes: list[Axis]) -> list[Axis]:
    dim = dims_of(node.args[1], len(axes))[0]
    ax.pin(axes[dim], f"one feature alone in {node.name}")
    return [*axes[:dim], *axes[dim + 1 :]]


@move("unbind")
def _unbind(node: Node, axes: list[Axis]) -> list[list[Axis]]:
    dim = dims_of(node.argument(1, "dim", 0), len(axes))[0]
    ax.pin(axes[dim], f"taken apart by {node.name}")
    return [[*axes[:dim], *axes[dim + 1 :]]] * ax.axis_size(axes[dim])


@move("index_select")
def _index_select(node: Node, axes: list[Axis]) -> list[Axis] | None:
    if node.shape is None:
        return None
    dim = dims_of(node.args[1], len(axes))[0]
    ax.pin(axes[dim], f"chosen from by {node.name}")
    return [*axes[:dim], ax.inert(node.shape[dim]), *axes[dim + 1 :]]


@rule("index")
def _index(node: Node, d: Facts) -> list[Axis] | None:
    indices = node.args[1]
    given = [i for i, index in enumerate(indices) if index is not None]
    if node.shape is None or not d.is_tensor(node.args[0]):
        return None
    for i in given:
        for dim, axis in enumerate(d.axes_of(indices[i])):
            ax.pin(axis, f"indices of {node.name}")
            d.use(indices[i], dim, None, axis, node, f"indices of {node.name}")
    new = len(node.shape) - (len(d.axes_of(node.args[0])) - len(given))
    together = given == list(range(given[0], given[-1] + 1))

    def moved(axes: list[Axis]) -> list[Axis] | None:
        for i in given:
            ax.pin(axes[i], f"chosen from by {node.name}")
        rest = [axis for i, axis in enumerate(axes) if i not in given]
        at = given[0] if together else 0
        shape = node.shape or ()
        if new < 0 or [ax.axis_size(a) for a in rest] != [*shape[:at], *shape[at + new :]]:
            return None
        return [*rest[:at], *(ax.inert(size) for size in shape[at : at + new]), *rest[at:]]

    sources = [moved(source) for source in d.sources_of(node.args[0])]
    result = moved(operand := d.axes_of(node.args[0]))
    if result is None or None in sources:
        return None
    for i in given:
        d.use(node.args[0], i, None, operand[i], node, f"chosen from by {node.name}")
    if sources:  # chosen by the input, it is made of parameters still
        d.static.add(node.name)
    d.made_of(node, sources)  # type: ignore[arg-type]
    return result


@rule("cat", "concat", "stack")
def _cat(node: Node, d: Facts) -> list[Axis] | None:
    tensors = [r for r in node.args[0] if d.axes_of(r) != [ax.inert(0)]]  # torch's legacy empty one
    parts = [d.axes_of(r) for r in tensors]
    new = node.op == "aten.stack"
    dim = dims_of(node.argument(1, "dim", 0), len(parts[0]) + new)[0]
    if new:
        parts = [[*part[:dim], ax.inert(1), *part[dim:]] for part in parts]
    out = list(parts[0])
    for part in parts[1:]:
        for i, axis in enumerate(part):
            if i != dim:
                ax.unify(out[i], axis, node.name)
    out[dim] = tuple(segment for part in parts for segment in part[dim])
    sources = []
    sizes = [ax.axis_size(part[dim]) for part in parts]
    for position, tensor in enumerate(tensors):
        before, after = sum(sizes[:position]), sum(sizes[position + 1 :])
        for source in d.sources_of(tensor):
            own = [*source[:dim], ax.inert(1), *source[dim:]] if new else list(source)
            around = [ax.inert(size) if size else () for size in (before, after)]
            own[dim] = (*around[0], *own[dim], *around[1])
            sources.append(own)
            if not d.is_static(Ref(node.name)):
                for i, axis in enumerate(d.axes_of(tensor)):
                    d.use(tensor, i, Role.WRITE, axis, node)
    d.made_of(node, sources)
    return out
