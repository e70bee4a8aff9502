"""The universe of many models: ours beside plain NumPy, and how the cost grows with the models."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import baseline_universe
import cases
import numpy as np
from layout import demand, seconds, table, verdict
from threadpoolctl import threadpool_limits

from ccamerge import universe_batch

RIDGE = 0.01
TOLERANCE = 1e-9


def moments_of(models: int, d: int, seed: int) -> baseline_universe.Moments:
    """Second moments of networks that share a signal and have noise and a basis of their own.

    The signal's eigenvalues fall from 10 to 0.01, and its share from nearly all to a tenth.
    """
    rng = np.random.default_rng(seed)
    n = 6 * d
    shared = rng.standard_normal((n, d))
    scales, noise = np.geomspace(10, 0.01, d) ** 0.5, np.geomspace(0.2, 3, d)
    features = []
    for _ in range(models):
        mixing = rng.standard_normal((d, d)) / math.sqrt(d) + np.eye(d)
        x = ((shared + noise * rng.standard_normal((n, d))) * scales) @ mixing
        features.append(x - x.mean(0))
    own = [x.T @ x / n for x in features]
    return own, [x.T @ y / n for x, y in itertools.combinations(features, 2)]


def once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def numpy_threads(problem: baseline_universe.Moments) -> int:
    """How many BLAS threads make NumPy fastest."""

    def timed(threads: int) -> float:
        with threadpool_limits(threads):
            return once(lambda: baseline_universe.universe(problem, RIDGE, TOLERANCE))

    return min(range(1, cases.THREADS + 1), key=timed)


def universe_section(quick: bool) -> str:
    """Time a batch of spaces beside plain NumPy, and single spaces of 2 to 16 models."""
    count, models, d = (3 if quick else 12), 8, 256
    problems = [moments_of(models, d, seed) for seed in range(count)]

    def ours() -> list:
        return universe_batch(problems, ridge=RIDGE, tolerance=TOLERANCE)

    threads = numpy_threads(problems[0])

    def theirs() -> list:
        with threadpool_limits(threads):
            return [baseline_universe.universe(p, RIDGE, TOLERANCE) for p in problems]

    mine, plain = ours(), theirs()
    short = max(
        1 - a.objectives[-1] / b[1][-1] for a, b in zip(mine, plain, strict=True)
    )  # each side may end in a local maximum of its own
    demand(short < 1e-4, f"objectives, N = {models}, d = {d}: short by {short:.1e}")
    defect = max(
        cases.relative(r.maps[i] @ r.inverses[i], np.eye(d)) for r in mine for i in range(models)
    )
    demand(defect < 1e-8, f"maps and inverses: {defect:.1e}")
    times = cases.interleaved({"ours": ours, "NumPy": theirs}, 1 if quick else 3, warmups=0)
    ratio = times["NumPy"] / times["ours"]
    sweeps = [max(r.sweeps for r in mine), max(len(b[1]) - 1 for b in plain)]
    rows = [
        [
            f"{count} spaces, N = {models}, d = {d}",
            seconds(times["ours"]),
            seconds(times["NumPy"]),
            f"{ratio:.1f}",
            f"{sweeps[0]}, {sweeps[1]}",
            f"{short:.0e}",
        ]
    ]
    print(rows[-1], flush=True)
    head = ["universe", "ours", "NumPy", "ratio", "sweeps", "objective short by"]
    lines = [
        f"- Ratio {ratio:.1f} (wanted 8: {verdict(ratio >= 8)}); NumPy on {threads} threads.",
        f"- Largest defect of a map times its inverse: {defect:.0e}.",
    ]
    return table(head, rows) + "\n\n" + growth(quick) + "\n\n" + "\n".join(lines)


def growth(quick: bool) -> str:
    """Time of one space beside the number of models, the ascent held to five sweeps."""
    d, counts = 128, (2, 4, 8, 16)
    sides: dict[str, Callable[[], object]] = {}
    for models in counts:
        problem = moments_of(models, d, 0)
        sides[str(models)] = lambda p=problem: universe_batch(
            [p], ridge=RIDGE, tolerance=0.0, max_sweeps=5
        )
    times = cases.interleaved(sides, 3 if quick else 7)
    rows, before = [], 0.0
    for models in counts:
        took = times[str(models)]
        power = f"{math.log2(took / before):.1f}" if before else ""
        rows.append([f"N = {models}, d = {d}", seconds(took), power])
        before = took
    return table(["start and five sweeps", "ours", "exponent of N"], rows)
