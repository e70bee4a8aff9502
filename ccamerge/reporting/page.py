"""A report as one HTML page that needs nothing else: no scripts, no network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ccamerge.reporting.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison
    from ccamerge.reporting.run_folder import Record

_STYLE = """
:root { color-scheme: light dark; --line: #bbb; --faint: #666; }
@media (prefers-color-scheme: dark) { :root { --line: #555; --faint: #aaa; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
figure { margin: 1em 0; break-inside: avoid; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figcaption, .faint { color: var(--faint); font-size: 0.9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85em; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25em 0.7em 0.25em 0; text-align: left;
  vertical-align: top; overflow-wrap: break-word; max-width: 45em; }
th { border-bottom-width: 2px; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr { break-inside: avoid; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; border: 1px solid var(--line); padding: 0.8em; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } .wide { overflow: visible; }
  td { overflow-wrap: anywhere; } }
"""

_PICTURES = {
    "comparison": (
        "The merged network beside the models and their ensemble",
        "Light to dark: models, ensemble, merged. The dotted line is the models' mean.",
    ),
    "barriers": (
        "On the way between the networks",
        """Metric and loss of merges between the reference (t = 0) and the others (t = 1). A barrier
        is how far the loss rises above the straight line between the models' own losses.""",
    ),
    "correlations": (
        "How alike the spaces are",
        """Correlation of matched directions, mean over the models but the reference; spaces from
        left to right in the network's order, their sizes in brackets. Canonical correlations are
        regularised: below those without a ridge.""",
    ),
    "conditioning": (
        "Conditioning and ridge",
        "Condition number of each space's regularised covariances, and the ridge used.",
    ),
    "repair": (
        "Variance kept, before and after repair",
        """Standard deviation of the merged network's features over that of the aligned models, by
        tap; for regression, the root-mean-square error over that before, by operation.""",
    ),
    "resources": (
        "Time and memory by stage",
        """Seconds of each stage, and the largest resident memory that the whole process had had
        when the stage ended, by the operating system's count: a stage that adds nothing to it
        needed no more than what came before.""",
    ),
}
"""For each picture its title, and what it shows."""

_ABSENT = {
    "comparison": "No evaluation: `ccamerge evaluate` with --out RUN/evaluation.json makes one.",
    "barriers": "No barriers were evaluated.",
    "correlations": "The methods used give no correlations.",
    "conditioning": "The methods used solve no regularised problem.",
    "repair": "No tap was repaired and no operation fitted.",
    "resources": "No times were recorded.",
}


def to_html(record: Record, figures: Mapping[str, Figure]) -> str:
    """Write the page.

    Parameters
    ----------
    record : what is to be told
    figures : of `ccamerge.reporting.plots.draw`; what is missing is said to be
    """
    report = record.report
    parts = [f"<p>{_text(report.settings())}.</p>"]
    parts += [f"<p>{_text(line)}.</p>" for line in report.outcomes()]
    for name, (title, caption) in _PICTURES.items():
        parts.append(f"<h2>{_text(title)}</h2>")
        if name in figures:
            parts.append(_figure(figures[name], title, caption))
        else:
            parts.append(f"<p>{_text(_ABSENT[name])}</p>")
        if name == "comparison" and record.evaluated is not None:
            parts.append(_scores(record.evaluated))
    parts += ["<h2>Spaces</h2>", _spaces(report)]
    parts += ["<h2>Not aligned</h2>", _fixed(report)]
    parts += ["<h2>Pinned axes</h2>", _pinned(report)]
    parts += ["<h2>Repair in numbers</h2>", _repairs(report)]
    parts += ["<h2>Sources</h2>", _sources(record)]
    config = json.dumps(record.config, indent=2, ensure_ascii=False)
    parts += ["<h2>Configuration</h2>", f"<pre>{_text(config)}</pre>"]
    made = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    parts.append(f'<p class="faint">Made with {_text(made)}.</p>')
    title = f"{len(record.sources)} networks merged with ccamerge"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _figure(figure: Figure, title: str, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = " ".join(caption.split())
    alt = f"Picture: {title}. {caption} The numbers are in the tables of this page."
    return (
        f'<figure><img alt="{_text(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _spaces(report: Report) -> str:
    header = ("space", "size", "method", "ridge", "correlation", "condition", "maps", "notes")
    rows = [
        (
            s.name,
            str(s.size),
            s.method,
            _number(s.ridge),
            _number(s.mean_correlation, ".3f"),
            _number(s.condition, ".1e"),
            f"approximate: {s.approximate}" if s.approximate else f"exact under {s.exact}",
            "; ".join(s.notes),
        )
        for s in report.spaces
    ]
    return _table(header, rows, numbers=(1, 3, 4, 5))


def _fixed(report: Report) -> str:
    rows = [(name, "; ".join(why)) for name, why in report.fixed.items()]
    return _table(("space that keeps its basis", "why"), rows)


def _pinned(report: Report) -> str:
    """One row a reason: networks have few reasons and many axes."""
    reasons: dict[str, list[str]] = {}
    for axis, why in report.pinned.items():
        reasons.setdefault(why, []).append(axis)
    return _table(("why", "axes"), [(why, ", ".join(axes)) for why, axes in reasons.items()])


def _repairs(report: Report) -> str:
    """Taps and operations in one table: most of them have a number of one kind only."""
    header = ("tap or operation", "deviation before", "after", "error left by regression")
    rows = [(r.tap, _number(r.before, ".1%"), _number(r.after, ".1%"), "") for r in report.repaired]
    rows += [(f.tap, "", "", _number(f.error, ".1%")) for f in report.fitted]
    rows += [(name, "", "", f"not fitted: {why}") for name, why in report.skipped.items()]
    return _table(header, rows, numbers=(1, 2, 3))


def _scores(evaluated: Comparison) -> str:
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
    note = f"On {evaluated.samples} samples; {evaluated.better} {evaluated.metric} is better."
    return f"<p>{_text(note)}</p>" + _table(header, rows, numbers=(2, 3, 4))


def _sources(record: Record) -> str:
    rows = [
        (
            f"{source['path']}{' (reference)' if index == record.report.reference else ''}",
            _number(source["weight"]),
            source["sha256"],
        )
        for index, source in enumerate(record.sources)
    ]
    return _table(("model", "weight", "SHA-256"), rows, numbers=(1,))


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} class="number">{_text(c)}</{tag}>'
            if i in numbers
            else f"<{tag}>{_text(c)}</{tag}>"
            for i, c in enumerate(cells)
        )
        return "<tr>" + "".join(made) + "</tr>"

    lines = [line(row, "td") for row in rows]
    if not lines:
        return "<p>None.</p>"
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table>\n<thead>{line(header, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _text(value: Any) -> str:
    return escape(str(value), quote=True)
