"""The paper's tables on the zoo: every method, N = 2 to all, with time and memory.

    python benchmarks/paper.py            # into README.md, the better part of an hour on two cores
    python benchmarks/paper.py --quick    # one set of networks for each N; nothing written

Test accuracy in percent over every choice of N networks, on 10,000 test images; 5,000 calibration
images, no labels. Each method runs in a process of its own, from statistics collected once, so that
its peak memory is its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import baseline
import cases
import torch
from layout import record, surroundings, table, verdict

import ccamerge
from ccamerge import FeatureMap, Statistics
from ccamerge.collection.taps import alignment_taps
from ccamerge.graph.space import Spaces
from ccamerge.methods.alignment import Aligned

Options = dict[str, Any]

CALIBRATION, TEST, BATCH = 5000, 10_000, 250

METHODS: dict[str, Options] = {
    "Direct averaging": {"method": "average"},
    "Permute": {"method": "permutation"},
    "OT Fusion": {"method": "ot"},
    "Matching Weights": {"method": "weight_matching"},
    "ZipIt!": {"method": "zipit"},
    "Procrustes": {"method": "procrustes"},
    "CCA Merge": {"method": "cca"},
    "CCA Merge, ridge auto": {"method": "cca", "ridge": "auto"},
    "CCA Merge, universe": {"method": "cca", "mode": "universe"},
}
"""Rows in the paper's order, Procrustes and our variants added; `merge` options beside our
defaults."""

PUBLISHED: Options = {"norm": "paper"}

STEPS: dict[str, tuple[str, Options]] = {
    "as published": ("last", PUBLISHED),
    "pooled taps": ("pooled", PUBLISHED),
    "folded": ("pooled", {"repair": "none"}),
    "REPAIR": ("pooled", {"repair": "variance"}),
}
"""What each part brings, one after the other: the statistics, and `merge` options."""


def last_taps(spaces: Spaces) -> Spaces:
    """The spaces with features matched only where the published graphs do: at their last tap."""

    def only(space: Any) -> Any:
        dropped = alignment_taps(space)[:-1]
        return dataclasses.replace(space, taps=tuple(t for t in space.taps if t not in dropped))

    return dataclasses.replace(spaces, spaces=tuple(only(s) for s in spaces.spaces))


def collect(zoo: cases.Zoo, folder: Path, seed: int) -> dict[str, float]:
    """Write the statistics of all networks, once for each definition of features; seconds."""
    found = ccamerge.spaces(zoo.models[0], zoo.batches[0])
    times = {}
    for name, taken in (("pooled", found), ("last", last_taps(found))):
        start = time.perf_counter()
        collected = ccamerge.collect(
            zoo.models,
            zoo.batches,
            pairs="all",
            found=taken,
            progress=False,
            seed=seed,
            holdout=0.0,
        )
        times[name] = time.perf_counter() - start
        collected.save(folder / f"{name}.safetensors")
    return times


Sets = dict[int, list[tuple[int, ...]]]
"""For each N the sets of networks to merge."""


def subsets(models: int, quick: bool) -> Sets:
    every = {n: list(combinations(range(models), n)) for n in range(2, models + 1)}
    return {n: sets[:1] for n, sets in every.items()} if quick else every


def measure(zoo: cases.Zoo, file: Path, options: Options, sets: Sets) -> dict[str, Any]:
    """For each N the accuracies, the median seconds and the process's peak memory so far (MiB).

    Networks are tested after all are merged: only merging counts for the memory.
    """
    collected = Statistics.load(file)
    rows: dict[str, Any] = {}
    merged: dict[str, list[torch.nn.Module]] = {}
    for count, chosen in sets.items():
        times = []
        for indices in chosen:
            moments = collected.subset(indices, 0)
            models = [zoo.models[i] for i in indices]
            start = time.perf_counter()
            done = ccamerge.merge(models, statistics=moments, progress=False, **options)
            times.append(time.perf_counter() - start)
            merged.setdefault(str(count), []).append(done.model)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows[str(count)] = {"seconds": statistics.median(times), "peak": peak}
    for count, models in merged.items():
        rows[count]["accuracy"] = [zoo.accuracy(model) for model in models]
    return rows


def in_process(file: Path, options: Options, sets: Sets) -> dict[str, Any]:
    """`measure` in a process of its own."""
    job = json.dumps({"file": str(file), "options": options, "sets": sets})
    command = [sys.executable, str(Path(__file__).resolve()), "--job", job]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_job(job: str) -> None:
    """What `in_process` starts."""
    given = json.loads(job)
    zoo = cases.zoo(BATCH, test=TEST)
    sets = {int(n): [tuple(indices) for indices in chosen] for n, chosen in given["sets"].items()}
    found = measure(zoo, Path(given["file"]), given["options"], sets)
    print(json.dumps(found))


def shown(values: Sequence[float]) -> str:
    """Mean, with the least and the largest where there are several."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def base_rows(zoo: cases.Zoo, sets: Sets) -> list[list[str]]:
    """The networks themselves and their ensembles (mean of probabilities)."""
    with torch.inference_mode():
        outputs = [
            torch.cat([model(x).softmax(1) for x in zoo.test.split(500)]) for model in zoo.models
        ]

    def accuracy(indices: Sequence[int]) -> float:
        mean = torch.stack([outputs[i] for i in indices]).mean(0)
        return 100 * float((mean.argmax(1) == zoo.labels).double().mean())

    base = [
        shown([statistics.fmean(accuracy([i]) for i in indices) for indices in chosen])
        for chosen in sets.values()
    ]
    ensembles = [shown([accuracy(indices) for indices in chosen]) for chosen in sets.values()]
    return [["Base models avg", *base, "", ""], ["Ensemble", *ensembles, "", ""]]


