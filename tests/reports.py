"""Reports and evaluations of any size for the tests of pictures and pages."""

from __future__ import annotations

import math

import numpy as np

from ccamerge.repair.regression import Fitted
from ccamerge.repair.repairing import Repaired
from ccamerge.reporting.report import Report, SpaceReport
from ccamerge.reporting.results import Barrier, Comparison, Score

AWKWARD = "a<b>&\"c\"'d'.$x$.\\alpha.特徴\U0001f600" + ".very_long_module_name" * 5


def report(count: int = 3, name: str = "layer{}.conv", missing: bool = False) -> Report:
    """With ``missing``, every number that can be missing is."""
    rng = np.random.default_rng(count)
    spaces, repaired, fitted = [], [], []
    for i in range(count):
        rows = [sorted(rng.uniform(-0.1, 1, 5 + i % 40), reverse=True) for _ in range(2)]
        spaces.append(
            SpaceReport(
                name.format(i),
                5 + i % 40,
                "cca",
                None if missing else 10.0 ** rng.integers(-3, 1),
                "permutation",
                [] if missing else [f"note {i}"],
                [[], [math.nan] * 3] if missing else [[float(c) for c in row] for row in rows],
                [{} if missing else {"condition": float(10 ** rng.uniform(1, 9))}] * 2,
                [7, 7, 7],
                "maps mix features" if i % 2 else "",
                [math.nan, math.nan] if missing else [float(v) for v in rng.uniform(0, 1, 2)],
                [] if missing else [float(v) for v in rng.uniform(-2, 1, 2)],
            )
        )
        repaired.append(Repaired(f"tap{i}", rng.uniform(), 1.0))
        fitted.append(Fitted(f"operation{i}", rng.uniform()))
    return Report(
        method="cca",
        options={},
        mode="reference",
        gamma=0.5 if missing else None,
        reference=1,
        weights=[0.5, 0.25, 0.25],
        repair="none" if missing else "regression",
        norm="fold",
        samples=100,
        seconds={} if missing else {"collect": 2.5, "solve": 0.0},
        spaces=spaces,
        repaired=[] if missing else repaired,
        fitted=[] if missing else fitted,
        skipped={} if missing else {"odd <op>": "its padding has a name"},
        walked=0 if missing else 1000,
        kept=2000,
        fixed={"head": ["network output"]},
        pinned={"head.weight axis 0": "network output", "conv axis 2": "position in the kernel"},
        peak_bytes={} if missing else {"collect": 2**30, "solve": 2**31},
    )


def evaluated(count: int = 3, missing: bool = False) -> Comparison:
    """With ``missing``, no losses and no ensemble."""
    t = [i / 4 for i in range(5)]
    scores = [
        Score(f"m{i}", 0.9 - 0.01 * i, math.nan if missing else 0.3, 1.5) for i in range(count)
    ]
    return Comparison(
        metric="accuracy",
        better="higher",
        loss="cross_entropy",
        samples=77,
        models=scores,
        ensemble=None if missing else Score("ensemble", 0.95, 0.2),
        merged=scores[:1],
        barriers={
            f"way {i}": Barrier(
                tuple(t),
                tuple(0.9 - 0.05 * (i + 1) * math.sin(math.pi * x) for x in t),
                tuple(math.nan if missing else 0.3 + x * (1 - x) for x in t),
                (0.3, 0.4),
            )
            for i in range(count)
        },
    )
