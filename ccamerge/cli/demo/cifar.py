"""The demo on real checkpoints: ResNet20 on CIFAR-10, trained from different seeds."""

from __future__ import annotations

import importlib.util
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ccamerge.checkpoints.reading import load_into
from ccamerge.cli.demo.comparison import compare, logits
from ccamerge.cli.demo.networks import ResNet20
from ccamerge.cli.demo.outcome import present
from ccamerge.collection.collecting import collect

CALIBRATION = 5000
BATCH = 250


def run(
    out: Path,
    *,
    data: Path,
    zoo: Path,
    seed: int = 0,
    quiet: bool = False,
    models: tuple[int, ...] | None = None,
    samples: int = CALIBRATION,
) -> None:
    """Merge the checkpoints of a folder, print a table and save its picture.

    Parameters
    ----------
    out : folder for ``demo.png`` and ``demo.json``; made if absent
    data : folder with ``cifar10.py``, whose ``load(split, count)`` gives uint8 images
        (n, 32, 32, 3) and labels (n,)
    zoo : folder with ``resnet20-*.safetensors``
    seed : of the choice of inputs kept for repair
    quiet : whether to leave out progress bars
    models : how many checkpoints to merge, in every combination; default two and up
    samples : calibration images

    Raises
    ------
    ValueError
        If a folder does not hold what it should.
    """
    networks = load_zoo(zoo)
    train, test = load_images(data, "train", samples), load_images(data, "test", None)
    held_out = list(zip(test[0].split(500), test[1].split(500), strict=True))
    bar = tqdm(networks, desc="evaluate", unit="net", disable=quiet)
    outputs = [logits(network, held_out) for network in bar]
    start = time.perf_counter()
    moments = collect(networks, train[0].split(BATCH), pairs="all", progress=not quiet, seed=seed)
    seconds = {"collect": time.perf_counter() - start}  # of all networks at once
    everyone = range(len(networks))
    counts = models or range(2, len(networks) + 1)
    chosen = [indices for count in counts for indices in combinations(everyone, count)]
    comparisons = [
        compare(
            f"ResNet20, seeds {', '.join(map(str, indices))}",
            [networks[i] for i in indices],
            moments.subset(indices, 0),
            held_out,
            seconds,
            [outputs[i] for i in indices],
        )
        for indices in tqdm(chosen, desc="merge", disable=quiet)
    ]
    present(comparisons, out)


def load_zoo(folder: Path) -> list[ResNet20]:
    """Every ResNet20 of a folder, in the order of names, in evaluation mode."""
    paths = sorted(Path(folder).glob("resnet20-*.safetensors"))
    if len(paths) < 2:
        message = f"{folder}: expected two or more files resnet20-*.safetensors, found {len(paths)}"
        raise ValueError(message)
    networks = []
    for path in paths:
        network = ResNet20()
        load_into(network, path)
        networks.append(network.eval())
    return networks


def load_images(folder: Path, split: str, count: int | None) -> tuple[Tensor, Tensor]:
    """Normalised images (n, 3, 32, 32) float32 and labels (n,) of "train" or "test"."""
    source = Path(folder) / "cifar10.py"
    spec = importlib.util.spec_from_file_location("cifar10", source)
    if spec is None or spec.loader is None or not source.is_file():
        message = f"{folder}: holds no cifar10.py to load the images with"
        raise ValueError(message)
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels = module.load(split, count)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.MEAN, module.STD))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return ((pixels - mean) / std).contiguous(), torch.from_numpy(labels).long()
