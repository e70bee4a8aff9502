"""Large results in mapped files, and bounds on what is worked on at once."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ccamerge.core.moments import Moments
from ccamerge.core.scratch import LARGE, kept, most, scarce, size_of

WIDE = 400
"""Features whose second moments are large."""


def mappings(folder: Path) -> int:
    """Files of a folder that are mapped into this process."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count(str(folder))


@contextlib.contextmanager
def no_larger_files(size: int) -> Iterator[None]:
    """A file system that is full: no file may take more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def counted(seed: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    moments = Moments([WIDE, WIDE])
    for _ in range(3):
        moments.update([torch.randn(50, WIDE, generator=generator) for _ in range(2)])
    return moments


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_large_tensor_is_the_same_in_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.randn(1200, 1000).mul(100).to(dtype)
    with scarce(tmp_path):
        there = kept(value)
    assert torch.equal(there, value)
    assert there.data_ptr() != value.data_ptr()
    assert mappings(tmp_path) == 1
    assert not os.listdir(tmp_path)  # without a name: nothing is left, whatever happens
    there[0] = 7  # it can be written to
    assert int(there[0, 5]) == 7
    del there
    assert not mappings(tmp_path)


def test_layouts_are_kept(tmp_path: Path) -> None:
    image = torch.randn(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    with scarce(tmp_path):
        there = kept(image)
        turned = kept(torch.randn(700, 900).T)
        gaps = kept(torch.randn(900, 1800)[:, ::2])
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(there, image)
    assert turned.T.is_contiguous()
    assert gaps.is_contiguous()


def test_small_tensors_and_those_outside_stay(tmp_path: Path) -> None:
    small, large = torch.randn(10), torch.randn(LARGE)
    assert kept(large) is large
    with scarce(tmp_path):
        assert kept(small) is small
        with scarce(None):
            assert kept(large) is not large
    assert kept(large) is large


def test_moments_are_the_same_in_files(tmp_path: Path) -> None:
    expected = counted(0)
    with scarce(tmp_path):
        found, other = counted(0), counted(1)
        assert mappings(tmp_path) == 6
    outside = counted(2)
    assert mappings(tmp_path) == 6
    for i, j in ((0, 0), (0, 1), (1, 1)):
        assert torch.equal(found.cov_tensor(i, j), expected.cov_tensor(i, j))
    found.merge(other)
    expected.merge(counted(1))
    assert torch.equal(found.cov_tensor(0, 1), expected.cov_tensor(0, 1))
    outside.merge(found)
    del found, other
    assert not mappings(tmp_path)


def test_the_inner_folder_counts(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with scarce(tmp_path), scarce(inner):
        moments, value = counted(0), kept(torch.zeros(LARGE))
        assert mappings(inner) == 4
        del moments, value
    with scarce(tmp_path):
        with scarce(inner):
            pass
        moments = counted(0)
    assert mappings(inner) == 0
    assert mappings(tmp_path) == 3
    del moments


def test_no_room_names_the_folder(tmp_path: Path) -> None:
    large = torch.zeros(LARGE)
    with scarce(tmp_path), no_larger_files(LARGE // 2):
        with pytest.raises(OSError, match=f"no room for {4 * LARGE} bytes in {tmp_path}"):
            kept(large)
        with pytest.raises(RuntimeError, match=f"no room for {8 * WIDE**2} bytes in {tmp_path}"):
            counted(0)
    assert not os.listdir(tmp_path)
    assert not mappings(tmp_path)
    gone = tmp_path / "gone"
    with scarce(gone):
        with pytest.raises(OSError, match=str(gone)):
            kept(large)
        with pytest.raises(RuntimeError, match=str(gone)):
            counted(0)


def test_bounds_follow_the_limit(tmp_path: Path) -> None:
    assert most(1000, 0.5) == 1000
    with scarce(tmp_path, 100):
        assert most(1000, 0.5) == 50
        assert most(30, 0.5) == 30
        with scarce(tmp_path):
            assert most(1000, 0.5) == 1000


@pytest.mark.parametrize(
    ("words", "size"),
    [("8G", 8 << 30), ("500 MiB", 500 << 20), ("1.5k", 1536), ("7", 7), (12, 12), ("2tb", 2 << 40)],
)
def test_sizes_in_words(words: str | int, size: int) -> None:
    assert size_of(words, "memory_limit") == size


@pytest.mark.parametrize("words", ["", "G", "-1G", "0", 0, -3, "8X", "nan", "1e3"])
def test_other_words_are_no_sizes(words: str | int) -> None:
    with pytest.raises(ValueError, match="memory_limit must be bytes, or words such as"):
        size_of(words, "memory_limit")


@pytest.mark.parametrize("value", [1.5, None, True, [1]])
def test_other_things_are_no_sizes(value: object) -> None:
    with pytest.raises(TypeError, match="memory_limit must be bytes"):
        size_of(value, "memory_limit")
