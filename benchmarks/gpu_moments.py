"""Streamed moments on a GPU: answers, time beside what the chip allows, and two baselines.

    python benchmarks/gpu_moments.py

Feature maps of the CPU's grid (float32, channels on the second axis) and token features of
transformers (float32 and bfloat16, features last). One update is timed; inputs rotate among so many
sets that the L2 cache does not hold them. The roof is the larger of two times: reading every input
once at the rate of a copy, and the operations of the blocks that are needed (own ones by symmetry)
at the rate of a large matrix product in the inputs' precision, both as `gpu_roof.py` measures them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import baseline
import cases
import gpu_cupy
import torch
from gpu_common import (
    Timing,
    arguments,
    as_tensor,
    brief,
    finish,
    free,
    measure,
    options,
    ready,
    save,
)
from gpu_roof import roofs
from layout import geometric_mean, seconds, table, verdict
from torch import Tensor

from ccamerge import Moments

TOKEN_SHAPES = ((8192, 1024), (8192, 4096), (4096, 14336))
TOKEN_MODELS = (2, 4)
TOKEN_DTYPES = (torch.float32, torch.bfloat16)
CHECKED_BATCHES = 2
SET_BYTES = 4 << 30
"""What the rotating inputs may take at most."""
BASELINE_CHECKED = 16384
"""Stacked features up to which the baseline's answer is compared, too."""


@dataclasses.dataclass(frozen=True)
class Case:
    """So many models' features of one shape."""

    models: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def axis(self) -> int:
        return 1 if len(self.shape) == 4 else -1

    @property
    def features(self) -> int:
        return self.shape[self.axis]

    @property
    def samples(self) -> int:
        return math.prod(self.shape) // self.features

    @property
    def input_bytes(self) -> int:
        return self.models * math.prod(self.shape) * self.dtype.itemsize

    @property
    def total_bytes(self) -> float:
        """Totals read and written in float64: triangles of own blocks, crosses in full."""
        c = self.features
        return 16 * (self.models * c * (c + 1) / 2 + (self.models - 1) * c * c)

    @property
    def tolerance(self) -> float:
        """For a covariance over the product of two standard deviations.

        Matrix units round sums towards zero, as measured on an H200 some once for every eight
        samples: by ``u`` (2^-24) of the sum each time, on average. That makes 64 u for the 512
        samples of float32 features that are summed before float64 takes over; half as much again is
        left for all other rounding. A bfloat16 feature that was rounded once more after centring
        errs by u = 2^-9 at most, independently for each sample: then the mean over n products of
        two features errs with standard deviation ``2 u / sqrt(n)`` or less, six of which the
        largest of even 1e8 entries does not exceed. Products of bfloat16 features that are not
        rounded again are exact in float32, and far below this.
        """
        rounding = 96 * 2.0**-24
        if self.dtype == torch.bfloat16:
            rounding += 12 * 2.0**-9 / math.sqrt(CHECKED_BATCHES * self.samples)
        return rounding

    def __str__(self) -> str:
        kind = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return f"N = {self.models}, {' x '.join(map(str, self.shape))}{kind}"

    def make(self, seed: int, device: torch.device) -> list[Tensor]:
        """Fresh random features of each model."""
        if self.axis == 1:
            return cases.feature_maps(self.models, self.shape, seed, device)
        return token_features(self, seed, device)


