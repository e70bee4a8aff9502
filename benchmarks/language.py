"""Language models merged: the zoo's by every method and repair, and fine-tunes of one of them.

    python benchmarks/language.py                       # every pair of the zoo, into README.md
    python benchmarks/language.py --curve               # and the barrier of each pair
    python benchmarks/language.py --finetunes           # copies trained on thirds of the text
    python benchmarks/language.py --quick --pairs llama-s0,llama-s1    # nothing written

Loss in nats a character on the first 400 windows of 129 characters of the validation text, its last
tenth: what `training.json` of each model tells. Statistics of a pair are collected once, from
160,000 characters of the training text without labels, and given to every merge.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import lzma
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import cases
import torch
from layout import demand, record, surroundings, table, verdict
from torch import Tensor, nn
from torchvision_import import import_torchvision

import ccamerge
from ccamerge import Statistics
from ccamerge.graph.tracing.untying import untied

Figures = dict[str, Any]

CONTEXT = 128
CALIBRATION, WINDOWS, BATCH = 160_000, 400, 50
"""Characters for statistics and repair, windows of the validation text, windows in a batch."""

COMPARED = ("average", "permutation", "procrustes", "cca")
REPAIRS = ("none", "variance", "regression")
CURVED = ("average", "cca")
WANTED = 1.90
"""Loss of CCA with the defaults for each Llama pair, at most."""

COPIES, STEPS, SAMPLES, RATE = 3, 120, 32, 3e-4
"""Fine-tunes: how many, their steps, windows in a step, and the largest learning rate."""
TOLERATED = 0.005
"""By how much a merge of fine-tunes may be worse than their plain average."""

RESULTS = Path(__file__).resolve().parent / "results"


@dataclasses.dataclass(frozen=True)
class Text:
    """Shakespeare's characters by their place in the sorted set of all: the models' vocabulary."""

    vocabulary: str
    train: Tensor
    held_out: Tensor

    def calibration(self, characters: int) -> list[Tensor]:
        """Windows evenly spread over the training text, (BATCH, CONTEXT) each."""
        count = characters // CONTEXT
        starts = torch.linspace(0, len(self.train) - CONTEXT, count).long()
        windows = torch.stack([self.train[i : i + CONTEXT] for i in starts.tolist()])
        return list(windows.split(BATCH))

    def validation(self, windows: int) -> list[tuple[Tensor, Tensor]]:
        """Characters and the ones that follow them."""
        whole = self.held_out[: windows * (CONTEXT + 1)].view(windows, CONTEXT + 1)
        return [(part[:, :-1], part[:, 1:]) for part in whole.split(BATCH)]


def shakespeare() -> Text:
    path = cases.SHARED / "data" / "shakespeare.txt.xz"
    if not path.exists():
        message = f"{path} is not there; set CCAMERGE_SHARED to the folder of zoo and data"
        raise FileNotFoundError(message)
    text = lzma.decompress(path.read_bytes()).decode()
    vocabulary = "".join(sorted(set(text)))
    places = {character: index for index, character in enumerate(vocabulary)}
    tokens = torch.tensor([places[character] for character in text])
    cut = int(0.9 * len(tokens))
    return Text(vocabulary, tokens[:cut], tokens[cut:])


@dataclasses.dataclass(frozen=True)
class Member:
    """A checkpoint of the zoo, with the loss that its training ended with."""

    name: str
    model: nn.Module
    told: float


def members(names: Sequence[str], text: Text) -> list[Member]:
    import_torchvision()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    found = []
    for name in names:
        folder = cases.SHARED / "zoo" / name
        training = json.loads((folder / "training.json").read_text())
        demand(training["chars"] == text.vocabulary, f"{name} has another vocabulary")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        found.append(Member(name, model, training["val_loss"]))
    return found


def zoo_names() -> list[str]:
    """Of the checkpoints that `training.json` says are language models."""
    return sorted(path.parent.name for path in (cases.SHARED / "zoo").glob("*/training.json"))


@dataclasses.dataclass(frozen=True)
class Task:
    """What models are merged with and judged by; ``options`` go to every `collect` and `merge`."""

    calibration: list[Tensor]
    validation: list[tuple[Tensor, Tensor]]

    def loss(self, models: nn.Module | Sequence[nn.Module]) -> float:
        return ccamerge.evaluate(models, self.validation, "cross_entropy")

    def collect(self, models: Sequence[nn.Module]) -> tuple[Statistics, float]:
        start = time.perf_counter()
        collected = ccamerge.collect(
            models, self.calibration, pairs="all", progress=False, holdout=0.0
        )
        return collected, time.perf_counter() - start

    def merged(
        self, models: Sequence[nn.Module], collected: Statistics, **settings: Any
    ) -> Figures:
        """Loss and seconds of a merge; the error in a line, if there is none."""
        start = time.perf_counter()
        try:
            done = ccamerge.merge(models, statistics=collected, progress=False, **settings)
        except Exception as error:  # a method may lack its package, or fail: a row, not the end
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        took = time.perf_counter() - start
        return {"loss": self.loss(done.model), "seconds": took}

    def grid(
        self, models: Sequence[nn.Module], collected: Statistics, methods: Sequence[str]
    ) -> dict[str, dict[str, Figures]]:
        """By method and repair."""
        found: dict[str, dict[str, Figures]] = {}
        for method in methods:
            found[method] = {}
            for repair in REPAIRS:
                row = self.merged(models, collected, method=method, repair=repair)
                found[method][repair] = row
                print(f"  {method}, {repair}: {row}", flush=True)
        return found


def pair_figures(task: Task, pair: Sequence[Member], curve: bool) -> Figures:
    """Everything about one pair."""
    models = [member.model for member in pair]
    collected, seconds = task.collect(models)
    spaces = collected.spaces_of(models[0])
    found: Figures = {
        "pair": [member.name for member in pair],
        "collect": seconds,
        "spaces": len(spaces),
        "aligned": spaces.aligned_shares(),
        "ensemble": task.loss(models),
        "merged": task.grid(models, collected, COMPARED),
    }
    if curve:
        found["curve"] = {}
        for method in CURVED:
            line = ccamerge.barrier(
                models,
                task.validation,
                statistics=collected,
                points=5,
                method=method,
            )
            found["curve"][method] = {"t": line.t, "loss": line.loss, "barrier": line.barrier}
            print(f"  {method}: {found['curve'][method]}", flush=True)
    return found


def cell(row: Figures, base: float = 0.0) -> str:
    """A loss, or how far it is from another one, with the seconds that the merge took."""
    if "error" in row:
        return "failed"
    shown = f"{row['loss'] - base:+.4f}" if base else f"{row['loss']:.3f}"
    return f"{shown} ({row['seconds']:.1f} s)"


def zoo_text(own: dict[str, Figures], pairs: Sequence[Figures]) -> str:
    """The tables of all pairs."""
    rows = [
        [f"{' + '.join(found['pair'])}, {method}", *(cell(grid[repair]) for repair in REPAIRS)]
        for found in pairs
        for method, grid in found["merged"].items()
    ]
    parts = [table(["loss (seconds)", *REPAIRS], rows)]
    notes = []
    for found in pairs:
        first, second = found["pair"]
        best = {
            method: min(row.get("loss", float("inf")) for row in grid.values())
            for method, grid in found["merged"].items()
        }
        notes.append(
            f"- {first} {own[first]['loss']:.3f}, {second} {own[second]['loss']:.3f}, ensemble "
            f"{found['ensemble']:.3f}; statistics {found['collect']:.1f} s; {found['spaces']} "
            f"spaces, {100 * found['aligned'][0]:.0f} % of parameters aligned along all axes, "
            f"{100 * found['aligned'][1]:.0f} % along some; best method "
            f"{min(best, key=lambda method: best[method])}."
        )
    defaults = [
        found["merged"]["cca"]["regression"].get("loss", float("inf"))
        for found in pairs
        if found["pair"][0].startswith("llama")
    ]
    if defaults:
        worst = max(defaults)
        notes.append(
            f"- CCA with the defaults, largest of the Llama pairs: {worst:.3f} (wanted {WANTED}: "
            f"{verdict(worst <= WANTED)})."
        )
    parts.append("\n".join(notes))
    curved = [found for found in pairs if "curve" in found]
    if curved:
        parts.append(curve_table(curved))
    return "\n\n".join(parts)


def curve_table(pairs: Sequence[Figures]) -> str:
    """Loss along the way from the first model to the second."""
    rows = []
    for found in pairs:
        for method, line in found["curve"].items():
            losses = [f"{value:.3f}" for value in line["loss"]]
            label = f"{' + '.join(found['pair'])}, {method}"
            rows.append([label, *losses, f"{line['barrier']:.3f}"])
    ts = next(iter(pairs[0]["curve"].values()))["t"]
    return table(["default repair", *(f"t = {t:g}" for t in ts), "barrier"], rows)


def fine_tuned(model: nn.Module, text: Tensor, steps: int, seed: int) -> nn.Module:
    """A copy that was trained on a text for some steps."""
    copied: Any = copy.deepcopy(model).train()
    optimiser = torch.optim.AdamW(copied.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (SAMPLES,), generator=generator)
        windows = torch.stack([text[i : i + CONTEXT + 1] for i in starts.tolist()])
        scores = copied(windows[:, :-1]).logits
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return copied.eval()


def finetune_figures(
    task: Task, ancestor: Member, text: Text, steps: int, pairs: bool
) -> list[Figures]:
    """Copies of a model, trained on parts of the text, merged: all of them, and each pair."""
    thirds = text.train.chunk(COPIES)
    copies = []
    for seed, part in enumerate(thirds):
        start = time.perf_counter()
        copies.append(fine_tuned(ancestor.model, part, steps, seed))
        took = time.perf_counter() - start
        print(f"  {ancestor.name} on part {seed}: {task.loss(copies[-1]):.4f} ({took:.0f} s)")
    collected, _ = task.collect(copies)
    chosen = [tuple(range(COPIES))] + (list(combinations(range(COPIES), 2)) if pairs else [])
    found = []
    for indices in chosen:
        models = [copies[i] for i in indices]
        found.append(
            {
                "ancestor": ancestor.name,
                "copies": indices,
                "own": [task.loss(model) for model in models],
                "ensemble": task.loss(models),
                "merged": task.grid(models, collected.subset(indices, 0), list(ccamerge.METHODS)),
            }
        )
    return found


def finetune_text(sets: Sequence[Figures]) -> str:
    """Losses of merged fine-tunes beside that of their plain average."""
    rows, notes, worst = [], [], -float("inf")
    for found in sets:
        plain = found["merged"]["average"]["none"]["loss"]
        label = f"{found['ancestor']}, {len(found['copies'])} copies"
        for method, grid in found["merged"].items():
            rows.append([f"{label}, {method}", *(cell(grid[repair], plain) for repair in REPAIRS)])
            worst = max([worst, *(row["loss"] - plain for row in grid.values() if "loss" in row)])
        own = statistics.fmean(found["own"])
        notes.append(
            f"- Copies {', '.join(map(str, found['copies']))}: their own loss {own:.4f}, ensemble "
            f"{found['ensemble']:.4f}, plain average {plain:.4f}."
        )
    notes.append(
        f"- Worst of all beside the plain average: {worst:+.4f} (wanted {TOLERATED} at most: "
        f"{verdict(worst <= TOLERATED)})."
    )
    head = ["loss less that of the plain average", *REPAIRS]
    return table(head, rows) + "\n\n" + "\n".join(notes)


def finished(given: argparse.Namespace, section: str, text: str, figures: Any) -> None:
    """Print a section, and keep it."""
    command = " ".join(["python benchmarks/language.py", *sys.argv[1:]])
    text += "\n\nTaken on:\n" + surroundings(command)
    print("\n" + text + "\n", flush=True)
    if not given.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{section}.json").write_text(json.dumps(figures, indent=1) + "\n")
        record(section, text)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the text; write nothing")
    parser.add_argument(
        "--pairs", nargs="+", metavar="NAME,NAME", help="of the zoo; default: all of one family"
    )
    parser.add_argument("--curve", action="store_true", help="losses between the models, too")
    parser.add_argument("--finetunes", action="store_true", help="fine-tunes in place of the zoo")
    parser.add_argument("--ancestor", default="llama-s0", help="of the fine-tunes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each fine-tune")
    parser.add_argument(
        "--ties", choices=("keep", "untie"), default="keep", help="what becomes of tied heads"
    )
    parser.add_argument("--threads", type=int, default=cases.THREADS)
    return parser.parse_args(arguments)


def chosen_pairs(given: argparse.Namespace) -> list[tuple[str, ...]]:
    if given.pairs:
        return [tuple(pair.split(",")) for pair in given.pairs]
    families: dict[str, list[str]] = {}
    for name in zoo_names():
        families.setdefault(name.rpartition("-")[0], []).append(name)
    return [pair for names in families.values() for pair in combinations(names, 2)]


def main() -> None:
    given = options()
    cases.THREADS = given.threads
    torch.set_num_threads(given.threads)
    ccamerge.set_num_threads(given.threads)
    text = shakespeare()
    task = Task(
        text.calibration(CALIBRATION // 4 if given.quick else CALIBRATION),
        text.validation(WINDOWS // 4 if given.quick else WINDOWS),
    )
    if given.finetunes:
        (ancestor,) = members([given.ancestor], text)
        sets = finetune_figures(task, ancestor, text, given.steps, not given.quick)
        finished(given, "finetunes", finetune_text(sets), sets)
        return
    pairs = chosen_pairs(given)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    zoo = {member.name: member for member in members(names, text)}
    if given.ties == "untie":  # as the setting of `merge` does it
        for name, member in zoo.items():
            zoo[name] = dataclasses.replace(member, model=untied(member.model, name))
    own = {}
    for name, member in zoo.items():
        own[name] = {"loss": task.loss(member.model), "told": member.told}
        print(f"{name}: {own[name]['loss']:.4f}, told {member.told:.4f}", flush=True)
        if not given.quick:
            demand(abs(own[name]["loss"] - member.told) < 2e-4, f"loss of {name}")
    found = []
    for pair in pairs:
        print(" + ".join(pair), flush=True)
        found.append(pair_figures(task, [zoo[name] for name in pair], given.curve))
    section = "language" if given.ties == "keep" else "language-untied"
    finished(given, section, zoo_text(own, found), {"own": own, "pairs": found})


if __name__ == "__main__":
    main()
