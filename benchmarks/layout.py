"""How results are laid out: tables, verdicts, and their places in README.md."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path

import cases
import numpy as np
import scipy
import torch

import ccamerge

README = Path(__file__).resolve().parent / "README.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table, first column left, the others right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def verdict(condition: bool) -> str:
    return "met" if condition else "**not met**"


def demand(condition: bool, what: str) -> None:
    """End the run where an answer is wrong: its time would mean nothing."""
    if not condition:
        message = f"wrong answer: {what}"
        raise SystemExit(message)


def seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def surroundings(command: str) -> str:
    """Say on what, with what and how the figures were taken."""
    lines = [
        (
            f"- {processor()}, {len_cores()} cores; "
            f"{cases.THREADS} threads for both sides; {platform.platform(terse=True)}"
        ),
        f"- {versions()}",
        f"- `{command}`",
    ]
    return "\n".join(lines)


def processor() -> str:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return cpu[1] if cpu else platform.processor()


def versions() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__} ({blas.get('name')}), "
        f"SciPy {scipy.__version__}, ccamerge {ccamerge.__version__}"
    )


def len_cores() -> int:
    return len(os.sched_getaffinity(0))


def record(section: str, text: str) -> None:
    """Put a text between a section's markers in README.md."""
    content = README.read_text()
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, rest = content.split(start)
    _, after = rest.split(end)
    README.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")
