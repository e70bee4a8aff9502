"""Operations that are linear in their weight."""

from __future__ import annotations

from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import operation, rule
from ccamerge.graph.rules.shared import dims_of, operand_axes, split_evenly
from ccamerge.graph.space import KERNEL, Role
from ccamerge.graph.tracing.program import Node, Ref

Letters = list[str]

MATCHED_IN_ORDER = "its groups are matched one by one, in the order in which they stand"

PLACES = {"weight": 1, "bias": 2}


@rule("linear", tap="write", places=PLACES, features=-1, linear=True)
def dense(node: Node, d: Facts) -> list[Axis] | None:
    """A layer with (input, weight, bias) that reads and writes the last axis."""
    x, weight = operand_axes(node, d), node.args[1]
    if len(d.axes_of(weight)) != 2:
        return None
    bias = operation(node).place(node, "bias")
    layer = bias is not None or not d.sources_of(node.args[0])
    if layer:
        _of_constants(node, d, node.args[0])
    d.features_of(weight, 0)
    rows = [f"x{i}" for i in range(len(x) - 1)]
    spec = [[*rows, "in"], ["out", "in"]]
    weights = frozenset([1]) if layer else frozenset([0, 1])
    return contract(node, d, [*node.args[:2]], spec, [*rows, "out"], bias, weights)


def _of_constants(node: Node, d: Facts, x: Any) -> bool:
    """Whether a layer reads learned tokens or constants ``x``: it makes features of them, too."""
    if not d.is_static(Ref(node.name)):
        return False
    d.static.discard(node.name)
    for dim, axis in enumerate(d.axes_of(x)):
        d.use(x, dim, Role.WRITE, axis, node)
    return True


@rule("matmul", "mm", "bmm", "mv", "dot", tap="write")
def _matmul(node: Node, d: Facts) -> list[Axis] | None:
    a, b = (len(operand_axes(node, d, i)) for i in range(2))
    if node.shape is None or min(a, b) == 0:
        return None
    more = [f"x{i}" for i in range(max(a, b) - 2)]  # counted from the last
    left = [*more[len(more) - max(a - 2, 0) :], *(["row"] if a > 1 else []), "in"]
    right = [*more[len(more) - max(b - 2, 0) :], "in", *(["out"] if b > 1 else [])]
    result = [*more, *(["row"] if a > 1 else []), *(["out"] if b > 1 else [])]
    return contract(node, d, [*node.args[:2]], [left, right], result)


@rule("addmm", "baddbmm", tap="write")
def _addmm(node: Node, d: Facts) -> list[Axis] | None:
    more = [] if node.op == "aten.addmm" else ["x"]
    if node.shape is None or not d.is_tensor(node.args[0]):
        return None
    weights = frozenset([1]) if _of_constants(node, d, node.args[1]) else None
    spec = [[*more, "row", "in"], [*more, "in", "out"]]
    result = [*more, "row", "out"]
    return contract(node, d, [*node.args[1:3]], spec, result, node.args[0], weights)


@rule("einsum", tap="write")
def _einsum(node: Node, d: Facts) -> list[Axis] | None:
    operands = list(node.args[1])
    if node.shape is None or not all(map(d.is_tensor, operands)):
        return None
    given, arrow, result = node.args[0].replace(" ", "").partition("->")
    if not arrow:
        once = sorted(x for x in set(given) if x.isalpha() and given.count(x) == 1)
        result = ("..." if "..." in given else "") + "".join(once)
    ranks = [len(d.axes_of(operand)) for operand in operands]
    letters = [_spelled(own, rank) for own, rank in zip(given.split(","), ranks, strict=True)]
    return contract(node, d, operands, letters, _spelled(result, len(node.shape)))


def _spelled(letters: str, rank: int) -> Letters:
    """The names of a tensor's axes, those that an ellipsis stands for counted from the last."""
    before, dots, after = letters.partition("...")
    more = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"x{i}" for i in reversed(range(more))), *after]


