"""``ccamerge report``: a merge as one HTML page, and its pictures."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from ccamerge.cli._shared import UsageError, check_parent, note

NAME = "report"
HELP = "a merge as one HTML page with pictures"
DESCRIPTION = """\
Draws what `ccamerge merge` wrote into RUN/report.json and, if there, `ccamerge evaluate` into
RUN/evaluation.json: correlations, conditioning, repair, scores, barriers, time and memory. The page
is one file that opens from disk without a network."""
EPILOG = """\
examples:
  ccamerge report merged                  writes merged/report.html
  ccamerge report merged --png            and merged/pictures/*.png
  ccamerge report merged --out page.html --png pictures"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a merge")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="page to write (default: RUN/report.html)"
    )
    parser.add_argument(
        "--png",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="FOLDER",
        help="write the pictures as files, too (default folder: RUN/pictures)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, draw and write."""
    folder = args.run_folder
    out = folder / "report.html" if args.out is None else args.out
    png = folder / "pictures" if args.png == Path() else args.png
    from ccamerge.reporting import plots
    from ccamerge.reporting.page import to_html
    from ccamerge.reporting.run_folder import read_record

    record = read_record(folder)
    check_parent(out)
    if out.is_dir():
        message = f"--out: {out} is a folder, expected a file"
        raise UsageError(message)
    if png is not None:
        check_parent(png)
        if png.exists() and not png.is_dir():
            message = f"--png: {png} is a file, expected a folder"
            raise UsageError(message)
    try:
        figures = plots.draw(record.report, record.evaluated)
        page = to_html(record, figures)
    except ImportError as error:
        raise UsageError(str(error)) from error
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    note(args, f"wrote {out}")
    if png is not None:
        plots.save(figures, png)
        note(args, f"wrote {len(figures)} pictures into {png}")
    return 0
