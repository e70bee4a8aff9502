"""Networks in plain torch: perceptrons, convolutions, recurrence, attention, and more."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from families import Case, features, several, tokens

D, CLASSES, LENGTH, WORDS, SIDE = 16, 5, 6, 30, 12
"""Width, classes, length of sequences, vocabulary, and pixels along a side."""

Make = Callable[[int], nn.Module]
"""A layer for so many features."""


class Fn(nn.Module):
    """A network of named parts and how they are used: ``forward(parts, inputs...)``."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def lin(a: int = D, b: int = D, **kw: Any) -> nn.Linear:
    return nn.Linear(a, b, **kw)


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.norm = body, norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.body(x))


class LastAxis(nn.Module):
    """A layer for features on the last axis, of feature maps with channels first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


# Perceptrons ------------------------------------------------------------------------------------


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


def _pruned(layer: nn.Linear) -> nn.Module:
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


# Convolutions -----------------------------------------------------------------------------------


def conv(a: int, b: int, size: int = 3, stride: int = 1, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, stride, kw.pop("padding", size // 2), **kw)


def pictures(model: nn.Module) -> Case:
    return Case(model, features(3, SIDE, SIDE))


def pooled(*body: nn.Module, width: int = D) -> Case:
    return pictures(stack(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), lin(width, CLASSES)))


def cnn(norm: Make | None = nn.BatchNorm2d, act: Callable[[], nn.Module] = nn.ReLU) -> Case:
    body: list[nn.Module] = []
    for a, b in ((3, 8), (8, D), (D, D)):
        body += [conv(a, b), *([norm(b)] if norm else []), act()]
    return pooled(*body)


def cnn_pool(pool: nn.Module, flat: bool = False) -> Case:
    body = [conv(3, 8), nn.ReLU(), pool, conv(8, D), nn.ReLU()]
    if not flat:
        return pooled(*body)
    return pictures(stack(*body, nn.Flatten(), lin(D * (SIDE // 2) ** 2, CLASSES)))


def residual_cnn(block: Callable[[], nn.Module], last: Make | None = None) -> Case:
    return pooled(conv(3, D), block(), block(), *([last(D)] if last else []))


def basic() -> nn.Module:
    bn = functools.partial(nn.BatchNorm2d, D)
    return stack(Residual(stack(conv(D, D), bn(), nn.ReLU(), conv(D, D), bn())), nn.ReLU())


def preact() -> nn.Module:
    def half() -> list[nn.Module]:
        return [nn.BatchNorm2d(D), nn.ReLU(), conv(D, D)]

    return Residual(stack(*half(), *half()))


def inner(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: stack(Residual(stack(*layers)), nn.ReLU())


def grouped() -> nn.Module:
    return inner(conv(D, D, 1), nn.ReLU(), conv(D, D, groups=4), nn.ReLU(), conv(D, D, 1))()


def separable() -> nn.Module:
    return inner(conv(D, 24, 1), nn.ReLU6(), conv(24, 24, groups=24), nn.ReLU6(), conv(24, D, 1))()


class Gate(nn.Module):
    """Squeeze and excitation of channels, and (CBAM) of positions."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.down, self.up = conv(D, 4, 1), conv(4, D, 1)
        self.where = conv(2, 1, 3) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        if self.where is None:
            return x
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.where(both).sigmoid()


def gated_block(spatial: bool) -> Callable[[], nn.Module]:
    return lambda: Residual(stack(conv(D, D), nn.ReLU(), Gate(spatial)))


def convnext() -> nn.Module:
    body = [LastAxis(nn.LayerNorm(D)), conv(D, 2 * D, 1), nn.GELU(), conv(2 * D, D, 1)]
    return Residual(stack(conv(D, D, 5, groups=D), *body))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


def shuffled() -> nn.Module:
    return inner(conv(D, D, 1, groups=4), nn.ReLU(), Shuffle(), conv(D, D, 1, groups=4))()


def branches() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        found = torch.cat([m.one(x), m.three(x), m.five(F.avg_pool2d(x, 3, 1, 1))], 1).relu()
        return m.head(found.mean((2, 3)))

    parts = {"one": conv(D, 4, 1), "three": conv(D, 8), "five": conv(D, 4, 5)}
    return pictures(Fn(run, stem=conv(3, D), head=lin(D, CLASSES), **parts))


