"""Small networks with attention in plain torch, each spelled in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def halves(x: Tensor, turned: int) -> Tensor:
    """Rotary positions (..., positions, size): feature j with j + turned / 2, the rest as it is."""
    x, rest = x[..., :turned], x[..., turned:]
    angles = _angles(x)
    one, two = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], -1)


def neighbours(x: Tensor, turned: int) -> Tensor:
    """Rotary positions: feature 2 j with 2 j + 1."""
    x, rest = x[..., :turned], x[..., turned:]
    angles = _angles(x)
    one, two = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    both = torch.stack([one * cos - two * sin, two * cos + one * sin], -1).flatten(-2)
    return torch.cat([both, rest], -1)


def _angles(x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)
    speeds = 0.7 ** torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    return positions[:, None] * speeds


def softmaxed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Attention of heads (batch, heads, positions, size), written out."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Attention between an MLP's two layers, with queries, keys and values from one's own layers.

    ``width`` is read and written; ``groups`` heads of keys and values are read by ``heads``.
    ``prepare`` is done to queries and keys, ``mix`` makes of these and values what is returned.
    """

    def __init__(
        self,
        heads: int = 2,
        size: int = 4,
        groups: int | None = None,
        wide: int | None = None,
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
        mix: Callable[..., Tensor] = softmaxed,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups or heads
        wide = wide or size
        width = 10
        self.q = nn.Linear(width, heads * size, bias)
        self.k = nn.Linear(width, self.groups * size, bias)
        self.v = nn.Linear(width, self.groups * wide, bias)
        self.out = nn.Linear(heads * wide, 3)
        self.prepare, self.mix = prepare, mix

    def split(self, x: Tensor, heads: int) -> Tensor:
        """Features divided: (batch, heads, positions, size)."""
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    def extra(self) -> tuple[Any, ...]:
        """What attention is given besides."""
        return ()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10), attending to another sequence if one is given."""
        other = x if context is None else context
        q = self.prepare(self.split(self.q(x), self.heads))
        k = self.prepare(self.split(self.k(other), self.groups))
        v = self.split(self.v(other), self.groups)
        share = self.heads // self.groups
        if share > 1:
            k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        mixed = self.mix(q, k, v, *self.extra())
        return self.out(mixed.transpose(1, 2).flatten(2))


class Biased(Attention):
    """With a number for each head and each distance of positions, added to scores."""

    table: Tensor

    def __init__(
        self, slopes: bool = False, length: int = 5, learned: bool = True, **given: Any
    ) -> None:
        super().__init__(**given)
        self.slopes, self.length = slopes, length
        table = torch.randn((self.heads,) if slopes else (self.heads, 16))
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def extra(self) -> tuple[Tensor]:
        """The table by positions, or slopes times distances."""
        at = torch.arange(self.length)
        apart = at[:, None] - at
        if self.slopes:
            return (self.table[:, None, None] * apart.abs(),)
        return (self.table[:, apart + 5],)


class Grouped(Attention):
    """With a number for each head of queries, and one for each of keys, that scale these."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.queries = nn.Parameter(torch.randn(self.heads, 1, 1))
        self.keys = nn.Parameter(torch.randn(self.groups, 1, 1))
        self.prepare = self._scaled

    def _scaled(self, x: Tensor) -> Tensor:
        return x * (self.queries if x.shape[1] == self.heads else self.keys)


class Masked(Biased):
    """With a table to which a mask is added that the network is given."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10); positions whose first feature is small are not seen."""
        seen = x[:, None, None, :, 0] > -1
        self.mask = torch.where(seen, 0.0, -100.0).to(x)
        return super().forward(x, context)

    def extra(self) -> tuple[Tensor]:
        """The table and the mask."""
        return (super().extra()[0][None] + self.mask,)


class Made(Biased):
    """With a table that a small network makes of distances."""

    def __init__(self, **given: Any) -> None:
        super().__init__(learned=False, **given)
        del self.table
        self.net = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, self.heads, bias=False))
        self.register_buffer("apart", torch.arange(-8.0, 8)[:, None] / 4, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        self.table = self.net(self.apart).T
        return super().forward(x, context)


class Gated(Attention):
    """With a bias for each head and position that a layer of its own makes."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.gate = nn.Linear(10, self.heads)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        self.bias = self.gate(x).transpose(1, 2)[:, :, None]
        return super().forward(x, context)

    def extra(self) -> tuple[Tensor]:
        """The bias of this batch."""
        return (self.bias,)


class Whole(Attention):
    """With norms of queries and keys of all heads together, before these are taken apart."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.q, self.k = (
            nn.Sequential(own, nn.RMSNorm(own.out_features))  # type: ignore[assignment]
            for own in (self.q, self.k)
        )


