"""What evaluations find, as plain numbers: scores, and the loss along the way between models."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ccamerge.core.brief import Brief


@dataclasses.dataclass(frozen=True, repr=False)
class Barrier(Brief):
    """A metric and a loss of the merges at each ``t``, the way from the reference (0) to the rest.

    Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020);
    Ainsworth et al., "Git Re-Basin" (ICLR 2023), for the loss after alignment. ``ends`` are the
    losses of the models themselves: the reference's, and the mean of the others'.
    """

    t: tuple[float, ...]
    metric: tuple[float, ...]
    loss: tuple[float, ...]
    ends: tuple[float, float]

    @classmethod
    def of(
        cls, t: Iterable[float], values: Sequence[Sequence[float]], own: Sequence[float], first: int
    ) -> Barrier:
        """From a pair (metric, loss) for each ``t``, and the models' losses.

        ``first`` is the reference among the models.
        """
        metric, loss = zip(*values, strict=True)
        others = [value for index, value in enumerate(own) if index != first]
        return cls(tuple(t), metric, loss, (own[first], statistics.fmean(others)))

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between the models' own: 0 or more.

        ``max_t loss(t) - ((1 - t) loss_reference + t loss_others)``, in the loss's unit. The line
        ends in the models and not in the merges at t = 0 and 1: where maps are not exact (CCA
        through a ReLU) these may be far worse, and a line between them would hide what lies below.
        """
        first, last = self.ends
        lines = [(1 - t) * first + t * last for t in self.t]
        return max(0.0, *(loss - line for loss, line in zip(self.loss, lines, strict=True)))


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one network; ``seconds`` is what its merge took once the moments were there."""

    name: str
    metric: float
    loss: float
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """What `compare` returns; ``str`` is a table for a terminal.

    Attributes
    ----------
    metric, loss : what was measured
    better : "higher" or "lower" values of the metric
    samples : in the data
    models, merged : scores of each; those of ``others`` are the last of ``merged``
    ensemble : of the models
    barriers : by the name of the merge
    """

    metric: str
    better: str
    loss: str
    samples: int
    models: list[Score]
    ensemble: Score | None
    merged: list[Score]
    barriers: dict[str, Barrier]

    def _parts(self) -> Mapping[str, Any]:
        return {
            "metric": self.metric,
            "loss": self.loss,
            "samples": self.samples,
            "models": {score.name: score.metric for score in self.models},
            "ensemble": self.ensemble.metric if self.ensemble else None,
            "merged": {score.name: score.metric for score in self.merged},
            "barriers": {name: found.barrier for name, found in self.barriers.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, numbers and strings."""

        def plain(score: Score, *keys: str) -> dict[str, Any]:
            return {key: getattr(score, key) for key in keys}

        return {
            "metric": self.metric,
            "better": self.better,
            "loss": self.loss,
            "samples": self.samples,
            "models": [plain(score, "name", "metric", "loss") for score in self.models],
            "ensemble": plain(self.ensemble, "metric", "loss") if self.ensemble else None,
            "merged": [plain(score, "name", "metric", "loss", "seconds") for score in self.merged],
            "barriers": [
                {
                    "name": name,
                    "t": list(found.t),
                    "metric": list(found.metric),
                    "loss": list(found.loss),
                    "ends": list(found.ends),
                    "barrier": found.barrier,
                }
                for name, found in self.barriers.items()
            ],
        }

    def __str__(self) -> str:
        rows = [["", self.metric, self.loss, "seconds"]]
        whole = [self.ensemble] if self.ensemble else []
        for score in [*self.models, *whole, *self.merged]:
            shown = f"{score.metric:.2%}" if self.metric == "accuracy" else f"{score.metric:#.4g}"
            seconds = "" if score.seconds is None else f"{score.seconds:.2f}"
            rows.append([score.name, shown, f"{score.loss:#.4g}", seconds])
        if not any(row[3] for row in rows[1:]):
            rows = [row[:3] for row in rows]
        lines = _table(rows)
        if self.barriers:
            curves = list(self.barriers.values())
            rows = [["t", *self.barriers]]
            for index, t in enumerate(curves[0].t):
                rows.append([f"{t:.3g}", *(f"{c.loss[index]:#.4g}" for c in curves)])
            rows.append(["barrier", *(f"{c.barrier:#.4g}" for c in curves)])
            lines += ["", f"{self.loss} from the reference (t = 0) to the others (1)"]
            lines += _table(rows)
        return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with names to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
