"""Operations of an exported graph, written out one after the other with names of their own.

torch.export puts what runs under autocast or with gradients switched on into a graph of its own,
called by a higher-order operation. Such regions run once, in their place: they are written out in
line. What chooses or repeats a region at run time is refused.
"""

from __future__ import annotations

import builtins
import dataclasses
import keyword
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx import Node as Item

from ccamerge.graph.tracing.node import Node, Ref


@dataclasses.dataclass(frozen=True)
class Autocast:
    """An operation as it runs under autocast, which may cast its inputs."""

    target: Any
    device: str
    dtype: torch.dtype | None
    enabled: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The operation's result."""
        # Without the cache: casts of a parameter must not outlive the parameter's value.
        with torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False):
            return self.target(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask before there is a target
            raise AttributeError(name)
        return getattr(self.target, name)


_ONCE = {
    "wrap_with_set_grad_enabled": 1,
    "invoke_subgraph": 0,
    "tag_activation_checkpoint": 0,
    "wrap": 0,
    "wrap_activation_checkpoint": 0,
}
"""Higher-order operations that run their region once; by the place of the region."""


class Writer:
    """Writes graphs out into ``nodes``.

    ``constants`` are tensors that regions hold; ``eps`` is the coarsest precision of any value.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.eps = 0.0
        self._taken = set(taken)

    def write(
        self, graph: GraphModule, values: dict[Item, Any], cast: Callable[[Any], Any] | None = None
    ) -> Any:
        """Write out a graph, of whose inputs ``values`` says what they are; what it returns.

        ``cast`` is what becomes of the operations.
        """

        def value(item: Item) -> Any:
            return values[item]

        for item in graph.graph.nodes:
            if item.op == "get_attr":
                values[item] = self._attribute(graph, item)
            elif item.op == "call_function":
                args = torch.fx.node.map_aggregate(item.args, _of_items(value))
                kwargs = dict(torch.fx.node.map_aggregate(item.kwargs, _of_items(value)))
                if isinstance(item.target, torch._ops.HigherOrderOperator):
                    values[item] = self._region(item, args, cast)
                elif item.target is operator.getitem and isinstance(args[0], (tuple, list)):
                    values[item] = args[0][args[1]]  # of what a region returned
                else:
                    values[item] = self._operation(item, args, kwargs, cast)
            elif item.op == "output":
                return torch.fx.node.map_aggregate(item.args[0], _of_items(value))
        return None

    def _operation(
        self, item: Item, args: Any, kwargs: dict[str, Any], cast: Callable[[Any], Any] | None
    ) -> Ref:
        value = item.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        is_operator = isinstance(item.target, torch._ops.OpOverload)
        target: Any = cast(item.target) if cast is not None and is_operator else item.target
        scalar = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float))
        name = self._name(item.name, scalar)
        shape = shape_of(value, item)
        real = isinstance(value, Tensor) and value.is_floating_point()
        node = Node(name, target, tuple(args), kwargs, shape, scalar, real)
        self.nodes.append(node.by_position())
        return Ref(name)

    def _region(self, item: Item, args: Any, cast: Callable[[Any], Any] | None) -> Any:
        name = item.target.__name__  # type: ignore[union-attr]
        if name == "wrap_with_autocast":
            device, dtype, enabled, _, region, *inputs = args

            def casting(target: Any) -> Autocast:
                return Autocast(target, device, dtype, enabled)

            return self._inline(region, inputs, casting)
        place = _ONCE.get(name)
        if place is None or not isinstance(args[place], GraphModule):
            message = (
                f"forward uses {name} ({item.name}), whose operations are chosen or repeated while "
                "it runs; such a model cannot be merged"
            )
            raise ValueError(message)
        inputs = [a for a in args[place + 1 :] if not isinstance(a, str)]
        return self._inline(args[place], inputs, cast)

    def _inline(
        self, region: GraphModule, inputs: list[Any], cast: Callable[[Any], Any] | None
    ) -> Any:
        places = [item for item in region.graph.nodes if item.op == "placeholder"]
        return self.write(region, dict(zip(places, inputs, strict=True)), cast)

    def _attribute(self, graph: GraphModule, item: Item) -> Any:
        found = operator.attrgetter(str(item.target))(graph)
        if not isinstance(found, Tensor):
            return found
        name = self._name(item.name, False)
        self.constants[name] = found.detach()
        return Ref(name)

    def _name(self, suggestion: str, scalar: bool) -> str:
        """As torch names operations, but numbers have names of another kind.

        So names of tensors do not depend on how many sizes are computed between them, which another
        trace of the same model may not need.
        """
        base = re.sub(r"_\d+$", "", suggestion)
        base = f"number:{base}" if scalar else base
        reserved = keyword.iskeyword(base) or base in dir(builtins)
        name, count = (f"{base}_1", 1) if reserved else (base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name


def _of_items(value: Callable[[Item], Any]) -> Callable[[Any], Any]:
    return lambda argument: value(argument) if isinstance(argument, Item) else argument


def shape_of(value: Any, item: Item) -> tuple[int, ...] | None:
    """The sizes of a traced value on the example inputs; ValueError if they depend on data."""
    if not isinstance(value, Tensor):
        return None
    sizes = []
    for size in value.shape:
        if not isinstance(size, int) and not size.node.has_hint():
            message = (
                f"{item.target} ({item.name}) gives a tensor whose size depends on the values in "
                "its input, as a mask or nonzero() does; such a model cannot be merged"
            )
            raise ValueError(message)
        sizes.append(size if isinstance(size, int) else int(size.node.hint))
    return tuple(sizes)
