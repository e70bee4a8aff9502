"""Rows of arrays out of each kind of file."""

from __future__ import annotations

import logging
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import ccamerge.data.arrays as A
from ccamerge.data.arrays import Arrays
from ccamerge.data.files import DataError

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def packed(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def tensors(path: Path, **arrays: Any) -> Path:
    path = path.with_suffix(".safetensors")
    safetensors.torch.save_file({k: torch.tensor(v) for k, v in arrays.items()}, path)
    return path


WRITERS = [npz, packed, tensors]


def rows(data: Arrays) -> Tensor:
    return torch.cat(list(data))


@pytest.mark.parametrize("write", WRITERS)
def test_rows_in_batches(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "a", x=X, y=Y)
    data = Arrays(path, "x", batch_size=8)
    assert [len(batch) for batch in data] == [8, 8, 4]
    assert len(data) == 3
    found = rows(data)
    assert found.dtype == torch.float32
    assert torch.equal(found[found[:, 0].argsort()], torch.tensor(X))
    assert not torch.equal(found, torch.tensor(X))
    assert torch.equal(rows(Arrays(path, "x", count=7)), rows(Arrays(path, "x", count=7)))
    assert not torch.equal(
        rows(Arrays(path, "x", count=7)), rows(Arrays(path, "x", count=7, seed=1))
    )


def test_kinds_of_files_agree(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    first = rows(Arrays(tmp_path / "a.npy", count=9))
    for write in WRITERS:
        assert torch.equal(first, rows(Arrays(write(tmp_path / "a", x=X), count=9)))


@pytest.mark.parametrize("write", WRITERS)
def test_labels_and_several_inputs_go_together(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "a", x=X, y=Y, z=Y * 2.0)
    for inputs, labels in Arrays(path, "x", labels="y", batch_size=6):
        assert torch.equal(inputs[:, 0], 3.0 * labels)
        assert labels.dtype == torch.int64
    for batch in Arrays(path, ["x", "z"], labels="y"):
        assert batch.keys() == {"x", "z", "labels"}
        assert torch.equal(batch["z"], 2.0 * batch["labels"])
    for batch in Arrays(path, ["x"]):
        assert batch.keys() == {"x"}


def test_types_that_networks_take(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "a",
        double=X.astype(">f8"),
        half=X.astype(np.float16),
        small=Y.astype(np.int16),
        unsigned=Y.astype(np.uint32),
        byte=Y.astype(np.uint8),
        truth=Y > 3,
        complex=Y * 1j,
    )
    kinds = {
        name: next(iter(Arrays(path, name))).dtype
        for name in ("double", "half", "small", "unsigned", "byte", "truth", "complex")
    }
    assert kinds == {
        "double": torch.float32,
        "half": torch.float32,
        "small": torch.int64,
        "unsigned": torch.int64,
        "byte": torch.uint8,
        "truth": torch.bool,
        "complex": torch.complex128,
    }
    assert torch.equal(rows(Arrays(path, "double")).sort(0).values, torch.tensor(X))
    assert torch.equal(rows(Arrays(path, "unsigned")).sort().values, torch.tensor(Y))


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.tensor(X).bfloat16()}, tmp_path / "a.safetensors")
    assert rows(Arrays(tmp_path / "a.safetensors")).dtype == torch.float32


@pytest.mark.parametrize("pack", [npz, packed])
def test_columns_that_lie_together(tmp_path: Path, pack: Callable[..., Path]) -> None:
    path = pack(tmp_path / "a", x=np.asfortranarray(X))
    assert torch.equal(rows(Arrays(path)).sort(0).values, torch.tensor(X))


def test_large_arrays_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(A, "_AT_ONCE", 10_000)
    large = np.arange(400_000, dtype=np.float32).reshape(-1, 4)
    np.save(tmp_path / "a.npy", large)
    for path in (packed(tmp_path / "a", x=large), tmp_path / "a.npy"):
        tracemalloc.start()
        found = rows(Arrays(path, count=50))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < large.nbytes / 2
        assert torch.equal(found, torch.tensor(large)[(found[:, 0] / 4).long()])


def test_fewer_than_asked_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = npz(tmp_path / "a", x=X)
    with caplog.at_level(logging.WARNING, "ccamerge"):
        assert len(rows(Arrays(path, count=21))) == 20
    assert caplog.messages == [f"21 rows of {path} were asked for, but there are 20: all are used"]


def refuses(message: str, *args: Any, **settings: Any) -> None:
    with pytest.raises(DataError, match=message):
        Arrays(*args, **settings).check()


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_that_are_not_there(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "a", xs=X, y=Y, short=Y[:7], one=np.float32(3))
    name = re.escape(str(path))
    refuses(f"{name}: give key, one of .*'xs'", path)
    refuses(f"{name}: there is no array 'x'; arrays there: .*; did you mean 'xs'", path, "x")
    refuses(
        f"{name}: .*equally many rows, one or more: 'xs' has 20, 'short' has 7",
        path,
        ["xs", "short"],
    )
    refuses(f"{name}: .*'xs' has 20, 'short' has 7", path, "xs", labels="short")
    refuses(f"{name}: .*equally many rows, one or more: 'one' has 0", path, "one")
    other = Arrays(write(tmp_path / "b", x=X, y=Y), labels="y")  # but one that is not the labels
    assert sum(len(labels) for _, labels in other) == 20


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for kind in ("npz", "npy", "safetensors"):
        (tmp_path / f"a.{kind}").write_bytes(b"nothing of it")
        refuses(rf"a\.{kind}: cannot be read: ", tmp_path / f"a.{kind}")
    refuses(r"missing\.npz: no such file", tmp_path / "missing.npz")
    (tmp_path / "a.mat").touch()
    refuses(r"a\.mat: unknown kind of file; expected", tmp_path / "a.mat")
    refuses("expected one file, got 2", tmp_path / "a.n*")


def test_what_is_no_numbers(tmp_path: Path) -> None:
    path = npz(tmp_path / "a", objects=np.array([{}, 1], dtype=object), words=np.array(["a", "b"]))
    refuses("cannot be read: array 'objects' holds objects, expected numbers", path, "words")
    path = npz(tmp_path / "a", words=np.array(["a", "b"]))
    with pytest.raises(DataError, match="array 'words' holds <U1, expected numbers"):
        list(Arrays(path))
    np.save(tmp_path / "a.npy", np.array([{}, 1], dtype=object))
    refuses(r"a\.npy: cannot be read: ", tmp_path / "a.npy")


def test_a_truncated_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-9])
    refuses(r"a\.npy: cannot be read: ", tmp_path / "a.npy")
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", content[:-9])
    refuses(r"a\.npz: cannot be read: ends after 0 rows of 20", tmp_path / "a.npz")
