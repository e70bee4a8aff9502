"""What is aligned in the architectures that people have, and whether merges keep their functions.

    python benchmarks/architectures.py                         # all; goes on where it was stopped
    python benchmarks/architectures.py --only 'hugging_face/*' --jobs 2
    python benchmarks/architectures.py --only plain/mlp --again    # anew, with all that was found

Every network is looked at in a process of its own, with a time limit: a hang or a crash is a row.
`results/architectures.json` has all figures, written after each row, and `architectures.md` the
table; what it comes to goes into README.md with `--record`. `architecture_case.py` says what is
asked, and which networks count as fully aligned.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from architecture_case import TOLERANCE, Row, examine
from families import SOURCES, Case, table_of
from layout import record, surroundings, table
from torchvision_import import import_torchvision

import ccamerge

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT = 300.0
"""Seconds for a network, by the clock: a busy machine needs more of them."""
WANTED = 0.85
"""Share of the families that are to be fully aligned."""

OWED = ("permuted", "mapped", "itself", "copy", "copy, no repair")
"""What must leave a network's function as it is; see `architecture_case`."""


class Child:
    """A process that looks at one network, and what it has told so far."""

    def __init__(self, name: str, build: Callable[[], Case]) -> None:
        self.name, self.row, self.start = name, Row(), time.monotonic()
        context = multiprocessing.get_context("fork")  # the packages are imported once
        self.pipe, there = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(build, there), daemon=True)
        self.process.start()
        there.close()

    def listen(self) -> bool:
        """Take what was told; whether there may be more."""
        try:
            while self.pipe.poll():
                told = self.pipe.recv()
                for key in ("errors", "seconds"):
                    self.row.setdefault(key, {}).update(told.pop(key, {}))
                self.row.update(told)
        except EOFError:
            return False
        return True

    def end(self, limit: float) -> Row:
        """The row, once nothing more comes or the time is over."""
        took = time.monotonic() - self.start
        if took >= limit and self.process.is_alive():
            self.process.kill()
            self.row["hung"] = self.row.get("stage", "start")
        self.process.join()
        if self.process.exitcode and "hung" not in self.row:
            self.row["crashed"] = f"{self.row.get('stage')}: exit code {self.process.exitcode}"
        self.row["took"] = round(took, 1)
        self.row.pop("stage", None)
        self.pipe.close()
        return self.row


