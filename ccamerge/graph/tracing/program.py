"""A model as a list of operations on named values: spaces come from it, data runs through it.

The list comes from ``torch.export`` (non-strict). In-place operations are replaced by their
functional forms, so that a value, once computed, never changes: it can be tapped at any time. A
program knows the inputs that it was traced for; variants of it take others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.core.brief import Brief
from ccamerge.graph.tracing.batches import batch_size, model_device, moved
from ccamerge.graph.tracing.experts import write_out_experts
from ccamerge.graph.tracing.exporting import Free, export, implied_arguments, structure
from ccamerge.graph.tracing.functional import functional
from ccamerge.graph.tracing.modules import copied
from ccamerge.graph.tracing.node import Node, Ref, made_of, random_draw
from ccamerge.graph.tracing.plain import limits_of
from ccamerge.graph.tracing.regions import Autocast, Writer, shape_of
from ccamerge.graph.tracing.reparametrisations import Limit
from ccamerge.graph.tracing.stacks import layer_by_layer

__all__ = ["Node", "Program", "Ref", "bound", "made_of", "trace"]


@dataclasses.dataclass(frozen=True, repr=False)
class Program(Brief):
    """Operations in order, and what the names in them stand for.

    ``parameters`` maps value names to the names in the model's ``state_dict`` (buffers included);
    tied parameters appear under one name. ``shapes`` has the shape of every tensor value.

    What it was traced for: ``sizes`` has a number for each axis of an input that is frozen, and a
    symbol (or an expression in symbols) for each that may have any size; ``ranges`` are those of
    the symbols that are limited, ``fixed`` the inputs that are no tensors. ``implied`` are keyword
    inputs that every call gets. ``variants`` are programs for other inputs: the same operations by
    the same names. ``eps`` is the coarsest floating-point precision of the values. ``limits`` are
    those of parameters, by their keys.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    parameters: dict[str, str]
    constants: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    input_spec: Any
    output_spec: Any
    sizes: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    ranges: dict[Any, tuple[int, int | None]] = dataclasses.field(default_factory=dict)
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    implied: dict[str, Any] = dataclasses.field(default_factory=dict)
    variants: tuple[Program, ...] = ()
    eps: float = 0.0
    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)

    def users(self) -> dict[str, list[Node]]:
        """For each value the operations that read it, in order."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.refs()):
                table.setdefault(name, []).append(node)
        return table

    def to(self, device: torch.device) -> Program:
        """The same operations for inputs on a device: itself if it is traced there.

        Constants are brought there, and so is what operations make anew, such as ranges.
        """
        changed = False

        def there(value: Any) -> Any:
            nonlocal changed
            if isinstance(value, Tensor) and value.device != device:
                changed = True
                return value.to(device)
            if isinstance(value, torch.device) and value != device:
                changed = True
                return device
            return value

        def target(value: Any) -> Any:
            nonlocal changed
            if isinstance(value, Autocast) and value.device != device.type:
                changed = True
                return dataclasses.replace(value, device=device.type)
            return value

        constants = {name: there(value) for name, value in self.constants.items()}
        nodes = []
        for node in self.nodes:
            args, kwargs = pytree.tree_map(there, (node.args, node.kwargs))
            nodes.append(
                dataclasses.replace(node, target=target(node.target), args=args, kwargs=kwargs)
            )
        variants = tuple(variant.to(device) for variant in self.variants)
        changed = changed or any(a is not b for a, b in zip(variants, self.variants, strict=True))
        if not changed:
            return self
        return dataclasses.replace(self, nodes=tuple(nodes), constants=constants, variants=variants)

    @property
    def samples(self) -> int:
        """In the example inputs."""
        shapes = (self.shapes[name] for name in self.inputs if name in self.shapes)
        return batch_size([torch.empty(shape, device="meta") for shape in shapes])

    @property
    def operations(self) -> tuple[Node, ...]:
        """The operations that give tensors: the same in every variant."""
        return tuple(node for node in self.nodes if not node.scalar)

    def misfit(self, leaves: Sequence[Any]) -> str:
        """Why this program, without its variants, is none for some inputs; empty if it is one."""
        bound: dict[Any, int] = {}
        derived: list[tuple[str, Any, int]] = []
        for name, leaf in zip(self.inputs, leaves, strict=True):
            sizes = self.sizes.get(name)
            if sizes is None or not isinstance(leaf, Tensor):
                known = self.fixed.get(name)
                if sizes is not None or isinstance(leaf, Tensor) or not _equal(leaf, known):
                    expected = "a tensor" if sizes is not None else repr(known)
                    got = "a tensor" if isinstance(leaf, Tensor) else repr(leaf)
                    return f"input {name!r} is {got}, expected {expected}, as it was first"
                continue
            fits = len(sizes) == leaf.dim()
            for known, size in zip(sizes, leaf.shape, strict=False):
                if isinstance(known, int):
                    fits = fits and known == size
                elif known.is_symbol:
                    least, most = self.ranges.get(known, (0, None))
                    fits = fits and bound.setdefault(known, size) == size and size >= least
                    fits = fits and (most is None or size <= most)
                else:
                    derived.append((name, known, size))
            if not fits:
                return self._expected(name, leaf)
        for name, known, size in derived:
            value = known.subs(bound)
            if value.is_number and int(value) != size:
                return self._expected(name, leaves[self.inputs.index(name)])
        return ""

    def _expected(self, name: str, leaf: Tensor) -> str:
        """That an input has another shape than the traced one, and which it may have."""
        names = {}
        for axis, size in enumerate(self.sizes[name]):
            names[axis] = str(size) if isinstance(size, int) else "any" if axis else "batch"
        comma = "," if len(names) == 1 else ""
        text = (
            f"input {name!r} has shape {tuple(leaf.shape)}, "
            f"expected ({', '.join(names.values())}{comma})"
        )
        known = self.sizes[name][0] if self.sizes[name] else None
        if isinstance(known, int) and leaf.dim() == len(names) and leaf.shape[0] != known:
            text += f": forward freezes the batch size {known}"
        return text

    def samples_first(self, leaves: Sequence[Any]) -> bool:
        """Whether all tensors among some inputs have samples on their first axis, and only there.

        False if the number of samples is frozen, or two first axes may differ in their lengths, as
        those of nodes and edges.
        """
        tensors = [name for name in self.inputs if self.sizes.get(name)]
        first = [self.sizes[name][0] for name in tensors]
        rest = [size for name in tensors for size in self.sizes[name][1:]]
        lengths = {x.shape[0] for x in leaves if isinstance(x, Tensor) and x.dim()}
        used = {s for size in rest if not isinstance(size, int) for s in size.free_symbols}
        free = not any(isinstance(s, int) or s in used for s in first)
        return len(lengths) == 1 and free and len(set(first)) == 1

    def few(self, leaves: list[Any]) -> list[Any]:
        """Four samples of some inputs, if each of their tensors has them on its first axis alone.

        Otherwise, or if the number of samples is frozen, the inputs as they are.
        """
        if not self.samples_first(leaves):
            return leaves
        some = [x[:4] if isinstance(x, Tensor) and x.dim() else x for x in leaves]
        return some if not self.misfit(some) else leaves

    def single(self, leaves: Sequence[Any]) -> tuple[tuple[str, int], ...]:
        """The free axes of some inputs that have a size of one or none, which was not traced.

        Most models do with them what they do with others, but a forward may choose by a size.
        """
        program = self.variant(leaves)
        return tuple(
            (name, axis)
            for name, leaf in zip(program.inputs, leaves, strict=True)
            for axis, known in enumerate(program.sizes.get(name, ()))
            if not isinstance(known, int) and leaf.shape[axis] < 2
        )

    def accepts(self, leaves: Sequence[Any]) -> bool:
        """Whether it, or a variant, was traced for inputs like some."""
        return any(not p.misfit(leaves) for p in (self, *self.variants))

    def variant(self, leaves: Sequence[Any]) -> Program:
        """The program, this one or a variant, that was traced for inputs like some.

        Raises
        ------
        ValueError
            If there is none; the message names the input.
        """
        why = self.misfit(leaves)
        if not why:
            return self
        for other in self.variants:
            if not other.misfit(leaves):
                return other
        raise ValueError(why)

    @functools.cached_property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by its name in the ``state_dict``."""
        return {key: self.shapes[name] for name, key in self.parameters.items()}

    @functools.cached_property
    def of_parameters(self) -> frozenset[str]:
        """Values computed from parameters alone, and these."""
        found = set(self.parameters)
        for node in self.nodes:
            refs = node.refs()
            if refs and all(ref in found for ref in refs):
                found.add(node.name)
        return frozenset(found)

    @functools.cached_property
    def last_uses(self) -> list[list[str]]:
        """For each operation the values that nothing after it reads."""
        kept, release = set(self.outputs), []
        for node in reversed(self.nodes):
            dead = [n for n in dict.fromkeys([*node.refs(), node.name]) if n not in kept]
            kept.update(dead)
            release.append(dead)
        return release[::-1]

    def steps(
        self, state: Mapping[str, Tensor], inputs: Sequence[Any]
    ) -> Generator[tuple[Node, Any], Any, Any]:
        """Run the operations one by one, yielding each with its value; dead values are released.

        Numbers, such as sizes, are computed in between. The receiver may ``send`` a replacement for
        the value. Returns the model's output. ValueError for inputs that the program is none for.
        """
        fitting = self.variant(inputs)
        if fitting is not self:
            result = yield from fitting.steps(state, inputs)
            return result
        values = _Values(self, state, inputs)
        for node, dead in zip(self.nodes, self.last_uses, strict=True):
            args, kwargs = bound(node.args, values), bound(node.kwargs, values)
            value = node.target(*args, **kwargs)
            replacement = None if node.scalar else (yield node, value)
            values[node.name] = value if replacement is None else replacement
            for name in dead:
                values.pop(name, None)
        return self._pack([values[name] for name in self.outputs])

    def values(
        self, state: Mapping[str, Tensor], inputs: Sequence[Any], names: Collection[str]
    ) -> dict[str, Any]:
        """Some values of a run, numbers and what is there before it included, by name."""
        fitting = self.variant(inputs)
        if fitting is not self:
            return fitting.values(state, inputs, names)
        values = _Values(self, state, inputs)
        found = {name: values[name] for name in names if name in values}
        found.update((name, values[name]) for name in names if name in self.parameters)
        for node, dead in zip(self.nodes, self.last_uses, strict=True):
            value = node.target(*bound(node.args, values), **bound(node.kwargs, values))
            values[node.name] = value
            if node.name in names:
                found[node.name] = value
            for name in dead:
                values.pop(name, None)
        return found

    def run(
        self,
        state: Mapping[str, Tensor],
        inputs: Sequence[Any],
        watch: Callable[[Node, Any], Any] | None = None,
    ) -> Any:
        """The model's output with the tensors of ``state`` as parameters and buffers.

        ``watch(node, value)`` sees every value as it is computed; what it returns, if not None,
        takes the value's place.
        """
        steps = self.steps(state, inputs)
        reply: Any = None
        while True:
            try:
                node, value = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = watch(node, value) if watch is not None else None

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """A call's arguments in the order of ``inputs``; ValueError if the structure differs."""
        example = pytree.tree_unflatten(list(self.inputs), self.input_spec)
        given = {**self.implied, **kwargs}
        ordered = {key: given[key] for key in [*example[1], *given] if key in given}
        leaves, spec = pytree.tree_flatten((args, ordered))
        if spec != self.input_spec:
            message = (
                f"batch has structure {structure(args, kwargs)}, but the example inputs had "
                f"{structure(*example)}"
            )
            raise ValueError(message)
        return leaves

    def _pack(self, leaves: list[Any]) -> Any:
        return pytree.tree_unflatten(leaves, self.output_spec)


