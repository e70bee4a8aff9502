"""Documents of text files, one after another, so that no file is ever read whole into memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ccamerge.config.importing import did_you_mean
from ccamerge.data.files import DataError

Document = Iterator[str]
"""Its passages, in their order: together they are the whole text."""

_PACKED: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_PACKED[".bz2"] = bz2.open
_LINES, _PLAIN = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md")
TEXT_KINDS = (*(kind + packed for kind in (*_LINES, *_PLAIN) for packed in _PACKED), ".parquet")
"""How names of files end that hold text."""

_ROWS = 64  # of Parquet, read at once


def documents_of(path: Path, field: str, size: int) -> Iterator[Document]:
    r"""The documents of a file, each in passages of at most ``size`` characters.

    Of JSON Lines each line is one, of Parquet each row: the text under ``field``; null is none. A
    plain text is one document, its line ends become ``\n``. Passages end behind white space where
    there is some in their second half.

    Raises
    ------
    DataError
        If something cannot be read; the message names the file and the line or row.
    """
    kind = path.name.lower()
    try:
        if kind.endswith(".parquet"):
            for text in _rows(path, field):
                yield _passages(io.StringIO(text, newline=""), size)
            return
        packed = next((end for end in _PACKED if end and kind.endswith(end)), "")
        if kind.removesuffix(packed).endswith(_LINES):
            with _PACKED[packed](path, "rb") as file:
                for text in _lines(path, file, field):
                    yield _passages(io.StringIO(text, newline=""), size)
        else:
            opened = _PACKED[packed]
            with opened(path, "rt", encoding="utf-8-sig") as file:
                yield _plain(file, size, lambda: _place(path, opened))
    except (OSError, EOFError, lzma.LZMAError) as error:
        message = f"{path}: cannot be read: {error}"
        raise DataError(message) from error


def _passages(file: IO[str], size: int) -> Document:
    rest = ""
    while more := file.read(size):
        rest += more
        while len(rest) > size:
            end = 1 + max(rest.rfind(space, size // 2, size) for space in " \n\t")
            end = end or size
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _plain(file: IO[str], size: int, place: Callable[[], str]) -> Document:
    try:
        yield from _passages(file, size)
    except UnicodeDecodeError as error:
        message = f"{place()}: is not UTF-8 text: {error.reason}"
        raise DataError(message) from error


def _place(path: Path, opened: Callable[..., Any]) -> str:
    """The file, and its first line that is not UTF-8."""
    with opened(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path}:{number}"
    return str(path)


def _lines(path: Path, file: IO[bytes], field: str) -> Iterator[str]:
    """The text in each line of JSON."""
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            message = f"{where}: not a line of JSON: {error}"
            raise DataError(message) from error
        if not isinstance(row, dict):
            got = type(row).__name__
            message = f"{where}: expected a JSON object with the field {field!r}, got a {got}"
            raise DataError(message)
        if field not in row:
            raise _missing(where, field, list(row))
        yield _text(row[field], where, field)


def _rows(path: Path, field: str) -> Iterator[str]:
    """The text in each row of a column of Parquet."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise _missing(str(path), field, names)
            row = 0
            for part in file.iter_batches(_ROWS, columns=[field]):
                for value in part.column(0).to_pylist():
                    row += 1
                    yield _text(value, f"{path}, row {row}", field)
    except pyarrow.ArrowException as error:
        message = f"{path}: cannot be read as Parquet: {error}"
        raise DataError(message) from error


def _missing(where: str, field: str, there: list[str]) -> DataError:
    names = ", ".join(map(repr, there)) or "none"
    hint = did_you_mean(field, there)
    return DataError(f"{where}: there is no field {field!r}; fields there: {names}{hint}")


def _text(value: Any, where: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        message = f"{where}: field {field!r} holds a {type(value).__name__}, expected text"
        raise DataError(message)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can write half of a pair of surrogates
            message = f"{where}: field {field!r} is no text that Unicode knows: half a character"
            raise DataError(message) from None
    return value
