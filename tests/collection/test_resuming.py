"""A pass that was interrupted goes on from its checkpoint and ends as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.collection import checkpoint
from ccamerge.core.tensorfile import load_tensors, save_tensors
from tests import models as M
from tests.backends import collect

pytestmark = pytest.mark.usefixtures("backend")

SIZES = (16, 16, 9, 30, 1, 20, 40, 7)


class KilledError(Exception):
    """Stands for a signal: the pass ends without a word."""


def _nets(count: int = 3) -> list[nn.Module]:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))

    return [M.randomise(network(seed), seed) for seed in range(count)]


def _batches(side: int = 19) -> list[Tensor]:
    """Of maps of which each batch counts other rows and columns."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, 3, side, side, generator=generator) + 0.5 for s in SIZES]


def _until(data: Sequence[Any], count: int) -> Iterator[Any]:
    yield from data[:count]
    raise KilledError


def _interrupted(path: Path, data: Sequence[Any], count: int, **options: Any) -> None:
    with pytest.raises(KilledError):
        collect(
            _nets(),
            _until(data, count),
            progress=False,
            checkpoint=path,
            checkpoint_every=0,
            **options,
        )


def _saved(statistics: ccamerge.Statistics, folder: Path) -> bytes:
    statistics.save(folder / "result.safetensors")
    return (folder / "result.safetensors").read_bytes()


