"""Operations of recurrent, gated, rearranging and reducing layers, each in a small network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from ccamerge.graph.derivation import UNUSED
from tests import models as M
from tests.moved import mapped_copy


class Net(nn.Module):
    """Layers, and what a function makes of them and an input."""

    def __init__(self, call: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.layers)


def _added_rows(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    rows = torch.arange(len(x)) // 2
    found: Tensor = last(torch.zeros(len(x), 8).to(x).index_add(0, rows, first(x).relu()))
    return found


def _sampled(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    places = torch.linspace(-0.9, 0.7, 50).view(1, 5, 5, 2).expand(len(x), 5, 5, 2).to(x)
    found: Tensor = last(F.grid_sample(first(x).relu(), places, align_corners=False))
    return found


def _with_states(x: Tensor, state: nn.Module, cell: nn.Module, last: nn.Module) -> Tensor:
    hidden = state(x).tanh()
    for _ in range(2):
        hidden = cell(x, hidden)
    found: Tensor = last(hidden)
    return found


class Standardised(nn.Conv2d):
    """A convolution whose weight gets a mean of zero and a variance of one for each output."""

    def forward(self, x: Tensor) -> Tensor:
        over = (1, 2, 3)
        mean, spread = (f(over, keepdim=True) for f in (self.weight.mean, self.weight.std))
        return F.conv2d(x, (self.weight - mean) / (spread + 1e-3).expand_as(self.weight), self.bias)


class BatchStandardised(nn.Conv2d):
    """The same by a BatchNorm of the weight, with a gain for each output."""

    def __init__(self, *sizes: int, groups: int = 1) -> None:
        super().__init__(*sizes, groups=groups)
        self.gain = nn.Parameter(torch.rand(sizes[1]) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain * 0.7, training=True, eps=1e-3)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class SplitAttention(nn.Module):
    """Groups of channels that compete for each channel, as in ResNeSt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv(x).relu().unflatten(1, (2, 8))
        share = self.gate(parts.sum(1).mean((2, 3))).view(-1, 2, 8).softmax(1)
        return (parts * share[..., None, None]).sum(1)


class Experts(nn.Module):
    """Experts in one tensor, of which two are chosen for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(4, *s)) for s in ((6, 8), (8, 3)))
        self.router = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).topk(2, -1)
        share /= share.sum(-1, keepdim=True)  # in place, one of two new tensors
        hidden = torch.einsum("...i,...eih->...eh", x, self.up[chosen]).relu()
        return (torch.einsum("beh,beho->beo", hidden, self.down[chosen]) * share[..., None]).sum(1)


class ExpertsInOrder(nn.Module):
    """Experts in one tensor, each run for all rows after a norm, and taken out by its number."""

    def __init__(self, taken: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3)
        self.up, self.down = (nn.Parameter(torch.randn(2, *s)) for s in ((8, 5), (8, 5)))
        self.taken = taken

    def forward(self, x: Tensor) -> Tensor:
        stream = self.inner(x)
        h = self.norm(stream)
        made = [F.linear(h, self.up[i]).relu() @ self.down[i] for i in self.taken]
        return self.outer(F.rms_norm(stream + torch.stack(made).sum(0), [5]))


class Constants(nn.Module):
    """What a function makes of an input, two layers and a constant that no state holds."""

    def __init__(self, call: Callable[..., Tensor], value: Tensor, *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)
        self.value = nn.Buffer(value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.value.to(x.dtype), *self.layers)


class Learned(nn.Module):
    """What a function makes of an input, a learned tensor and layers."""

    def __init__(
        self, call: Callable[..., Tensor], size: Sequence[int], *layers: nn.Module
    ) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)
        self.own = nn.Parameter(torch.randn(*size))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.own, *self.layers)


def _without_some(x: Tensor, own: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    bias = own.clone()
    bias[5:].zero_()
    return last(F.linear(x, first.weight, bias).relu())


class HalfBiased(nn.Module):
    """A bias that is learned for some features, and zero for others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(5))
        self.zeros = nn.Buffer(torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.bias, self.zeros.to(x.dtype)])
        return self.last(F.linear(x, self.first.weight, bias).relu())


