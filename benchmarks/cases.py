"""Inputs of the benchmarks, float64 references of their answers, and how they are timed."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

THREADS = 2

MOMENT_SHAPES = (
    (128, 16, 32, 32),
    (128, 64, 32, 32),
    (128, 64, 8, 8),
    (128, 128, 16, 16),
    (128, 256, 8, 8),
    (128, 512, 4, 4),
)
MOMENT_MODELS = (2, 4, 8)

SHARED = Path(
    os.environ.get("CCAMERGE_SHARED", Path(__file__).resolve().parents[1].parent / "shared")
)
"""Checkpoints and CIFAR-10, beside the repository."""


def feature_maps(
    models: int, shape: Sequence[int], seed: int = 0, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Rectified, correlated feature maps ``(B, C, H, W)`` of several models, float32."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal() -> Tensor:
        return torch.empty(*shape, device=device).normal_(generator=generator)

    shared = normal()
    return [normal().add_(shared).relu_() for _ in range(models)]


def moment_flops(models: int, shape: Sequence[int]) -> float:
    """Of the blocks that the reference mode needs: own ones by symmetry, crosses in full."""
    batch, c, *space = shape
    n = batch * int(np.prod(space))
    return float(models * n * c * (c + 1) + (models - 1) * 2 * n * c * c)


def reference_moments(features: Sequence[Tensor]) -> dict[tuple[int, int], np.ndarray]:
    """Float64 covariances of the first model with itself and each other, and of each itself."""
    flat = [x.double().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy() for x in features]
    flat = [x - x.mean(0) for x in flat]
    pairs = {(i, i) for i in range(len(flat))} | {(0, i) for i in range(len(flat))}
    return {(i, j): flat[i].T @ flat[j] / len(flat[0]) for i, j in sorted(pairs)}


def relative(found: Any, expected: Any) -> float:
    """Largest deviation over the largest magnitude."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def problems(count: int, d: int, seed: int = 0) -> list[Problem]:
    """``(Sxx, Syy, Sxy)`` of pairs of networks' features: half shared, eigenvalues from 10 to 0.01.

    Traces are ``d``, so that an absolute regulariser means the same as a relative one.
    """
    rng = np.random.default_rng(seed)
    scales = np.geomspace(10, 0.01, d) ** 0.5
    found = []
    for _ in range(count):
        shared = rng.standard_normal((6 * d, d))
        sides = []
        for _ in range(2):
            basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
            x = ((shared + rng.standard_normal(shared.shape)) * scales) @ basis
            x -= x.mean(0)
            sides.append(x * np.sqrt(x.size / (x**2).sum()))
        x, y = sides
        n = len(shared)
        found.append((x.T @ x / n, y.T @ y / n, x.T @ y / n))
    return found


def in_float32(given: Sequence[Problem]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Convert problems to what the baseline has."""
    return [tuple(torch.from_numpy(a).float() for a in p) for p in given]  # type: ignore[misc]


def reference_map(problem: Problem, gamma: float) -> np.ndarray:
    """Form the map ``(q, p)`` by symmetric square roots and an SVD in float64, written out."""
    sxx, syy, sxy = problem
    roots = []
    for s in (sxx, syy):
        values, vectors = np.linalg.eigh(s + gamma * np.eye(len(s)))
        roots.append([(vectors * values**e) @ vectors.T for e in (0.5, -0.5)])
    (x_root, x_inverse), (_, y_inverse) = roots
    u, _, vt = np.linalg.svd(x_inverse @ sxy @ y_inverse)
    return y_inverse @ vt.T @ u.T @ x_root


def map_defects(problem: Problem, gamma: float, found: np.ndarray) -> tuple[float, float]:
    """How far a map is from being a solution, also where dead units leave many.

    A map T solves the problem exactly when ``T^T Cy T = Cx`` and ``tr(Cx^-1 Sxy T)`` is the sum of
    the canonical correlations. Returns both defects, relative.
    """
    sxx, syy, sxy = problem
    cx, cy = (s + gamma * np.eye(len(s)) for s in (sxx, syy))
    lx, ly = np.linalg.cholesky(cx), np.linalg.cholesky(cy)
    k = np.linalg.solve(ly, np.linalg.solve(lx, sxy).T)
    best = np.linalg.svd(k, compute_uv=False).sum()
    reached = np.trace(np.linalg.solve(cx, sxy @ found))
    return relative(found.T @ cy @ found, cx), float(abs(best - reached) / best)


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Trained ResNet20s and data for them."""

    models: list[nn.Module]
    batches: list[Tensor]
    test: Tensor
    labels: Tensor

    def accuracy(self, model: nn.Module) -> float:
        """Percent right of the test images."""
        with torch.inference_mode():
            right = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(self.test.split(500), self.labels.split(500), strict=True)
            )
        return 100 * right / len(self.labels)


def zoo(images: int, batch: int = 250, test: int = 2000) -> Zoo:
    """Four checkpoints, calibration batches and a test set; FileNotFoundError without the files."""
    from safetensors.torch import load_file

    from ccamerge.cli.demo.networks import ResNet20

    paths = [SHARED / "zoo" / f"resnet20-w1-s{i}.safetensors" for i in range(4)]
    loader = SHARED / "data" / "cifar10.py"
    for path in (*paths, loader):
        if not path.exists():
            message = f"{path} is not there; set CCAMERGE_SHARED to the folder of zoo and data"
            raise FileNotFoundError(message)
    spec = importlib.util.spec_from_file_location("cifar10", loader)
    assert spec is not None
    assert spec.loader is not None
    cifar10 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cifar10)
    models = []
    for path in paths:
        model = ResNet20()
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
        assert all(key.endswith("num_batches_tracked") for key in missing)
        assert not unexpected
        models.append(model.eval())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))

    def normalised(split: str, count: int) -> tuple[Tensor, Tensor]:
        x, y = cifar10.load(split, count)
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
        return ((pixels - mean) / std).contiguous(), torch.from_numpy(y).long()

    calibration, _ = normalised("train", images)
    return Zoo(models, list(calibration.split(batch)), *normalised("test", test))


def interleaved(
    sides: dict[str, Callable[[], Any]], repetitions: int, warmups: int = 1
) -> dict[str, float]:
    """Median seconds of each side, taking turns so that a busy machine slows them alike.

    A pause before each call lets the other side's idle threads stop spinning.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmups + repetitions):
        for name, call in sides.items():
            time.sleep(0.01)
            start = time.perf_counter()
            call()
            if turn >= warmups:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}