@rule("tensordot", tap="write")
def _tensordot(node: Node, d: Facts) -> list[Axis] | None:
    if not all(map(d.is_tensor, node.args[:2])):
        return None
    ranks = [len(d.axes_of(operand)) for operand in node.args[:2]]
    over = [dims_of(dims, rank) for dims, rank in zip(node.args[2:4], ranks, strict=True)]
    letters = [[f"{side}{i}" for i in range(rank)] for side, rank in zip("ab", ranks, strict=True)]
    for left, right in zip(*over, strict=True):
        letters[1][right] = letters[0][left]
    gone = {letters[0][i] for i in over[0]}
    result = [letter for own in letters for letter in own if letter not in gone]
    return contract(node, d, [*node.args[:2]], letters, result)


@rule("bilinear", tap="write")
def _bilinear(node: Node, d: Facts) -> list[Axis] | None:
    """Each output a form of two inputs: (input, input, weight, bias)."""
    rank = len(operand_axes(node, d))
    if node.shape is None or any(map(d.is_static, node.args[:2])):
        return None
    rows = [f"x{i}" for i in range(rank - 1)]
    axes = [d.axes_of(argument) for argument in node.args[:3]]
    for one, two in zip(axes[0][:-1], axes[1][:-1], strict=True):
        ax.unify(one, two, node.name)
        d.restrict([one], "features multiplied by features", node)
    for dim in (1, 2):
        ax.unify(axes[dim - 1][-1], axes[2][dim], node.name)
        d.use(node.args[2], dim, Role.READ, axes[2][dim], node)
    out = d.features_of(node.args[2], 0)
    d.use(node.args[2], 0, Role.WRITE, out, node)
    if (bias := node.argument(3, "bias")) is not None:
        _added(node, d, bias, [*axes[0][: len(rows)], out])
    return [*axes[0][:-1], out]


def contract(
    node: Node,
    d: Facts,
    operands: list[Any],
    letters: list[Letters],
    result: Letters,
    bias: Any = None,
    among: frozenset[int] | None = None,
) -> list[Axis] | None:
    """A sum of products, as ``einsum`` has it; of weights it reads the axes that it sums over.

    Weights are ``among`` some operands, by number, or all of them.

    A letter of one operand and the result is written by it; one of two operands and the result is
    multiplied feature by feature.
    """
    if node.shape is None or not all(map(d.is_tensor, operands)):
        return None
    every = [d.axes_of(operand) for operand in operands]
    if any(len(set(own)) != len(own) for own in letters):
        return None  # a diagonal
    static = d.is_static(Ref(node.name))
    held = {i for i, operand in enumerate(operands) if d.is_weight(operand)}
    held &= held if among is None else among
    if not held:
        for axis in (axis for own in every for axis in own):
            ax.pin(ax.pieces(axis), f"groups of features, multiplied by features in {node.name}")
    places: dict[str, list[tuple[int, int]]] = {}
    for index, own in enumerate(letters):
        for dim, letter in enumerate(own):
            places.setdefault(letter, []).append((index, dim))
    axes: dict[str, Axis] = {}
    for letter, at in places.items():
        found = [every[index][dim] for index, dim in at]
        size = max(map(ax.axis_size, found))
        full = [axis for axis in found if ax.axis_size(axis) == size]
        for axis in full[1:]:
            ax.unify(full[0], axis, node.name)
        axes[letter] = next((axis for axis in full if not ax.is_inert(axis)), full[0])
        d.restrict([a for a in found if ax.axis_size(a) != size], "one feature beside many", node)
        weights = [index in held and not static for index, _ in at]
        for (index, dim), weight in zip(at, weights, strict=True):
            role = Role.READ
            if letter in result:
                role = Role.WRITE if len(at) == 1 else Role.SCALE
            if weight:
                d.use(operands[index], dim, role, axes[letter], node)
        if len(operands) > 2:
            d.restrict([axes[letter]], "of more than two factors", node)
        elif static and letter not in result and len(at) > 1:  # between parameters, or of constants
            for (index, dim), role in zip(at, (Role.WRITE, Role.READ), strict=True):
                if d.is_weight(operands[index]):
                    d.use(operands[index], dim, role, axes[letter], node)
        elif not any(weights) and (letter not in result or len(at) > 1):
            why = "features multiplied by features" if len(at) > 1 else "summed up"
            d.restrict([axes[letter]], why, node)
    out = [axes[letter] for letter in result]
    every_source = [
        [
            source[own.index(letter)] if letter in own else ax.inert(ax.axis_size(axes[letter]))
            for letter in result
        ]
        for operand, own in zip(operands, letters, strict=True)
        for source in d.sources_of(operand)
    ]
    if bias is not None:
        _added(node, d, bias, out)
    d.made_of(node, every_source)
    return out


