"""Three ResNet20s that were trained on CIFAR-10 from different seeds, merged.

python benchmarks/examples/resnets.py    (less than a minute)

Networks and images are those of ``../shared``; ``CCAMERGE_SHARED`` names another place.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import ccamerge
from ccamerge.cli.demo.networks import ResNet20

SHARED = Path(os.environ.get("CCAMERGE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
NETWORKS = [SHARED / "zoo" / f"resnet20-w1-s{seed}.safetensors" for seed in range(3)]
CIFAR = SHARED / "data" / "cifar10.py"


def images(split: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of normalised images and labels."""
    spec = importlib.util.spec_from_file_location("cifar10", CIFAR)
    assert spec is not None
    assert spec.loader is not None
    cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cifar)
    x, y = cifar.load(split, count)
    x = (torch.from_numpy(x) / 255 - torch.tensor(cifar.MEAN)) / torch.tensor(cifar.STD)
    x = x.permute(0, 3, 1, 2).contiguous()
    return list(zip(x.split(200), torch.from_numpy(y).long().split(200), strict=True))


def main() -> None:
    missing = [str(path) for path in (*NETWORKS, CIFAR) if not path.exists()]
    if missing:
        sys.exit(f"not there: {', '.join(missing)}; set CCAMERGE_SHARED to their folder")
    networks = []
    for path in NETWORKS:
        network = ResNet20().eval()
        network.load_state_dict(load_file(path))
        networks.append(network)

    result = ccamerge.merge(networks, images("train", 600))
    print(result.report)

    test = images("test", 1000)
    rows: dict[str, Any] = dict(zip((path.stem for path in NETWORKS), networks, strict=True))
    rows |= {"ensemble": networks, "merged": result.model}
    for name, row in rows.items():
        print(f"{name:14} {ccamerge.evaluate(row, test):6.1%}")


if __name__ == "__main__":
    main()