def published_row(zoo: cases.Zoo, sets: Sets) -> list[str]:
    """CCA Merge by `baseline`, of the first networks only: its time includes the forward passes."""
    accuracies, times = [], []
    for chosen in sets.values():
        models = [zoo.models[i] for i in chosen[0]]
        start = time.perf_counter()
        merged = baseline.merge_resnet20(models, zoo.batches, reset_bases=True)
        times.append(time.perf_counter() - start)
        accuracies.append(zoo.accuracy(merged))
    row = [f"{value:.1f}" for value in accuracies]
    return ["CCA Merge, plain torch as published ¹", *row, f"{times[-1]:.1f} s", ""]


Accuracies = dict[int, list[float]]
"""For each N, of every set."""


def main_table(zoo: cases.Zoo, folder: Path, sets: Sets) -> tuple[str, dict[str, Accuracies]]:
    """Every method with our defaults; the accuracies by rows, too."""
    rows = base_rows(zoo, sets)
    best: dict[str, Accuracies] = {}
    for label, options in METHODS.items():
        found = in_process(folder / "pooled.safetensors", options, sets)
        cells = [shown(found[str(n)]["accuracy"]) for n in sets]
        last = found[str(max(sets))]
        rows.append([label, *cells, f"{last['seconds']:.1f} s", f"{last['peak']:.0f} MiB"])
        best[label] = {n: found[str(n)]["accuracy"] for n in sets}
        print(rows[-1], flush=True)
    rows.append(published_row(zoo, sets))
    print(rows[-1], flush=True)
    ours = best["CCA Merge"]
    others = {k: v for k, v in best.items() if not k.startswith("CCA Merge")}
    leads = all(
        statistics.fmean(ours[n]) > statistics.fmean(v[n]) for v in others.values() for n in sets
    )
    head = ["method", *(f"N = {n}" for n in sets), f"time, N = {max(sets)}", "peak memory"]
    notes = [
        (
            "- Means over all choices of networks (least to largest). Time is that of merging "
            "after the statistics are collected; peak memory is the whole process's."
        ),
        "- ¹ Seeds 0 to N - 1 only; its time includes forward passes and statistics.",
        f"- CCA Merge with the defaults leads in every column: {'yes' if leads else '**no**'}; "
        f"least pair {min(ours[2]):.1f} (wanted 81: {verdict(min(ours[2]) >= 81)})"
        + (
            f", least three {min(ours[3]):.1f} (wanted 79: {verdict(min(ours[3]) >= 79)})."
            if 3 in ours
            else "."
        ),
    ]
    return table(head, rows) + "\n\n" + "\n".join(notes), best


