"""Networks that are trained and merged on a GPU: ResNet20 of any width, and the paper's VGG11."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import baseline
import torch
from baseline import FeatureNode
from torch import Tensor, nn

from ccamerge.checkpoints.reading import load_into
from ccamerge.cli.demo.networks import ResNet20

VGG11_PLAN = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(nn.Module):
    """VGG11 for 32 x 32 images as in the paper's code: no BatchNorm, one linear layer."""

    def __init__(self, width: int = 1, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in VGG11_PLAN:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width * item, 3, padding=1), nn.ReLU()]
                channels = width * item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("relu"))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, 3, 32, 32)``."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def vgg11_nodes() -> list[FeatureNode]:
    """Return the eight nodes of the published graph: after each ReLU."""
    places = [i for i, layer in enumerate(VGG11().features) if isinstance(layer, nn.Conv2d)]
    readers = [f"features.{i}" for i in places[1:]] + ["classifier"]
    return [
        FeatureNode(f"features.{i}", f"features.{i + 1}", True, ((f"features.{i}", None),), (to,))
        for i, to in zip(places, readers, strict=True)
    ]


FAMILIES: dict[str, tuple[Callable[[int], nn.Module], Callable[[], list[FeatureNode]]]] = {
    "resnet20": (ResNet20, baseline.resnet20_nodes),
    "vgg11": (VGG11, vgg11_nodes),
}
"""How a network of some width is made, and where the baseline matches its features."""


def parse(name: str) -> tuple[str, int]:
    """Family and width of a name such as ``resnet20-w4``."""
    found = re.fullmatch(r"(\w+)-w(\d+)", name)
    if found is None or found[1] not in FAMILIES:
        message = (
            f"expected one of {', '.join(FAMILIES)} with its width, as resnet20-w4; got {name}"
        )
        raise ValueError(message)
    return found[1], int(found[2])


def build(name: str, seed: int, device: torch.device) -> nn.Module:
    """A network with random parameters, of the layout that convolutions are fastest in."""
    family, width = parse(name)
    torch.manual_seed(seed)
    return FAMILIES[family][0](width).to(device, memory_format=torch.channels_last)


def load(folder: Path, name: str, device: torch.device) -> list[nn.Module]:
    """All networks ``<name>-s<seed>.safetensors`` of a folder, by seed, in evaluation mode."""
    found = []
    paths = {int(p.stem.rpartition("-s")[2]): p for p in folder.glob(f"{name}-s*.safetensors")}
    for _, path in sorted(paths.items()):
        model = build(name, 0, torch.device("cpu"))
        load_into(model, path)
        found.append(model.to(device).eval())
    return found


def names_in(folder: Path) -> list[str]:
    """The names of all networks that a folder holds."""
    stems = {path.stem.rpartition("-s")[0] for path in folder.glob("*-s*.safetensors")}
    return sorted(stem for stem in stems if stem.partition("-")[0] in FAMILIES)
