"""What a merge says of itself: its report, and warnings where something matters."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from ccamerge.collection.statistics import Statistics
from ccamerge.config.settings import Settings
from ccamerge.core.device import resolve
from ccamerge.core.stopwatch import Stopwatch
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.space import Space, Spaces
from ccamerge.merging.assembling import Merged
from ccamerge.methods.alignment import Aligned
from ccamerge.methods.weights import Shares
from ccamerge.reporting.fidelity import Fidelity
from ccamerge.reporting.report import Report, SpaceReport

_UNALIGNED = 0.5
"""Share of parameters aligned along no axis from which on a merge warns."""


def described(
    found: Spaces,
    statistics: Statistics,
    aligned: Aligned,
    merged: Merged,
    shares: Shares,
    settings: Settings,
    watch: Stopwatch,
    fidelity: Fidelity | None = None,
) -> Report:
    """The report of a merge."""
    device = resolve(statistics.device)
    repaired = merged.repaired
    return Report(
        method=aligned.method if isinstance(aligned.method, str) else dict(aligned.method),
        options=dict(aligned.options),
        mode=aligned.mode,
        gamma=aligned.gamma,
        reference=aligned.reference,
        weights=list(shares.default),
        repair=(settings.repair or "none") if settings.norm == "fold" else "none",
        norm=settings.norm,
        ties=settings.ties,
        samples=statistics.samples,
        seconds=watch.seconds,
        spaces=[_space_report(space, aligned) for space in found.spaces],
        repaired=repaired.repaired,
        fitted=repaired.fitted,
        skipped=repaired.skipped,
        walked=repaired.walked,
        kept=repaired.kept,
        fixed={space.name: list(space.notes) for space in found.fixed},
        pinned={f"{key} axis {dim}": why for (key, dim), why in found.pinned.items()},
        peak_bytes=watch.peak_bytes,
        device="cpu" if device is None else device.title,
        on_cpu=list(aligned.on_cpu),
        aligned=list(found.aligned_shares()),
        from_reference=merged.from_reference,
        few=_few(found, statistics) if _used_data(aligned, merged) else {},
        proved=statistics.proved,
        not_held=merged.not_held,
        fidelity=fidelity,
    )


def warn(report: Report, aligned: Aligned, merged: Merged) -> None:
    """Warn the caller's caller of what the report says that matters most."""
    reasons = merged.from_reference.items()
    if unused := [key for key, why in reasons if "traced call" in why]:
        message = (
            f"{_listed(unused)} differ between the models, and the traced call does not use them: "
            f"they are those of models[{aligned.reference}], whose features the merged network has"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    if lost := merged.not_held:
        message = f"the merged network cannot hold the average of {_listed(lost)} (see the report)"
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    if (found := report.fidelity) is not None and (found.doubt or found.disappoints):
        message = found.verdict() + (f": {found.doubt}" if found.doubt else "")
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    if report.aligned[2] > _UNALIGNED and _used_data(aligned, merged):
        warnings.warn(f"{report.aligned_line()} (see the report)", RuntimeWarning, stacklevel=4)


def _used_data(aligned: Aligned, merged: Merged) -> bool:
    return not merged.alone and set(aligned.methods.values()) != {"average"}


def _listed(names: Collection[str]) -> str:
    """The first few names."""
    return ", ".join(map(repr, list(names)[:3])) + (" and others" if len(names) > 3 else "")


def _few(found: Spaces, statistics: Statistics) -> dict[str, int]:
    """Spaces of which fewer samples were counted than a model has features, and how many."""
    counted = {space.name: statistics.matched[space.name] for space in found.spaces}
    return {
        name: count
        for name, folds in counted.items()
        if (count := sum(m.count for m in folds)) < max(folds[0].dims)
    }


def _space_report(space: Space, aligned: Aligned) -> SpaceReport:
    others = [s for i, s in enumerate(aligned.solutions[space.name]) if i != aligned.reference]
    explained = aligned.explained.get(space.name, ())
    return SpaceReport(
        name=space.name,
        size=space.size,
        method=aligned.methods[space.name],
        ridge=aligned.ridges[space.name],
        exact=space.exact.words,
        notes=list(space.notes),
        correlations=[
            [] if s.correlations is None else [float(c) for c in s.correlations] for s in others
        ],
        details=[s.details for s in others],
        widths=[len(s.feature_map.forward) for s in aligned.solutions[space.name]],
        approximate=_approximate(space, [s.feature_map for s in others]),
        explained=[e.by_best for e in explained],
        explained_by_map=[e.by_map for e in explained],
    )


def _approximate(space: Space, maps: Sequence[FeatureMap]) -> str:
    """Why mapping a model changes its function; empty if it does not."""
    used = [feature_map.forward for feature_map in maps]
    if others := sorted({len(m) for m in used} - {space.size}):
        return f"maps lead from {', '.join(map(str, others))} to {space.size} features"
    if space.exact == GENERAL or all(map(space.exact.contains, used)):
        return ""
    return f"maps mix features, but only {space.exact} would be exact"
