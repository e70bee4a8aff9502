"""A model as a list of operations on named values: spaces come from it, data runs through it.

The list comes from ``torch.export`` (non-strict). In-place operations are replaced by their
functional forms, so that a value, once computed, never changes: it can be tapped at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ccamerge.brief import Brief
from ccamerge.graph.aliases import check_changes_in_place
from ccamerge.graph.batches import model_device, moved
from ccamerge.graph.modules import copied


@dataclasses.dataclass(frozen=True)
class Ref:
    """The value named ``name`` as an argument of an operation."""

    name: str


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: ``name = target(*args, **kwargs)``.

    ``shape`` is None for what is not one tensor; sizes are those of the example inputs.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None

    @property
    def op(self) -> str:
        """The operation's name without overload, for example ``aten.conv2d``."""
        overload = getattr(self.target, "overloadpacket", None)
        return str(overload) if overload is not None else str(getattr(self.target, "__name__", "?"))

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """The argument at a position, or of a name, or its default."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def refs(self) -> list[str]:
        """Names of the values that the operation reads, in order, with repetitions."""
        return [x.name for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Ref)]


@dataclasses.dataclass(frozen=True, repr=False)
class Program(Brief):
    """Operations in order, and what the names in them stand for.

    ``parameters`` maps value names to the names in the model's ``state_dict`` (buffers included);
    tied parameters appear under one name. ``shapes`` has the shape of every tensor value.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    parameters: dict[str, str]
    constants: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    input_spec: Any
    output_spec: Any

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

        constants = {name: there(value) for name, value in self.constants.items()}
        nodes = []
        for node in self.nodes:
            args, kwargs = pytree.tree_map(there, (node.args, node.kwargs))
            nodes.append(dataclasses.replace(node, args=args, kwargs=kwargs))
        if not changed:
            return self
        return dataclasses.replace(self, nodes=tuple(nodes), constants=constants)

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

        The receiver may ``send`` a replacement for the value. Returns the model's output.
        """
        values: dict[str, Any] = dict(self.constants)
        values.update((name, state[key]) for name, key in self.parameters.items())
        values.update(zip(self.inputs, inputs, strict=True))
        for node, dead in zip(self.nodes, self.last_uses, strict=True):
            args, kwargs = _bound(node.args, values), _bound(node.kwargs, values)
            value = node.target(*args, **kwargs)
            replacement = yield node, value
            values[node.name] = value if replacement is None else replacement
            for name in dead:
                values.pop(name, None)
        return self._pack([values[name] for name in self.outputs])

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
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.input_spec:
            message = f"batch has structure {spec}, but the example inputs had {self.input_spec}"
            raise ValueError(message)
        return leaves

    def _pack(self, leaves: list[Any]) -> Any:
        return pytree.tree_unflatten(leaves, self.output_spec)


def _bound(argument: Any, values: Mapping[str, Any]) -> Any:
    """An argument with values in the place of their names."""
    # Plainly, not by torch's pytree: it took more of the host's time than a GPU's launches.
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, tuple):
        return tuple([_bound(item, values) for item in argument])
    if isinstance(argument, list):
        return [_bound(item, values) for item in argument]
    if isinstance(argument, dict):
        return {key: _bound(item, values) for key, item in argument.items()}
    return argument


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    who: str = "the model",
) -> Program:
    """Record the operations of ``model`` in evaluation mode on example inputs.

    Parameters
    ----------
    model : the module; it is neither modified nor kept
    args, kwargs : example inputs of one call, on any device; tensors have the batch first
    who : what messages call the model

    Raises
    ------
    ValueError
        If ``torch.export`` cannot follow the model; the message carries its reason.
    """
    model = copied(model, who).eval()
    args, kwargs = moved((args, kwargs or {}), model_device(model))
    spec = pytree.tree_flatten((args, kwargs))[1]
    leaves = pytree.tree_leaves((args, kwargs))
    if all(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == 1 for x in leaves):
        # A size of one would be taken for a constant: shape the program by two samples.
        args, kwargs = pytree.tree_map(lambda x: torch.cat([x, x]), (args, kwargs))
        leaves = pytree.tree_leaves((args, kwargs))
    batched = all(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] >= 2 for x in leaves)
    dynamic = pytree.tree_map(lambda _: {0: torch.export.Dim.AUTO}, (args, kwargs))
    attempts: list[tuple[Any, ...] | None] = [None]
    if batched:
        attempts.insert(0, (*dynamic[0], *dynamic[1].values()))
    reasons = []
    for shapes in attempts:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = torch.export.export(
                    model, args, kwargs, strict=False, dynamic_shapes=shapes
                )
            break
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
    else:
        message = f"torch.export cannot follow {type(model).__name__}: {reasons[-1]}"
        if "use_cache" in inspect.signature(model.forward).parameters:
            message += f" ({_USE_CACHE})"
        raise ValueError(message)
    _check_operations(exported.graph, who)
    return _from_exported(exported, spec)


_USE_CACHE = (
    "its forward may return a cache, which is no tensor: set config.use_cache = False, or give "
    "use_cache=False in the batches"
)


def _check_operations(graph: torch.fx.Graph, who: str) -> None:
    """Raise ValueError for what a list of operations cannot hold, or cannot repeat."""
    for item in graph.nodes:
        name = str(getattr(item.target, "__name__", item.target))
        if "autocast" in name:
            message = (
                f"{who} has a region under autocast in its forward, which cannot be followed; run "
                "it in one dtype, or cast by .to(dtype)"
            )
            raise ValueError(message)
        if "set_grad_enabled" in name:
            message = (
                f"{who} has a region under enable_grad, no_grad or set_grad_enabled in its "
                "forward, which cannot be followed; leave that to the caller"
            )
            raise ValueError(message)
        if isinstance(item.target, torch._ops.HigherOrderOperator):
            message = f"{who} uses {name} in its forward, which cannot be followed"
            raise ValueError(message)
        if item.op == "call_function" and _random(item):
            message = (
                f"{who} is random in evaluation mode: {item.target} ({item.name}) in its forward; "
                "make it depend on self.training, as in dropout(x, training=self.training)"
            )
            raise ValueError(message)


def _random(item: torch.fx.Node) -> bool:
    """Whether an operation draws random numbers, its arguments being what they are."""
    target = item.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = dict(item.kwargs)
    names = [argument.name for argument in target._schema.arguments]
    given.update(zip(names, item.args, strict=False))
    for argument in target._schema.arguments:
        if argument.has_default_value():
            given.setdefault(argument.name, argument.default_value)
    if given.get("train") is False or given.get("training") is False:
        return False
    chance = next((given[name] for name in ("p", "dropout_p", "dropout") if name in given), None)
    return bool(chance != 0)


def _from_exported(exported: Any, input_spec: Any) -> Program:
    kinds = torch.export.graph_signature.InputKind
    parameters: dict[str, str] = {}
    constants: dict[str, Any] = {}
    inputs: list[str] = []
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
        else:
            message = f"the model takes {spec.kind.name} {name!r}, which cannot be merged"
            raise ValueError(message)
    nodes: list[Node] = []
    shapes: dict[str, tuple[int, ...]] = {}
    check_changes_in_place(exported.graph)
    renamed: dict[str, str] = {}  # a value changed in place -> the value that replaces it
    outputs: tuple[str, ...] = ()

    def convert(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return Ref(renamed.get(argument.name, argument.name))
        return argument

    for item in exported.graph.nodes:
        shape = _shape(item.meta.get("val"))
        if shape is not None:
            shapes[item.name] = shape
        if item.op == "call_function":
            args = torch.fx.node.map_aggregate(item.args, convert)
            target, mutated = _functional(item.target)
            nodes.append(
                Node(
                    item.name,
                    target,
                    tuple(args),
                    dict(torch.fx.node.map_aggregate(item.kwargs, convert)),
                    shape,
                )
            )
            if mutated:
                renamed[item.args[0].name] = item.name
                renamed |= {k: item.name for k, v in renamed.items() if v == item.args[0].name}
        elif item.op == "output":
            leaves = pytree.tree_leaves(torch.fx.node.map_aggregate(item.args[0], convert))
            for index, leaf in enumerate(leaves):
                if not isinstance(leaf, Ref):  # None or a number: a constant like others
                    constants[f"output:{index}"] = leaf
                    leaves[index] = Ref(f"output:{index}")
            outputs = tuple(leaf.name for leaf in leaves)
    return Program(
        tuple(nodes),
        tuple(inputs),
        parameters,
        constants,
        shapes,
        outputs,
        input_spec,
        exported.call_spec.out_spec,
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else int(size.node.hint) for size in value.shape)


def _functional(target: Any) -> tuple[Any, bool]:
    """The functional form of an in-place operation, and whether it was one."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return target, False
    name = target.overloadpacket.__name__
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if not name.endswith("_") or overload is None:
        message = f"the model uses {target}, which changes a tensor in place and has no other form"
        raise ValueError(message)
    return overload, True
