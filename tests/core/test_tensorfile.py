"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import ccamerge
from ccamerge.core.tensorfile import load_tensors, save_tensors


def test_round_trip_over_dtypes_and_layouts(tmp_path: Path) -> None:
    tensors = {
        "f64": np.arange(6.0).reshape(2, 3).T,  # not contiguous
        "i64": np.array(3, dtype=np.int64),
        "bf16": torch.ones(3).bfloat16(),
        "view": torch.arange(12).view(3, 4)[:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0, 4),
    }
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors, {"a": "b", "ä": "é"})
    loaded, metadata = load_tensors(path)
    assert metadata == {"a": "b", "ä": "é"}
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        expected: Any = value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
        assert torch.equal(loaded[key], expected.detach()), key
        assert loaded[key].dtype == expected.dtype


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    save_tensors(tmp_path / "x", {"a": weight, "tied": weight, "part": weight[2:4]}, {})
    loaded, _ = load_tensors(tmp_path / "x")
    assert torch.equal(loaded["tied"], weight)
    assert torch.equal(loaded["part"], weight[2:4])


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x", {"w": torch.ones(1)}, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.ones(3)}, {"version": "1"})
    whole = safetensors.torch.save_file

    def half(tensors: Any, filename: str, metadata: Any) -> None:
        whole(tensors, filename, metadata)
        os.truncate(filename, 20)
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises((OSError, KeyboardInterrupt)):
        save_tensors(path, {"w": torch.zeros(3)}, {"version": "2"})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    loaded, metadata = load_tensors(path)
    assert torch.equal(loaded["w"], torch.ones(3))
    assert metadata == {"version": "1"}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write itself fails."""
    script = f"""
        import resource, signal, torch
        from ccamerge.core.tensorfile import save_tensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_tensors({str(tmp_path / "big.safetensors")!r}, {{"w": torch.ones(100_000)}}, {{}})
        except OSError as error:
            print("refused:", error)
    """
    path = str(Path(ccamerge.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"refused: cannot write {tmp_path / 'big.safetensors'}")
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "x"
    with pytest.raises(FileNotFoundError, match=f"cannot write {path}: .* is not a folder"):
        save_tensors(path, {"w": torch.ones(1)}, {})


def test_an_unwritable_folder() -> None:
    path = Path("/proc/ccamerge.safetensors")  # not even root may
    if not path.parent.is_dir():
        pytest.skip("no /proc on this system")
    with pytest.raises(OSError, match=f"cannot write {path}"):
        save_tensors(path, {"w": torch.ones(1)}, {})


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        save_tensors(tmp_path / "x", {"w": torch.ones(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("length", [0, 4, 30, 100, -1])
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.ones(100)}, {"a": "b"})
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=f"{path}: not a readable safetensors file"):
        load_tensors(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: no such file"):
        load_tensors(tmp_path / "absent")


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    """In whatever order they and the metadata come, also after a file was read and written."""
    tensors: dict[str, Any] = {
        "b\x01": torch.ones(3),
        "é\u2028": torch.zeros(0, 2),
        "half": torch.ones(5).half(),
        "bytes": torch.arange(3, dtype=torch.uint8),
        'q"\\/': torch.zeros(0),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    about = {f"key {i}": f'\x00\t"é😀 {i}' for i in range(8)}
    path, seen = tmp_path / "x.safetensors", set()
    for turn in range(8):
        order, keys = list(tensors), list(about)
        if turn % 2:
            order, keys = order[::-1], keys[::-1]
        save_tensors(path, {k: tensors[k] for k in order}, {k: about[k] for k in keys})
        seen.add(path.read_bytes())
    save_tensors(path, *load_tensors(path))
    seen.add(path.read_bytes())
    assert len(seen) == 1
    (content,) = seen
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0  # data are aligned
    header = content[8 : 8 + length].decode()
    assert [header.index(json.dumps(k)) for k in sorted(about)] == sorted(
        header.index(json.dumps(k)) for k in about
    )
    loaded, metadata = load_tensors(path)
    assert metadata == about
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())
    assert {key: str(value.dtype) for key, value in loaded.items()} == {
        key: str(value.dtype) for key, value in tensors.items()
    }


def test_moments_of_the_same_data_are_the_same_bytes(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((2, 30, 4))
    written = set()
    for _ in range(6):
        moments = ccamerge.Moments([4, 4])
        moments.update(list(features))
        moments.save(tmp_path / "m.safetensors")
        written.add((tmp_path / "m.safetensors").read_bytes())
    assert len(written) == 1


def test_what_safetensors_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot write .*x: safetensors files cannot hold .*128"):
        save_tensors(tmp_path / "x", {"a": torch.ones(2, dtype=torch.complex128)}, {})
    assert list(tmp_path.iterdir()) == []
    lazily = torch.tensor([1 + 2j, 3 - 1j]).conj()
    save_tensors(tmp_path / "x", {"a": lazily, "b": lazily.imag}, {})
    loaded, _ = load_tensors(tmp_path / "x")
    assert torch.equal(loaded["a"], lazily.resolve_conj())
    assert torch.equal(loaded["b"], lazily.imag)