@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_the_result_is_that_of_an_undisturbed_pass(tmp_path: Path, holdout: float) -> None:
    """Whenever it was interrupted, also three times, and before the first batch."""
    data, options = _batches(), {"holdout": holdout, "pairs": "all", "folds": 3, "seed": 5}
    whole = _saved(collect(_nets(), data, progress=False, **options), tmp_path)
    for count in range(len(data) + 1):
        path = tmp_path / f"{count}.safetensors"
        _interrupted(path, data, count, **options)
        assert path.exists() == (count > 0)
        again = {**options, "checkpoint": path, "checkpoint_every": 0, "resume": True}
        for later in (count // 2, min(count + 2, 8)):  # among what is counted, and after it
            with pytest.raises(KilledError):
                collect(_nets(), _until(data, later), progress=False, **again)
        assert _saved(collect(_nets(), data, progress=False, **again), tmp_path) == whole


def test_inputs_kept_are_chosen_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where not all batches fit, so that random numbers decide."""
    monkeypatch.setattr("ccamerge.collection.data_pass.KEEP_SAMPLES", 60)
    monkeypatch.setattr("ccamerge.collection.held_out._MOST", 12)
    data = _batches()
    whole = collect(_nets(), data, progress=False, holdout=0.3)
    assert 0 < sum(len(leaves[0]) for leaves in whole.inputs) <= 60
    path = tmp_path / "c.safetensors"
    _interrupted(path, data, 4, holdout=0.3)
    options = {"checkpoint": path, "resume": True, "holdout": 0.3}
    resumed = collect(_nets(), data, progress=False, **options)
    assert _saved(resumed, tmp_path) == _saved(whole, tmp_path)


def test_batches_of_other_sizes_are_traced_again(tmp_path: Path) -> None:
    """A forward that freezes a size: the programs are those of all batches, counted or not."""
    data = [*_batches()[:3], *_batches(12)[:3]]
    whole = _saved(collect(_nets(), data, progress=False), tmp_path)
    for count in (2, 4):
        path = tmp_path / f"{count}.safetensors"
        _interrupted(path, data, count)
        resumed = collect(_nets(), data, progress=False, checkpoint=path, resume=True)
        assert _saved(resumed, tmp_path) == whole


def test_counted_batches_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 6)
    counted: list[int] = []
    original = ccamerge.collection.data_pass.accumulate  # type: ignore[attr-defined]

    def counting(runs: Any, watched: Any, index: int, *args: Any) -> None:
        counted.append(index)
        original(runs, watched, index, *args)

    monkeypatch.setattr("ccamerge.collection.data_pass.accumulate", counting)
    collect(_nets(), data, progress=False, checkpoint=path, resume=True)
    assert counted == [6, 7]


def test_what_differs_is_said(tmp_path: Path) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 5)
    before = path.read_bytes()
    nets, on = _nets(), {"checkpoint": path, "resume": True, "progress": False}

    def refused(models: Any, batches: Any, **options: Any) -> str:
        with pytest.raises(ValueError, match=r"c\.safetensors is of") as error:
            collect(models, batches, **{**on, **options})
        assert path.read_bytes() == before
        return str(error.value)

    text = refused(nets, data, seed=4, pairs="all")
    assert text.endswith(
        "is of another collection: pairs is 'all', there 'reference'; seed is 4, there 0"
    )
    assert "the number of models is 2, there 3" in refused(nets[:2], data)
    text = refused([nets[0], nets[2], nets[1]], data)
    assert "the digest of models[1]'s parameters is " in text
    assert "models[0]" not in text
    text = refused(nets, [*data[:3], data[3] + 1e-6, *data[4:]])
    assert "is of other data: batch 3 is not the one that was counted" in text
    assert "5 batches are counted in it, and now there are 4" in refused(nets, data[:4])
    assert "the structure of batches" in refused(nets, [{"input": x} for x in data])


def test_spaces_that_are_given_must_be_the_same(tmp_path: Path) -> None:
    data, path, nets = _batches(), tmp_path / "c.safetensors", _nets()
    _interrupted(path, data, 5)
    from ccamerge.graph.networks.inspection import pinned

    found = pinned(ccamerge.spaces(nets[0], data[0]), {"0": "left out here"})
    with pytest.raises(ValueError, match=r"the digest of models\[0\]'s spaces"):
        collect(nets, data, found=found, checkpoint=path, resume=True, progress=False)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """Truncated, changed, foreign or of another version: each its own message, nothing is lost."""
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 5)
    whole = path.read_bytes()

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.safetensors: ") as error:
            collect(_nets(), data, progress=False, checkpoint=path, resume=True)
        assert path.read_bytes() == content
        return str(error.value)

    assert "not a readable safetensors file" in refused(whole[:-100])
    assert "not a readable safetensors file" in refused(b"")
    for place in (-1, -5000, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 16
        assert "damaged, its content is not what was written" in refused(bytes(changed))
    at = whole.index(b'\\"folds\\": 2')  # a setting in the header
    changed = bytearray(whole)
    changed[at + len('\\"folds\\": ')] = ord("3")
    assert "damaged" in refused(bytes(changed))
    tensors, metadata = load_tensors_of(whole, path)
    save_tensors(path, tensors, {**metadata, "format": "ccamerge-collection-99"})
    text = refused(path.read_bytes())
    assert "'ccamerge-collection-99', but this version reads 'ccamerge-collection-1'" in text
    collect(_nets(2), data[:2], progress=False).save(path)
    assert "no collection under way ('ccamerge-moments" in refused(path.read_bytes())
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"not a file of collected moments \('ccamerge-collection"):
        ccamerge.Statistics.load(path)


def load_tensors_of(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path.write_bytes(content)
    return load_tensors(path)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 2)
    with pytest.raises(
        FileExistsError, match=r"c\.safetensors is there.*resume=True, or delete it"
    ):
        collect(_nets(), data, progress=False, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, "resume needs a checkpoint"),
        ({"checkpoint": "c.pt"}, "checkpoint must end in .safetensors"),
        ({"checkpoint": "nowhere/c.safetensors"}, "be in a folder that is there"),
        ({"checkpoint_every": -1}, "checkpoint_every must be a number of seconds >= 0"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every must be a number of seconds >= 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(_nets(), _batches(), progress=False, **options)


def test_writes_are_as_far_apart_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by ten seconds a batch."""
    now, written = 0.0, []
    original = checkpoint.Checkpoint.save

    def saving(self: checkpoint.Checkpoint, path: Path) -> None:
        written.append(len(self.seen))
        original(self, path)

    def ticking() -> Iterator[Tensor]:
        nonlocal now
        for batch in _batches():
            now += 10.0
            yield batch

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", saving)
    path = tmp_path / "c.safetensors"
    collect(_nets(), ticking(), progress=False, checkpoint=path, checkpoint_every=25)
    assert written == [3, 6]


def test_a_full_disk_does_not_end_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 2)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    options = {"checkpoint": path, "checkpoint_every": 0, "resume": True}
    with pytest.warns(RuntimeWarning, match="No space left on device: the pass goes on") as seen:
        resumed = collect(_nets(), data, progress=False, **options)
    assert len(seen) == len(data) - 2
    assert path.read_bytes() == before
    monkeypatch.undo()
    whole = collect(_nets(), data, progress=False)
    assert _saved(resumed, tmp_path) == _saved(whole, tmp_path)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 2)
    for name in (".c.safetensors.abcd_123", ".other.safetensors.abcd_123", ".c.safetensors.mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmp123").write_bytes(b"partial")
    collect(_nets(), data, progress=False, checkpoint=path, resume=True)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [".c.safetensors.mine", ".other.safetensors.abcd_123", "c.safetensors"]


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path, backend: str) -> None:
    """On a device they are found late: not after they were written."""
    data, path = _batches(), tmp_path / "c.safetensors"
    mended, data[5] = data[5], data[5] + float("nan")
    options = {"checkpoint": path, "checkpoint_every": 0, "progress": False}
    with pytest.raises(ValueError, match="batch 5"):
        collect(_nets(), data, **options)
    kept = checkpoint.Checkpoint.load(path, None)
    assert len(kept.seen) == 5
    data[5] = mended  # the batches before are the same
    resumed = collect(_nets(), data, resume=True, **options)
    assert _saved(resumed, tmp_path) == _saved(collect(_nets(), data, progress=False), tmp_path)


def test_the_header_says_what_the_file_is_of(tmp_path: Path) -> None:
    data, path = _batches(), tmp_path / "c.safetensors"
    _interrupted(path, data, 3)
    _, metadata = load_tensors(path)
    made_of = json.loads(metadata["header"])["made_of"]
    assert made_of["folds"] == 2
    assert made_of["the number of models"] == 3
    assert np.isfinite(made_of["holdout"])
