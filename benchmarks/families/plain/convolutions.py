"""Networks of images, and of what is convolved otherwise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import Case, features
from families.plain.parts import CLASSES, SIDE, D, Fn, LastAxis, Make, Residual, lin, stack
from families.plain.perceptrons import rows


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