class _Values(dict[str, Any]):
    """What a run has come to, by name; a parameter is asked for when it is first read.

    So a state may be made of parameters that are large together, one by one.
    """

    def __init__(
        self, program: Program, state: Mapping[str, Tensor], inputs: Sequence[Any]
    ) -> None:
        super().__init__(program.constants)
        self.update(zip(program.inputs, inputs, strict=True))
        self._keys, self._state = program.parameters, state

    def __missing__(self, name: str) -> Tensor:
        value = self[name] = self._state[self._keys[name]]
        return value


def bound(argument: Any, values: Mapping[str, Any]) -> Any:
    """An argument with values in the place of their names."""
    # Plainly, not by torch's pytree: it took more of the host's time than a GPU's launches.
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, tuple):
        return tuple([bound(item, values) for item in argument])
    if isinstance(argument, list):
        return [bound(item, values) for item in argument]
    if isinstance(argument, dict):
        return {key: bound(item, values) for key, item in argument.items()}
    return argument


def _equal(one: Any, two: Any) -> bool:
    return one is two or (type(one) is type(two) and bool(one == two))


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    who: str = "the model",
    free: Free = "some",
) -> Program:
    """Record the operations of ``model`` in evaluation mode on example inputs.

    Regions under autocast and the like are written out in line, assertions left out, and changes in
    place replaced by new values. A model of transformers that would return a cache is called with
    ``use_cache=False``.

    Parameters
    ----------
    model : the module; it is neither modified nor kept
    args, kwargs : example inputs of one call, on any device
    who : what messages call the model
    free : the axes that may have another size in a later call, wherever the model takes one: "all",
        or "some", of images and videos (four axes and more) the first only, since following the
        others takes long. What the model freezes is in `Program.sizes`.

    Raises
    ------
    ValueError
        If ``torch.export`` cannot follow the model, or it draws random numbers, chooses operations
        at run time, or changes memory in a way that cannot be followed; the message says where.
    """
    limits = limits_of(model)
    model = copied(model, who, share=True).eval()
    write_out_experts(model)
    args, kwargs = moved((args, kwargs or {}), model_device(model))
    implied = implied_arguments(model, kwargs)
    kwargs = {**implied, **kwargs}
    leaves, spec = pytree.tree_flatten((args, kwargs))
    # A tensor that is given twice would be taken for one input.
    leaves = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    for exported in export(model, args, kwargs, free, who):
        program = dataclasses.replace(
            _from_exported(exported, spec), implied=implied, limits=limits
        )
        # Traced by two samples in place of one it may be frozen to two.
        if not program.misfit(leaves):
            return program
    message = f"{who} cannot be traced for these inputs: {program.misfit(leaves)}"
    raise ValueError(message)