def _child(build: Callable[[], Case], there: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TQDM_DISABLE"] = "1"
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ccamerge.set_num_threads(1)
    examine(build, there.send)
    there.close()


def examined(
    jobs: Mapping[str, Callable[[], Case]], parallel: int, limit: float
) -> Iterator[tuple[str, Row]]:
    """Rows of networks, as they come."""
    waiting, running = list(jobs), list[Child]()
    while waiting or running:
        while waiting and len(running) < parallel:
            name = waiting.pop(0)
            running.append(Child(name, jobs[name]))
        wait([child.pipe for child in running], timeout=1.0)
        for child in list(running):
            if not child.listen() or time.monotonic() - child.start >= limit:
                running.remove(child)
                yield child.name, child.end(limit)


def fault(row: Row) -> str:
    """What went wrong with a network, in a few words; empty if nothing did."""
    if "hung" in row:
        return f"hangs in {row['hung']}"
    if "crashed" in row:
        return f"crashes in {row['crashed']}"
    errors = row.get("errors", {})
    if errors:
        stage, text = next(iter(errors.items()))
        refused = stage != "build" and text.startswith("ValueError: torch.export cannot follow")
        return f"{'cannot be traced' if refused else f'error in {stage}'}: {text}"
    if changed := changes(row):
        return "function changed: " + ", ".join(changed)
    failed = [name for name, passed in row["verify"].items() if not passed]
    return f"verify fails: {', '.join(failed)}" if failed else ""


def changes(row: Row) -> list[str]:
    """The merges and maps that changed the function."""
    bound = TOLERANCE[torch.float64 if row.get("double") else torch.float32]
    return [name for name in OWED if not row.get("off", {}).get(name, 0.0) <= bound]


def fully_aligned(row: Row) -> bool:
    """See `architecture_case.wrongly_pinned`."""
    return bool(row.get("spaces")) and not row["wrong"]


def cells(name: str, row: Row) -> list[str]:
    shares = [f"{100 * share:.0f}" for share in row.get("shares", ())] or [""] * 3
    verified = row.get("verify")
    passed = "" if verified is None else "yes" if all(verified.values()) else "**no**"
    off = row.get("off", {})
    copied = max((off[key] for key in OWED[3:] if key in off), default=None)
    kept = [off.get("itself"), copied]
    bound = TOLERANCE[torch.float64 if row.get("double") else torch.float32]
    shown = ["" if x is None else f"{x:.0e}" if x <= bound else f"**{x:.0e}**" for x in kept]
    seconds = f"{sum(row.get('seconds', {}).values()):.1f}"
    why = "; ".join(list(row.get("wrong", {}))[:2]) or ("" if row.get("spaces") else "no space")
    if (wrong := fault(row)) and not wrong.startswith(("function", "verify")):
        why = wrong
    why = re.sub(r"\s+", " ", why.replace("|", "/"))[:160]
    return [name, str(row.get("spaces", "")), *shares, passed, *shown, seconds, why]


def table_text(rows: Mapping[str, Row]) -> str:
    """The table, and below it what all rows come to."""
    head = ["network", "spaces", "on all axes", "on some", "on none", "verify"]
    head += ["itself", "copy", "seconds", "pinned, or what went wrong"]
    lines = [cells(name, rows[name]) for name in sorted(rows)]
    return table(head, lines) + "\n\n" + summary(rows)


def summary(rows: Mapping[str, Row]) -> str:
    """How many are fully aligned, and how many went wrong, by source."""
    lines = []
    sources = [s for s in SOURCES if any(name.startswith(f"{s}/") for name in rows)]
    for source in (*sources, ""):
        some = {name: row for name, row in rows.items() if name.startswith(source)}
        if not some or (not source and len(sources) == 1):
            continue
        full = sum(map(fully_aligned, some.values()))
        faults = Counter(re.split(r"[:]| in ", fault(row))[0] for row in some.values())
        faults.pop("", None)
        told = ", ".join(f"{what} {count}" for what, count in faults.most_common())
        share = full / len(some)
        lines.append(
            f"- {source or 'All'}: {full} of {len(some)} fully aligned within their exact groups "
            f"({100 * share:.0f} %{'' if source else f', wanted {100 * WANTED:.0f}'}); "
            f"{told or 'no faults'}."
        )
    reasons = Counter(reason for row in rows.values() for reason in row.get("wrong", {}))
    lines += [f"- Pins {count}: {reason}" for reason, count in reasons.most_common(40)]
    times = [row["took"] for row in rows.values()]
    lines.append(
        f"- Seconds a network, of the CPU in the table: by the clock median "
        f"{statistics.median(times):.1f}, in all {sum(times):.0f}."
    )
    lines.append(
        '- Shares of the parameters in percent. "Itself": merged with another network by weights '
        '1 and 0; "copy": merged with a copy of permuted features, the worse of with and without '
        "repair; both with the defaults, change of the outputs on new inputs over their spread."
    )
    return "\n".join(lines)


def chosen(pattern: str) -> dict[str, Callable[[], Case]]:
    """Builders by source and name."""
    import_torchvision()
    found: dict[str, Callable[[], Case]] = {}
    for source in SOURCES:
        if not fnmatchcase(source, pattern.split("/")[0]):
            continue
        try:
            builders = table_of(source)
        except ImportError as error:
            print(f"{source} is left out: {error}", flush=True)
            continue
        for name, build in builders.items():
            if fnmatchcase(f"{source}/{name}", pattern if "/" in pattern else f"{pattern}/*"):
                found[f"{source}/{name}"] = build
    return found


def write(file: Path, content: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(content)
    part.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", default="*/*", metavar="PATTERN", help="such as 'plain/cnn*'")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--limit-s", type=float, default=LIMIT, help="for each network")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    parser.add_argument("--record", action="store_true", help="put the summary into README.md")
    parser.add_argument("--list", action="store_true", help="print the names, and end")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args()
    builders = chosen(given.only)
    if given.list:
        print("\n".join(builders))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no process is left behind
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "architectures.json"
    rows: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    todo = {n: build for n, build in builders.items() if given.again or n not in rows}
    for name, row in examined(todo, given.jobs, given.limit_s):
        rows[name] = row
        write(file, json.dumps(rows, indent=1) + "\n")
        print(" | ".join(cells(name, row)), flush=True)
        if wrong := fault(row):
            print(f"    {wrong}", flush=True)
    shown: dict[str, Any] = {name: row for name, row in rows.items() if name in builders}
    place = surroundings("python benchmarks/architectures.py").replace("2 threads", "1 thread")
    place = "\n\nTaken on:\n" + place
    write(given.out / "architectures.md", table_text(rows) + place + "\n")
    if given.record:
        record("architectures", summary(rows) + place)
    if shown:
        print("\n" + summary(shown))


if __name__ == "__main__":
    main()