def dense_cnn() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for layer in m.layers:
            x = torch.cat([x, layer(x)], 1)
        return m.head(m.last(x).relu().mean((2, 3)))

    def layer(i: int) -> nn.Module:
        width = 8 + 4 * i
        return stack(nn.BatchNorm2d(width), nn.ReLU(), conv(width, 4))

    layers = nn.ModuleList(map(layer, range(3)))
    return pictures(
        Fn(run, stem=conv(3, 8), layers=layers, last=nn.BatchNorm2d(20), head=lin(20, CLASSES))
    )


def unet(up: str) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        fine = m.fine(x).relu()
        coarse = m.coarse(F.max_pool2d(fine, 2)).relu()
        wide = m.up(coarse) if up == "transposed" else m.up(F.interpolate(coarse, scale_factor=2.0))
        return m.head(m.join(torch.cat([fine, wide], 1)).relu())

    wider = nn.ConvTranspose2d(D, 8, 2, 2) if up == "transposed" else conv(D, 8)
    parts = {"fine": conv(3, 8), "coarse": conv(8, D), "up": wider, "join": conv(16, 8)}
    return pictures(Fn(run, head=conv(8, 2, 1), **parts))


def pyramid() -> Case:
    def run(m: Any, x: Tensor) -> list[Tensor]:
        fine = m.fine(x).relu()
        coarse = m.coarse(fine).relu()
        top = m.from_coarse(coarse)
        low = m.from_fine(fine) + F.interpolate(top, scale_factor=2, mode="nearest")
        return [m.out(top.relu()), m.out(low.relu())]

    parts = {"fine": conv(3, 8), "coarse": conv(8, D, stride=2), "from_fine": conv(8, 8, 1)}
    return pictures(Fn(run, from_coarse=conv(D, 8, 1), out=conv(8, 3), **parts))


def resolutions() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        fine = m.stem(x).relu()
        coarse = m.down(fine).relu()
        fine = (fine + F.interpolate(m.up(coarse), scale_factor=2.0)).relu()
        coarse = (coarse + m.again(fine)).relu()
        return m.head(coarse.mean((2, 3)))

    parts = {"stem": conv(3, 8), "down": conv(8, D, stride=2), "up": conv(D, 8, 1)}
    return pictures(Fn(run, again=conv(8, D, stride=2), head=lin(D, CLASSES), **parts))


def super_resolution() -> Case:
    return pictures(
        stack(conv(3, D), nn.ReLU(), conv(D, 32), nn.PixelShuffle(2), nn.ReLU(), conv(8, 3))
    )


def decoder() -> Case:
    layers = [nn.ConvTranspose2d(D, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
    last = nn.ConvTranspose2d(8, 3, 4, 2, 1)
    return rows(stack(lin(12, D * 9), nn.ReLU(), nn.Unflatten(1, (D, 3, 3)), *layers, last))


def generalised_mean() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.body(x).relu().clamp_min(1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        return m.head(x)

    return pictures(Fn(run, body=conv(3, D), head=lin(D, CLASSES)))


def attention_pooling() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.body(x).relu().flatten(2)
        return m.head((x * m.score(x).softmax(-1)).sum(-1))

    return pictures(Fn(run, body=conv(3, D), score=nn.Conv1d(D, 1, 1), head=lin(D, CLASSES)))


def channels_last() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.body(x).permute(0, 2, 3, 1)
        x = x + m.down(m.up(m.norm(x)).relu())
        return m.head(x.mean((1, 2)))

    parts = {"body": conv(3, D), "norm": nn.LayerNorm(D), "up": lin(D, 24), "down": lin(24, D)}
    return pictures(Fn(run, head=lin(D, CLASSES), **parts))


def cubes() -> Case:
    body = [nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, D, 3)]
    model = stack(*body, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), lin(D, CLASSES))
    return Case(model, features(3, 4, 6, 6))


class Causal(nn.Module):
    """A dilated convolution of the past, plain or gated as in WaveNet."""

    def __init__(self, dilation: int, gated: bool) -> None:
        super().__init__()
        self.gated, self.past = gated, 2 * dilation
        self.conv = nn.Conv1d(D, 2 * D if gated else D, 3, dilation=dilation)
        self.mix = nn.Conv1d(D, D, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (self.past, 0)))
        if self.gated:
            a, b = y.chunk(2, 1)
            y = a.tanh() * b.sigmoid()
        else:
            y = y.relu()
        return x + self.mix(y)


