"""One network instead of an ensemble: merged, and a member distilled on the same inputs as long.

    python benchmarks/ensembles.py                          # all parts, into results/ensembles.json
    python benchmarks/ensembles.py --only ani split         # some of them; the others' stay
    python benchmarks/ensembles.py --quick --only pangolin  # smaller; nothing written
    python benchmarks/ensembles.py --record                 # what is in the file, into README.md

Each ensemble's members, their plain average, merges by `ROWS`, and the first member, which is also
the merges' reference, trained towards the ensemble's predictions for as many seconds of CPU as each
merge took, the ensemble's forward passes included on both sides. Nobody sees labels; no choice sees
the test inputs.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cases
import torch
from ensemble_cases import MEMBER, PARTS, Case, Scores, Task, chosen, samples
from layout import record, surroundings, table, verdict
from torch import Tensor, nn

import ccamerge

Figures = dict[str, Any]

ROWS: dict[str, dict[str, Any]] = {
    "handed over": {},
    "refined": {"refine": True},
    "CCA": {"select": "none"},
    "permutation": {"method": "permutation", "select": "none"},
}
"""Keyword arguments of `ccamerge.merge` by label. The first are the defaults: what is handed over
may be a member itself; the last two are merges, however far from the ensemble they are."""

HELD = 10
"""One of so many inputs tells when training stops."""
EVERY, PATIENCE, HALVED = 10, 40, 10
"""Steps between looks at the held-out inputs; looks without a better network after which training
ends, and after which its rate is halved."""

FILE = Path(__file__).resolve().parent / "results" / "ensembles.json"


def averaged(members: Sequence[nn.Module]) -> nn.Module:
    """The mean of all parameters and buffers."""
    model = copy.deepcopy(members[0])
    states = [member.state_dict() for member in members]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
    model.load_state_dict(mean)
    return model


def ensemble_of(task: Task, members: Sequence[nn.Module], inputs: Any) -> Tensor:
    """The members' mean prediction."""
    total = task.predictions(members[0], inputs).clone()
    for member in members[1:]:
        total += task.predictions(member, inputs)
    return total / len(members)


