"""The average of files, part by part: as of whole tensors, whatever the parts and files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccamerge.checkpoints.files import CheckpointError
from ccamerge.checkpoints.parts import PartReader
from ccamerge.checkpoints.reading import load_state, save_state
from ccamerge.checkpoints.writing import FolderWriter
from ccamerge.merging import streaming
from ccamerge.merging.averaging import average
from ccamerge.merging.streaming import StreamedAverage, opened

State = dict[str, Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "matrix": torch.randn(37, 11, generator=generator).to(dtype),
        "scalar": torch.randn((), generator=generator).to(dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "count": torch.tensor(7 + seed),
        "mask": torch.tensor([True, False]),
        "frozen": torch.arange(20.0).to(dtype) / 3,
        "bias": torch.full((6,), -math.inf, dtype=dtype),
        "odd": torch.tensor([1.0, math.nan, math.inf, 2.0 + seed], dtype=dtype),
    }
    drawn["odd"][1] = seed if seed else math.nan
    return drawn


def files(folder: Path, states: Sequence[State], suffix: str = "safetensors") -> list[Path]:
    paths = [folder / f"{i}.{suffix}" for i in range(len(states))]
    for path, own in zip(paths, states, strict=True):
        if suffix == "safetensors":
            save_state(own, path)
        else:
            torch.save({"state_dict": own}, path)
    return paths


def averaged(
    folder: Path,
    paths: Sequence[Path],
    weights: Sequence[float],
    dtype: torch.dtype | None = None,
    threads: int = 2,
    own: Mapping[str, Sequence[float]] | None = None,
) -> tuple[State, dict[str, str]]:
    folder.mkdir()
    with opened(paths) as readers:
        names = list(readers[0].shapes)
        shares = {**dict.fromkeys(names, weights), **(own or {})}
        made = StreamedAverage(readers, shares, dtype, threads)
        with FolderWriter(folder, made.tensors) as writer:
            reasons = made.run(writer)
        assert made.written == sum(v.nbytes for v in load_state(folder).values())
    return load_state(folder), reasons


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value.dtype == two[key].dtype
        torch.testing.assert_close(value, two[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.0, 0.6, 0.4), (1.0, 0.0, 0.0)])
def test_parts_make_what_whole_tensors_make(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    dtype: torch.dtype,
    weights: tuple[float, ...],
) -> None:
    states = [state(i, dtype) for i in range(3)]
    expected, reasons = average(states, lambda _: weights)
    paths = files(tmp_path, states, suffix)
    for part in (1, 16, 1 << 18):
        monkeypatch.setattr(streaming, "PART", part)
        found, why = averaged(tmp_path / str(part), paths, weights)
        same(found, expected)
        assert why == reasons
    if weights[0] == 0.5:
        assert set(reasons) == {"count", "odd"}


def test_the_order_of_threads_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path, [state(i) for i in range(3)])
    monkeypatch.setattr(streaming, "PART", 5)
    for threads in (1, 4):
        averaged(tmp_path / str(threads), paths, (0.2, 0.3, 0.5), threads=threads)
    one, four = (tmp_path / name / "model.safetensors" for name in "14")
    assert one.read_bytes() == four.read_bytes()


def test_parameters_may_have_weights_of_their_own(tmp_path: Path) -> None:
    states = [state(i) for i in range(2)]
    found, _ = averaged(
        tmp_path / "out", files(tmp_path, states), (0.5, 0.5), own={"matrix": (0.0, 1.0)}
    )
    assert torch.equal(found["matrix"], states[1]["matrix"])
    assert torch.equal(found["scalar"], (states[0]["scalar"] + states[1]["scalar"]) / 2)


def test_another_dtype_is_rounded_to_once(tmp_path: Path) -> None:
    states = [{"w": torch.tensor([1.0, 3.0]).to(torch.bfloat16)} for _ in range(2)]
    states[1]["w"][0] += 2**-7
    found, _ = averaged(tmp_path / "out", files(tmp_path, states), (0.5, 0.5), torch.float32)
    assert found["w"].tolist() == [1 + 2**-8, 3.0]  # which bfloat16 does not hold


@pytest.mark.parametrize("second", [7e4, 6e4])
def test_numbers_that_are_too_large_for_the_dtype(tmp_path: Path, second: float) -> None:
    states = [{"w": torch.tensor([1.0, 7e4])}, {"w": torch.tensor([1.0, second])}]
    if second == 7e4:
        states[1]["w"][0] = 1.0
    else:
        states[1]["w"][1] = 7.5e4
    with pytest.raises(OverflowError, match="w of the average has numbers too large for float16"):
        averaged(tmp_path / "out", files(tmp_path, states), (0.5, 0.5), torch.float16)


def test_numbers_beside_infinities_that_are_too_large_for_the_dtype(tmp_path: Path) -> None:
    states = [{"w": torch.tensor([math.inf, large, 1e5])} for large in (1e5, 1e5)]
    states[1]["w"][0], states[1]["w"][2] = 0.0, -1e5
    with pytest.raises(OverflowError, match="w of the average has numbers too large for float16"):
        averaged(tmp_path / "out", files(tmp_path, states), (0.5, 0.5), torch.float16)
    for own in states:
        own["w"][1] = 1.0
    save_state(states[0], tmp_path / "0.safetensors")
    save_state(states[1], tmp_path / "1.safetensors")
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    found, reasons = averaged(tmp_path / "fits", paths, (0.5, 0.5), torch.float16)
    assert found["w"].tolist() == [math.inf, 1.0, 0.0]
    assert "not finite" in reasons["w"]


def test_what_is_read_and_the_memory_that_takes(tmp_path: Path) -> None:
    states = [{"w": torch.ones(100), "v": torch.ones(50)} for _ in range(3)]
    with opened(files(tmp_path, states)) as readers:
        shares = {"w": (0.0, 0.5, 0.5), "v": (0.5, 0.5, 0.0)}
        made = StreamedAverage(readers, shares, torch.float64, 2)
        assert made.read == 3 * 400 + 2 * 200
        assert made.written == 150 * 8
        # For each thread a part of four bytes a model, and arrays in double precision.
        assert made.memory == 2 * (3 * 4 + 3 * 8) * streaming.PART


def test_a_file_that_gets_shorter_meanwhile(tmp_path: Path) -> None:
    [path] = files(tmp_path, [{"w": torch.ones(1000)}])
    with PartReader(path) as reader:
        memory = torch.empty(4000, dtype=torch.uint8)
        assert reader.read("w", 10, 20, memory).tolist() == [1.0] * 10
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 40)
        with pytest.raises(CheckpointError, match="ends within 'w'; was it changed"):
            reader.read("w", 900, 1000, memory)


def test_one_thread_that_fails_stops_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path, [{"w": torch.full((10_000,), float(i))} for i in range(2)])
    monkeypatch.setattr(streaming, "PART", 1)
    done: list[str] = []

    def write(self: FolderWriter, name: str, values: Tensor, start: int = 0) -> None:
        done.append(name)
        if start == 3:
            message = "broken"
            raise OSError(message)

    monkeypatch.setattr(FolderWriter, "write", write)
    with pytest.raises(OSError, match="broken"):
        averaged(tmp_path / "out", paths, (0.5, 0.5))
    assert len(done) < 10_000


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    averaged(tmp_path / "out", files(tmp_path, [state(0), state(1)]), (0.5, 0.5))
    assert torch.get_num_threads() == before
