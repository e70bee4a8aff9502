"""Attention in plain torch, in many spellings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import Case, features, several, tokens
from families.plain.convolutions import conv, pictures
from families.plain.parts import CLASSES, LENGTH, WORDS, D, Fn, Make, Residual, lin, stack
from families.plain.recurrence import sequences


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