def _from_exported(exported: Any, input_spec: Any) -> Program:
    parameters, constants, inputs, fixed = _taken(exported)
    places = [item for item in exported.graph.nodes if item.op == "placeholder"]
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, tuple[Any, ...]] = {}
    for item in places:
        value = item.meta.get("val")
        if isinstance(value, Tensor):
            shapes[item.name] = shape_of(value, item)  # type: ignore[assignment]
            if item.name in inputs:
                sizes[item.name] = tuple(_size(size) for size in value.shape)
    writer = Writer([item.name for item in places])
    returned = writer.write(exported.graph_module, {item: Ref(item.name) for item in places})
    constants.update(writer.constants)
    shapes.update((name, tuple(value.shape)) for name, value in writer.constants.items())
    shapes.update((node.name, node.shape) for node in writer.nodes if node.shape is not None)
    written = layer_by_layer(writer.nodes, shapes)
    shapes.update((node.name, node.shape) for node in written if node.shape is not None)
    outputs = []
    for index, leaf in enumerate(pytree.tree_leaves(returned)):
        if isinstance(leaf, Ref):
            outputs.append(leaf.name)
        else:  # None or a number: a constant like others
            constants[f"output:{index}"] = leaf
            outputs.append(f"output:{index}")
    checked = [node for node in written if not _asserts(node)]
    nodes, outputs, shapes = functional(checked, outputs, shapes)
    nodes = _without_idle_numbers(nodes, outputs)
    _check_not_random(nodes, outputs)
    return Program(
        tuple(nodes),
        tuple(inputs),
        parameters,
        constants,
        shapes,
        tuple(outputs),
        input_spec,
        exported.call_spec.out_spec,
        sizes,
        _ranges(exported),
        fixed,
        eps=writer.eps,
    )


