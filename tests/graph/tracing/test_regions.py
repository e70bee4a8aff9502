"""Regions of a forward under autocast and the like, randomness, and outputs of any kind."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ccamerge
from ccamerge.graph.tracing.program import trace
from tests import models as M

_NUMBERS = np.random.default_rng(0)

# Some of the calls leave out the network's BatchNorm, in which the models differ.
pytestmark = pytest.mark.filterwarnings("ignore:.*the traced call does not use them")


class _Net(nn.Module):
    def __init__(self, inner: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(self, x)


def _nets(inner: Callable[[Any, Tensor], Any]) -> list[Any]:
    return _seeded(lambda: _Net(inner))


def _seeded(build: Callable[[], nn.Module]) -> list[Any]:
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(M.randomise(build(), seed))
    return models


def _data() -> list[Tensor]:
    return list(torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0)))


def _within(context: Callable[[], Any]) -> Callable[[Any, Tensor], Tensor]:
    def inner(net: Any, x: Tensor) -> Tensor:
        with context():
            h = torch.relu(net.norm(net.a(x)))
        return net.b(h.float())

    return inner


def _nested(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = net.a(x).relu_()
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            h = torch.tanh(h.float()) * 2
        h[:, 0] = 1.0
        return net.b(h)


@pytest.mark.parametrize(
    "context",
    [
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", enabled=False),
    ],
)
def test_contexts_that_change_nothing(context: Any) -> None:
    found = ccamerge.merge(_nets(_within(context)), _data(), progress=False)
    plain = ccamerge.merge(_nets(_within(contextlib.nullcontext)), _data(), progress=False)
    assert [s.name for s in found.spaces] == [s.name for s in plain.spaces] == ["a"]
    a, b = found.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.filterwarnings("ignore:aligned. nothing")  # a feature that is overwritten pins all
@pytest.mark.parametrize(
    "inner", [_within(lambda: torch.autocast("cpu", dtype=torch.bfloat16)), _nested]
)
def test_a_region_under_autocast_runs_as_the_model_does(inner: Any) -> None:
    model, x = _nets(inner)[0].eval(), _data()[0]
    program = trace(model, (x[:4],))
    half = []

    def watch(node: Any, value: Any) -> None:
        half.append(isinstance(value, Tensor) and value.dtype == torch.bfloat16)

    with torch.inference_mode():
        out = program.run(model.state_dict(), [x], watch)
        assert torch.equal(out, model(x))
    assert any(half)
    ccamerge.merge(_nets(inner), _data(), progress=False)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations(reentrant: bool) -> None:
    def inner(net: Any, x: Tensor) -> Tensor:
        h = checkpoint(lambda x: torch.relu(net.norm(net.a(x))), x, use_reentrant=reentrant)
        return net.b(h)

    found = ccamerge.merge(_nets(inner), _data(), progress=False)
    assert [s.name for s in found.spaces] == ["a"]


def test_a_choice_at_run_time_is_refused() -> None:
    def inner(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        return net.b(torch.cond(h.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (h,)))

    with pytest.raises(ValueError, match="forward uses cond"):
        trace(_nets(inner)[0], (_data()[0],))


def _attention(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)[None]
    return net.b(F.scaled_dot_product_attention(h, h, h, dropout_p=0.2)[0])


@pytest.mark.parametrize(
    ("inner", "operation"),
    [
        (lambda net, x: net.b(F.dropout(net.a(x), 0.5)), "aten.dropout"),
        (lambda net, x: net.b(F.alpha_dropout(net.a(x), 0.5, True)), "aten.alpha_dropout"),
        (lambda net, x: net.b(net.a(x) + torch.randn_like(net.a(x))), "aten.randn_like"),
        (lambda net, x: net.b(net.a(x) * torch.rand(8)), "aten.rand"),
        (lambda net, x: net.b(net.a(x) * torch.bernoulli(torch.full((8,), 0.5))), "aten.bernoulli"),
        (lambda net, x: net.b(net.a(x) * x.new_empty(len(x), 1).bernoulli_(0.5)), "bernoulli_"),
        (lambda net, x: net.b(net.a(x) + x.new_empty(8).normal_()), "normal_"),
        (lambda net, x: net.b(net.a(x)[:, torch.randperm(8)]), "aten.randperm"),
        (lambda net, x: net.b(net.a(x)[:, torch.multinomial(torch.ones(8), 8)]), "multinomial"),
        (_attention, "scaled_dot_product_attention"),
    ],
)
def test_random_numbers_in_forward_are_named(inner: Any, operation: str) -> None:
    with pytest.raises(ValueError, match=f"{operation}.*") as caught:
        trace(_nets(inner)[0], (_data()[0],))
    assert "random numbers" in str(caught.value)


@pytest.mark.parametrize(
    "inner",
    [
        lambda net, x: net.b(F.dropout(torch.relu(net.a(x)), 0.5, net.training)),
        lambda net, x: net.b(nn.Dropout(0.5).eval()(torch.relu(net.a(x)))),
        lambda net, x: net.b(F.dropout(torch.relu(net.a(x)), 0.0, True)),
        lambda net, x: (torch.randn_like(x), net.b(torch.relu(net.a(x))))[1],  # nothing reads it
    ],
)
def test_what_is_not_random_in_evaluation_mode(inner: Any) -> None:
    found = ccamerge.merge(_nets(inner), _data(), progress=False)
    assert [s.name for s in found.spaces] == ["a"]


@pytest.mark.parametrize(
    "inner",
    [
        lambda net, x: net.b(net.a(x) * random.random()),
        lambda net, x: net.b(net.a(x) + torch.from_numpy(_NUMBERS.normal(size=8)).float()),
    ],
)
def test_randomness_that_the_trace_does_not_see(inner: Any) -> None:
    with pytest.raises(ValueError, match=r"models\[0\] does not give the same output twice"):
        ccamerge.merge(_nets(inner), _data(), progress=False)


class _Cache:
    """As a language model's keys and values."""


