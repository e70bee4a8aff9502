"""With how many unlabelled inputs a merge that is refined beats a member that is refined.

    python benchmarks/few_inputs.py                         # table and picture, minutes a cell
    python benchmarks/few_inputs.py --inputs 100 500 --seeds 2 --seconds 20
    python benchmarks/few_inputs.py --record                # also into README.md

The pair of ResNet20s that were trained on class-skewed halves of CIFAR-10. Both sides get the same
inputs, without labels, and the same time in all: what the merge takes is added to the training of
the member. The member's training is the package's own, from whichever member is closest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import cases
import torch
from ensemble_cases import Case, split
from ensembles import ensemble_of
from layout import record, surroundings, table
from torch import Tensor

import ccamerge

SIDES: dict[str, dict[str, Any]] = {
    "merged, refined": {},
    "a member, refined": {"method": "average", "repair": "none", "select": "fidelity"},
}
"""Settings of a merge. The plain average of such members is useless: a member is refined."""

PICTURE = Path(__file__).resolve().parent / "results" / "few_inputs.png"


def measured(case: Case, inputs: Tensor, seed: int, seconds: float) -> dict[str, dict[str, float]]:
    """Scores of both sides."""
    batches = list(inputs.split(min(250, max(1, len(inputs) // 4))))
    target = ensemble_of(case.task, case.members, case.task.test)
    found: dict[str, dict[str, float]] = {}
    budget = seconds
    for side, settings in SIDES.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = ccamerge.merge(
                case.members,
                batches,
                refine=f"{budget:.1f}s",
                seed=seed,
                progress=False,
                **settings,
            )
        took = time.perf_counter() - start
        scores = case.task.scores(case.task.predictions(result.model, case.task.test), target)
        fidelity = result.report.fidelity
        found[side] = {"accuracy": scores["accuracy, %"], "seconds": took}  # type: ignore[dict-item]
        print(len(inputs), seed, side, found[side], fidelity and fidelity.chosen, flush=True)
        if side == "merged, refined":  # trials take half as long as the training
            budget = max(seconds, (took - result.report.seconds["collect"]) / 1.5)
    return found


def drawn(every: dict[int, list[dict[str, dict[str, float]]]], case: Case, path: Path) -> None:
    """Accuracy over the number of inputs, a line for each side, dots for the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for side, marker in zip(SIDES, "os", strict=True):
        means = [statistics.fmean(r[side]["accuracy"] for r in rows) for rows in every.values()]
        (line,) = axes.plot(list(every), means, marker=marker, label=side)
        for count, rows in every.items():
            values = [row[side]["accuracy"] for row in rows]
            axes.plot([count] * len(values), values, ".", color=line.get_color(), alpha=0.5)
    members = [_accuracy(case, [m]) for m in case.members]
    axes.axhline(max(members), color="gray", linestyle=":", label="the better member")
    axes.axhline(_accuracy(case, case.members), color="gray", linestyle="--", label="the ensemble")
    axes.set(xscale="log", xlabel="inputs without labels", ylabel="accuracy, %")
    axes.set_xticks(list(every), [f"{count:,}" for count in every])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.92))  # below the ensemble
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def _accuracy(case: Case, models: Any) -> float:
    found = ensemble_of(case.task, models, case.task.test)
    value = case.task.scores(found, found)["accuracy, %"]
    assert isinstance(value, float)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--inputs", nargs="+", type=int, default=[100, 500, 2000, 5000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--record", action="store_true", help="put the table into README.md")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    cases.THREADS = given.threads
    torch.set_num_threads(given.threads)
    ccamerge.set_num_threads(given.threads)
    (case,) = split(False)
    pool = case.task.inputs
    assert isinstance(pool, Tensor)
    every: dict[int, list[dict[str, dict[str, float]]]] = {}
    for count in given.inputs:
        every[count] = []
        for seed in range(given.seeds):
            order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
            every[count].append(measured(case, pool[order[:count]], seed, given.seconds))
    rows = [
        [
            f"{count:,}",
            *(f"{statistics.fmean(r[side]['accuracy'] for r in found):.2f}" for side in SIDES),
            *(f"{statistics.fmean(r[side]['seconds'] for r in found):.0f}" for side in SIDES),
        ]
        for count, found in every.items()
    ]
    head = ["inputs", *(f"{side}, %" for side in SIDES), *(f"seconds, {side}" for side in SIDES)]
    members = ", ".join(f"{_accuracy(case, [m]):.2f}" for m in case.members)
    text = (
        f"Accuracy on {len(case.task.test):,} test images, mean of {given.seeds} seeds; members "
        f"{members}, their ensemble {_accuracy(case, case.members):.2f}.\n\n{table(head, rows)}\n\n"
        + surroundings(" ".join(["python benchmarks/few_inputs.py", *sys.argv[1:]]))
    )
    print(text)
    drawn(every, case, PICTURE)
    PICTURE.with_suffix(".json").write_text(json.dumps(every, indent=1) + "\n")
    if given.record:
        record("few inputs", text)


if __name__ == "__main__":
    main()