def dilated(gated: bool) -> Case:
    blocks = [Causal(1, gated), Causal(2, gated)]
    return Case(stack(nn.Conv1d(3, D, 1), *blocks, nn.ReLU(), nn.Conv1d(D, 4, 1)), features(3, 12))


# Recurrence -------------------------------------------------------------------------------------


def sequences(model: nn.Module) -> Case:
    return Case(model, features(LENGTH, 4), 16)


def recurrent(kind: type[nn.RNNBase], read: str = "last", **kw: Any) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        found = m.cells(x)[0]
        return m.head(
            found[:, -1] if read == "last" else found.mean(1) if read == "mean" else found
        )

    width = kw.get("proj_size") or D * (1 + bool(kw.get("bidirectional")))
    return sequences(Fn(run, cells=kind(4, D, batch_first=True, **kw), head=lin(width, CLASSES)))


def cell(kind: type[nn.Module]) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return sequences(Fn(run, cell=kind(4, D), head=lin(D, CLASSES)))  # type: ignore[call-arg]


def tagger() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.cells(m.embed(x))[0])

    cells = nn.LSTM(D, D, batch_first=True, bidirectional=True)
    model = Fn(run, embed=nn.Embedding(WORDS, D), cells=cells, head=lin(2 * D, CLASSES))
    return Case(model, tokens(WORDS, LENGTH), 16)


def sequence_to_sequence() -> Case:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        states, last = m.encode(m.embed(x))
        found, _ = m.decode(m.embed(y), last)
        weights = (found @ m.score(states).transpose(1, 2)).softmax(-1)
        return m.head(torch.cat([found, weights @ states], -1))

    gru = functools.partial(nn.GRU, D, D, batch_first=True)
    parts = {"embed": nn.Embedding(WORDS, D), "encode": gru(), "decode": gru(), "score": lin()}
    model = Fn(run, head=lin(2 * D, WORDS), **parts)
    return Case(model, several(tokens(WORDS, LENGTH), tokens(WORDS, LENGTH)), 16)


def linear_recurrence() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        decay = m.decay.sigmoid()
        state, found = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = decay * state + (1 - decay) * x[:, t]
            found.append(state)
        return m.head(torch.stack(found, 1).relu())

    return sequences(Fn(run, inputs=lin(4), decay=torch.randn(D), head=lin(D, CLASSES)))


def convolutional_recurrence() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu().flatten(2).transpose(1, 2)
        return m.head(m.cells(x)[0][:, -1])

    cells = nn.GRU(8, D, batch_first=True)
    return pictures(Fn(run, stem=conv(3, 8, stride=4), cells=cells, head=lin(D, CLASSES)))


