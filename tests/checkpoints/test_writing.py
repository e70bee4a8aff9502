"""Files of parameters that are filled in parts: their bytes, their shards, and what can fail."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ccamerge.checkpoints.layout import DTYPES, dtype_named, places, shards
from ccamerge.checkpoints.reading import load_state
from ccamerge.checkpoints.writing import FolderWriter


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(7, 5, generator=generator),
        "a": torch.randn(3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "z": torch.randn(4, 4, generator=generator).T,
        "conj": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    }


def write(folder: Path, tensors: dict[str, Tensor], most: int = 10**9) -> None:
    with FolderWriter(folder, tensors, most) as writer:
        for name, value in tensors.items():
            writer.write(name, value)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value.dtype, value.shape) == (two[key].dtype, two[key].shape)
        assert torch.equal(value, two[key])


def test_a_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    write(tmp_path, state())
    path = tmp_path / "model.safetensors"
    same(safetensors.torch.load_file(path), state())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert list(tmp_path.iterdir()) == [path]
    for name, place in places(path).items():
        assert place.size == state()[name].nbytes
        assert place.start % max(1, state()[name].element_size()) == 0


@pytest.mark.parametrize("name", sorted(DTYPES.values()))
def test_dtypes_are_named_as_safetensors_names_them(tmp_path: Path, name: str) -> None:
    [code] = [code for code, known in DTYPES.items() if known == name]
    dtype = dtype_named(code)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    value = torch.zeros(3).to(dtype) if name != "float8_e8m0fnu" else torch.ones(3).to(dtype)
    write(tmp_path, {"x": value})
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")["x"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


def test_parts_in_any_order_make_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(10.0), "b": torch.arange(6).reshape(2, 3)}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", tensors)
    with FolderWriter(tmp_path / "parts", {k: v.to("meta") for k, v in tensors.items()}) as writer:
        writer.write("b", tensors["b"].reshape(-1)[4:], 4)
        writer.write("a", tensors["a"][3:], 3)
        writer.write("b", tensors["b"].reshape(-1)[:4], 0)
        writer.write("a", tensors["a"][:3])
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == two.read_bytes()


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}
    tensors["large"] = torch.ones(100)
    write(tmp_path, tensors, 100)
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    assert index["metadata"] == {"total_parameters": 150, "total_size": 600}
    assert sorted(set(index["weight_map"].values())) == names
    same(load_state(tmp_path), tensors)


def test_shards_are_those_of_huggingface_hub() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="comes with the transformers extra")
    generator = torch.Generator().manual_seed(0)
    for most in (1, 40, 200, 10**6):
        sizes = torch.randint(1, 40, (50,), generator=generator).tolist()
        tensors = {f"{i}": torch.zeros(size) for i, size in enumerate(sizes)}
        split = hub.split_torch_state_dict_into_shards(tensors, max_shard_size=most)
        assert shards(tensors, most) == list(split.filename_to_tensors.values())


def test_what_safetensors_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'x' is of torch\.complex128, which safetensors"):
        FolderWriter(tmp_path, {"x": torch.zeros(2, dtype=torch.complex128)})


def test_parts_that_do_not_fit_or_lack(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path, {"x": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"'x': a part of torch\.float64 does not fit"):
        writer.write("x", torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="does not fit"):
        writer.write("x", torch.zeros(2), 3)
    writer.write("x", torch.zeros(2), 1)
    with pytest.raises(RuntimeError, match="8 bytes were never written"):
        writer.__exit__(None, None, None)


def test_a_full_disk_is_told_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = (
        r"model\.safetensors: no space left on the device: the files take 4\.00 MB in all, and"
    )
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=message) as caught:
        write(tmp_path, {"x": torch.zeros(1000, 1000)})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "posix_fallocate", full)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=message):
        FolderWriter(tmp_path, {"x": torch.zeros(1000, 1000)})


def test_a_file_system_that_sets_no_room_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    write(tmp_path, state())
    same(load_state(tmp_path), state())


def test_writes_that_stop_half_way_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: real(handle, data[:5], at))
    write(tmp_path, state())
    same(load_state(tmp_path), state())
