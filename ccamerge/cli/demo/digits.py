"""The default demo: small networks that each know half of the digits, trained here and merged.

The digits ship with scikit-learn. Each network sees all of five classes and hardly anything of the
other five, as networks of several sites or of several years do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ccamerge.cli.demo.comparison import Comparison, compare, logits, mean_of
from ccamerge.cli.demo.networks import mlp
from ccamerge.cli.demo.outcome import present
from ccamerge.collection.collecting import collect

if TYPE_CHECKING:
    from ccamerge.config.settings import Mean

COUNTS = (2, 4)
WIDTHS = (64, 256)
INPUTS = (100, 449)
"""Unlabelled digits that merges are made from; no network was trained on them."""

REPEATS = 2
"""Of each row, with other digits and other networks; the table has the mean."""

SHARE = 0.1
"""Of the digits of each class that a network hardly sees."""

OWN = 5
"""Classes that a network sees all digits of."""

REFINE = "1 s"
ENSEMBLE: Mean = "outputs"
"""The mean of logits. Each network is sure of what it knows and does not know of the rest, and its
logits say so: probabilities of a network that is sure and wrong halve those of one that is right.
"""

EPOCHS = 30
BATCH = 64


def run(
    out: Path,
    *,
    seed: int = 0,
    quiet: bool = False,
    models: tuple[int, ...] = COUNTS,
    widths: tuple[int, ...] = WIDTHS,
) -> None:
    """Train networks, merge them, print a table and save its picture.

    Parameters
    ----------
    out : folder for ``demo.png`` and ``demo.json``; made if absent
    seed : of the first repetition; the others follow
    quiet : whether to leave out progress bars
    models : how many networks to merge, each number in turn
    widths : hidden units a layer, each in turn
    """
    rows = [(w, count, inputs) for w in widths for count in models for inputs in INPUTS]
    bar = tqdm(total=len(rows) * REPEATS, desc="train and merge", unit="merge", disable=quiet)
    comparisons: list[Comparison] = []
    with bar, _one_thread():
        for width, count, inputs in rows:
            repeated = []
            for repetition in range(REPEATS):
                repeated.append(_merged(width, count, inputs, seed + repetition))
                bar.update()
            comparisons.append(mean_of(repeated))
    present(comparisons, out)


def _merged(width: int, count: int, inputs: int, seed: int) -> Comparison:
    """One repetition of one row."""
    start = time.perf_counter()
    train, calibration, test = digits(seed)
    networks = [
        train_network(width, 1000 * seed + index, *(x[own] for x in train))
        for index, own in enumerate(split(train[1], count, seed))
    ]
    seconds = {"train": time.perf_counter() - start}
    start = time.perf_counter()
    statistics = collect(networks, calibration[0][:inputs].split(128), progress=False, seed=seed)
    seconds["collect"] = time.perf_counter() - start
    title = f"width {width}, {inputs} inputs"
    outputs = [logits(network, [test]) for network in networks]
    return compare(
        title, networks, statistics, [test], seconds, outputs, ensemble=ENSEMBLE, refine=REFINE
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small train faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Labelled = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Digits to train on (898), to merge by (449) and to test on (450).

    Each are inputs (n, 64) float32, of zero mean in training, and labels (n,).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    inputs = torch.from_numpy(data.data[order]).float()
    labels = torch.from_numpy(data.target[order]).long()
    half, most = len(order) // 2, 3 * len(order) // 4
    inputs = (inputs - inputs[:half].mean(0)) / inputs[:half].std()
    parts = (slice(half), slice(half, most), slice(most, None))
    one, two, three = ((inputs[part], labels[part]) for part in parts)
    return one, two, three


def split(labels: Tensor, count: int, seed: int) -> list[Tensor]:
    """The digits (n,) bool that each network is trained on; they may share some.

    Network i of two sees classes 0 to 4 or 5 to 9 in full, and of the others a `SHARE`; of more,
    the runs of five classes begin at even steps.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for index in range(count):
        own = torch.full((10,), SHARE)
        own[(torch.arange(OWN) + 10 * index // count) % 10] = 1.0
        chosen.append(torch.rand(len(labels), generator=generator) < own[labels])
    return chosen


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