def token_features(case: Case, seed: int, device: torch.device) -> list[Tensor]:
    """Half shared, with scales from 0.1 to 10 and means within two standard deviations."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    shared = draw(*case.shape)
    scales = torch.logspace(-1, 1, case.features, device=device)
    found = []
    for _ in range(case.models):
        offset = 2 * torch.rand(case.features, generator=generator, device=device)
        found.append(((draw(*case.shape) + shared + offset) * scales).to(case.dtype))
    return found


def grid(quick: bool) -> list[Case]:
    if quick:
        maps = [Case(2, (8, 16, 16, 16), torch.float32), Case(4, (8, 64, 4, 4), torch.float32)]
        return maps + [Case(2, (256, 64), dtype) for dtype in TOKEN_DTYPES]
    maps = [Case(n, s, torch.float32) for n in cases.MOMENT_MODELS for s in cases.MOMENT_SHAPES]
    return maps + [
        Case(n, s, dtype) for s in TOKEN_SHAPES for n in TOKEN_MODELS for dtype in TOKEN_DTYPES
    ]


def rows_of(case: Case, x: Tensor) -> Tensor:
    """What the baselines see: ``(C, n)`` float32, a copy of maps, a view of tokens if it can be."""
    return baseline.rows_of(x) if case.axis == 1 else x.float().T


def worst(case: Case, batches: Sequence[list[Tensor]], block: Callable[[int, int], Any]) -> float:
    """Largest error of the blocks against float64, relative to standard deviations."""
    exact = []
    for i in range(case.models):
        flat = torch.cat([rows_of_exact(case, batch[i]) for batch in batches])
        exact.append(flat - flat.mean(0))
    deviations = [x.square().mean(0).sqrt() for x in exact]
    pairs = sorted({(i, i) for i in range(case.models)} | {(0, i) for i in range(case.models)})
    error = 0.0
    for i, j in pairs:
        expected = exact[i].T @ exact[j] / len(exact[0])
        expected -= as_tensor(block(i, j), expected.device)
        expected /= deviations[i][:, None]
        expected /= deviations[j]
        # Not max() of Python, which would pass over NaN.
        error = float(torch.maximum(expected.abs().max(), torch.tensor(error).to(expected)))
    return error


def rows_of_exact(case: Case, x: Tensor) -> Tensor:
    """``(n, C)`` float64."""
    return x.double().movedim(case.axis, -1).reshape(-1, case.features)


def check(case: Case, seed: int, device: torch.device) -> tuple[float, float | None]:
    """Errors of ours and, where it fits, of the baseline, on fresh data in two batches."""
    batches = [case.make(seed + k, device) for k in range(CHECKED_BATCHES)]
    ours = Moments([case.features] * case.models, **options(device))
    for batch in batches:
        ours.update(batch, axis=case.axis)
    mine = worst(case, batches, ours.cov_tensor)
    if case.models * case.features > BASELINE_CHECKED:
        return mine, None
    theirs = baseline.Statistics()
    for batch in batches:
        theirs.update(case.shape[0], [rows_of(case, x) for x in batch])
    whole = theirs.covariance.finalize(CHECKED_BATCHES * case.shape[0])
    c = case.features
    return mine, worst(case, batches, lambda i, j: whole[i * c : (i + 1) * c, j * c : (j + 1) * c])


def input_sets(case: Case, seed: int, device: torch.device) -> list[list[Tensor]]:
    """So many sets that together they are four times the L2 cache, and two at least."""
    if device.type == "cpu":
        return [case.make(seed + k, device) for k in range(2)]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    wanted = math.ceil(4 * cache / case.input_bytes)
    count = max(2, min(wanted, 64, SET_BYTES // case.input_bytes))
    return [case.make(seed + k, device) for k in range(count)]


def time_ours(case: Case, sets: list[list[Tensor]], device: torch.device, span: float) -> Timing:
    """An update by ours."""
    moments = Moments([case.features] * case.models, **options(device))
    call = {"ours": lambda k: moments.update(sets[k % len(sets)], axis=case.axis)}
    return measure(call, device, seconds=span)["ours"]


def time_theirs(
    statistics: Any, case: Case, sets: list[list[Tensor]], device: torch.device, span: float
) -> Timing:
    """An update of a baseline's statistics, the copies of its hooks included."""

    def update(k: int) -> None:
        statistics.update(case.shape[0], [rows_of(case, x) for x in sets[k % len(sets)]])

    return measure({"baseline": update}, device, seconds=span)["baseline"]


def timed(
    case: Case, device: torch.device, given: Any
) -> tuple[Timing, list[Timing | None], list[str]]:
    """Ours; torch and CuPy, or None and a reason where one could not run.

    One after the other, not in turns: the largest cases leave no room for two.
    """
    span = 0.02 if given.quick else 0.12
    sets = input_sets(case, given.seed, device)
    mine = time_ours(case, sets, device, span)
    others: list[Timing | None] = []
    notes = []
    for name, make in (
        ("torch", baseline.Statistics),
        ("cupy", lambda: gpu_cupy.Statistics(gpu_cupy.library(device))),
    ):
        if name not in given.beside:
            others.append(None)
            continue
        free(device)
        try:
            others.append(time_theirs(make(), case, sets, device, span))
        except Exception as error:  # out of memory, or no CuPy
            others.append(None)
            notes.append(f"{name} at {case}: {brief(error)}")
    return mine, others, notes


