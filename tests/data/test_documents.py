"""Documents out of files, whatever these look like, and errors that say where."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from ccamerge.data.documents import documents_of
from ccamerge.data.files import DataError
from tests.data.words import write_lines

TEXTS = ["plain", "naïve 日本 🙂", "line\r\nand line\n", "", "a\u2028b\x85c", 'quoted "\\"']


def read(path: Path, field: str = "text", size: int = 1000) -> list[str]:
    return ["".join(document) for document in documents_of(path, field, size)]


def says(path: Path, message: str, field: str = "text") -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + message)}"):
        read(path, field)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
def test_lines_of_json(tmp_path: Path, end: str) -> None:
    assert read(write_lines(tmp_path / "a.jsonl", TEXTS, end=end)) == TEXTS


def test_lines_without_escapes_with_a_mark_and_without_a_last_end(tmp_path: Path) -> None:
    rows = [json.dumps({"body": text}, ensure_ascii=False) for text in TEXTS]
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    assert read(path, "body") == TEXTS


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip), ("xz", lzma), ("bz2", bz2)])
def test_packed_files(tmp_path: Path, ending: str, pack: Any) -> None:
    plain = write_lines(tmp_path / "a.jsonl", TEXTS)
    packed = tmp_path / f"a.jsonl.{ending}"
    packed.write_bytes(pack.compress(plain.read_bytes()))
    assert read(packed) == TEXTS
    packed.write_bytes(packed.read_bytes()[:-12])
    says(packed, ": cannot be read: ")
    packed.write_bytes(b"none of it")
    says(packed, ": cannot be read: ")


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "A.TXT"
    path.write_bytes("\ufeffone\r\ntwo 日本\rthree\n".encode())
    assert read(path) == ["one\ntwo 日本\nthree\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_an_empty_file_has_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "".join(read(tmp_path / name)) == ""


@hypothesis.settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufeff")),
    size=st.integers(1, 9),
)
def test_passages_are_the_whole_text(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    write_lines(tmp_path / "a.jsonl", [text])
    for name in ("a.txt", "a.jsonl"):
        [passages] = [list(d) for d in documents_of(tmp_path / name, "text", size)]
        assert "".join(passages) == text
        assert all(0 < len(passage) <= size for passage in passages)


def test_passages_end_behind_white_space(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one two\nthree fourfourfour"])
    [passages] = [list(d) for d in documents_of(path, "text", 10)]
    assert passages == ["one two\n", "three ", "fourfourfo", "ur"]


def test_large_files_are_never_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words and others\n" * 100_000)
    write_lines(tmp_path / "a.jsonl", ["some words and others"] * 40_000)
    for name in ("a.txt", "a.jsonl"):
        assert (tmp_path / name).stat().st_size > 1.8e6
        tracemalloc.start()
        count = sum(
            len(passage) for d in documents_of(tmp_path / name, "text", 4096) for passage in d
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count >= 40_000 * 21
        assert peak < 5e5


BAD = [
    (b'{"text": "a"}\n{"text": \n', ":2: not a line of JSON: "),
    (b'{"text": "a"}\n\n{"text": "\xff"}\n', ":3: not a line of JSON: 'utf-8' codec can't decode"),
    (b'["a"]\n', ":1: expected a JSON object with the field 'text', got a list"),
    (b'{"test": "", "id": 1}\n', ":1: there is no field 'text'; fields there: 'test', 'id'; did"),
    (b"{}\n", ":1: there is no field 'text'; fields there: none"),
    (b'{"text": "a"}\n{"text": ["b"]}\n', ":2: field 'text' holds a list, expected text"),
    (b'{"text": "\\ud83d"}\n', ":1: field 'text' is no text that Unicode knows"),
    (b"[" * 100_000, ":1: not a line of JSON: "),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD)
def test_each_mistake_names_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    says(path, message)


def test_null_is_an_empty_document(tmp_path: Path) -> None:
    assert read(write_lines(tmp_path / "a.jsonl", [None, "b"])) == ["", "b"]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n" * 2000 + b"caf\xe9\n")
    says(path, ":4001: is not UTF-8 text: ")


def test_rows_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the data extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = [*TEXTS * 40, None]
    parquet.write_table(pyarrow.table({"body": texts, "id": list(range(len(texts)))}), path)
    assert read(path, "body") == [text or "" for text in texts]
    says(
        path, ": there is no field 'bodi'; fields there: 'body', 'id'; did you mean 'body'?", "bodi"
    )
    says(path, ", row 1: field 'id' holds a int, expected text", "id")
    path.write_bytes(b"PAR1" + bytes(100))
    says(path, ": cannot be read as Parquet: ", "body")
    path.write_bytes(b"")
    says(path, ": cannot be read as Parquet: ", "body")