# Attention --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Of some heads, written out in one of the ways that people write it."""

    def __init__(self, way: str, heads: int = 4, groups: int = 4) -> None:
        super().__init__()
        self.way, self.heads, self.groups, self.size = way, heads, groups, D // heads
        self.q, self.k, self.v, self.o = (
            lin(D, heads * self.size),
            lin(D, groups * self.size),
            lin(D, groups * self.size),
            lin(heads * self.size, D),
        )
        self.qkv = lin(D, 3 * D) if way == "fused" else None
        self.bias = nn.Parameter(torch.randn(heads, LENGTH, LENGTH)) if way == "biased" else None
        if way == "fused":
            del self.q, self.k, self.v

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = x if y is None else y
        if self.qkv is not None:
            parts = self.qkv(x).unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (
                layer(z).unflatten(-1, (-1, self.size)).transpose(1, 2)
                for layer, z in ((self.q, x), (self.k, y), (self.v, y))
            )
        if self.groups < self.heads:
            k, v = (z.repeat_interleave(self.heads // self.groups, 1) for z in (k, v))
        if self.way == "rotary":
            q, k = turned(q), turned(k)
        return self.o(self._mixed(q, k, v).transpose(1, 2).flatten(2))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way in ("sdpa", "fused", "rotary"):
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.way == "rotary")
        if self.way == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            total = (q @ k.sum(-2)[..., None]).clamp_min(1e-6)
            return q @ (k.transpose(-1, -2) @ v) / total
        if self.way == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(self.size)
            return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        if self.bias is not None:
            scores = scores + self.bias
        if self.way == "causal":
            ahead = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(ahead, -torch.inf)
        return scores.softmax(-1) @ v


def turned(x: Tensor) -> Tensor:
    """With rotary positions, halves of each head being the planes."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 0.5 ** torch.arange(half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def transformer(
    mixing: Callable[[], nn.Module],
    norm: Make = nn.LayerNorm,
    act: Callable[[], nn.Module] = nn.GELU,
    post: bool = False,
) -> Case:
    """One block over words with positions, its states read at every word."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(m.embed(x) + m.positions))

    feed = [lin(D, 2 * D), act(), lin(2 * D, D)]
    if post:
        body = [Residual(mixing(), norm(D)), Residual(stack(*feed), norm(D))]
    else:
        body = [Residual(stack(norm(D), mixing())), Residual(stack(norm(D), *feed)), norm(D)]
    parts = {"embed": nn.Embedding(WORDS, D), "positions": torch.randn(LENGTH, D)}
    model = Fn(run, body=stack(*body), head=lin(D, WORDS), **parts)
    return Case(model, tokens(WORDS, LENGTH), 16)


def attention(way: str, **kw: Any) -> Callable[[], Case]:
    heads = {key: kw.pop(key) for key in ("heads", "groups") if key in kw}
    return lambda: transformer(lambda: Attention(way, **heads), **kw)


class Own(nn.Module):
    """torch's own attention, of a sequence with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class AcrossTokens(nn.Module):
    """An operation along positions: a mixer's, a spatial gate's, an average, or Fourier's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b = lin(LENGTH, 8), lin(8, LENGTH)
        self.up, self.gate, self.down = lin(D, 2 * D), lin(LENGTH, LENGTH), lin(D, D)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mixer":
            return self.b(self.a(x.transpose(1, 2)).relu()).transpose(1, 2)
        if self.way == "gate":
            a, b = F.gelu(self.up(x)).chunk(2, -1)
            return self.down(a * self.gate(b.transpose(1, 2)).transpose(1, 2))
        return x.mean(1, keepdim=True) - x


def across(way: str) -> Callable[[], Case]:
    return lambda: transformer(lambda: AcrossTokens(way))


def torch_encoder(**kw: Any) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(m.inputs(x)).mean(1))

    layer = nn.TransformerEncoderLayer(D, 4, 2 * D, batch_first=True, **kw)
    last = nn.LayerNorm(D) if kw.get("norm_first") else None
    body = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False)
    return sequences(Fn(run, inputs=lin(4), body=body, head=lin(D, CLASSES)))


def torch_transformer() -> Case:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.head(m.body(m.embed(x), m.embed(y)))

    body = nn.Transformer(D, 4, 1, 1, 2 * D, batch_first=True)
    model = Fn(run, embed=nn.Embedding(WORDS, D), body=body, head=lin(D, WORDS))
    return Case(model, several(tokens(WORDS, LENGTH), tokens(WORDS, LENGTH)), 16)


def cross_attention() -> Case:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(x + m.mix(m.norm(x), m.b(y)))

    parts = {"a": lin(4), "b": lin(3), "norm": nn.LayerNorm(D), "mix": Attention("sdpa")}
    model = Fn(run, head=lin(D, CLASSES), **parts)
    return Case(model, several(features(LENGTH, 4), features(8, 3)), 16)


def latent_queries() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        queries = m.latents.expand(x.shape[0], -1, -1)
        return m.head((queries + m.mix(queries, m.inputs(x))).flatten(1))

    parts = {"latents": torch.randn(1, 2, D), "inputs": lin(4), "mix": Attention("sdpa")}
    return sequences(Fn(run, head=lin(2 * D, CLASSES), **parts))


def additive_attention() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x).relu()
        weights = m.score((m.a(x) + m.b(x[:, -1:])).tanh()).softmax(1)
        return m.head((weights * x).sum(1))

    parts = {"inputs": lin(4), "a": lin(), "b": lin(), "score": lin(D, 1)}
    return sequences(Fn(run, head=lin(D, CLASSES), **parts))


