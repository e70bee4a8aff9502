"""Trained networks: ResNet20 on CIFAR-10, from different seeds, on small samples to be quick."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ccamerge
from ccamerge.cli.demo.networks import ResNet20

SHARED = Path(__file__).parents[2] / "shared"
NEEDED = (SHARED / "zoo" / "resnet20-w1-s1.safetensors", SHARED / "data" / "cifar10.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(p.exists() for p in NEEDED), reason=f"no checkpoints or images in {SHARED}"
    ),
]

Data = list[tuple[Tensor, Tensor]]


def _images(split: str, count: int) -> Data:
    spec = importlib.util.spec_from_file_location("cifar10", NEEDED[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = module.load(split, count)
    mean, std = torch.tensor(module.MEAN), torch.tensor(module.STD)
    images = ((torch.from_numpy(x).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    labels = torch.from_numpy(y).long()
    return list(zip(images.contiguous().split(200), labels.split(200), strict=True))


@pytest.fixture(scope="module")
def models() -> list[Any]:
    networks = []
    for seed in range(2):
        network = ResNet20().eval()
        network.load_state_dict(load_file(SHARED / "zoo" / f"resnet20-w1-s{seed}.safetensors"))
        networks.append(network)
    return networks


@pytest.fixture(scope="module")
def collected(models: list[Any]) -> ccamerge.Statistics:
    return ccamerge.collect(models, _images("train", 600), progress=False)


@pytest.fixture(scope="module")
def held_out() -> Data:
    return _images("test", 1000)


def test_the_checkpoints_are_what_they_should_be(models: list[Any], held_out: Data) -> None:
    for model in models:
        assert 0.81 < ccamerge.evaluate(model, held_out) < 0.88  # 84 to 85 % of 10,000


@pytest.fixture(scope="module")
def accuracy(
    models: list[Any], collected: ccamerge.Statistics, held_out: Data
) -> dict[tuple[str, str], float]:
    """By method and repair, of one collection."""
    cases: list[tuple[str, Any]] = [
        ("cca", "variance"),
        ("cca", "regression"),
        ("cca", "none"),
        ("permutation", "variance"),
        ("average", "variance"),
    ]
    return {
        (method, repair): ccamerge.evaluate(
            ccamerge.merge(
                models, method=method, repair=repair, statistics=collected, progress=False
            ).model,
            held_out,
        )
        for method, repair in cases
    }


def test_cca_beats_permutation_and_average(accuracy: dict[tuple[str, str], float]) -> None:
    cca, permutation, average = (accuracy[m, "variance"] for m in ("cca", "permutation", "average"))
    # Standard error of a difference on 1,000 images: some 1.5 points at most.
    assert cca > permutation + 0.01, accuracy
    assert permutation > average + 0.10, accuracy
    assert cca > 0.65, accuracy


def test_repair_helps(accuracy: dict[tuple[str, str], float]) -> None:
    assert accuracy["cca", "variance"] > accuracy["cca", "none"] + 0.05, accuracy


def test_regression_repairs_more(accuracy: dict[tuple[str, str], float]) -> None:
    assert accuracy["cca", "regression"] > accuracy["cca", "variance"] + 0.015, accuracy