class Shared(nn.Module):
    """Two attentions, one after the other, with one table of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Biased(), Biased()
        self.second.table = self.first.table
        self.between = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Of (batch, positions, 10)."""
        return self.second(self.between(self.first(x).tanh()))


class Gains(Attention):
    """With norms of queries and keys that have gains, as they are at first; rotated then."""

    def __init__(self, turned: int = 0, **given: Any) -> None:
        super().__init__(**given)
        self.turned = turned
        self.norms = nn.ModuleList(nn.RMSNorm(self.q.out_features // self.heads) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        q, k = (
            norm(self.split(layer(x), self.heads))
            for norm, layer in zip(self.norms, (self.q, self.k), strict=True)
        )
        if self.turned:
            q, k = halves(q, self.turned), halves(k, self.turned)
        mixed = self.mix(q, k, self.split(self.v(x), self.heads))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Pooled(Attention):
    """Queries that a layer makes of a parameter, the same for all inputs."""

    def __init__(self, bias: bool = True, **given: Any) -> None:
        super().__init__(**given)
        if not bias:
            self.q = nn.Linear(10, self.q.out_features, bias=False)
        self.latent = nn.Parameter(torch.randn(1, 2, 10))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        return super().forward(self.latent, x)


class Twice(Attention):
    """Used for two sequences."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        return super().forward(x) + super().forward(x.flip(1) / 2)


class Latents(Attention):
    """Queries that are parameters, from no linear operation."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        size = self.q.out_features // self.heads
        self.queries = nn.Parameter(torch.randn(self.heads, 3, size))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Of (batch, positions, 10)."""
        k, v = self.split(self.k(x), self.heads), self.split(self.v(x), self.heads)
        mixed = self.mix(self.queries.expand(len(x), -1, -1, -1), k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Tempered(nn.Module):
    """One layer writes queries, keys, values, and for each head a factor of its queries."""

    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.qkv, self.out = nn.Linear(10, 26), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Of (batch, positions, 10)."""
        written = self.qkv(x)
        if self.interleaved:
            own = written.view(*x.shape[:2], 2, 13).transpose(1, 2)
            q, k, v, factor = own.split([4, 4, 4, 1], -1)
        else:
            every = written.split([8, 8, 8, 2], -1)
            q, k, v, factor = (part.view(*x.shape[:2], 2, -1).transpose(1, 2) for part in every)
        mixed = softmaxed(q * factor.sigmoid(), k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """Queries, keys and values by one layer, one after the other or head by head."""

    def __init__(
        self, heads: int = 2, size: int = 4, interleaved: bool = False, turned: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.interleaved, self.turned = heads, interleaved, turned
        self.qkv = nn.Linear(10, 3 * heads * size)
        self.out = nn.Linear(heads * size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Of (batch, positions, 10)."""
        if self.interleaved:
            parts = self.qkv(x).view(*x.shape[:2], self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            parts = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        if self.turned:
            q, k = halves(q, self.turned), halves(k, self.turned)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Chosen(nn.Module):
    """One layer writes heads of queries, then one of keys and one of values, chosen by a list."""

    def __init__(self, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv = nn.Linear(10, (heads + 2) * size)
        self.out = nn.Linear(heads * size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Of (batch, positions, 10)."""
        every = self.qkv(x).view(*x.shape[:2], self.heads + 2, self.size)
        q, k, v = every[..., :-2, :], every[..., [-2], :], every[..., [-1], :]
        mixed = softmaxed(*(own.transpose(1, 2) for own in (q, k, v)))
        return self.out(mixed.transpose(1, 2).flatten(2))


class Torchs(nn.Module):
    """torch's own module, after a layer that writes what it reads."""

    def __init__(self, heads: int = 2, need_weights: bool = False) -> None:
        super().__init__()
        self.before = nn.Linear(10, 8)
        self.attention = nn.MultiheadAttention(8, heads, batch_first=True)
        self.after = nn.Linear(8, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Any:
        """Of (batch, positions, 10); the mean weights, too, if they are asked for."""
        x = self.before(x)
        mixed, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return (self.after(mixed), weights) if self.need_weights else self.after(mixed)
