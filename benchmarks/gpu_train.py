"""Train networks on CIFAR-10 from several seeds, as many epochs as a budget of seconds allows.

    python benchmarks/gpu_train.py FOLDER                       # weights into this folder
    python benchmarks/gpu_train.py FOLDER --seconds 240 --seeds 4 --networks resnet20-w8

What makes it fast, by counting: at these widths a step of 500 images fills the chip, some 10 ms of
device time for ResNet20 of width 4 against 3 to 4 ms of launches by the host. So seeds one after
the other lose nothing, while training them stacked (`torch.func.vmap`) would turn every convolution
into a grouped one, for which the libraries are slower. CUDA graphs would hide launches that are
hidden already, and compiling three networks takes longer than the whole run could gain. What pays
is bfloat16 with channels last, all images on the device with each epoch's crops and flips as one
gather, no synchronisation within an epoch, a fused optimiser, and a schedule that ends at zero when
the budget does. Nothing else should run beside it: epochs are planned by a trial (on an H200,
beside tests, one of width 4 took 1.1 to 2 s).

Settings are the published ones (SGD, learning rate 0.5 with BatchNorm and 0.08 without, weight
decay 5e-4, batches of 500), with label smoothing as for the zoo's networks. Steps are timed first;
all networks' epochs are then scaled to the budget.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import cases
import gpu_networks
import numpy as np
import torch
from gpu_common import arguments, brief, finish, ready, save, synchronize, wall
from layout import seconds, table
from torch import Tensor, nn
from torch.nn import functional as F

from ccamerge.checkpoints.reading import save_state
from ccamerge.cli.demo.cifar import load_images

EPOCHS = {"resnet20-w4": 18, "resnet20-w8": 14, "vgg11-w1": 24}
"""What is wished for; a network that is not listed gets `OTHERS`."""
OTHERS = 16
FEWEST = 3
WARM_UP = 0.2
"""Part of the schedule in which the learning rate rises."""
BATCH, SMOOTHING, DECAY, MOMENTUM = 500, 0.05, 5e-4, 0.9
PAD = 4


@dataclasses.dataclass(frozen=True)
class Data:
    """Images padded for crops, in the precision of training, and a test set in float32."""

    padded: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor

    def epoch(self) -> tuple[Tensor, Tensor]:
        """All images in a new order, each cropped and flipped at random: one gather."""
        n, device = len(self.padded), self.padded.device
        size = self.padded.shape[-1] - 2 * PAD
        windows = self.padded.unfold(2, size, 1).unfold(3, size, 1)  # a view of all crops
        order = torch.randperm(n, device=device)
        dy, dx = torch.randint(0, 2 * PAD + 1, (2, n), device=device)
        crops = windows[order, :, dy, dx]
        flipped = torch.rand(n, device=device).view(-1, 1, 1, 1) < 0.5
        crops = torch.where(flipped, crops.flip(3), crops)
        return crops.contiguous(memory_format=torch.channels_last), self.labels[order]


def load_data(given: Any, device: torch.device) -> Data:
    train, labels = load_images(given.data, "train", 600 if given.quick else None)
    test, test_labels = load_images(given.data, "test", 500 if given.quick else None)
    padded = F.pad(train.to(device), (PAD,) * 4).to(torch.bfloat16)
    test = test.to(device, memory_format=torch.channels_last)
    return Data(padded, labels.to(device), test, test_labels.to(device))


def accuracy(model: nn.Module, data: Data) -> float:
    """Percent right of the test images, in float32."""
    return cases.Zoo([], [], data.test, data.test_labels).accuracy(model.eval())


def optimizer_of(model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=0.0,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        nesterov=True,
        fused=device.type == "cuda",
    )


def peak_of(model: nn.Module) -> float:
    """The published learning rate."""
    return 0.5 if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else 0.08


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rate: float
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(x.device.type, torch.bfloat16):
        loss = F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def epoch_seconds(name: str, data: Data, device: torch.device, quick: bool) -> float:
    """What an epoch will take, from some steps of a network that is thrown away."""
    model = gpu_networks.build(name, 0, device).train()
    optimizer = optimizer_of(model, device)
    augmenting, (x, y) = wall(data.epoch, device)
    if device.type == "cuda":
        augmenting, (x, y) = wall(data.epoch, device)
    x, y = x[:BATCH], y[:BATCH]
    warm, timed = (1, 1) if quick else (8, 20)

    def steps(count: int) -> None:
        for _ in range(count):
            step(model, optimizer, x, y, 1e-4)

    wall(lambda: steps(warm), device)  # also chooses convolutions' algorithms
    took, _ = wall(lambda: steps(timed), device)
    return augmenting + took / timed * max(1, len(data.labels) // BATCH)


def train(
    name: str, seed: int, epochs: int, data: Data, device: torch.device
) -> tuple[nn.Module, list[float]]:
    """A trained network, and the last loss of each epoch."""
    model = gpu_networks.build(name, seed, device).train()
    optimizer = optimizer_of(model, device)
    peak = peak_of(model)
    per_epoch = max(1, len(data.labels) // BATCH)
    total = epochs * per_epoch
    rates = np.interp(np.arange(total + 1), [0, WARM_UP * total, total], [0.0, peak, 0.0])[1:]
    losses = []
    torch.manual_seed(1000 + seed)  # order, crops and flips
    for epoch in range(epochs):
        x, y = data.epoch()
        parts = list(zip(x.split(BATCH), y.split(BATCH), strict=True))[:per_epoch]
        for index, part in enumerate(parts):
            loss = step(model, optimizer, *part, float(rates[epoch * per_epoch + index]))
        losses.append(loss)
    return model, torch.stack(losses).tolist()


def plan(costs: dict[str, float], seeds: int, budget: float) -> dict[str, int]:
    """Epochs for each network: what is wished for, scaled so that all seeds fit the budget."""
    wished = {name: EPOCHS.get(name, OTHERS) for name in costs}
    whole = seeds * sum(wished[name] * cost for name, cost in costs.items())
    factor = min(1.0, budget / whole)
    return {name: max(FEWEST, int(factor * count)) for name, count in wished.items()}


def jobs(names: list[str], seeds: int) -> list[tuple[str, int]]:
    """Two seeds of every network first: what is left when time runs out can still be merged."""
    return [
        (name, seed)
        for start in range(0, seeds, 2)
        for name in names
        for seed in range(start, min(start + 2, seeds))
    ]


def run(given: Any, device: torch.device) -> list[str]:
    began = time.perf_counter()
    failures: list[str] = []
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    loading, data = wall(lambda: load_data(given, device), device)
    torch.backends.cudnn.benchmark = True
    costs: dict[str, float] = {}
    for name in list(given.networks):
        try:
            costs[name] = epoch_seconds(name, data, device, given.quick)
        except Exception as error:
            failures.append(f"{name}: {brief(error)}")

    def left() -> float:
        return given.seconds - (time.perf_counter() - began)

    # Each network also wants its start, test and file: a second, and a twentieth in reserve.
    count = len(costs) * given.seeds
    chosen = plan(costs, given.seeds, 0.95 * (left() - count)) if costs else {}
    if given.quick:
        chosen = dict.fromkeys(chosen, 1)
    print(f"# data {loading:.1f} s; an epoch {costs}; epochs {chosen}", flush=True)

    def keep(done: bool = False) -> None:
        head = ["network", "seed", "epochs", "time", "accuracy"]
        cells = [
            [
                r["name"],
                str(r["seed"]),
                str(r["epochs"]),
                seconds(r["time"]),
                f"{r['accuracy']:.1f}",
            ]
            for r in rows
        ]
        notes = [
            (
                f"- {len(data.labels)} images (loaded in {seconds(loading)}), batches of {BATCH}; "
                f"test accuracy in percent of {len(data.test)}. An epoch: "
                + ", ".join(f"{name} {seconds(cost)}" for name, cost in costs.items())
                + "."
            ),
            *(f"- Not trained, no time left: {name}." for name in skipped),
        ]
        text = table(head, cells) + "\n\n" + "\n".join(notes)
        out = {"rows": rows, "epoch_seconds": costs, "skipped": skipped, "failures": failures}
        save(given, "train", device, text, out, done=done)

    for name, seed in jobs(list(costs), given.seeds):
        epochs = chosen[name]
        if not given.quick:
            epochs = min(epochs, int((left() - 1) / costs[name]))
        if epochs < (1 if given.quick else FEWEST):
            skipped.append(f"{name}, seed {seed}")
            continue
        try:
            took, (model, losses) = wall(
                lambda n=name, s=seed, e=epochs: train(n, s, e, data, device), device
            )
            right = accuracy(model, data)
            path = given.folder / f"{name}-s{seed}.safetensors"
            about = {"seed": str(seed), "accuracy": f"{right / 100:.4f}", "epochs": str(epochs)}
            save_state(model.state_dict(), path, about)
        except Exception as error:
            failures.append(f"{name}, seed {seed}: {brief(error)}")
            continue
        rows.append(
            {"name": name, "seed": seed, "epochs": epochs, "time": took, "accuracy": right}
            | {"losses": losses}
        )
        print(f"{name} seed {seed}: {epochs} epochs, {took:.1f} s, {right:.1f} %", flush=True)
        keep()
    synchronize(device)
    keep(done=True)
    return failures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="for the weights; not within the repository")
    parser.add_argument("--networks", nargs="+", default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=270.0, help="for everything")
    parser.add_argument("--data", type=Path, default=cases.SHARED / "data", help="CIFAR-10")
    given = parser.parse_args()
    for name in given.networks:
        gpu_networks.parse(name)
    given.folder.mkdir(parents=True, exist_ok=True)
    finish(run(given, ready(given)))


if __name__ == "__main__":
    main()