def _added(node: Node, d: Facts, bias: Any, out: list[Axis]) -> None:
    """A bias of the last axis, or of several of the last ones."""
    own = d.axes_of(bias)
    d.restrict(out[: len(out) - 1], "one number added to many features", node)
    for dim in range(1, len(own) + 1):
        if ax.axis_size(own[-dim]) == ax.axis_size(out[-dim]):
            d.same_feature(bias, len(own) - dim, out[-dim], node)
            d.use(bias, len(own) - dim, Role.WRITE, out[-dim], node)
        else:
            ax.pin(own[-dim], f"one for many in {node.name}")


def _bias(node: Node, d: Facts, axis: Axis) -> None:
    bias = node.argument(2, "bias")
    if bias is not None:
        d.same_feature(bias, 0, axis, node)
        d.use(bias, 0, Role.WRITE, axis, node)


def _positions(node: Node, d: Facts, x: list[Axis]) -> None:
    """Of a convolution: features that lie along positions, or among samples, of which a bias is."""
    for axis in x[2:]:
        ax.pin(axis, f"positions of {node.name}")
    d.restrict([x[0]], "one number added to many features", node)


@rule("conv1d", "conv2d", "conv3d", tap="write", places=PLACES, linear=True)
def convolution(node: Node, d: Facts) -> list[Axis] | None:
    """With (input, weight, bias, stride, padding, dilation, groups), channels on axis 1."""
    x, weight = operand_axes(node, d), d.axes_of(node.args[1])
    groups = node.argument(6, "groups", 1)
    if node.shape is None or len(x) != len(weight) or d.sources_of(node.args[0]):
        return None
    if not isinstance(groups, int):
        return None  # one for each sample
    d.static.discard(node.name)  # made of constants, it is a value like others
    weight[0] = d.features_of(node.args[1], 0)
    _positions(node, d, x)
    for dim in range(2, len(weight)):
        d.use(node.args[1], dim, None, weight[dim], node, KERNEL)
    outputs, per_group = ax.axis_size(weight[0]), ax.axis_size(weight[1])
    out = weight[0]
    if groups == 1:
        ax.unify(x[1], weight[1], node.name)
        d.use(node.args[1], 1, Role.READ, weight[1], node)
        d.use(node.args[1], 0, Role.WRITE, out, node)
    elif per_group == 1:
        # Depthwise: each input channel makes outputs/groups channels of its own.
        multiplied = ax.resolve(x[1])
        repeat = outputs // groups
        out = tuple((*segment, repeat) for segment in multiplied) if repeat > 1 else x[1]
        ax.unify(weight[0], out, node.name)
        d.use(node.args[1], 0, Role.SCALE, out, node, "depthwise convolution")
        d.restrict([out], "depthwise convolution", node)
        d.use(node.args[1], 1, None, weight[1], node, "one channel a group")
    else:
        cuts = [split_evenly(axis, groups, node.name) for axis in (x[1], out)]
        if cuts[0] is None or cuts[1] is None:
            return None
        d.remark([*cuts[0], *cuts[1]], f"{node.name}: {MATCHED_IN_ORDER}")
        rows = outputs // groups
        for index, piece in enumerate(cuts[0]):
            d.use(
                node.args[1],
                1,
                Role.READ,
                piece,
                node,
                rows=(index * rows, (index + 1) * rows),
            )
        out = tuple(segment for piece in cuts[1] for segment in piece)
        ax.unify(weight[0], out, node.name)
        d.use(node.args[1], 0, Role.WRITE, out, node)
    _bias(node, d, out)
    return [x[0], out, *(ax.inert(size) for size in node.shape[2:])]


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", tap="write")
def _conv_transpose(node: Node, d: Facts) -> list[Axis] | None:
    x, weight = operand_axes(node, d), d.axes_of(node.args[1])
    groups = node.argument(6, "groups", 1)
    if node.shape is None or len(x) != len(weight) or not isinstance(groups, int):
        return None
    if d.is_static(node.args[0]):
        return None
    _positions(node, d, x)
    for dim in range(2, len(weight)):
        d.use(node.args[1], dim, None, weight[dim], node, KERNEL)
    if groups == 1:
        out = d.features_of(node.args[1], 1)
        ax.unify(x[1], weight[0], node.name)
        d.use(node.args[1], 0, Role.READ, weight[0], node)
        d.use(node.args[1], 1, Role.WRITE, out, node)
    elif groups == ax.axis_size(x[1]):
        repeat = ax.axis_size(weight[1])  # each channel makes outputs of its own
        out = tuple((*segment, repeat) for segment in ax.resolve(x[1])) if repeat > 1 else x[1]
        ax.unify(weight[0], x[1], node.name)
        d.use(node.args[1], 0, Role.SCALE, x[1], node, "depthwise convolution")
        d.restrict([out], "depthwise convolution", node)
        d.use(node.args[1], 1, None, weight[1], node, "outputs of one channel")
    else:
        found = _transposed_groups(node, d, x[1], groups)
        if found is None:
            return None
        out = found
    _bias(node, d, out)
    return [x[0], out, *(ax.inert(size) for size in node.shape[2:])]