def vision_transformer() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.positions
        return m.head(m.body(x)[:, 0])

    layer = nn.TransformerEncoderLayer(D, 4, 2 * D, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 1, nn.LayerNorm(D), enable_nested_tensor=False)
    tables = {"token": torch.randn(1, 1, D), "positions": torch.randn(1, 10, D)}
    return pictures(
        Fn(run, patches=conv(3, D, 4, 4, padding=0), body=body, head=lin(D, 5), **tables)
    )


# Graphs -----------------------------------------------------------------------------------------


def graphs(model: nn.Module) -> Case:
    def adjacency(count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, LENGTH, LENGTH, generator=generator).softmax(-1)

    return Case(model, several(features(LENGTH, 4), adjacency), 16)


def graph_convolution(sage: bool) -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = (edges @ m.a(x) + (m.own(x) if sage else 0)).relu()
        return m.head((edges @ m.b(x)).relu().mean(1))

    own = {"own": lin(4)} if sage else {}
    return graphs(Fn(run, a=lin(4), b=lin(), head=lin(D, CLASSES), **own))


def graph_attention() -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = m.a(x)
        scores = F.leaky_relu(m.target(x) + m.source(x).transpose(1, 2), 0.2) + edges.log()
        return m.head((scores.softmax(-1) @ x).relu().mean(1))

    return graphs(Fn(run, a=lin(4), target=lin(D, 1), source=lin(D, 1), head=lin(D, CLASSES)))


def messages() -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = m.inputs(x)
        pairs = torch.cat(
            [x[:, :, None].expand(-1, -1, LENGTH, -1), x[:, None].expand(-1, LENGTH, -1, -1)], -1
        )
        told = (m.message(pairs).relu() * edges[..., None]).sum(2)
        return m.head(m.update(torch.cat([x, told], -1)).relu().sum(1))

    parts = {"inputs": lin(4), "message": lin(2 * D), "update": lin(2 * D)}
    return graphs(Fn(run, head=lin(D, CLASSES), **parts))


ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "prelu": nn.PReLU,
    "prelu, one each": functools.partial(nn.PReLU, D),
    "mish": nn.Mish,
}
NORMS: dict[str, Make] = {
    "batch norm": nn.BatchNorm1d,
    "layer norm": nn.LayerNorm,
    "rms norm": nn.RMSNorm,
    "group norm": lambda n: nn.GroupNorm(4, n),
}
MAP_NORMS: dict[str, Make | None] = {
    "no norm": None,
    "batch norm": nn.BatchNorm2d,
    "group norm": lambda n: nn.GroupNorm(4, n),
    "one group": lambda n: nn.GroupNorm(1, n),
    "instance norm": lambda n: nn.InstanceNorm2d(n, affine=True),
    "layer norm, channels last": lambda n: LastAxis(nn.LayerNorm(n)),
}
WRAPS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": _pruned,
}
POOLS = {
    "max pool": nn.MaxPool2d(2),
    "mean pool": nn.AvgPool2d(2),
    "power pool": nn.LPPool2d(2, 2),
}

_part = functools.partial

