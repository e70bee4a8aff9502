"""Norms that a program computes step by step, recognised and made one operation each.

``x -> float32 -> pow 2 -> mean -> add eps -> rsqrt -> mul`` is an RMSNorm, and the same of ``x``
less its mean a LayerNorm, in whatever way roots and squares are spelled. As one operation it is
known what commutes with it; its steps by themselves allow permutations only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ccamerge.graph.rewriting import Rewriting
from ccamerge.graph.rules.shapes import CASTS
from ccamerge.graph.rules.shared import dims_of
from ccamerge.graph.tracing.program import Node, Program, Ref
from ccamerge.graph.tracing.regions import Autocast


def recognised(program: Program) -> Program:
    """The program with each norm over the last axis as one operation, without gain and bias.

    It bears the name of the last step. Steps that something else reads make it stay as it is.
    """
    new = Rewriting(program)
    for node in program.nodes:
        match = _Match(new, node, coarse=program.eps > torch.finfo(torch.float32).eps)
        if (norm := match.norm()) is not None and match.closed():
            new.change(norm)
            new.remove(match.steps)
    return new.program()


class _Match:
    """The steps of a norm, from the last one backwards.

    ``steps`` are the names of those found before ``last``. ``coarse`` says that the network
    computes in half precision.
    """

    def __init__(self, new: Rewriting, last: Node, coarse: bool) -> None:
        self._new, self._last, self._coarse = new, last, coarse
        self.steps: set[str] = set()

    def norm(self) -> Node | None:
        """The norm as one operation, if the last step is that of one."""
        last = self._last
        if not last.shape or last.op not in ("aten.mul", "aten.div") or len(last.args) < 2:
            return None
        orders = [last.args[:2]] if last.op == "aten.div" else [last.args[:2], last.args[1::-1]]
        for top, scale in orders:
            if not isinstance(top, Ref) or last.kwargs:
                continue
            self.steps = set()
            power = 0.5 if last.op == "aten.div" else -0.5
            if (found := self._power(scale, power)) is not None:
                return self._assembled(top, *found)
        return None

    def closed(self) -> bool:
        """Whether nothing but the norm reads its steps, none of which autocast sees."""
        inside = self.steps | {self._last.name}
        if any(isinstance(self._new.nodes[name].target, Autocast) for name in inside):
            return False
        return all(
            not self._new.is_output(name) and {u.name for u in self._new.users[name]} <= inside
            for name in self.steps
        )

    def _step(self, argument: Any, *names: str) -> Node | None:
        """The operation that gives an argument, if it is one of some names."""
        node = self._new.node_of(argument)
        if node is None or node.op.removeprefix("aten.") not in names:
            return None
        self.steps.add(node.name)
        return node

    def _power(self, argument: Any, power: float) -> tuple[Any, float] | None:
        """The mean square and the number added to it, of whose sum the argument is a power."""
        if (node := self._step(argument, "pow")) is not None:
            return self._shifted(node.args[0]) if node.args[1] == power else None
        if power == 0.5:
            node = self._step(argument, "sqrt")
            return self._shifted(node.args[0]) if node is not None else None
        if (node := self._step(argument, "rsqrt")) is not None:
            return self._shifted(node.args[0])
        if (node := self._step(argument, "reciprocal")) is not None:
            return self._power(node.args[0], 0.5)
        node = self._new.node_of(argument)
        if node is not None and node.op == "aten.mul" and 1 in node.args:  # by 1 / root
            self.steps.add(node.name)
            return self._power(node.args[1 if node.args[0] == 1 else 0], power)
        if node is not None and node.op == "aten.div" and node.args[0] == 1:
            self.steps.add(node.name)
            return self._power(node.args[1], 0.5)
        return None

    def _shifted(self, argument: Any) -> tuple[Any, float]:
        """A value and the number that is added to it, if one is."""
        node = self._new.node_of(argument)
        if node is not None and node.op == "aten.add" and not node.kwargs and len(node.args) == 2:
            for value, number in (node.args, node.args[::-1]):
                if isinstance(number, (int, float)) and isinstance(value, Ref):
                    self.steps.add(node.name)
                    return value, float(number)
        return argument, 0.0

    def _over_last(self, node: Node, dims: Any, keepdim: Any) -> bool:
        """Whether a reduction is over the last axis of what the norm has, which is kept."""
        shape = self._last.shape or ()
        if dims is None or not keepdim or (isinstance(dims, (list, tuple)) and len(dims) != 1):
            return False
        if node.shape != (*shape[:-1], 1) or node.kwargs.get("dtype") is not None:
            return False
        return dims_of(dims, len(shape)) == [len(shape) - 1]

    def _mean(self, argument: Any) -> Any:
        """What the argument is the mean of."""
        node = self._step(argument, "mean")
        if node is None or not self._over_last(node, node.named("dim"), node.named("keepdim")):
            return None
        return node.args[0]

    def _square(self, argument: Any) -> Any:
        """What the argument is the square of."""
        node = self._step(argument, "pow", "square", "mul")
        if node is None:
            return None
        value, *others = node.args
        fitting = {"aten.pow": 2, "aten.mul": value}
        return value if not others or others[0] == fitting.get(node.op) else None

    def _variance(self, argument: Any) -> Any:
        """What the argument is the variance of, counted by all values."""
        node = self._step(argument, "var")
        if node is None:
            return None
        by = node.named("correction", node.named("unbiased"))
        fits = self._over_last(node, node.named("dim"), node.named("keepdim"))
        return node.args[0] if fits and by is not None and float(by) == 0 else None

    def _assembled(self, top: Ref, mean: Any, eps: float) -> Node | None:
        """The norm of what is divided, from the mean square that it is divided by."""
        steps = set(self.steps)
        of = self._variance(mean)
        centres = of is not None
        if of is None:
            self.steps = steps
            of = self._square(self._mean(mean))
        if not isinstance(of, Ref):
            return None
        value = top if of == top else self._cast(top, of)
        centred = self._centred(top)
        if centred is not None and (of == top or (centres and of == centred)):
            value, centres = centred, True
        elif centres:
            return None  # scaled by its spread, but not centred
        if value is None or self._shape(value) != self._last.shape:
            return None
        size = [self._last.shape[-1]] if self._last.shape else []
        if centres:
            return self._made(torch.ops.aten.layer_norm.default, (value, size, None, None, eps))
        return self._made(torch.ops.aten.rms_norm.default, (value, size, None, eps))

    def _centred(self, top: Ref) -> Ref | None:
        """What the argument is, less its mean."""
        node = self._new.node_of(top)
        if node is None or node.op != "aten.sub" or node.kwargs or len(node.args) != 2:
            return None
        steps = set(self.steps)
        value = node.args[0]
        if isinstance(value, Ref) and self._mean(node.args[1]) == value:
            self.steps.add(node.name)
            return value
        self.steps = steps
        return None

    def _cast(self, top: Ref, of: Ref) -> Ref | None:
        """The operand of the norm if squares were taken of what is divided, in another precision.

        The result is of the finer one.
        """
        one, two = self._new.node_of(top), self._new.node_of(of)
        if two is None or two.op not in CASTS:
            return None
        if one is not None and (one.op, one.args, one.kwargs) == (two.op, two.args, two.kwargs):
            return top
        if two.args[0] != top:
            return None
        if self._coarse:
            return of
        if {user.name for user in self._new.users[two.name]} <= self.steps:
            self.steps.add(two.name)
        return top

    def _shape(self, value: Ref) -> tuple[int, ...] | None:
        return self._new.shapes.get(value.name)

    def _made(self, target: Any, args: tuple[Any, ...]) -> Node:
        return dataclasses.replace(self._last, target=target, args=args, kwargs={})
