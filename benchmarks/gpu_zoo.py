"""Merge the networks of a folder with every method on a GPU, beside the published algorithm.

    python benchmarks/gpu_zoo.py FOLDER                # what gpu_train.py wrote

For each kind of network in the folder: statistics of up to four of them from one pass, then merges
of two and of all by every method with our defaults, with the seconds of each stage; the published
algorithm in plain torch on the same GPU; the networks themselves and their ensembles. Accuracy on
the 10,000 test images. What no time is left for is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baseline
import cases
import gpu_networks
import paper
import torch
from gpu_common import arguments, brief, finish, free, options, ready, save, wall
from layout import seconds, table

import ccamerge
from ccamerge.cli.demo.cifar import load_images

COUNTS = (2, 4)
STAGES = ("solve", "apply", "repair")
OURS = "CCA Merge"


def methods() -> dict[str, paper.Options]:
    """The paper's rows with ours first, and every method that these leave out."""
    known = dict(paper.METHODS)
    named = {options["method"] for options in known.values()}
    known |= {name: {"method": name} for name in ccamerge.METHODS if name not in named}
    return {OURS: known.pop(OURS), **known}


class Clock:
    """Whether what comes next still fits into a number of seconds."""

    def __init__(self, budget: float) -> None:
        self.end = time.perf_counter() + budget

    def left(self) -> float:
        return self.end - time.perf_counter()


def load_zoo(given: Any, name: str, device: torch.device) -> cases.Zoo:
    """The networks of one kind with their data, all on the device."""
    models = gpu_networks.load(given.folder, name, device)[: max(COUNTS)]
    train, _ = load_images(given.data, "train", 500 if given.quick else paper.CALIBRATION)
    test, labels = load_images(given.data, "test", 500 if given.quick else None)
    train, test = (x.to(device, memory_format=torch.channels_last) for x in (train, test))
    return cases.Zoo(models, list(train.split(paper.BATCH)), test, labels.to(device))


def one(
    zoo: cases.Zoo, count: int, collected: Any, settings: paper.Options, device: torch.device
) -> dict[str, Any]:
    """A merge of the first ``count`` networks: accuracy, and seconds by stage."""
    given = {**settings, **options(device), "progress": False}
    models, moments = zoo.models[:count], collected.subset(range(count), 0)
    took, done = wall(lambda: ccamerge.merge(models, statistics=moments, **given), device)
    stages = {stage: done.report.seconds.get(stage, 0.0) for stage in STAGES}
    return {"accuracy": zoo.accuracy(done.model), "total": took, **stages}


def published(zoo: cases.Zoo, name: str, count: int, device: torch.device) -> dict[str, Any]:
    """The baseline's merge, forward passes and statistics included."""
    nodes = gpu_networks.FAMILIES[gpu_networks.parse(name)[0]][1]()
    models = zoo.models[:count]
    took, merged = wall(
        lambda: baseline.merge(models, nodes, zoo.batches, reset_bases=True), device
    )
    return {"accuracy": zoo.accuracy(merged), "total": took}


