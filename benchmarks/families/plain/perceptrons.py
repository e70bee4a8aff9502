"""Perceptrons, and other networks of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from families import Case, features, several, tokens
from families.plain.parts import CLASSES, LENGTH, WORDS, D, Fn, Make, Residual, lin, stack


def rows(model: nn.Module, *shape: int, **kw: Any) -> Case:
    return Case(model, features(*(shape or (12,))), **{"samples": 32, **kw})


def mlp(
    act: Callable[[], nn.Module] = nn.ReLU, norm: Make | None = None, bias: bool = True
) -> Case:
    hidden: list[nn.Module] = []
    for size in (12, D):
        hidden += [lin(size, D, bias=bias), *([norm(D)] if norm else []), act()]
    return rows(stack(*hidden, lin(D, CLASSES)))


def wrapped_mlp(wrap: Callable[[nn.Linear], nn.Module]) -> Case:
    return rows(stack(wrap(lin(12)), nn.ReLU(), wrap(lin()), nn.ReLU(), lin(D, CLASSES)))


def pruned(layer: nn.Linear) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.3)
    return layer


def residual_mlp(pre: Make | None = None, post: Make | None = None, depth: int = 2) -> Case:
    def block() -> nn.Module:
        body = [*([pre(D)] if pre else []), lin(D, 2 * D), nn.GELU(), lin(2 * D, D)]
        return Residual(stack(*body), post(D) if post else None)

    last = [pre(D)] if pre else []
    return rows(stack(lin(12), *(block() for _ in range(depth)), *last, lin(D, CLASSES)))


def gated_mlp(act: Callable[[Tensor], Tensor]) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        return m.head(x + m.down(act(m.gate(x)) * m.up(x)))

    parts = {"inputs": lin(12), "gate": lin(), "up": lin(), "down": lin(), "head": lin(D, CLASSES)}
    return rows(Fn(run, **parts))


def fn(run: Callable[..., Any], *shape: int, **parts: Any) -> Case:
    return rows(Fn(run, **parts), *shape)


def maxout() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).unflatten(-1, (D, 2)).amax(-1))

    return fn(run, a=lin(12, 2 * D), b=lin(D, CLASSES))


def highway() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        gate = m.gate(x).sigmoid()
        return m.head(gate * m.h(x).relu() + (1 - gate) * x)

    return fn(run, inputs=lin(12), gate=lin(), h=lin(), head=lin(D, CLASSES))


def dense_mlp() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = torch.cat([x, layer(x).relu()], -1)
        return m.head(x)

    layers = nn.ModuleList(lin(12 + i * D, D) for i in range(2))
    return fn(run, layers=layers, head=lin(12 + 2 * D, CLASSES))


def bilinear() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.pair(m.a(x).relu(), m.b(x).relu()).relu())

    parts = {"a": lin(12), "b": lin(12), "pair": nn.Bilinear(D, D, D), "head": lin(D, CLASSES)}
    return fn(run, **parts)


def experts() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x).relu()
        weights = m.router(x).softmax(-1)
        found = torch.stack([expert(x) for expert in m.experts], 1)
        return m.head((weights[..., None] * found).sum(1))

    every = nn.ModuleList(stack(lin(), nn.ReLU(), lin()) for _ in range(3))
    parts = {"router": lin(D, 3), "experts": every}
    return fn(run, inputs=lin(12), head=lin(D, CLASSES), **parts)


def autoencoder(tied: bool) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.down(m.a(x).relu()).tanh()
        h = m.up(h).relu()
        return F.linear(h, m.a.weight.t(), m.bias) if tied else m.b(h)

    last = {"bias": torch.zeros(12)} if tied else {"b": lin(D, 12)}
    return fn(run, a=lin(12), down=lin(D, 8), up=lin(8, D), **last)


def variational() -> Case:
    def run(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = m.code(m.encode(x).relu()).chunk(2, -1)
        return m.decode(mean), spread

    decode = stack(lin(4, D), nn.ReLU(), lin(D, 12))
    return fn(run, encode=lin(12), code=lin(D, 8), decode=decode)


def film() -> Case:
    def run(m: Any, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = m.film(condition.relu()).chunk(2, -1)
        return m.head((m.a(x) * (1 + scale) + shift).relu())

    parts = {"a": lin(12), "film": lin(4, 2 * D), "head": lin(D, CLASSES)}
    return Case(Fn(run, **parts), several(features(12), features(4)), 32)


def squeezed_mlp() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return m.head(x * m.up(m.down(x).relu()).sigmoid())

    return fn(run, a=lin(12), down=lin(D, 4), up=lin(4, D), head=lin(D, CLASSES))


def siamese() -> Case:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(m.encode(x), m.encode(y))

    model = Fn(run, encode=stack(lin(12), nn.ReLU(), lin(D, 8)))
    return Case(model, several(features(12), features(12)), 32)


def deep_set(pool: str) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        found = m.each(x)
        return m.all(found.amax(1) if pool == "max" else found.mean(1))

    each = stack(lin(3), nn.ReLU(), lin(), nn.ReLU())
    return fn(run, LENGTH, 3, each=each, all=stack(lin(), nn.ReLU(), lin(D, CLASSES)))


def factorisation() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        found = m.embed(x)
        pairs = found.sum(1).square() - found.square().sum(1)
        return m.head(torch.cat([found.flatten(1), pairs], 1).relu())

    model = Fn(run, embed=nn.Embedding(WORDS, 8), head=lin(8 * LENGTH + 8, CLASSES))
    return Case(model, tokens(WORDS, LENGTH), 32)


def radiance() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        encoded = torch.cat([x, (2 * x).sin(), (2 * x).cos()], -1)
        h = m.b(m.a(encoded).relu()).relu()
        return m.head(m.c(torch.cat([h, encoded], -1)).relu())

    return fn(run, 3, a=lin(9), b=lin(), c=lin(D + 9, D), head=lin(D, 4))


def siren() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head((3 * m.b((3 * m.a(x)).sin())).sin())

    return fn(run, 3, a=lin(3), b=lin(), head=lin(D, 4))


def bag_of_words() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.embed(x).mean(1))

    head = stack(lin(), nn.ReLU(), lin(D, CLASSES))
    return Case(Fn(run, embed=nn.Embedding(WORDS, D), head=head), tokens(WORDS, LENGTH), 32)


def layer_scaled() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        x = x + m.gain * m.b(m.a(m.norm(x)).relu())
        return m.head(m.last(x))

    norms = {"norm": nn.LayerNorm(D), "last": nn.LayerNorm(D)}
    layers = {"a": lin(D, 2 * D), "b": lin(2 * D, D), "head": lin(D, CLASSES)}
    return fn(run, inputs=lin(12), gain=torch.full((D,), 0.1), **norms, **layers)


def shared_layer() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        for _ in range(2):
            x = x + m.shared(x).relu()
        return m.head(x)

    return fn(run, inputs=lin(12), shared=lin(), head=lin(D, CLASSES))


def low_rank() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head((m.base(m.first(x).relu()) + 0.5 * m.up(m.down(m.first(x).relu()))).relu())

    parts = {"down": lin(D, 4, bias=False), "up": lin(4, D, bias=False)}
    return fn(run, first=lin(12), base=lin(), head=lin(D, CLASSES), **parts)