def row_of(case: Case, device: torch.device, given: Any, roof: dict[str, Any]) -> dict[str, Any]:
    """Everything about one case."""
    error, theirs = check(case, given.seed + 1000, device)
    free(device)
    mine, (torch_time, cupy_time), notes = timed(case, device, given)
    free(device)
    flops = cases.moment_flops(case.models, case.shape)
    rate = roof["rates"][str(case.dtype).removeprefix("torch.")]
    least = {
        "reading": case.input_bytes / roof["bandwidth"],
        "arithmetic": flops / rate,
        "totals": (case.input_bytes + case.total_bytes) / roof["bandwidth"],
    }
    bound = max(("reading", "arithmetic"), key=least.__getitem__)
    return {
        "case": str(case),
        "map": case.axis == 1,
        "error": error,
        "tolerance": case.tolerance,
        "baseline_error": theirs,
        "right": error <= case.tolerance,  # false for NaN, too
        "ours": mine.to_dict(),
        "torch": torch_time and torch_time.to_dict(),
        "cupy": cupy_time and cupy_time.to_dict(),
        "flops": flops,
        "bytes": case.input_bytes,
        "least": least,
        "bound": bound,
        "share": least[bound] / mine.queued,
        "share_with_totals": max(least.values()) / mine.queued,
        "share_called": least[bound] / mine.called,
        "ratio": torch_time and torch_time.called / mine.called,
        "cupy_ratio": cupy_time and cupy_time.called / mine.called,
        "notes": notes,
    }


def shown(row: dict[str, Any]) -> list[str]:
    def time(side: str) -> str:
        return seconds(row[side]["called"]) if row[side] else "did not run"

    def ratio(key: str) -> str:
        return f"{row[key]:.1f}" if row[key] else ""

    wrong = "" if row["right"] else " **wrong**"
    theirs = "" if row["baseline_error"] is None else f"{row['baseline_error']:.0e}"
    return [
        row["case"],
        seconds(row["ours"]["queued"]),
        seconds(row["ours"]["called"]),
        f"{seconds(row['least'][row['bound']])} ({row['bound']})",
        f"{100 * row['share']:.0f}%",
        f"{100 * row['share_with_totals']:.0f}%",
        time("torch"),
        ratio("ratio"),
        time("cupy"),
        ratio("cupy_ratio"),
        f"{row['error']:.0e}{wrong}",
        theirs,
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """The table and what was wanted of it."""
    head = ["case", "ours, queued", "as called", "roof", "of roof", "with totals"]
    head += ["torch", "ratio", "CuPy", "ratio", "error", "torch's error"]
    least = min(rows, key=lambda r: r["share"])
    met = sum(r["share"] >= 0.7 for r in rows)
    lines = [
        (
            f"- Share of the roof: 70% or more in {met} of {len(rows)} cases (wanted in all: "
            f"{verdict(met == len(rows))}), least {100 * least['share']:.0f}% at {least['case']}, "
            f"geometric mean {100 * geometric_mean([r['share'] for r in rows]):.0f}%."
        ),
    ]
    for key, side in (("ratio", "torch"), ("cupy_ratio", "CuPy")):
        for label, part in (
            ("all", rows),
            ("feature maps", [r for r in rows if r["map"]]),
            ("tokens", [r for r in rows if not r["map"]]),
        ):
            values = [r[key] for r in part if r[key]]
            if not values:
                continue
            mean = geometric_mean(values)
            wanted = f" (wanted 5: {verdict(mean >= 5)})" if label == "all" else ""
            lines.append(
                f"- Geometric mean of the ratios to {side}, {label}: {mean:.1f}{wanted}, least "
                f"{min(values):.1f}."
            )
    lines += [
        (
            "- Queued: launches waiting behind a sleeping kernel, so that the host does not count; "
            "shares of the roof are of these. Ratios are of times as called from Python."
        ),
        (
            '- "With totals": a roof that also reads and writes the float64 totals, as an update '
            "must where the L2 cache does not hold them."
        ),
        (
            "- Errors are the largest of a covariance over the product of two standard deviations, "
            "against float64 on the same device; tolerances are in `Case.tolerance`."
        ),
        "- torch and CuPy get bfloat16 features as float32, converted within their time.",
    ]
    lines += [f"- {note}" for row in rows for note in row["notes"]]
    return table(head, [shown(row) for row in rows]) + "\n\n" + "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=("torch", "cupy"),
        default=["torch", "cupy"],
        help="baselines",
    )
    given = parser.parse_args()
    device = ready(given)
    roof = roofs(given, device)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for case in grid(given.quick):
        try:
            rows.append(row_of(case, device, given, roof))
        except Exception as error:
            failures.append(f"{case}: {brief(error)}")
            print(failures[-1], flush=True)
            free(device)
            continue
        print(shown(rows[-1]), flush=True)
        if not rows[-1]["right"]:
            failures.append(f"{case}: error {rows[-1]['error']:.1e} > {case.tolerance:.1e}")
        save(given, "moments", device, summary(rows), {"rows": rows, "roof": roof}, done=False)
    if rows:
        data = {"rows": rows, "roof": roof, "failures": failures}
        save(given, "moments", device, summary(rows), data)
    finish(failures)


if __name__ == "__main__":
    main()
