"""Batches of CCA problems on a GPU, beside the published three SVDs in torch on the same GPU.

    python benchmarks/gpu_solve.py

Problems lie on the device in float64; the baseline's are the same in float32, as published, and are
solved once in float64, too. Errors are the defects of `cases.map_defects`, in float64 on the GPU.
What the baseline would take too long for is measured on one problem, or estimated from the order
below by the cube; the table says so.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import baseline
import torch
from gpu_common import (
    arguments,
    as_tensor,
    brief,
    finish,
    free,
    options,
    ready,
    save,
    synchronize,
    wall,
)
from layout import seconds, table, verdict
from torch import Tensor

from ccamerge import cca_batch

GAMMA = 0.01
BATCHES = {512: 16, 1024: 8, 4096: 4}
QUICK = {64: 4, 128: 2}
TOLERANCE = 1e-10

Problem = tuple[Tensor, Tensor, Tensor]


def problem(d: int, seed: int, device: torch.device) -> Problem:
    """What `cases.problems` makes, by the device: half shared, eigenvalues from 10 to 0.01."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.float64)

    n = 6 * d
    scales = torch.logspace(1, -2, d, device=device, dtype=torch.float64).sqrt()
    shared = draw(n, d)
    sides = []
    for _ in range(2):
        basis = torch.linalg.qr(draw(d, d))[0]
        x = ((shared + draw(n, d)) * scales) @ basis
        x -= x.mean(0)
        sides.append(x * (x.numel() / x.square().sum()).sqrt())
    x, y = sides
    return x.T @ x / n, y.T @ y / n, x.T @ y / n


def defects(given: Problem, found: Any) -> tuple[float, float]:
    """`cases.map_defects` by the device.

    The sum of canonical correlations is taken from the eigenvalues of ``K K^T``, which is much
    faster than singular values: an eigenvalue errs by some 1e-16 d, its root s by that over 2 s,
    which is nothing here, where the correlations stay well above zero.
    """
    sxx, syy, sxy = given
    device = sxx.device
    t = as_tensor(found, device)
    eye = torch.eye(len(sxx), dtype=torch.float64, device=device)
    cx, cy = sxx + GAMMA * eye, syy + GAMMA * eye
    lx, ly = torch.linalg.cholesky(cx), torch.linalg.cholesky(cy)
    k = torch.linalg.solve_triangular(lx, sxy, upper=False)
    k = torch.linalg.solve_triangular(ly, k.T, upper=False)
    best = torch.linalg.eigvalsh(k @ k.T).clamp_min(0).sqrt().sum()
    reached = torch.cholesky_solve(sxy @ t, lx).trace()
    map_defect = (t.T @ cy @ t - cx).abs().max() / cx.abs().max()
    return float(map_defect), float((best - reached).abs() / best)


@dataclasses.dataclass
class Row:
    """A batch; times of the whole batch, ``how`` the baseline's came about."""

    d: int
    count: int
    ours: float
    defects: tuple[float, float]
    inverse: float
    torch32: float | None = None
    how32: str = ""
    defects32: tuple[float, float] | None = None
    torch64: float | None = None
    how64: str = ""
    defects64: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        return self.torch32 and self.torch32 / self.ours

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ratio": self.ratio}

    def cells(self) -> list[str]:
        def time(value: float | None, how: str) -> str:
            mark = {"measured": "", "one problem": " ¹", "estimated": " ²"}.get(how, "")
            return "" if value is None else seconds(value) + mark

        def error(value: tuple[float, float] | None) -> str:
            return "" if value is None else f"{value[0]:.0e}, {value[1]:.0e}"

        return [
            f"{self.count} of d = {self.d}",
            seconds(self.ours),
            time(self.torch32, self.how32),
            "" if self.ratio is None else f"{self.ratio:.1f}",
            time(self.torch64, self.how64),
            error(self.defects),
            error(self.defects32),
            error(self.defects64),
        ]


def ours(
    problems: list[Problem], device: torch.device, repetitions: int
) -> tuple[float, tuple[float, float], float]:
    """Median seconds of a batch, the worse defects of the first and last map, and of an inverse."""

    def call() -> Any:
        return cca_batch(problems, gamma=GAMMA, **options(device))

    found = call()
    pairs = [(problems[k], found[k].map) for k in (0, -1)]
    worst = tuple(max(d) for d in zip(*(defects(*pair) for pair in pairs), strict=True))
    product = as_tensor(found[-1].map, device) @ as_tensor(found[-1].inverse, device)
    inverse = float((product - torch.eye(len(product)).to(product)).abs().max())
    del found, product
    time = statistics.median(wall(call, device)[0] for _ in range(repetitions))
    return time, worst, inverse  # type: ignore[return-value]