def compare(
    given: Any,
    name: str,
    device: torch.device,
    clock: Clock,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """All rows of one kind of network; ``keep`` is told after each."""
    zoo = load_zoo(given, name, device)
    counts = [n for n in COUNTS if n <= len(zoo.models)]
    found: dict[str, Any] = {"name": name, "counts": counts, "rows": [], "notes": []}
    found |= {"images": sum(map(len, zoo.batches)), "tested": len(zoo.test)}
    if not counts:
        found["notes"].append(f"{len(zoo.models)} networks only")
        keep(found)
        return
    sets = {n: [tuple(range(n))] for n in counts}
    for label, *cells in paper.base_rows(zoo, sets):
        values = dict(zip(map(str, counts), cells, strict=False))
        found["rows"].append(
            {"label": label} | {n: {"accuracy": float(v)} for n, v in values.items()}
        )
    keep(found)
    settings = {"progress": False, "pairs": "all", "holdout": 0.0, **options(device)}
    spaces = ccamerge.spaces(zoo.models[0], zoo.batches[0][:2])
    ccamerge.collect(zoo.models, zoo.batches[:1], found=spaces, **settings)  # warms up
    found["collect"], collected = wall(
        lambda: ccamerge.collect(zoo.models, zoo.batches, found=spaces, **settings), device
    )
    longest = 0.0
    rows: dict[str, Callable[[int], dict[str, Any]]] = {
        label: lambda n, o=o: one(zoo, n, collected, {**o, "repair": given.repair}, device)
        for label, o in methods().items()
    }
    plain = "CCA Merge, plain torch as published"
    # After ours: both are there whatever the other methods take.
    rows = {OURS: rows.pop(OURS), plain: lambda n: published(zoo, name, n, device), **rows}
    for label, call in rows.items():
        row: dict[str, Any] = {"label": label}
        for n in counts:
            if clock.left() < 1.2 * longest + 1:
                found["notes"].append(f"{label}, N = {n}: no time left")
                continue
            start = time.perf_counter()
            try:
                row[str(n)] = call(n)
            except Exception as error:  # such as a package that is missing
                found["notes"].append(f"{label}, N = {n}: {brief(error)}")
                free(device)
            longest = max(longest, time.perf_counter() - start)
        if len(row) > 1:
            found["rows"].append(row)
            print(cells_of(row, counts), flush=True)
        keep(found)


def cells_of(row: dict[str, Any], counts: list[int]) -> list[str]:
    cells = [row["label"]]
    for n in counts:
        cells.append(f"{row[str(n)]['accuracy']:.1f}" if str(n) in row else "")
    last = row.get(str(max(counts)), {})
    cells += [seconds(last[s]) if s in last else "" for s in (*STAGES, "total")]
    return cells


def text_of(groups: list[dict[str, Any]]) -> str:
    parts = []
    for group in groups:
        counts = group["counts"]
        lines = [f"### {group['name']}", ""]
        if counts:
            head = [group["name"], *(f"N = {n}" for n in counts)]
            head += [*(f"{s}, N = {max(counts)}" for s in STAGES), "all of it"]
            lines += [table(head, [cells_of(row, counts) for row in group["rows"]]), ""]
        if "collect" in group:
            lines.append(
                f"- Statistics of {max(counts)} networks, all pairs, from "
                f"{group['images']} images without labels: {seconds(group['collect'])}. "
                f"Accuracy in percent of {group['tested']} test images."
            )
        lines += [f"- {note}" for note in group["notes"]]
        parts.append("\n".join(lines))
    parts.append(
        "- Of the first N seeds. Our times are without the statistics, the published algorithm's "
        "with them."
    )
    return "\n\n".join(parts)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="with weights as gpu_train.py writes them")
    parser.add_argument("--networks", nargs="+", help="default: all that the folder holds")
    parser.add_argument("--repair", help="instead of the library's default")
    parser.add_argument("--seconds", type=float, default=150.0, help="for everything")
    parser.add_argument("--data", type=Path, default=cases.SHARED / "data", help="CIFAR-10")
    given = parser.parse_args()
    device = ready(given)
    clock = Clock(given.seconds)
    groups: dict[str, dict[str, Any]] = {}
    failures: list[str] = []

    def keep(group: dict[str, Any]) -> None:
        groups[group["name"]] = group
        finished(False)

    def finished(done: bool) -> None:
        data = {"groups": list(groups.values()), "failures": failures}
        save(given, "zoo", device, text_of(list(groups.values())), data, done=done)

    names = given.networks or gpu_networks.names_in(given.folder)
    if not names:
        failures.append(f"{given.folder.name} holds no networks")
    for index, name in enumerate(names):
        share = Clock(clock.left() / (len(names) - index))
        try:
            compare(given, name, device, share, keep)
        except Exception as error:
            failures.append(f"{name}: {brief(error)}")
        free(device)
    finished(True)
    finish(failures)


if __name__ == "__main__":
    main()