TABLE: dict[str, Callable[[], Case]] = {
    **{f"mlp, {name}": _part(mlp, act) for name, act in ACTIVATIONS.items()},
    **{f"mlp, {name}": _part(mlp, nn.ReLU, norm) for name, norm in NORMS.items()},
    "mlp, no bias": _part(mlp, nn.ReLU, None, False),
    **{f"mlp, {name}": _part(wrapped_mlp, wrap) for name, wrap in WRAPS.items()},
    "residual mlp": residual_mlp,
    "residual mlp, pre-norm": _part(residual_mlp, nn.LayerNorm),
    "residual mlp, pre-norm rms": _part(residual_mlp, nn.RMSNorm),
    "residual mlp, post-norm": _part(residual_mlp, None, nn.LayerNorm),
    "residual mlp, batch norm": _part(residual_mlp, nn.BatchNorm1d),
    "residual mlp, layer scale": layer_scaled,
    "gated mlp, swiglu": _part(gated_mlp, F.silu),
    "gated mlp, linear": _part(gated_mlp, torch.sigmoid),
    "maxout": maxout,
    "highway": highway,
    "dense mlp": dense_mlp,
    "bilinear": bilinear,
    "soft mixture of experts": experts,
    "autoencoder": _part(autoencoder, False),
    "autoencoder, tied": _part(autoencoder, True),
    "variational autoencoder": variational,
    "film": film,
    "squeeze and excitation of features": squeezed_mlp,
    "siamese, cosine": siamese,
    "deep set, mean": _part(deep_set, "mean"),
    "point net, max": _part(deep_set, "max"),
    "factorisation machine": factorisation,
    "radiance field": radiance,
    "siren": siren,
    "bag of words": bag_of_words,
    "one layer twice": shared_layer,
    "low-rank adapter": low_rank,
    **{f"cnn, {name}": _part(cnn, norm) for name, norm in MAP_NORMS.items()},
    "cnn, silu": _part(cnn, nn.BatchNorm2d, nn.SiLU),
    **{f"cnn, {name}": _part(cnn_pool, pool) for name, pool in POOLS.items()},
    "cnn, flattened": _part(cnn_pool, nn.MaxPool2d(2), True),
    "cnn, generalised mean": generalised_mean,
    "cnn, attention pooling": attention_pooling,
    "resnet": _part(residual_cnn, basic),
    "resnet, pre-activation": _part(residual_cnn, preact, nn.BatchNorm2d),
    "resnext": _part(residual_cnn, grouped),
    "inverted residuals": _part(residual_cnn, separable),
    "squeeze and excitation": _part(residual_cnn, gated_block(False)),
    "cbam": _part(residual_cnn, gated_block(True)),
    "convnext": _part(residual_cnn, convnext),
    "shufflenet": _part(residual_cnn, shuffled),
    "inception": branches,
    "densenet": dense_cnn,
    "u-net, transposed": _part(unet, "transposed"),
    "u-net, interpolated": _part(unet, "interpolated"),
    "feature pyramid": pyramid,
    "several resolutions": resolutions,
    "super-resolution": super_resolution,
    "deconvolutions": decoder,
    "channels last": channels_last,
    "3-d cnn": cubes,
    "dilated convolutions": _part(dilated, False),
    "wavenet": _part(dilated, True),
    "rnn": _part(recurrent, nn.RNN),
    "gru": _part(recurrent, nn.GRU),
    "lstm": _part(recurrent, nn.LSTM),
    "lstm, both directions": _part(recurrent, nn.LSTM, "mean", bidirectional=True),
    "gru, two layers": _part(recurrent, nn.GRU, "all", num_layers=2),
    "lstm, projected": _part(recurrent, nn.LSTM, proj_size=8),
    "gru cell": _part(cell, nn.GRUCell),
    "lstm cell": _part(cell, nn.LSTMCell),
    "tagger": tagger,
    "sequence to sequence": sequence_to_sequence,
    "linear recurrence": linear_recurrence,
    "cnn and gru": convolutional_recurrence,
    "attention, sdpa": attention("sdpa"),
    "attention, matmul": attention("matmul"),
    "attention, einsum": attention("einsum"),
    "attention, fused": attention("fused"),
    "attention, causal": attention("causal"),
    "attention, rotary": attention("rotary", norm=nn.RMSNorm, act=nn.SiLU),
    "attention, grouped queries": attention("sdpa", groups=2),
    "attention, position bias": attention("biased"),
    "attention, linear": attention("linear"),
    "attention, post-norm": attention("sdpa", post=True),
    "attention, torch's": _part(transformer, Own),
    "encoder, post-norm": torch_encoder,
    "encoder, pre-norm": _part(torch_encoder, norm_first=True, activation="gelu"),
    "encoder and decoder": torch_transformer,
    "cross-attention": cross_attention,
    "latent queries": latent_queries,
    "additive attention": additive_attention,
    "vision transformer": vision_transformer,
    "mixer": across("mixer"),
    "gated mixer": across("gate"),
    "mean mixer": across("mean"),
    "graph convolution": _part(graph_convolution, False),
    "graph sage": _part(graph_convolution, True),
    "graph attention": graph_attention,
    "message passing": messages,
}