@dataclasses.dataclass
class _Output:
    logits: Tensor
    hidden: Any = None
    cache: Any = "none"


class _Both(NamedTuple):
    logits: Tensor
    rest: Any


@pytest.mark.parametrize(
    "output",
    [
        _Output,
        lambda y: {"logits": y, "nothing": None, "name": "x", "number": 3, "flag": True},
        lambda y: _Both(y, [y, None, _Output(y)]),
        lambda y: UserDict(logits=y),
        lambda y: (y, {"kept": [y]}),
    ],
)
def test_outputs_of_any_structure(output: Any) -> None:
    models = _nets(lambda net, x: output(net.b(torch.relu(net.a(x)))))
    plain = _nets(lambda net, x: net.b(torch.relu(net.a(x))))
    found = ccamerge.merge(models, _data(), progress=False).model
    wanted = ccamerge.merge(plain, _data(), progress=False).model
    a, b = found.state_dict(), wanted.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert type(found(_data()[0])) is type(output(torch.zeros(1)))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: (y, _Cache()), "_Cache.*use_cache=False"),
        (lambda y: _Output(y, cache=object()), "returns a object.*register_pytree_node"),
        (lambda y: {y}, "returns a set"),
    ],
)
def test_outputs_that_hold_no_tensors(output: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace(_nets(lambda net, x: output(net.b(net.a(x))))[0], (_data()[0],))


class _Config:
    use_cache = True


class _Language(nn.Module):
    """Returns a cache unless it is told not to, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.config = nn.Linear(5, 8), nn.Linear(8, 3), _Config()

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Any:
        y = self.b(torch.relu(self.a(x)))
        keep = self.config.use_cache if use_cache is None else use_cache
        return {"logits": y, "past": _Cache()} if keep else {"logits": y}


def test_a_cache_is_not_asked_for() -> None:
    models = _seeded(_Language)
    result = ccamerge.merge(models, _data(), progress=False)
    assert result.spaces.program.implied == {"use_cache": False}
    given = [{"x": x, "use_cache": False} for x in _data()]
    again = ccamerge.merge(models, given, progress=False)
    a, b = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
