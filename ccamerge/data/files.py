"""Which files are meant by paths, patterns and folders, and what tells them from others."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ccamerge.core import arguments

Paths = str | os.PathLike[str]

_LISTED = 5  # names in a message


class DataError(ValueError):
    """Files of data are not there, cannot be read or hold something else than is asked for."""


def files_of(given: Paths | Sequence[Paths], name: str, kinds: Collection[str]) -> list[Path]:
    """The files that are meant, each once, in an order that depends on their paths alone.

    Parameters
    ----------
    given : a file, a folder, a pattern (``*``, ``?``, ``[...]``, ``**`` for folders of any depth),
        or several of these. Of a folder those files are taken, at any depth, whose names end as one
        of ``kinds`` and do not begin with a dot.
    name : of the argument, for messages
    kinds : endings of names, such as ".jsonl"

    Raises
    ------
    DataError
        If there is no such file, or none in a folder or for a pattern, or one of another kind.
    """
    several = given if isinstance(given, (list, tuple)) else [given]
    if not several:
        message = f"{name} must hold one file at least, got none"
        raise DataError(message)
    found: set[Path] = set()
    for place, item in enumerate(several):
        where = f"{name}[{place}]" if several is given else name
        found |= set(_meant(arguments.path(item, where), kinds))
    return sorted(found, key=os.path.abspath)


def _meant(path: Path, kinds: Collection[str]) -> list[Path]:
    """The files of one path or pattern."""
    path = path.expanduser()
    if path.is_dir():
        found = files_within(path, kinds)
        if not found:
            message = f"{path}: the folder has no file that ends in {', '.join(sorted(kinds))}"
            raise DataError(message)
        return found
    if path.is_file():
        found = [path]
    elif glob.has_magic(str(path)):
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p)]
        if not found:
            message = f"{path}: the pattern matches no file"
            raise DataError(message)
    else:
        there = os.path.lexists(path)
        message = f"{path}: " + ("is neither a file nor a folder" if there else "no such file")
        raise DataError(message)
    odd = sorted(str(p) for p in found if not p.name.lower().endswith(tuple(kinds)))
    if odd:
        more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
        message = (
            f"{', '.join(odd[:_LISTED])}{more}: unknown kind of file; expected a name that ends in "
            f"{', '.join(sorted(kinds))}"
        )
        raise DataError(message)
    return found


def files_within(folder: Path, kinds: Collection[str]) -> list[Path]:
    """Files of a folder, at any depth, whose names end so and do not begin with a dot, sorted."""
    found = []
    for inner, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        here = Path(inner)
        found += [
            here / name
            for name in names
            if name.lower().endswith(tuple(kinds)) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def fingerprint_of(files: Sequence[Path]) -> dict[str, Any]:
    """How many files and bytes there are, and a digest of their names and sizes.

    Names count from the folder that has them all: it may lie elsewhere another day.
    """
    whole = [Path(os.path.abspath(path)) for path in files]
    folder = Path(os.path.commonpath([path.parent for path in whole]))
    sizes = [path.stat().st_size for path in whole]
    rows = [f"{p.relative_to(folder).as_posix()}\0{n}" for p, n in zip(whole, sizes, strict=True)]
    digest = hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
    return {"files": len(rows), "bytes": sum(sizes), "names and sizes": digest[:16]}