def _transposed_groups(node: Node, d: Facts, x: Axis, groups: int) -> Axis | None:
    """The channels that a transposed convolution writes, for each group by its rows."""
    weight = node.args[1]
    cuts = split_evenly(x, groups, node.name)
    if cuts is None:
        return None
    ax.unify(d.axes_of(weight)[0], tuple(s for piece in cuts for s in piece), node.name)
    d.use(weight, 0, Role.READ, d.axes_of(weight)[0], node)
    size, rows = ax.axis_size(d.axes_of(weight)[1]), ax.axis_size(x) // groups
    written = [ax.fresh(size) for _ in range(groups)]
    d.remark([*cuts, *written], f"{node.name}: {MATCHED_IN_ORDER}")
    for index, piece in enumerate(written):
        d.use(weight, 1, Role.WRITE, piece, node, rows=(index * rows, (index + 1) * rows))
    return tuple(s for piece in written for s in piece)


@rule("scaled_dot_product_attention")
def _attention(node: Node, d: Facts) -> list[Axis] | None:
    if node.shape is None or not all(map(d.is_tensor, node.args[:3])):
        return None
    query, key, value = (d.axes_of(a) for a in node.args[:3])
    for axis in (*query, *key, *value):
        ax.pin(ax.pieces(axis), f"heads of {node.name}")
    for a, b in zip(query[:-2], key[:-2], strict=True):
        if ax.axis_size(a) != ax.axis_size(b):  # groups of queries share keys
            ax.pin(a, f"queries in groups in {node.name}")
            ax.pin(b, f"queries in groups in {node.name}")
        else:
            ax.unify(a, b, node.name)
    for a, b in zip(key[:-1], value[:-1], strict=True):
        ax.unify(a, b, node.name)
    ax.unify(query[-1], key[-1], node.name)
    ax.pin(key[-2], f"positions in {node.name}")
    d.restrict([*query, *key[:-2]], "attention", node)
    out = [*query[:-1], value[-1]]
    mask = node.argument(3, "attn_mask")
    if mask is not None:
        scores = [*query[:-1], key[-2]]
        for dim in range(1, len(own := d.axes_of(mask)) + 1):
            if ax.axis_size(own[-dim]) == ax.axis_size(scores[-dim]):
                ax.unify(own[-dim], scores[-dim], node.name)
                d.use(mask, len(own) - dim, Role.WRITE, scores[-dim], node)
            else:
                ax.pin(own[-dim], f"one for many in {node.name}")
    for argument, own in zip(node.args[:3], (query, key, value), strict=True):
        for dim, axis in enumerate(own):
            d.use(argument, dim, Role.SCALE if dim < len(own) - 1 else Role.WRITE, axis, node)
    return out


@rule("embedding", tap="write")
def _embedding(node: Node, d: Facts) -> list[Axis] | None:
    if len(sources := d.sources_of(node.args[0])) != 1 or d.is_weight(node.args[1]):
        return None
    weight = d.axes_of(node.args[0])
    d.use(node.args[0], 0, None, weight[0], node, "vocabulary")
    d.use(node.args[0], 1, Role.WRITE, weight[1], node)
    indices = operand_axes(node, d, 1)
    d.made_of(node, [[*indices, source[1]] for source in sources])
    return [*indices, weight[1]]
