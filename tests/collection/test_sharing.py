"""A pass that several processes share is that of one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.collection import processes
from ccamerge.core.device import obstacle
from tests import models as M
from tests.together import together

SIZES = (16, 16, 9, 30, 1, 20, 40, 7, 25)

OPTIONS: dict[str, Any] = {"pairs": "all", "holdout": 0.2, "seed": 5, "progress": False}


def _nets() -> list[nn.Module]:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))

    return [M.randomise(network(seed), seed) for seed in range(3)]


def _batches() -> list[Tensor]:
    """Of maps of which each batch counts other rows and columns; some of another size."""
    generator = torch.Generator().manual_seed(0)
    sides = [19 if index < 5 else 17 for index in range(len(SIZES))]
    pairs = zip(SIZES, sides, strict=True)
    return [torch.randn(n, 3, side, side, generator=generator) + 0.5 for n, side in pairs]


def _few(statistics: ccamerge.Statistics, folder: Path, name: str) -> bytes:
    statistics.save(folder / f"{name}.safetensors")
    return (folder / f"{name}.safetensors").read_bytes()


def _collect(rank: int, folder: Path) -> None:
    """Twice, since a second pass must not meet what the first has left."""
    nets, data = _nets(), _batches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccamerge.collection.data_pass.KEEP_SAMPLES", 60)
        for turn in range(2):
            collected = ccamerge.collect(nets, data, **OPTIONS)
            collected.save(folder / f"{turn}-{rank}.safetensors")
        alone = ccamerge.collect(nets, data, **OPTIONS, distributed=False)
        alone.save(folder / f"alone-{rank}.safetensors")
        there = ccamerge.collect(nets, data, **OPTIONS, device="auto")  # CUDA where it is usable
        assert there.device == ("cpu" if obstacle() else "cuda:0")
        there.save(folder / f"there-{rank}.safetensors")


@pytest.mark.parametrize("world", [2, 3])
def test_the_statistics_are_those_of_one_process(tmp_path: Path, world: int) -> None:
    assert together(_collect, world, tmp_path) == [""] * world
    files = [tmp_path / f"{turn}-{rank}.safetensors" for turn in range(2) for rank in range(world)]
    assert len({file.read_bytes() for file in files}) == 1  # in each process, and each time
    alone = {(tmp_path / f"alone-{rank}.safetensors").read_bytes() for rank in range(world)}
    assert len(alone) == 1
    one = ccamerge.Statistics.load(tmp_path / "alone-0.safetensors")
    there = [tmp_path / f"there-{rank}.safetensors" for rank in range(world)]
    assert len({file.read_bytes() for file in there}) == 1
    for file in (files[0], there[0]):
        _check_same(one, ccamerge.Statistics.load(file))


def _check_same(one: ccamerge.Statistics, shared: ccamerge.Statistics) -> None:
    """Moments but for rounding, and everything else; folds and lattices as they were."""
    assert (one.samples, one.turns, one.structure) == (
        shared.samples,
        shared.turns,
        shared.structure,
    )
    assert 0 < len(one.inputs) < len(SIZES)
    assert one.held
    for here, there in ((one.inputs, shared.inputs), (one.held, shared.held)):
        assert len(here) == len(there)
        assert all(torch.equal(a, b) for (a,), (b,) in zip(here, there, strict=True))
    pairs = [
        pair for s in one.matched for pair in zip(one.matched[s], shared.matched[s], strict=True)
    ]
    pairs += [
        (one.outputs[s][t], shared.outputs[s][t]) for s in one.outputs for t in one.outputs[s]
    ]
    assert len(pairs) == 3
    for a, b in pairs:
        assert a.count == b.count > 0
        close = 64 * np.finfo(np.float32).eps  # products are formed in float32, about other shifts
        scale = max(np.abs(a.cov(i)).max() for i in range(3))
        for i in range(3):
            np.testing.assert_allclose(a.mean(i), b.mean(i), rtol=0, atol=close * scale**0.5)
            np.testing.assert_allclose(a.cov(i), b.cov(i), rtol=0, atol=close * scale)
        if a.pairs == "all":
            np.testing.assert_allclose(a.cov(1, 2), b.cov(1, 2), rtol=0, atol=close * scale)


def _more_processes_than_batches(rank: int, folder: Path) -> None:
    nets, data = _nets(), _batches()[:2]
    shared = ccamerge.collect(nets, data, **{**OPTIONS, "holdout": 0.0})
    shared.save(folder / f"{rank}.safetensors")


def test_a_process_may_have_nothing_to_count(tmp_path: Path) -> None:
    assert together(_more_processes_than_batches, 3, tmp_path) == [""] * 3
    shared = ccamerge.Statistics.load(tmp_path / "2.safetensors")
    one = ccamerge.collect(_nets(), _batches()[:2], **{**OPTIONS, "holdout": 0.0})
    for space, folds in one.matched.items():
        for a, b in zip(folds, shared.matched[space], strict=True):
            assert a.count == b.count
            # each fold has one batch, which one process counts
            np.testing.assert_array_equal(a.cov(0, 1), b.cov(0, 1))


class LoaderError(Exception):
    """What a user's data may raise."""


def _failing(data: list[Tensor], at: int) -> Iterator[Tensor]:
    yield from data[:at]
    message = "the disk is gone"
    raise LoaderError(message)


