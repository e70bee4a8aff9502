"""What statistics add to the forward passes on a GPU, and how long solving and applying take.

    python benchmarks/gpu_merge.py                   # four ResNet20 of width 8 with random weights
    python benchmarks/gpu_merge.py --zoo FOLDER      # trained ones, as gpu_train.py writes them

50,000 images lie on the device. The bare forward passes are those of the models as they are, in
inference mode, of the same batches, with images and kernels in channels-last layout, as `collect`
has them; and, to see what is due to the folded program alone, those of the program that `collect`
runs. Random weights get BatchNorm statistics from a batch, so that features are as large as trained
ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import baseline
import cases
import gpu_networks
import torch
from gpu_common import arguments, options, ready, save, wall
from layout import seconds, table, verdict
from torch import Tensor, nn

import ccamerge
from ccamerge.cli.demo.cifar import load_images
from ccamerge.graph.networks.states import fast_layout, folded_state
from ccamerge.graph.tracing.lockstep import lockstep

MODELS = 4
IMAGES = 50_000


def networks(given: Any, name: str, device: torch.device) -> tuple[list[nn.Module], str]:
    """Trained networks if there are enough, else random ones; and which these are."""
    if given.zoo:
        found = gpu_networks.load(given.zoo, name, device)[:MODELS]
        if len(found) == MODELS:
            return found, f"trained, of {given.zoo.name}"
        print(f"# {len(found)} networks {name} in {given.zoo}: random weights instead", flush=True)
    models = [gpu_networks.build(name, seed, device) for seed in range(MODELS)]
    noise = torch.randn(500 if device.type == "cuda" else 50, 3, 32, 32, device=device)
    for model in models:
        baseline.reset_statistics(model.eval(), [noise])
    return models, "random weights"


def images(given: Any, count: int, device: torch.device) -> tuple[Tensor, str]:
    """CIFAR-10 if it is there, else noise: times do not depend on it."""
    try:
        found = load_images(given.data, "train", count)[0]
        source = "CIFAR-10"
    except ValueError as error:
        print(f"# {error}: noise instead", flush=True)
        found, source = torch.randn(count, 3, 32, 32), "noise"
    return found.to(device, memory_format=torch.channels_last), source


def forward(models: list[nn.Module], batches: tuple[Tensor, ...]) -> None:
    """The bare passes."""
    with torch.inference_mode():
        for x in batches:
            for model in models:
                model(x)


def forward_folded(
    models: list[nn.Module], spaces: ccamerge.Spaces, batches: tuple[Tensor, ...]
) -> None:
    """The passes as `collect` does them, through the library's internals, with nothing counted."""
    states = [
        {
            key: fast_layout(value)
            for key, value in folded_state(model.state_dict(), spaces.folds).items()
        }
        for model in models
    ]
    with torch.inference_mode():
        for x in batches:
            leaves = [fast_layout(x)]
            for _ in lockstep([(spaces.program, state, leaves) for state in states]):
                pass


def run(given: Any, device: torch.device) -> tuple[str, dict[str, Any]]:
    name = "resnet20-w1" if given.quick else "resnet20-w8"
    count = 500 if given.quick else IMAGES
    models, weights = networks(given, name, device)
    data, source = images(given, count, device)
    batches = data.split(given.batch)
    settings = {"progress": False, **options(device)}
    tracing, spaces = wall(lambda: ccamerge.spaces(models[0], batches[0][:2]), device)

    def collect(some: tuple[Tensor, ...], **more: Any) -> Any:
        return ccamerge.collect(models, some, holdout=0.0, **more, **settings)

    # Libraries are loaded and convolutions chosen before anything is timed.
    forward(models, batches[:2])
    forward_folded(models, spaces, batches[:2])
    collect(batches[:2], found=spaces)
    times: dict[str, list[float]] = {"bare": [], "folded": [], "collect": []}
    collected = None
    for _ in range(1 if given.quick else given.rounds):
        times["bare"].append(wall(lambda: forward(models, batches), device)[0])
        times["folded"].append(wall(lambda: forward_folded(models, spaces, batches), device)[0])
        collected = None  # its memory
        took, collected = wall(lambda: collect(batches, found=spaces), device)
        times["collect"].append(took)
    best = {key: min(values) for key, values in times.items()}
    shares = {
        "given": best["collect"] / best["bare"] - 1,
        "traced": (best["collect"] + tracing) / best["bare"] - 1,
        "folded": best["collect"] / best["folded"] - 1,
    }
    stages = []
    for repair in ("regression", "variance"):  # the default first, as cold as it comes
        _, done = wall(
            lambda r=repair: ccamerge.merge(models, statistics=collected, repair=r, **settings),
            device,
        )
        stages.append({"repair": repair, "seconds": done.report.seconds})
    both = [s["seconds"]["solve"] + s["seconds"]["apply"] for s in stages]
    rows = [
        ["bare forward passes", seconds(best["bare"]), ""],
        ["the folded program's", seconds(best["folded"]), ""],
        ["collect, spaces given", seconds(best["collect"]), f"{100 * shares['given']:.0f}%"],
        ["and with tracing", seconds(best["collect"] + tracing), f"{100 * shares['traced']:.0f}%"],
    ]
    rows += [
        [f"{stage}, repair {s['repair']}", seconds(s["seconds"][stage]), ""]
        for s in stages
        for stage in ("solve", "apply", "repair")
    ]
    lines = [
        (
            f"- {MODELS} networks {name} ({weights}), {count} images ({source}) on the device, "
            f"batches of {given.batch}; the best of {len(times['bare'])}."
        ),
        (
            f"- Statistics add {100 * shares['given']:.0f}% to the forward passes (wanted less "
            f"than 25%: {verdict(shares['given'] < 0.25)}); with the tracing of the network, once "
            f"{seconds(tracing)}, {100 * shares['traced']:.0f}%; to the folded program's passes "
            f"{100 * shares['folded']:.0f}%."
        ),
        (
            f"- Solve and apply take {seconds(both[0])} in the first merge and {seconds(both[1])} "
            f"in the second (wanted less than 2 s: {verdict(both[0] < 2)})."
        ),
    ]
    data_out = {
        "network": name,
        "weights": weights,
        "images": count,
        "batch": given.batch,
        "tracing": tracing,
        "times": times,
        "shares": shares,
        "merges": stages,
    }
    head = ["", "time", "added to the bare passes"]
    return table(head, rows) + "\n\n" + "\n".join(lines), data_out


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--zoo", type=Path, help="folder with trained networks")
    parser.add_argument("--data", type=Path, default=cases.SHARED / "data", help="CIFAR-10")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2, help="of which the best is taken")
    given = parser.parse_args()
    if given.quick:
        given.batch = min(given.batch, 100)
    device = ready(given)
    text, data = run(given, device)
    save(given, "merge", device, text, data)


if __name__ == "__main__":
    main()
