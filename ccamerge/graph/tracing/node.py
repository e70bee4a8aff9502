"""One operation of a program, and the names in its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclasses.dataclass(frozen=True)
class Ref:
    """The value named ``name`` as an argument of an operation."""

    name: str


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: ``name = target(*args, **kwargs)``.

    What the schema allows by position is in ``args``, however it was given. ``shape`` is None for
    what is not one tensor; sizes are those of the example inputs. A ``scalar`` is a number, such as
    the size of a tensor. ``real`` says that a tensor holds real floating-point numbers.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None
    scalar: bool = False
    real: bool = True

    @property
    def op(self) -> str:
        """The operation's name without overload, for example ``aten.conv2d``."""
        overload = getattr(self.target, "overloadpacket", None)
        return str(overload) if overload is not None else str(getattr(self.target, "__name__", "?"))

    @property
    def schema(self) -> Any:
        """Of an operator of torch; None for a function of Python."""
        return getattr(self.target, "_schema", None)

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """The argument at a position, or of a name, or its default."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def named(self, name: str, default: Any = None) -> Any:
        """The argument that the schema calls ``name``."""
        for index, argument in enumerate(self.schema.arguments if self.schema else ()):
            if argument.name == name:
                return self.argument(index, name, argument.default_value)
        return default

    def refs(self) -> list[str]:
        """Names of the values that the operation reads, in order, with repetitions."""
        return [x.name for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Ref)]

    def renamed(self, names: dict[str, str]) -> Node:
        """The same operation on other values."""
        args, kwargs = pytree.tree_map_only(
            Ref, lambda ref: Ref(names.get(ref.name, ref.name)), (self.args, self.kwargs)
        )
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def by_position(self) -> Node:
        """With arguments that were given by name at their places, as far as the schema allows."""
        if self.schema is None:
            return self
        places = [a for a in self.schema.arguments if not a.kwarg_only]
        last = max((i for i, a in enumerate(places) if a.name in self.kwargs), default=-1)
        given, kwargs = list(self.args), dict(self.kwargs)
        for place in places[len(given) : last + 1]:
            given.append(kwargs.pop(place.name, place.default_value))
        return dataclasses.replace(self, args=tuple(given), kwargs=kwargs)


_LIKE = ("aten.to", "aten.type_as", "aten.view_as", "aten.reshape_as", "aten.expand_as")
"""Operations of which the second argument gives a shape or a dtype."""


def made_of(
    names: Iterable[str],
    nodes: Mapping[str, Node],
    ends: Callable[[Node], bool] = lambda node: False,
) -> set[str]:
    """Some values and all that they are made of, by operations; not beyond those that are ends.

    What only gives a shape or a dtype is in nothing.
    """
    pending = list(names)
    found = set(pending)
    while pending:
        node = nodes.get(pending.pop())
        if node is None or ends(node):
            continue
        read = [node.args[0].name] if node.op in _LIKE else node.refs()
        new = [ref for ref in dict.fromkeys(read) if ref not in found]
        found.update(new)
        pending += new
    return found


def random_draw(node: Node) -> bool:
    """Whether an operation draws random numbers: dropout does so only where it is asked to."""
    if node.schema is None or torch.Tag.nondeterministic_seeded not in node.target.tags:  # type: ignore[attr-defined]
        return False
    names = {argument.name for argument in node.schema.arguments}
    for flag in names & {"train", "training"}:
        share = next((node.named(p) for p in ("p", "dropout") if p in names), 1)
        return bool(node.named(flag)) and share != 0
    return "dropout_p" not in names or node.named("dropout_p") != 0
