"""The networks of the demo: an MLP for digits and the ResNet20 of the CCA Merge paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def mlp(width: int = 64, inputs: int = 64, classes: int = 10) -> nn.Sequential:
    """Three hidden layers of ``width`` ReLU units."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


class _Block(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != planes:
            # The paper's code projects with a 3x3 convolution, not the usual 1x1.
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return F.relu(y)


class ResNet20(nn.Module):
    """ResNet20 for 32 x 32 images (He et al. 2015); ``width`` multiplies 16, 32, 64 channels."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, width: int = 1, classes: int = 10) -> None:
        super().__init__()
        planes = 16 * width
        self.conv1 = nn.Conv2d(3, planes, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        channels = planes
        for stage in range(3):
            blocks = []
            for index in range(3):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(_Block(channels, planes, stride))
                channels = planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            planes *= 2
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, 3, 32, 32)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = getattr(self, f"layer{stage + 1}")(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return cast("Tensor", self.linear(x))
