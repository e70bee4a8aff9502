"""A report as one HTML page that needs nothing else: no scripts, no network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ccamerge.reporting import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison
    from ccamerge.reporting.run_folder import Record


class _Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()  # columns of them


def to_html(record: Record, figures: Mapping[str, Figure]) -> str:
    """Write the page, by the template beside this file.

    Parameters
    ----------
    record : what is to be told
    figures : of `ccamerge.reporting.plots.draw`; what is missing is said to be

    Raises
    ------
    ImportError
        Without jinja2; the message says how to get it.
    """
    try:
        import jinja2
    except ImportError as error:
        message = "the page needs jinja2: pip install 'ccamerge[plots]'"
        raise ImportError(message) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    report, evaluated = record.report, record.evaluated
    pictures = []
    for name in plots.PICTURES:
        picture = plots.picture(name)
        pictures.append(
            {
                "name": name,
                "title": picture.TITLE,
                "caption": picture.CAPTION,
                "absent": picture.ABSENT,
                "png": _png(figures[name]) if name in figures else "",
            }
        )
    return environment.get_template("page.html.jinja").render(
        title=f"{len(record.sources)} networks merged with ccamerge",
        settings=report.settings(),
        outcomes=report.outcomes(),
        pictures=pictures,
        evaluated=evaluated,
        scores=_scores(evaluated) if evaluated is not None else None,
        tables={
            "Spaces": _spaces(report),
            "Not aligned": _fixed(report),
            "Pinned axes": _pinned(report),
            "Repair in numbers": _repairs(report),
            "Sources": _sources(record),
        },
        config=json.dumps(record.config, indent=2, ensure_ascii=False),
        made=", ".join(f"{name} {number}" for name, number in record.versions.items()),
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=plots.DPI)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _spaces(report: Report) -> _Table:
    header = (
        *("space", "size", "method", "ridge", "R2", "R2 by map", "correlation", "condition"),
        *("maps", "notes"),
    )
    rows = [
        (
            s.name,
            str(s.size),
            s.method,
            _number(s.ridge),
            _number(s.mean_explained, ".3f"),
            _number(s.mean_explained_by_map, ".3f"),
            _number(s.mean_correlation, ".3f"),
            _number(s.condition, ".1e"),
            f"approximate: {s.approximate}" if s.approximate else f"exact under {s.exact}",
            "; ".join(s.notes),
        )
        for s in report.spaces
    ]
    return _Table(header, rows, (1, 3, 4, 5, 6, 7))


def _fixed(report: Report) -> _Table:
    rows = [(name, "; ".join(why)) for name, why in report.fixed.items()]
    return _Table(("space that keeps its basis", "why"), rows)


def _pinned(report: Report) -> _Table:
    """One row a reason: networks have few reasons and many axes."""
    reasons: dict[str, list[str]] = {}
    for axis, why in report.pinned.items():
        reasons.setdefault(why, []).append(axis)
    return _Table(("why", "axes"), [(why, ", ".join(axes)) for why, axes in reasons.items()])


def _repairs(report: Report) -> _Table:
    """Taps and operations in one table: most of them have a number of one kind only."""
    header = ("tap or operation", "deviation before", "after", "error left by regression")
    rows = [(r.tap, _number(r.before, ".1%"), _number(r.after, ".1%"), "") for r in report.repaired]
    rows += [(f.tap, "", "", _number(f.error, ".1%")) for f in report.fitted]
    rows += [(name, "", "", f"not fitted: {why}") for name, why in report.skipped.items()]
    return _Table(header, rows, (1, 2, 3))


def _scores(evaluated: Comparison) -> _Table:
    ensemble = [evaluated.ensemble] if evaluated.ensemble else []
    rows = [
        (kind, s.name, _number(s.metric, ".4f"), _number(s.loss, ".4f"), _number(s.seconds, ".2f"))
        for kind, scores in (
            ("model", evaluated.models),
            ("ensemble", ensemble),
            ("merged", evaluated.merged),
        )
        for s in scores
    ]
    header = ("", "network", evaluated.metric, evaluated.loss, "seconds to merge")
    return _Table(header, rows, (2, 3, 4))


def _sources(record: Record) -> _Table:
    rows = [
        (
            f"{source['path']}{' (reference)' if index == record.report.reference else ''}",
            _number(source["weight"]),
            source["sha256"],
        )
        for index, source in enumerate(record.sources)
    ]
    return _Table(("model", "weight", "SHA-256"), rows, (1,))


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