def _taken(
    exported: Any,
) -> tuple[dict[str, str], dict[str, Any], list[str], dict[str, Any]]:
    """What a graph takes: names of parameters, constants, inputs, and inputs that are fixed."""
    kinds = torch.export.graph_signature.InputKind
    parameters: dict[str, str] = {}
    constants: dict[str, Any] = {}
    inputs: list[str] = []
    fixed: dict[str, Any] = {}
    canonical: dict[int, str] = {}
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind in (kinds.PARAMETER, kinds.BUFFER):
            tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            if spec.target not in exported.state_dict:  # a buffer outside the state_dict
                constants[name] = tensor
                continue
            parameters[name] = canonical.setdefault(id(tensor), spec.target)
        elif spec.kind == kinds.CONSTANT_TENSOR:
            constants[name] = exported.constants[spec.target]
        elif spec.kind == kinds.USER_INPUT:
            inputs.append(name)
            if hasattr(spec.arg, "value"):
                fixed[name] = spec.arg.value
        else:
            message = f"the model takes {spec.kind.name} {name!r}, which cannot be merged"
            raise ValueError(message)
    return parameters, constants, inputs, fixed


def _size(size: Any) -> Any:
    """A number, or an expression in the symbols of the trace."""
    found = size if isinstance(size, int) else size.node.expr
    return int(found) if isinstance(found, int) or found.is_number else found


