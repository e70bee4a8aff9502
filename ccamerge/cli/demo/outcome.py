"""Showing what came out: a table, a picture and all figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ccamerge.cli.demo.comparison import Comparison


def table(comparisons: Sequence[Comparison]) -> str:
    """Test accuracy in percent, a row for each set of networks.

    "base" is the mean of the networks; the seconds are those of collecting and of the CCA merge.
    """
    labels = list(dict.fromkeys(label for c in comparisons for label in c.merged))
    header = ["networks", "N", "base", "ensemble", *labels, "seconds"]
    rows = [header]
    for c in comparisons:
        base = sum(own.accuracy for own in c.base) / len(c.base)
        rows.append(
            [
                c.title,
                str(c.models),
                f"{100 * base:.1f}",
                f"{100 * c.ensemble.accuracy:.1f}",
                *(f"{100 * c.merged[x].accuracy:.1f}" if x in c.merged else "" for x in labels),
                f"{c.seconds['collect'] + c.seconds['CCA']:.2f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def present(comparisons: Sequence[Comparison], out: Path) -> None:
    """Print the table; save it with all figures, and the picture, in a folder."""
    print("Test accuracy in percent:")
    print(table(comparisons))
    out.mkdir(parents=True, exist_ok=True)
    record = [{**dataclasses.asdict(c), "report": c.report.to_dict()} for c in comparisons]
    (out / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    try:
        from ccamerge.cli.demo.picture import draw
    except ImportError:
        print("No picture: it needs matplotlib (pip install 'ccamerge[demo]').")
        return
    draw(comparisons, out / "demo.png")
    print(f"Picture: {out / 'demo.png'}   Figures: {out / 'demo.json'}")