class Blur(nn.Module):
    """One fixed kernel for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Buffer(torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 1, 3) / 4)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 0, 0), "reflect"), kernel, groups=x.shape[1])


class Thresholded(nn.Module):
    """Filter response normalisation with a threshold for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias, self.least = (nn.Parameter(torch.randn(1, 8, 1, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * (x.square().mean((2, 3), keepdim=True) + 1e-3).rsqrt()
        return torch.max(self.gain * x + self.bias, self.least)


def _shifted(x: Tensor) -> Tensor:
    """Half of the features one position later, the others one earlier, written in place."""
    found = torch.zeros(x.shape).to(x)
    found[:, :-1, :4] = x[:, 1:, :4]
    found[:, 1:, 4:] = x[:, :-1, 4:]
    return found


def _put(x: Tensor) -> Tensor:
    found = torch.zeros(4, 7, 8).to(x)
    found[:, torch.tensor([1, 2, 4, 5, 6])] = x
    return found


def _clipped(x: Tensor) -> Tensor:
    found = x.clone()
    found[found < 0.3] = 0.1
    return found


def _shuffled(x: Tensor) -> Tensor:
    return x.view(4, 2, 4, 6, 6).transpose(1, 2).reshape(4, 8, 6, 6)


def _between(
    function: Callable[[Tensor], Tensor], features: int = 8, *, channels: bool = False
) -> Callable[[], nn.Module]:
    """A function of features between two layers: what it makes of 8 is so many."""
    if channels:
        ends: tuple[nn.Module, nn.Module] = (nn.Conv2d(3, 8, 3), nn.Conv2d(features, 3, 1))
    else:
        ends = nn.Linear(6, 8), nn.Linear(features, 3)
    return lambda: Net(lambda x, a, b: b(function(a(x).relu())), *ends)


def _layers(*inner: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Layers of 8 channels between two convolutions, a ReLU after the first."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), *(make() for make in inner), nn.Conv2d(8, 3, 1)
    )


IMAGES, SEQUENCES, ROWS = (4, 3, 8, 8), (4, 5, 6), (4, 6)

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "lstm": (
        lambda: Net(lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "lstm of two directions": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, bidirectional=True), nn.Linear(16, 3)
        ),
        SEQUENCES,
        {
            "layers.0.weight_ih_l0": "permutation",
            "layers.0.weight_ih_l0_reverse": "permutation",
        },
    ),
    "stack of lstms": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, 3, batch_first=True), nn.Linear(8, 3)
        ),
        SEQUENCES,
        {f"layers.0.weight_ih_l{layer}": "permutation" for layer in range(3)},
    ),
    "stack of two directions": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]),
            *(nn.GRU(6, 5, 2, bidirectional=True, bias=False), nn.Linear(10, 3)),
        ),
        SEQUENCES,
        {
            f"layers.0.weight_ih_l{layer}{side}": "permutation"
            for layer in range(2)
            for side in ("", "_reverse")
        },
    ),
    "a stack's last layer": (
        lambda: Net(lambda x, a, b: b(a(x)[1][0][-1]), nn.LSTM(6, 8, 2), nn.Linear(8, 3)),
        SEQUENCES,
        {f"layers.0.weight_ih_l{layer}": "permutation" for layer in range(2)},
    ),
    "a stack's layers together": (
        lambda: Net(lambda x, a, b: b(a(x)[1].sum(0)), nn.GRU(6, 8, 2), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "gru's last state": (
        lambda: Net(lambda x, a, b: b(a(x)[1][-1]), nn.GRU(6, 8), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "rnn behind a layer": (
        lambda: Net(
            lambda x, a, b, c: c(b(a(x).relu())[0]),
            *(nn.Linear(6, 7), nn.RNN(7, 8, bias=False), nn.Linear(8, 3)),
        ),
        SEQUENCES,
        {"layers.0": "general", "layers.1.weight_ih_l0": "permutation"},
    ),
    "cell that begins elsewhere": (
        lambda: Net(_with_states, nn.Linear(6, 8), nn.GRUCell(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "lstm cell": (
        lambda: Net(lambda x, a, b: b(a(x)[1]), nn.LSTMCell(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0.weight_ih": "permutation"},
    ),
    "glu": (
        lambda: Net(lambda x, a, b: b(F.glu(a(x))), nn.Linear(6, 16), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "glu of channels": (
        lambda: Net(lambda x, a, b: b(F.glu(a(x), 1)), nn.Conv2d(3, 16, 3), nn.Conv2d(8, 3, 3)),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "instance norm": (
        lambda: Net(
            lambda x, a, b, c: c(b(a(x)).relu()),
            *(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 3)),
        ),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "pixel shuffle": (
        lambda: Net(
            lambda x, a, b: b(F.pixel_shuffle(a(x), 2).relu()),
            *(nn.Conv2d(3, 16, 3), nn.Conv2d(4, 4, 3)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "pixel unshuffle": (
        lambda: Net(
            lambda x, a, b: b(F.pixel_unshuffle(a(x).relu(), 2)),
            *(nn.Conv2d(3, 6, 3), nn.Conv2d(24, 4, 2)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "patches": (
        lambda: Net(
            lambda x, a, b: b(F.unfold(a(x).relu(), 2).transpose(1, 2)),
            *(nn.Conv2d(3, 8, 3), nn.Linear(32, 4)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "largest of positions": (
        lambda: Net(lambda x, a, b: b(a(x).relu().max(dim=1)[0]), nn.Linear(6, 8), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "smallest, kept as an axis": (
        lambda: Net(
            lambda x, a, b: b(a(x).min(dim=1, keepdim=True).values),
            *(nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "rows added": (
        lambda: Net(_added_rows, nn.Linear(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "general"},
    ),
    "tiled": (
        lambda: Net(lambda x, a, b: b(a(x).relu().tile(1, 2)), nn.Linear(6, 8), nn.Linear(16, 3)),
        ROWS,
        {"layers.0": "general"},
    ),
    "groups summed": (
        _between(lambda h: h.unflatten(1, (2, 4)).sum(1), 4),
        ROWS,
        {"layers.0#2": "general"},
    ),
    "groups that compete": (
        _between(lambda h: (g := h.view(4, 2, 4, 6, 6)).mul(g.softmax(1)).sum(1), 4, channels=True),
        IMAGES,
        {"layers.0#2": "permutation"},
    ),
    "groups unbound": (
        _between(lambda h: torch.add(*h.unflatten(1, (4, 2)).unbind(2)), 4, channels=True),
        IMAGES,
        {"layers.0": "general"},
    ),
    "groups selected": (
        _between(lambda h: (g := h.view(4, 2, 4))[:, 0] * g[:, 1].sigmoid(), 4),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "every other feature": (
        _between(lambda h: h[..., ::2] * h[..., 1::2].tanh(), 4),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "depth to space by a view": (
        _between(
            lambda h: h.view(4, 2, 2, 2, 6, 6).permute(0, 1, 4, 2, 5, 3).reshape(4, 2, 12, 12),
            2,
            channels=True,
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "zeros of its shape": (
        _between(lambda h: h.type_as(h) + torch.zeros_like(h)),
        ROWS,
        {"layers.0": "general"},
    ),
    "normalised": (_between(lambda h: F.normalize(h, dim=1)), ROWS, {"layers.0": "permutation"}),
    "turned": (
        _between(lambda h: h.rot90(1, (2, 3)), channels=True),
        IMAGES,
        {"layers.0": "general"},
    ),
    "differences": (_between(lambda h: h.diff(dim=1)), SEQUENCES, {"layers.0": "general"}),
    "windows": (_between(lambda h: h.unfold(1, 3, 1).mean(-1)), SEQUENCES, {"layers.0": "general"}),
    "windows and back": (
        _between(lambda h: F.fold(F.unfold(h, 3), (6, 6), 3), channels=True),
        IMAGES,
        {"layers.0": "general"},
    ),
    "triangle": (
        _between(lambda h: torch.ones(5, 5).to(h).tril() @ h),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "Fourier transform of positions": (
        _between(lambda h: torch.fft.fft(h, dim=1).real),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "exactly nearest": (
        _between(lambda h: F.interpolate(h, scale_factor=2, mode="nearest-exact"), channels=True),
        IMAGES,
        {"layers.0": "general"},
    ),
    "smoothed": (
        _between(
            lambda h: F.interpolate(h, size=(4, 4), mode="bilinear", antialias=True), channels=True
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "largest of windows of any size": (
        _between(lambda h: F.adaptive_max_pool2d(h, 2), channels=True),
        IMAGES,
        {"layers.0": "general"},
    ),
    "pooled and unpooled": (
        _between(
            lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2), channels=True
        ),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "gathered": (
        _between(lambda h: h.gather(1, torch.tensor([1, 0, 2, 3]).view(4, 1, 1).expand(4, 1, 8))),
        SEQUENCES,
        {"layers.0": "permutation"},
    ),
    "largest places": (
        _between(lambda h: h.topk(2, 1)[0].mean(1)),
        SEQUENCES,
        {"layers.0": "permutation"},
    ),
    "sorted places": (_between(lambda h: h.sort(1)[0]), SEQUENCES, {"layers.0": "permutation"}),
    "rows scattered": (
        _between(
            lambda h: (
                torch.zeros(2, 8)
                .to(h)
                .scatter_add(0, (torch.arange(4) // 2)[:, None].expand(4, 8), h)[
                    torch.arange(4) // 2
                ]
            )
        ),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "written at places": (_between(_put), SEQUENCES, {"layers.0": "general"}),
    "written in halves": (
        _between(_shifted),
        SEQUENCES,
        {"layers.0": "general", "layers.0#2": "general"},
    ),
    "written where it is small": (_between(_clipped), ROWS, {"layers.0": "permutation"}),
    "channels shuffled by a view": (
        _between(_shuffled, channels=True),
        IMAGES,
        {"layers.0#2": "general"},
    ),
    "split attention": (
        _layers(SplitAttention),
        IMAGES,
        {"0": "general", "0#2": "general", "2.conv": "permutation", "2.gate.0": "general"},
    ),
    "one kernel for all channels": (_layers(Blur), IMAGES, {"0": "permutation"}),
    "threshold of channels": (_layers(Thresholded), IMAGES, {"0": "permutation"}),
    "weights standardised": (
        _layers(lambda: Standardised(8, 8, 1), nn.ReLU),
        IMAGES,
        {"0": "permutation", "2": "permutation"},
    ),
    "weights standardised by a BatchNorm": (
        _layers(lambda: BatchStandardised(8, 8, 1), nn.ReLU),
        IMAGES,
        {"0": "permutation", "2": "permutation"},
    ),
    "transposed convolution in groups": (
        _layers(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.ReLU),
        IMAGES,
        {"0": "general", "0#2": "general", "2": "general", "2#2": "general"},
    ),
    "transposed depthwise convolution": (
        _layers(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8)),
        IMAGES,
        {"0": "permutation"},
    ),
    "angles": (
        lambda: Net(
            lambda x, a, b, c: c(h := a(x).relu()) * F.cosine_similarity(h, b(x), dim=1)[:, None],
            *(nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "bilinear form": (
        lambda: Net(
            lambda x, a, b, c, e: e(c(a(x).relu(), b(x)).relu()),
            nn.Linear(6, 8),
            nn.Linear(6, 7),
            nn.Bilinear(8, 7, 5),
            nn.Linear(5, 3),
        ),
        ROWS,
        {"layers.0": "general", "layers.1": "general", "layers.2": "general"},
    ),
    "chosen experts": (Experts, ROWS, {"up": "general"}),
    "experts, each for itself": (
        ExpertsInOrder,
        ROWS,
        {"inner": "orthogonal", "up": "general", "up#2": "general"},
    ),
    "bias of zeros for some": (HalfBiased, ROWS, {"first": "general", "first#2": "general"}),
    "bias put to zero for some": (
        lambda: Learned(_without_some, (8,), nn.Linear(6, 8, bias=False), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "general", "layers.0#2": "general"},
    ),
    "divided by a number that is computed": (
        lambda: Constants(
            lambda x, c, a, b: b(a(x).relu() / (c * 3).sqrt()),
            torch.tensor(2.0),
            *(nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        ROWS,
        {"layers.0": "general"},
    ),
    "one kernel for each channel, all alike": (
        lambda: Constants(
            lambda x, k, a, b: b(F.conv2d(a(x).relu(), k, groups=8)),
            torch.tensor([1.0, 2.0, 1.0]).expand(8, 1, 1, 3).clone() / 4,
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 3, 1),
        ),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "layers of constants": (
        lambda: Constants(
            lambda x, c, a, b, e: e((x + b(a(c).relu())).tanh()),
            torch.linspace(-1, 1, 10).view(5, 2),
            nn.Linear(2, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 3),
        ),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "convolutions of constants": (
        lambda: Constants(
            lambda x, c, a, b, e: e(a(x) + b(c)),
            torch.linspace(-1, 1, 72).view(1, 2, 6, 6),
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(2, 8, 1),
            nn.Conv2d(8, 3, 1),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "a layer of learned tokens": (
        lambda: Learned(
            lambda x, own, a, b, e: e((a(own) + b(x)).relu()),
            (5, 7),
            *(nn.Linear(7, 8), nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "learned image, resized": (
        lambda: Learned(
            lambda x, own, a, b: b((a(x) + F.interpolate(own, (6, 6), mode="bicubic")).relu()),
            (1, 8, 3, 3),
            *(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "bounded by learned numbers": (
        lambda: Learned(
            lambda x, own, a, b: b(torch.clamp(a(x), -own.square(), own.square() + 1)),
            (1,),
            *(nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        ROWS,
        {"layers.0": "general"},
    ),
    "weights standardised, in groups": (
        _layers(lambda: BatchStandardised(8, 8, 1, groups=2), nn.ReLU),
        IMAGES,
        {"0": "permutation", "0#2": "permutation", "2": "permutation", "2#2": "permutation"},
    ),
    "likeness, which nothing reads": (
        lambda: Net(
            lambda x, a, b: F.cosine_similarity(h := b(a(x).relu()), h.roll(1, 0)),
            *(nn.Linear(6, 8), nn.Linear(8, 5)),
        ),
        ROWS,
        {"layers.0": "general", "layers.1": "permutation"},
    ),
    "upsampled and joined": (
        lambda: Net(
            lambda x, a, b, e: e(torch.cat([b(a(x).relu()), x], 1)),
            *(nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 5, 2, 2), nn.Conv2d(8, 3, 1)),
        ),
        IMAGES,
        {"layers.0": "general", "layers.1": "general"},
    ),
    "one expert of two": (
        lambda: ExpertsInOrder((1,)),
        ROWS,
        {"inner": "signed permutation", "up": "general"},
    ),
    "one expert twice": (
        lambda: ExpertsInOrder((0, 1, 1)),
        ROWS,
        {"inner": "signed permutation", "up": "general"},
    ),
    "product over named axes": (
        lambda: Net(
            lambda x, a, b: torch.tensordot(a(x).relu(), b.weight, ([2], [1])),
            nn.Linear(6, 8),
            nn.Linear(8, 3),
        ),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "sampled": (
        lambda: Net(_sampled, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)),
        IMAGES,
        {"layers.0": "general"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_known_for_what_they_are(name: str) -> None:
    build, shape, expected = CASES[name]
    model = M.randomise(build(), 0).double().eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(shape, generator=generator).double() for _ in range(4)]
    found = ccamerge.spaces(model, data[0])
    assert {space.name: space.group.name for space in found} == expected
    checks = ccamerge.verify(model, data[0])
    assert all(check.passed for check in checks), [str(check) for check in checks]
    maps = {space.name: space.exact.random(space.size, generator) for space in found}
    moved = mapped_copy(model, found, maps)
    new = torch.randn(shape, generator=generator).double()
    wanted = _output(model, new)
    assert torch.allclose(_output(moved, new), wanted, rtol=1e-9, atol=1e-9)
    result = ccamerge.merge(
        [model, moved], data, method="permutation", repair="none", progress=False
    )
    whole = all(space.exact == "permutation" for space in found)
    if not whole:  # a map that scales is undone by no permutation
        maps = {s.name: _permutation(s.size, generator) for s in found}
        copied = mapped_copy(model, found, maps)
        result = ccamerge.merge(
            [model, copied], data, method="permutation", repair="none", progress=False
        )
    assert torch.allclose(_output(result.model, new), wanted, rtol=1e-9, atol=1e-9)


def _permutation(size: int, generator: torch.Generator) -> ccamerge.FeatureMap:
    return ccamerge.FeatureMap.permutation(torch.randperm(size, generator=generator))


def _output(model: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return model(x)


def test_states_of_both_directions_that_are_read_together_stay_as_they_are() -> None:
    gru = nn.GRU(6, 8, bidirectional=True)
    model = Net(lambda x, a, b: b(a(x)[1].sum(0)), gru, nn.Linear(8, 3))
    found = ccamerge.spaces(model, torch.randn(SEQUENCES))
    assert not found.spaces
    assert any("read together" in note for space in found.fixed for note in space.notes)


def test_constants_that_differ_between_features_fix_them() -> None:
    torch.manual_seed(0)
    model = Constants(
        lambda x, k, a, b: b(F.conv2d(a(x).relu(), k, groups=8)),
        torch.linspace(-1, 1, 24).view(8, 1, 1, 3),
        *(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)),
    )
    assert len(ccamerge.spaces(model, torch.randn(IMAGES))) == 0


def test_a_parameter_that_no_output_depends_on_is_said_to_be_unused() -> None:
    torch.manual_seed(0)
    model = Net(lambda x, a, b: (b(h := a(x)), h)[1], nn.Linear(6, 3), nn.Linear(3, 2))
    pinned = ccamerge.spaces(model, torch.randn(ROWS)).pinned
    unused = {key for (key, _), why in pinned.items() if why == UNUSED}
    assert unused == {"layers.1.weight", "layers.1.bias"}


def test_what_pins_an_axis_is_said_once() -> None:
    torch.manual_seed(0)
    model = Learned(
        lambda x, own, a, b: b((a(x) + own.exp()[1]).relu()),
        (2, 5),
        *(nn.Linear(6, 5), nn.Linear(5, 3)),
    )
    found = ccamerge.spaces(model, torch.randn(ROWS))
    assert found.pinned["own", 0] == "one feature alone in select"