def theirs(problems: Sequence[Problem], device: torch.device) -> tuple[float, Tensor]:
    """Seconds of three SVDs a problem, and the last map."""

    def call() -> Tensor:
        for given in problems:
            found = baseline.pair_maps(*given, GAMMA)[0]
        return found

    return wall(call, device)


def fill(
    row: Row,
    problems: list[Problem],
    device: torch.device,
    limits: tuple[float, float],
    before: float | None,
) -> float | None:
    """Add the baseline's figures in float32 and float64; returns seconds of one float32 problem.

    ``limits`` are seconds for a batch and for the one problem instead; ``before`` is one problem's
    of the last order done, scaled by the cube of the orders.
    """
    budget, longest = limits
    one = None
    for kind, bits in ((torch.float32, "32"), (torch.float64, "64")):
        given = [tuple(a.to(kind) for a in p) for p in problems]
        # Float64 is guessed from float32: at least twice as much, more where a chip is slow at it.
        expected = before if bits == "32" else (one and 2.5 * one)
        if expected and expected > (longest if bits == "32" else budget):
            setattr(row, f"how{bits}", "estimated")
            if bits == "32":
                row.torch32, one = expected * row.count, expected
            continue
        if expected is None:
            theirs(given[:1], device)  # loads the library
        time, found = theirs(given[:1], device)  # type: ignore[arg-type]
        setattr(row, f"defects{bits}", defects(problems[0], found))
        one = time if bits == "32" else one
        how, whole = "one problem", time * row.count
        if whole <= budget:
            repetitions = 3 if whole <= budget / 10 else 1
            taken = [theirs(given, device)[0] for _ in range(repetitions)]  # type: ignore[arg-type]
            how, whole = "measured", statistics.median(taken)
        setattr(row, f"how{bits}", how)
        setattr(row, f"torch{bits}", whole)
        synchronize(device)
    return one


def text_of(rows: list[Row]) -> str:
    head = ["maps and inverses", "ours", "three SVDs, float32", "ratio", "float64"]
    head += ["defects", "of float32", "of float64"]
    ratios = [r.ratio for r in rows if r.ratio]
    notes = []
    if ratios:
        least = min(ratios)
        notes.append(f"- Least ratio {least:.1f} (wanted 20: {verdict(least >= 20)}).")
    notes += [
        (
            "- Problems and maps stay on the device. Defects: of `T^T Cy T = Cx`; of the sum of "
            "canonical correlations; in float64, the worse of a batch's first and last for ours."
        ),
        "- ¹ One problem, times their number. ² Estimated from the order above by the cube.",
    ]
    return table(head, [r.cells() for r in rows]) + "\n\n" + "\n".join(notes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds for a batch by the baseline"
    )
    parser.add_argument("--longest", type=float, default=60.0, help="for one problem instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    device = ready(given)
    rows: list[Row] = []
    failures: list[str] = []

    def keep(done: bool = False) -> None:
        data = {"rows": [r.to_dict() for r in rows], "failures": failures}
        save(given, "solve", device, text_of(rows), data, done=done)

    before, last = None, 0
    limits = (given.budget, given.longest)
    batches = QUICK if given.quick else BATCHES
    small = [problem(32, seed, device) for seed in range(2)]
    cca_batch(small, gamma=GAMMA, **options(device))  # loads the libraries
    for d, count in batches.items():
        try:
            problems = [problem(d, given.seed + k, device) for k in range(count)]
            free(device)
            time, worst, inverse = ours(problems, device, 1 if given.quick else 5)
            rows.append(Row(d, count, time, worst, inverse))
            if not max(*worst, inverse) <= TOLERANCE:
                failures.append(f"d = {d}: defects {worst}, of the inverse {inverse:.1e}")
            keep()
            expected = before and before * (d / last) ** 3
            before, last = fill(rows[-1], problems, device, limits, expected), d
        except Exception as error:
            failures.append(f"d = {d}: {brief(error)}")
        if rows:
            print(rows[-1].cells(), flush=True)
            keep()
        problems = []
        free(device)
    keep(done=True)
    finish(failures)


if __name__ == "__main__":
    main()
