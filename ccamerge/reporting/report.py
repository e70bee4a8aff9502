"""What a merge did, as numbers, as a table and as Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ccamerge.config.settings import Mode, Norm, Repair, Ties
from ccamerge.core.brief import Brief
from ccamerge.reporting.fidelity import Fidelity

if TYPE_CHECKING:
    from ccamerge.repair.regression import Fitted
    from ccamerge.repair.repairing import Repaired


_ENDS = {"network output"}
"""Notes of spaces that nobody expects to be aligned."""

UNLIKE = 0.4
"""Mean R2 below which models will hardly merge: three Pangolin networks on DNA have 0.30, and their
merge is far from what they agree in; ResNet20s from different seeds, or of different data, have
0.47 to 0.48 and lose a few points. Above it nothing is promised."""

_SHOWN = 3
"""Names that a line shows before it counts the rest."""


@dataclasses.dataclass(frozen=True, repr=False)
class SpaceReport(Brief):
    """One space: how it was aligned, and how well.

    ``size`` is the number of features in the merged network, ``widths`` that in each model.
    ``correlations`` holds, for each model but the reference, the canonical correlations (CCA) or
    those of matched features (other methods), best first; ``details`` what the method adds.
    ``approximate`` says why mapping a model changes its function; empty if it does not.
    ``explained`` and ``explained_by_map`` hold, for each model but the reference, R2 of the
    reference's features from the model's: by the best linear map, on data held out, and by the map
    that was used (see `ccamerge.methods.explained_variance`).
    """

    name: str
    size: int
    method: str
    ridge: float | None
    exact: str
    notes: list[str]
    correlations: list[list[float]]
    details: list[dict[str, Any]]
    widths: list[int]
    approximate: str = ""
    explained: list[float] = dataclasses.field(default_factory=list)
    explained_by_map: list[float] = dataclasses.field(default_factory=list)

    @property
    def mean_correlation(self) -> float:
        """Over features and models; NaN where the method gives none."""
        values = [c for row in self.correlations for c in row]
        return statistics.fmean(values) if values else float("nan")

    @property
    def mean_explained(self) -> float:
        """R2 by the best linear maps, mean over models; NaN where nothing is known."""
        return _mean_of_known(self.explained)

    @property
    def mean_explained_by_map(self) -> float:
        """R2 by the maps that were used, mean over models; NaN where nothing is known."""
        return _mean_of_known(self.explained_by_map)

    @property
    def condition(self) -> float:
        """The worst condition number of a regularised covariance; NaN where there is none."""
        values = [d["condition"] for d in self.details if "condition" in d]
        return max(values) if values else float("nan")


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Brief):
    """Settings, stages, spaces and repair of one merge. ``str`` is a table for a terminal.

    ``skipped`` says for each linear operation that regression left alone why; ``walked`` is the
    number of inputs that the repair used, of ``kept``. ``device`` is where all was computed, but
    for the methods ``on_cpu``, which know NumPy only.
    ``aligned`` are the shares of parameters aligned along all, some and none of their axes, and
    ``fixed`` says for each space that was left as it is why.
    ``not_held`` says which averages the reference's reparametrisation could not hold.
    ``proved`` says whether the spaces were tried on some inputs.
    ``few`` has, for each space with fewer samples than features, how many samples it had.
    ``from_reference`` says which parameters and buffers, that differ, are the reference's, and why.
    ``chosen`` says of which spaces of queries and keys fewer models were averaged, and why.
    ``untied`` has the parameters that were given a tensor of their own, and its bytes.
    ``fidelity`` has distances from the ensemble; None if nothing was held out to measure them.
    ``peak_bytes`` is the largest resident memory that the process had had at each stage's end.
    """

    method: str | dict[str, str]
    options: dict[str, Any]
    mode: Mode
    gamma: float | None
    reference: int
    weights: list[float]
    repair: Repair
    norm: Norm
    samples: int
    seconds: dict[str, float]
    spaces: list[SpaceReport]
    repaired: list[Repaired]
    fitted: list[Fitted]
    skipped: dict[str, str]
    walked: int
    kept: int
    fixed: dict[str, list[str]]
    pinned: dict[str, str]
    peak_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    on_cpu: list[str] = dataclasses.field(default_factory=list)
    aligned: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0.0])
    from_reference: dict[str, str] = dataclasses.field(default_factory=dict)
    few: dict[str, int] = dataclasses.field(default_factory=dict)
    proved: bool = True
    not_held: dict[str, str] = dataclasses.field(default_factory=dict)
    ties: Ties = "keep"
    untied: dict[str, int] = dataclasses.field(default_factory=dict)
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)
    fidelity: Fidelity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, numbers and strings."""
        return dataclasses.asdict(self)

    def _method(self) -> str:
        names = dict.fromkeys(s.method for s in self.spaces)
        return self.method if isinstance(self.method, str) else " and ".join(names)

    def _ridge(self) -> str:
        if self.gamma is not None:
            return f"gamma {self.gamma:g}"
        values = sorted({s.ridge for s in self.spaces if s.ridge is not None})
        return "ridge " + " to ".join(f"{v:g}" for v in dict.fromkeys(values[:1] + values[-1:]))

    def settings(self) -> str:
        """What was asked for, in a line."""
        if not self.samples:
            return (
                f"{len(self.weights)} models, method {self._method()} of the parameters as they "
                f"stand, reference {self.reference}, no data"
            )
        return (
            f"{len(self.weights)} models, method {self._method()}, {self._ridge()}, "
            f"mode {self.mode}, reference {self.reference}, norm {self.norm}, "
            f"repair {self.repair}, {self.samples} samples, device {self.device}"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("space", "size", "method", "R2", "by map", "correlation", "condition", "exact under")
        ]
        for s in self.spaces:
            explained, by_map, correlation = (
                "" if math.isnan(value) else f"{value:.3f}"
                for value in (s.mean_explained, s.mean_explained_by_map, s.mean_correlation)
            )
            condition = "" if math.isnan(s.condition) else f"{s.condition:.1e}"
            size = str(s.size)
            if set(s.widths) != {s.size}:
                size = f"{', '.join(map(str, s.widths))} to {size}"
            own = (s.name, size, s.method, explained, by_map, correlation, condition, s.exact)
            rows.append(own)
        return rows

    def _repair_line(self) -> str | None:
        if not self.repaired:
            return None
        before = statistics.median(r.before for r in self.repaired)
        worst = min(self.repaired, key=lambda r: r.before)
        return (
            f"repair: averaging kept {before:.0%} of the standard deviation (median over "
            f"{len(self.repaired)} taps; least {worst.before:.0%} at {worst.tap}), now restored"
        )

    def _fit_line(self) -> str | None:
        parts = []
        if self.fitted:
            left = statistics.median(f.error for f in self.fitted)
            of = f" of {self.kept} kept" if self.walked < self.kept else ""
            parts.append(
                f"errors of the merged network's linear outputs fell to {left:.0%} "
                f"(median over {len(self.fitted)} operations, {self.walked}{of} inputs)"
            )
        reasons = Counter(self.skipped.values())
        parts += [f"{count} not fitted: {why}" for why, count in reasons.items()]
        return "regression: " + "; ".join(parts) if parts else None

    def _fallback_line(self) -> str | None:
        if not self.on_cpu:
            return None
        return f"on the CPU: {', '.join(self.on_cpu)} solved there, from moments of the device"

    def aligned_line(self) -> str:
        """How much of the networks was aligned, in a line."""
        every, some, none = self.aligned
        if not self.spaces:
            return "aligned: nothing; parameters are averaged in the order in which they stand"
        return (
            f"aligned: {every:.0%} of the parameters along all their axes, {some:.0%} along some, "
            f"{none:.0%} not at all"
        )

    def _fixed_line(self) -> str | None:
        """Spaces inside the network that were not aligned, and why."""
        inside = {
            name: next((n for n in notes if n not in _ENDS), "")
            for name, notes in self.fixed.items()
            if not set(notes) & _ENDS
        }
        if not inside:
            return None
        return f"not aligned: {_reasons(inside.items())}"

    def _reference_line(self) -> str | None:
        """What is the reference's, although the models differ."""
        if not self.from_reference:
            return None
        # Counters, as num_batches_tracked of many a BatchNorm, last: few will miss them.
        items = sorted(self.from_reference.items(), key=lambda item: " of int" in item[1])
        return f"taken from the reference: {_reasons(items)}"

    def _not_held_line(self) -> str | None:
        """Averages that a reparametrisation of the reference could not take."""
        if not self.not_held:
            return None
        return f"not the average: {_reasons(self.not_held.items())}"

    def _chosen_line(self) -> str | None:
        """Queries and keys in which the models do not agree."""
        if not self.chosen:
            return None
        items = list(self.chosen.items())
        return f"queries and keys not averaged over all models: {_reasons(items)}"

    def _untied_line(self) -> str | None:
        """Heads that no longer share an embedding's weight, and what that costs."""
        if not self.untied:
            return None
        size = sum(self.untied.values()) / 2**20
        return f"untied: {', '.join(self.untied)}; the file grows by {size:.2f} MiB"

    @property
    def explained(self) -> float:
        """R2 by the best linear maps, mean over spaces by their sizes; NaN where not known.

        Spaces with fewer samples than features do not count: what is there may be unseen.
        """
        known = [
            (s.mean_explained, s.size)
            for s in self.spaces
            if s.name not in self.few and not math.isnan(s.mean_explained)
        ]
        size = sum(size for _, size in known)
        return sum(value * size for value, size in known) / size if size else math.nan

    def unlike_line(self) -> str | None:
        """That the models are so unlike that little can come of merging them."""
        if not self.explained < UNLIKE:
            return None
        return (
            f"these models will hardly merge: the others' features explain {self.explained:.0%} of "
            "the variance of the reference's (R2, mean over spaces by size)"
        )

    def few_line(self) -> str | None:
        """Spaces of which there were fewer samples than features."""
        if not self.few:
            return None
        sizes = {s.name: max(s.widths) for s in self.spaces}
        worst = min(self.few, key=lambda name: self.few[name] / sizes[name])
        return (
            f"fewer samples than features in {len(self.few)} of {len(self.spaces)} spaces (least "
            f"{self.few[worst]} of {sizes[worst]} in {worst}): give more inputs"
        )

    def outcomes(self) -> list[str]:
        """A line each for what was aligned and what not, for what the CPU did, and for repairs."""
        lines = (
            *([] if self.fidelity is None else self.fidelity.lines()),
            self.aligned_line(),
            None if self.proved else "spaces were not proved on inputs, as prove=False asks",
            self._fixed_line(),
            self._chosen_line(),
            self._untied_line(),
            self._reference_line(),
            self._not_held_line(),
            self.few_line(),
            self.unlike_line(),
            self._fallback_line(),
            self._repair_line(),
            self._fit_line(),
        )
        return [line for line in lines if line]

    def _time_line(self) -> str:
        return "time: " + ", ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items())

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [self.settings()]
        if not self.samples:
            return "\n".join([*lines, *self.outcomes(), self._time_line()])
        lines += [
            "  ".join(
                cell.rjust(w) if i in (1, 3, 4, 5, 6) else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += [*self.outcomes(), self._time_line()]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The report for a model card."""
        header, *rows = self._rows()
        lines = [self.settings() + "."]
        if self.samples:
            lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", *(f"- {line}" for line in self.outcomes())]
        if not (self.repaired or self.fitted or self.skipped):
            lines.append("- No repair.")
        lines += ["", self._time_line()]
        if self.fixed:
            lines += ["", "Not aligned:"]
            lines += [f"- `{name}`: {'; '.join(why)}" for name, why in self.fixed.items()]
        return "\n".join(lines)


def _mean_of_known(values: Collection[float]) -> float:
    """Mean of those that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _reasons(items: Collection[tuple[str, str]]) -> str:
    """The first few names, each with its reason, and how many more there are."""
    shown = [f"{name} ({why})" for name, why in itertools.islice(items, _SHOWN)]
    return ", ".join(shown) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