def distilled(
    task: Task, members: Sequence[nn.Module], budgets: Mapping[str, float], seed: int = 0
) -> dict[str, tuple[nn.Module, int]]:
    """The first member trained towards the ensemble's predictions; for each budget, and its steps.

    Adam; of the inputs a tenth is held out, and the network with the least distance on it is kept,
    the member itself among them. Normalisation keeps the member's statistics. Budgets are seconds
    of CPU, the forward passes of the members included; one run serves them all.
    """
    start = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    target = ensemble_of(task, members, task.inputs).clone()
    order = torch.randperm(samples(task.inputs), generator=generator)
    held, kept = order.tensor_split([max(1, len(order) // HELD)])
    model = copy.deepcopy(members[0]).eval().requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=task.rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "min", 0.5, HALVED)
    unseen = chosen(task.inputs, held)
    best, least, worse, steps = copy.deepcopy(model), math.inf, 0, 0
    waiting = sorted(budgets, key=lambda label: budgets[label])
    found: dict[str, tuple[nn.Module, int]] = {}

    def due() -> bool:
        while waiting and time.process_time() - start >= budgets[waiting[0]]:
            found[waiting.pop(0)] = (copy.deepcopy(best), steps)
        return not waiting

    shuffled: list[Tensor] = []
    while not due() and worse < PATIENCE:
        if steps % EVERY == 0:
            now = task.distance(task.predictions(model, unseen), target[held]).item()
            worse += 1
            if now < least:
                best, least, worse = copy.deepcopy(model), now, 0
            schedule.step(now)
        shuffled = shuffled or list(
            kept[torch.randperm(len(kept), generator=generator)].split(task.step)
        )
        which = shuffled.pop()
        prediction = task.predict(model, chosen(task.inputs, which))
        optimiser.zero_grad()
        task.distance(prediction, target[which]).backward()
        optimiser.step()
        steps += 1
    return found | dict.fromkeys(waiting, (best, steps))


def resident(field: str) -> float:
    """MiB of memory that this process has now (VmRSS), or has had at most (VmHWM)."""
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) / 1024


def taken(call: Callable[[], nn.Module]) -> tuple[nn.Module | None, Figures]:
    """What a call gives, with its seconds, by the clock and of CPU, memory and warnings."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed is not to serve this one
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is there now
    before = resident("VmRSS")
    clock, cpu = time.perf_counter(), time.process_time()
    figures: Figures = {}
    model = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = call()
        except Exception as error:  # a row that says so, not the end
            figures["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    figures |= {
        "seconds": time.perf_counter() - clock,
        "cpu": time.process_time() - cpu,
        "memory": resident("VmHWM") - before,
        "warnings": sorted({str(warning.message) for warning in caught}),
    }
    return model, figures


def measured(case: Case, rows: Mapping[str, dict[str, Any]]) -> Figures:
    """Scores of everything for one ensemble."""
    task = case.task
    ensemble = ensemble_of(task, case.members, task.test)

    def scores(model: nn.Module) -> Scores:
        return task.scores(task.predictions(model, task.test), ensemble)

    found: Figures = {
        "inputs": samples(task.inputs),
        "test": samples(task.test),
        "wanted": case.wanted,
        "members": [scores(member) for member in case.members],
        "ensemble": task.scores(ensemble, ensemble),
        "average": scores(averaged(case.members)),
        "merged": {},
        "distilled": {},
    }
    for part in ("members", "ensemble", "average"):
        print(f"  {part}: {found[part]}", flush=True)
    for label, settings in rows.items():
        model, figures = taken(lambda own=settings: task.merge(case.members, **own))
        if model is not None:
            figures["scores"] = scores(model)
        found["merged"][label] = figures
        print(f"  {label}: {figures}", flush=True)
    budgets = {label: row["cpu"] for label, row in found["merged"].items() if "scores" in row}
    for label, (model, steps) in distilled(task, case.members, budgets).items():
        found["distilled"][label] = {"steps": steps, "scores": scores(model)}
        print(f"  as long as {label}: {found['distilled'][label]}", flush=True)
    return found


def networks(found: Figures) -> dict[str, Scores]:
    """Scores by what has them, in the order of the table."""
    members = found["members"]
    columns = {
        MEMBER: {
            key: statistics.fmean(own[key] for own in members)
            for key, value in members[0].items()
            if not isinstance(value, list)
        },
        "ensemble": found["ensemble"],
        "average": found["average"],
    }
    for label, row in found["merged"].items():
        columns[label] = row.get("scores", {})
        if label in found["distilled"]:
            columns[f"distilled as long as {label}"] = found["distilled"][label]["scores"]
    return columns


def shown(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 20:
        return f"{value:.1f}"
    return f"{value:.3f}" if value >= 0.1 or not value else f"{value:.2g}"


def score_table(every: Mapping[str, Figures]) -> str:
    heads = list(dict.fromkeys(label for found in every.values() for label in networks(found)))
    rows = []
    for name, found in every.items():
        own = networks(found)
        for key in own[MEMBER]:
            values = [own.get(head, {}).get(key) for head in heads]
            rows.append([f"{name}: {key}", *map(shown, values)])
    return table(["", *heads], rows)


def class_table(name: str, found: Figures) -> str:
    """Accuracy of everything in each class."""
    own = {f"member {i}": scores for i, scores in enumerate(found["members"])}
    own |= {label: scores for label, scores in networks(found).items() if "by class" in scores}
    rows = [
        [label, *(f"{value:.1f}" for value in scores["by class"])] for label, scores in own.items()
    ]
    count = len(found["ensemble"]["by class"])
    return table([f"{name}: accuracy by class, %", *map(str, range(count))], rows)


def cost_table(every: Mapping[str, Figures]) -> str:
    rows = [
        [
            f"{name}: {label}",
            str(found["inputs"]),
            f"{row['seconds']:.1f}",
            f"{row['cpu']:.1f}",
            f"{row['memory']:.0f}",
            str(found["distilled"].get(label, {}).get("steps", "")),
        ]
        for name, found in every.items()
        for label, row in found["merged"].items()
    ]
    head = ["", "inputs", "seconds", "of CPU", "MiB", "steps of the distilled member"]
    return table(head, rows)


def notes(every: Mapping[str, Figures]) -> str:
    """What was wanted, what failed, and what was warned of."""
    lines = []
    for name, found in every.items():
        columns = networks(found)
        for key, (way, goal) in found["wanted"].items():
            bound = columns[goal][key] if isinstance(goal, str) else goal
            reached = {
                label: row["scores"][key]
                for label, row in found["merged"].items()
                if "scores" in row
            }
            told = "; ".join(
                f"{label} {shown(value)}, "
                + verdict(value >= bound if way == "least" else value <= bound)
                for label, value in reached.items()
            )
            of = f" ({goal})" if isinstance(goal, str) else ""
            lines.append(f"- {name}: {key} at {way} {shown(bound)}{of} wanted: {told}.")
        for label, row in found["merged"].items():
            if "error" in row:
                lines.append(f"- {name}, {label}: {row['error']}")
            lines += [f"- {name}, {label}, warning: {text}" for text in row["warnings"]]
    return "\n".join(lines)


def text_of(every: Mapping[str, Figures]) -> str:
    parts = [score_table(every)]
    for name, found in every.items():
        if "by class" in found["ensemble"]:
            parts.append(class_table(name, found))
    parts += [cost_table(every), notes(every)]
    by_place: dict[str, list[str]] = {}
    for name, found in every.items():
        by_place.setdefault(found["taken"], []).append(name)
    parts += [f"{'; '.join(names)}, taken on:\n{place}" for place, names in by_place.items()]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=None, help="of the parts")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="fewer and smaller; write nothing")
    parser.add_argument("--record", action="store_true", help="put the file into README.md")
    parser.add_argument("--threads", type=int, default=cases.THREADS)
    given = parser.parse_args()
    cases.THREADS = given.threads
    torch.set_num_threads(given.threads)
    ccamerge.set_num_threads(given.threads)
    every: dict[str, Figures] = {}
    if FILE.exists() and not given.quick:
        every = json.loads(FILE.read_text())
    parts = given.only or ([] if given.record and every else list(PARTS))
    taken_on = surroundings(" ".join(["python benchmarks/ensembles.py", *sys.argv[1:]]))
    for part in parts:
        for case in PARTS[part](given.quick):
            print(case.name, flush=True)
            every[case.name] = measured(case, {label: ROWS[label] for label in given.rows})
            every[case.name]["taken"] = taken_on
            if not given.quick:
                FILE.parent.mkdir(exist_ok=True)
                FILE.write_text(json.dumps(every, indent=1) + "\n")
    text = text_of(every)
    print("\n" + text + "\n", flush=True)
    if given.record and not given.quick:
        record("ensembles", text)


if __name__ == "__main__":
    main()