def steps_table(folder: Path, sets: Sets, whole: Mapping[str, Accuracies]) -> str:
    """What each part of the treatment brings, for each method; ``whole`` is with all of them."""
    rows = []
    for label, options in METHODS.items():
        if options.get("ridge") or options.get("mode"):
            continue
        row = [label]
        for file, step in STEPS.values():
            chosen = {**options, **step}
            if options["method"] == "cca" and step is PUBLISHED:
                chosen["gamma"] = baseline.GAMMA
            found = in_process(folder / f"{file}.safetensors", chosen, {2: sets[2]})
            row.append(f"{statistics.fmean(found['2']['accuracy']):.1f}")
        row.append(f"{statistics.fmean(whole[label][2]):.1f}")
        rows.append(row)
        print(row, flush=True)
    note = (
        "- Mean over all pairs. \"As published\": features of each space's last tap, BatchNorm's "
        "gamma and beta mapped, statistics reset, gamma 0.1. Each column adds its part to the one "
        "before: all taps of a space pooled; BatchNorm folded before mapping; variance restored; "
        "linear operations fitted (the default)."
    )
    return table(["method, N = 2", *STEPS, "regression"], rows) + "\n\n" + note


def rebased(aligned: Aligned, onto: int) -> Aligned:
    """The same maps with another model's features as the target."""
    solutions = {}
    for name, row in aligned.solutions.items():
        base = row[onto].feature_map
        maps = [
            FeatureMap(s.feature_map.forward @ base.inverse, base.forward @ s.feature_map.inverse)
            for s in row
        ]
        maps[onto] = FeatureMap.identity(len(base.forward))
        solutions[name] = [
            dataclasses.replace(s, feature_map=m) for s, m in zip(row, maps, strict=True)
        ]
    return dataclasses.replace(aligned, solutions=solutions, reference=onto)


def modes_table(zoo: cases.Zoo, folder: Path, sets: Sets, repair: str) -> str:
    """Both modes for every choice of reference, and the universe's maps with one target."""
    collected = Statistics.load(folder / "pooled.safetensors")
    rows = []
    for count in (n for n in sets if n > 2):
        found: dict[str, list[float]] = {"reference": [], "universe": [], "maps alone": []}
        spreads = []
        for indices in sets[count]:
            models = [zoo.models[i] for i in indices]
            alone = []
            for reference in range(count):
                moments = collected.subset(indices, reference)
                merged = {
                    mode: ccamerge.merge(
                        models,
                        statistics=moments,
                        reference=reference,
                        mode=mode,
                        repair=repair,
                        progress=False,
                    )
                    for mode in ("reference", "universe")
                }
                for mode, done in merged.items():
                    found[mode].append(zoo.accuracy(done.model))
                done = ccamerge.merge(
                    models,
                    statistics=collected.subset(indices, 0),
                    aligned=rebased(merged["universe"].aligned, 0),
                    repair=repair,
                    progress=False,
                )
                alone.append(zoo.accuracy(done.model))
            found["maps alone"] += alone
            spreads.append(max(alone) - min(alone))
        rows.append([f"N = {count}", *(shown(v) for v in found.values()), f"{max(spreads):.2f}"])
        print(rows[-1], flush=True)
    note = (
        f'- Every choice of reference in every set, repair {repair}. "Maps alone": the universe '
        "solved from each reference, its maps then led to the first model's features; the last "
        "column is their largest spread within a set."
    )
    head = ["", "reference mode", "universe", "universe, maps alone", "spread of maps alone"]
    return table(head, rows) + "\n\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one set for each N; write nothing")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs kept for repair")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(cases.THREADS)
    ccamerge.set_num_threads(cases.THREADS)
    if given.job:
        run_job(given.job)
        return
    zoo = cases.zoo(CALIBRATION, test=TEST)
    sets = subsets(len(zoo.models), given.quick)
    place = surroundings("python benchmarks/paper.py")

    def finished(section: str, text: str) -> None:
        text += "\n\nTaken on:\n" + place
        print("\n" + text + "\n", flush=True)
        if not given.quick:
            record(section, text)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = collect(zoo, folder, given.seed)
        text, best = main_table(zoo, folder, sets)
        text += (
            f"\n- Statistics of all {len(zoo.models)} networks, all pairs: {times['pooled']:.1f} s."
        )
        finished("paper", text)
        finished("parts", steps_table(folder, sets, best))
        finished("modes", modes_table(zoo, folder, sets, "variance"))


if __name__ == "__main__":
    main()
