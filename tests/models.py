"""Small networks of the architectures that the tests and benchmarks merge."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (12, 16, 16, 5), bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def vgg11(norm: bool, width: int = 8, size: int = 32, classes: int = 10) -> nn.Module:
    """VGG11 with a C x H x W flatten (H = W = 2) into two linear layers."""
    layers: list[nn.Module] = []
    channels = 3
    plan = [1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8]
    for item in plan:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        out = width * int(item)
        layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU())
        channels = out
    side = size // 16
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.Flatten(),
        nn.Linear(channels * side * side, 4 * width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4 * width, classes),
    )


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += skip
        return self.relu(y)


class BottleneckResNet(nn.Module):
    """The ResNet50 pattern, small: stem with max-pooling, identity and projected shortcuts."""

    def __init__(self, width: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.blocks = nn.Sequential(
            Bottleneck(width, width),
            Bottleneck(4 * width, width),
            Bottleneck(4 * width, 2 * width, 2),
            Bottleneck(8 * width, 2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.fc(torch.flatten(x, 1))


class DepthwiseSeparable(nn.Module):
    """The MobileNet pattern: pointwise, depthwise, pointwise; with ReLU6 and a residual."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU6()
        )
        self.expand = nn.Sequential(nn.Conv2d(w, 2 * w, 1, bias=False), nn.BatchNorm2d(2 * w))
        self.depthwise = nn.Sequential(
            nn.Conv2d(2 * w, 2 * w, 3, 1, 1, groups=2 * w, bias=False), nn.BatchNorm2d(2 * w)
        )
        self.project = nn.Sequential(nn.Conv2d(2 * w, w, 1, bias=False), nn.BatchNorm2d(w))
        self.head = nn.Linear(w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.expand(x))
        y = F.relu6(self.depthwise(y))
        x = x + self.project(y)
        return self.head(x.mean(dim=(2, 3)))


class DenseBlockNet(nn.Module):
    """The DenseNet pattern: BatchNorm before convolution on a growing concatenation."""

    def __init__(self, growth: int = 6, layers: int = 3, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList()
        self.convs = nn.ModuleList()
        for _ in range(layers):
            self.norms.append(nn.BatchNorm2d(channels))
            self.convs.append(nn.Conv2d(channels, growth, 3, padding=1, bias=False))
            channels += growth
        self.norm = nn.BatchNorm2d(channels)
        self.transition = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.last = nn.BatchNorm2d(channels // 2)
        self.fc = nn.Linear(channels // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], dim=1)
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2)
        x = F.relu(self.last(x)).mean((2, 3))
        return self.fc(x)


class NormedMLP(nn.Module):
    """LayerNorm after the first layer, GroupNorm after the second; a residual around the second."""

    def __init__(self, inputs: int = 12, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.group = nn.GroupNorm(4, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.first(x)))
        x = F.relu(self.group(self.second(x)))
        return self.head(x)


class GroupedConv(nn.Module):
    """The ResNeXt pattern: a grouped convolution between two dense ones."""

    def __init__(self, width: int = 8, groups: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 1)
        self.b = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.c = nn.Conv2d(width, width, 1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.b(F.relu(self.a(x)))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


class TiedAutoencoder(nn.Module):
    """An encoder whose weight is the decoder's, transposed; a module used twice; an odd op."""

    def __init__(self, inputs: int = 10, width: int = 6) -> None:
        super().__init__()
        self.encode = nn.Linear(inputs, width)
        self.middle = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(inputs))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x))
        h = self.middle(torch.relu(self.middle(h)))
        return F.linear(h, self.encode.weight.t(), self.bias)


class UnknownOp(nn.Module):
    """A scan over the features has no rule: the axis must be pinned, not guessed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 8)
        self.c = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.logcumsumexp(F.relu(self.a(x)), dim=-1)
        return self.c(F.relu(self.b(x)))


class Transformer(nn.Module):
    """The ViT pattern: a class token, positions, attention and an MLP behind LayerNorm, LayerScale.

    With one head or several; the class token is what the head reads.
    """

    def __init__(
        self, inputs: int = 6, tokens: int = 4, width: int = 8, heads: int = 2, classes: int = 3
    ) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(inputs, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), 0.5)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def attention(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.project(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.positions
        x = x + self.scales[0] * self.attention(self.before(x))
        x = x + self.scales[1] * self.down(F.gelu(self.up(self.between(x))))
        return self.head(self.norm(x)[:, 0])


class ConvNeXt(nn.Module):
    """The ConvNeXt pattern: linear layers over channels that stand last, a gain reshaped."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.5))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        x = x + self.gain.reshape(1, -1, 1, 1) * y
        return self.head(x.mean((2, 3)))


class Linears(nn.Module):
    """Without non-linearities any invertible map leaves the function as it is."""

    def __init__(self, sizes: tuple[int, ...] = (6, 6, 5, 3)) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Reparametrised(nn.Module):
    """Weight norm on the first layer, spectral norm on the second."""

    def __init__(self, sizes: tuple[int, int, int, int] = (8, 12, 10, 3)) -> None:
        super().__init__()
        first, second, last = (nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.first = nn.utils.parametrizations.weight_norm(first)
        self.second = nn.utils.parametrizations.spectral_norm(second)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and, for BatchNorm, random affine parameters and statistics; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5
                )
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                if module.running_mean is None or module.running_var is None:
                    continue
                shape = module.running_mean.shape
                module.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
    return model.eval()