def _ranges(exported: Any) -> dict[Any, tuple[int, int | None]]:
    """Limits of free sizes; that one is at least two is torch's, and not the model's."""
    found = {}
    for symbol, limits in exported.range_constraints.items():
        least = int(limits.lower) if limits.lower.is_Integer else 0
        most = int(limits.upper) if limits.upper.is_Integer else None
        if least > 2 or most is not None:
            found[symbol] = (least if least > 2 else 0, most)
    return found


def _asserts(node: Node) -> bool:
    """Whether an operation only checks its input, by values that were traced."""
    name = node.op.removeprefix("aten.")
    return name.startswith(("_assert", "sym_constrain_range"))


def _without_idle_numbers(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Without the sizes that nothing reads."""
    read = set(outputs)
    kept = []
    for node in reversed(nodes):
        if node.scalar and node.name not in read:
            continue
        read.update(node.refs())
        kept.append(node)
    return kept[::-1]


def _check_not_random(nodes: Sequence[Node], outputs: Sequence[str]) -> None:
    """ValueError if an output depends on random numbers."""
    read = set(outputs)
    for node in reversed(nodes):
        if node.name not in read:
            continue
        read.update(node.refs())
        if random_draw(node):
            cure = "make it deterministic in evaluation mode"
            if "dropout" in node.op:
                cure = "pass training=self.training to dropout, or use nn.Dropout"
            elif any(a.name in ("dropout", "dropout_p") for a in node.schema.arguments):
                cure = "its dropout must be 0 in evaluation mode"
            message = (
                f"forward draws random numbers in evaluation mode: {node.op} ({node.name}); {cure}"
            )
            raise ValueError(message)
