"""The default demo: eight small networks trained here on the digits that ship with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ccamerge.cli.demo.comparison import Comparison, compare, probabilities
from ccamerge.cli.demo.networks import mlp
from ccamerge.cli.demo.outcome import present
from ccamerge.collection.collecting import collect

COUNTS = (2, 4, 8)
EPOCHS = 30
BATCH = 64


def run(
    out: Path,
    *,
    seed: int = 0,
    quiet: bool = False,
    models: tuple[int, ...] = COUNTS,
    widths: tuple[int, ...] = (64, 256),
) -> None:
    """Train networks of each width, merge them, print a table and save its picture.

    Parameters
    ----------
    out : folder for ``demo.png`` and ``demo.json``; made if absent
    seed : of the first network; the others follow
    quiet : whether to leave out progress bars
    models : how many networks to merge, each number in turn
    widths : hidden units a layer, each in turn
    """
    train, test = digits(seed)
    calibration = list(train[0].split(128))
    held_out = list(zip(test[0].split(512), test[1].split(512), strict=True))
    comparisons: list[Comparison] = []
    for width in widths:
        start = time.perf_counter()
        seeds = range(seed, seed + max(models))
        bar = tqdm(seeds, desc=f"train width {width}", unit="net", disable=quiet)
        with _one_thread():
            networks = [train_network(width, s, *train) for s in bar]
        trained = time.perf_counter() - start
        outputs = [probabilities(network, held_out) for network in networks]
        for count in models:
            start = time.perf_counter()
            moments = collect(networks[:count], calibration, progress=False)
            seconds = {"train": trained, "collect": time.perf_counter() - start}
            title = f"digits, width {width}"
            comparisons.append(
                compare(title, networks[:count], moments, held_out, seconds, outputs[:count])
            )
    present(comparisons, out)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small train faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training (1,198) and test (599) digits: inputs (n, 64) float32 of zero mean, labels (n,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    inputs = torch.from_numpy(data.data[order]).float()
    labels = torch.from_numpy(data.target[order]).long()
    cut = 2 * len(order) // 3
    inputs = (inputs - inputs[:cut].mean(0)) / inputs[:cut].std()
    return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])


def train_network(width: int, seed: int, inputs: Tensor, labels: Tensor) -> nn.Module:
    """An MLP from its own start and its own order of the data (Adam, cosine schedule)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp(width)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
                optimizer.step()
            schedule.step()
    return network.eval()