def _one_fails(rank: int, folder: Path) -> None:
    data = _batches()
    start = time.monotonic()
    try:
        ccamerge.collect(_nets(), _failing(data, 4) if rank == 1 else data, **OPTIONS)
    finally:
        (folder / f"{rank}.seconds").write_text(str(time.monotonic() - start))


def test_one_that_fails_ends_all_with_its_message(tmp_path: Path) -> None:
    errors = together(_one_fails, 3, tmp_path)
    assert errors[1] == "LoaderError: the disk is gone"
    assert errors[0] == errors[2] == "RuntimeError: process 1 of 3 failed: the disk is gone"
    for rank in range(3):  # nobody waits for what will not come
        assert float((tmp_path / f"{rank}.seconds").read_text()) < 60


def _one_differs(rank: int, folder: Path) -> None:
    """One after the other, each found by the process that compares first, and told to the rest."""
    nets, data = _nets(), _batches()
    other = [nets[0], nets[2], nets[1]]
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (nets, data, {"seed": 5 + rank}),
        (other if rank else nets, data, {}),
        (nets, data[rank:], {}),
        (nets, [*data[:-1], data[-1] + rank], {}),
        (nets, data[: len(data) - rank], {}),
        (nets, [] if rank else data, {}),
    ]
    seen = []
    for models, batches, options in cases:
        with pytest.raises((ValueError, RuntimeError)) as error:
            ccamerge.collect(models, batches, **{**OPTIONS, **options})
        seen.append(str(error.value))
    (folder / f"{rank}.seen").write_text("\n".join(seen))


def test_what_differs_between_processes_is_said(tmp_path: Path) -> None:
    assert together(_one_differs, 2, tmp_path) == ["", ""]
    for rank in range(2):
        seen = (tmp_path / f"{rank}.seen").read_text().splitlines()
        assert len(seen) == 6
        assert "seed is " in seen[0]
        assert "with distributed=False to be alone" in seen[0]
        assert "the digest of models[1]'s parameters" in seen[1]
        assert "models[0]" not in seen[1]
        assert "its digest is" in seen[2]  # of the first batch, before more is read
        assert "the digest of all batches is" in seen[3]
        assert "the number of batches is" in seen[4]
        assert "data is empty" in seen[5]


def _one_does_not_come(rank: int, folder: Path) -> None:
    if rank == 0:
        processes.PATIENCE = 1.0  # type: ignore[misc]
        ccamerge.collect(_nets(), _batches(), **OPTIONS)
    deadline = time.monotonic() + 60  # there, until the other has given up
    while not (folder / "0.error").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_one_that_does_not_come_is_named(tmp_path: Path) -> None:
    errors = together(_one_does_not_come, 2, tmp_path)
    assert errors[1] == ""
    assert "process 1 of 2 has not been heard of for 1 s; each has to call collect" in errors[0]


def _one_dies(rank: int, folder: Path) -> None:
    processes.PATIENCE = 2.0  # type: ignore[misc]
    data = iter(_batches())

    def dying() -> Iterator[Tensor]:
        yield next(data)
        os._exit(0)

    ccamerge.collect(_nets(), dying() if rank else data, **OPTIONS)


def test_one_that_dies_without_a_word_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "1.error").write_text("killed")
    errors = together(_one_dies, 2, tmp_path)
    assert errors[1] == "killed"
    assert "RuntimeError: process 1 of 2 has not been heard of for 2 s" in errors[0]


def _resumed(rank: int, folder: Path) -> None:
    """Interrupted at other batches in each process, as if each was killed on its own."""
    nets, data = _nets(), _batches()
    whole = _few(ccamerge.collect(nets, data, **OPTIONS), folder, f"whole-{rank}")
    kept = {"checkpoint": folder / "c.safetensors", "checkpoint_every": 0}
    for options in (kept, {**kept, "resume": True}):
        with pytest.raises((LoaderError, RuntimeError)):
            ccamerge.collect(nets, _failing(data, 4 + rank), **OPTIONS, **options)
    with pytest.raises(FileExistsError, match=r"c-0-of-2\.safetensors is there"):
        ccamerge.collect(nets, data, **OPTIONS, **kept)
    got = ccamerge.collect(nets, data, **OPTIONS, **kept, resume=True)
    assert _few(got, folder, f"resumed-{rank}") == whole


def test_each_process_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    assert together(_resumed, 2, tmp_path) == ["", ""]
    kept = {"checkpoint": tmp_path / "c.safetensors", "resume": True}
    before = {p.name: p.read_bytes() for p in tmp_path.glob("c-*")}
    assert sorted(before) == ["c-0-of-2.safetensors", "c-1-of-2.safetensors"]
    with pytest.raises(
        ValueError, match=r"c-0-of-2\.safetensors is of a collection by another num"
    ):
        ccamerge.collect(_nets(), _batches(), **OPTIONS, **kept)
    (tmp_path / "c-1-of-2.safetensors").rename(tmp_path / "c.safetensors")
    (tmp_path / "c-0-of-2.safetensors").unlink()
    with pytest.raises(ValueError, match="the process is '0 of 1', there '1 of 2'"):
        ccamerge.collect(_nets(), _batches(), **OPTIONS, **kept)


def test_processes_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="distributed=True needs torch"):
        ccamerge.collect(_nets(), _batches(), **OPTIONS, distributed=True)
