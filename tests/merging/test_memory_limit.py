"""Merging in little memory: the same networks, and a limit that is kept to or refused."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ccamerge

WIDE = 400
"""Features whose second moments are large enough to go into files."""


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 5)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5, 8)),
        nn.Conv2d(1, WIDE, 3, padding=1),
        nn.BatchNorm2d(WIDE),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDE, 5),
    )


def members(make: Callable[[], nn.Module], count: int = 3) -> list[nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(make().eval())
    return found


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 40, generator=generator) for _ in range(8)]


@pytest.mark.parametrize("make", [perceptron, convnet])
@pytest.mark.parametrize("method", ["cca", "permutation"])
def test_the_network_is_the_same(
    tmp_path: Path, make: Callable[[], nn.Module], method: str
) -> None:
    models, data = members(make), batches()
    before = copy.deepcopy([model.state_dict() for model in models])
    expected = ccamerge.merge(models, data, method=method, progress=False)
    with ccamerge.memory_limit("4G", scratch=tmp_path):
        found = ccamerge.merge(models, data, method=method, progress=False)
    assert not os.listdir(tmp_path)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], value), key
    for name, row in expected.aligned.maps.items():
        for one, other in zip(row, found.aligned.maps[name], strict=True):
            assert torch.equal(one.forward, other.forward)
    for model, state in zip(models, before, strict=True):
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key])
    # What is in files lives on outside, and can be used.
    again = ccamerge.merge(
        models, statistics=found.statistics, method="permutation", progress=False
    )
    assert all(bool(x.isfinite().all()) for x in again.model.state_dict().values())
    found.model(data[0]).sum().backward()


def test_files_go_with_what_they_hold(tmp_path: Path) -> None:
    def merged() -> int:
        with ccamerge.memory_limit(None, scratch=tmp_path):
            found = ccamerge.merge(members(perceptron), batches(), progress=False)
        assert found.report.samples > 0
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    assert merged() > 10
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_limit_that_does_not_do_says_what_would(tmp_path: Path) -> None:
    models = members(perceptron)
    wanted = r"memory_limit is 10 MiB, but \d+ MiB are needed"
    with ccamerge.memory_limit("10M", tmp_path), pytest.raises(ValueError, match=wanted):
        ccamerge.merge(models, batches(), progress=False)
    assert ccamerge.merge(models, batches(), progress=False).report.samples > 0


def test_large_batches_are_named(tmp_path: Path) -> None:
    models = members(perceptron)
    large = [torch.randn(200_000, 40)]
    wanted = "give smaller batches"
    with ccamerge.memory_limit("1500M", tmp_path), pytest.raises(ValueError, match=wanted):
        ccamerge.merge(models, large, progress=False)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, tmp_path / "gone"):
        wanted = f"scratch must be a folder.*{folder}"
        with pytest.raises(ValueError, match=wanted), ccamerge.memory_limit("1G", folder):
            pass
    wanted = "memory_limit must be bytes"
    with pytest.raises(ValueError, match=wanted), ccamerge.memory_limit("much", tmp_path):
        pass


_WORK = """
import sys, torch, ccamerge
from torch import nn
torch.set_num_threads(1)
ccamerge.set_num_threads(1)
folder, limited, count = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
width = 1000
def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(40, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
    ).eval()
models = [network(seed) for seed in range(count)]
data = [torch.randn(50, 40) for _ in range(8)]
print("ready", flush=True)
sys.stdin.readline()
if limited:
    with ccamerge.memory_limit("4G", folder):
        found = ccamerge.collect(models, data, holdout=0, progress=False)
else:
    found = ccamerge.collect(models, data, holdout=0, progress=False)
print("done", flush=True)
sys.stdin.readline()
"""


def anonymous(process: int) -> int:
    """Bytes of a process' memory that lie in no file."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def growth(folder: Path, limited: bool, count: int) -> int:
    """Bytes by which the memory of a process grows while it collects statistics of networks."""
    command = [sys.executable, "-c", textwrap.dedent(_WORK), str(folder), str(limited), str(count)]
    here = {**os.environ, "PYTHONPATH": str(Path(ccamerge.__file__).parents[1])}
    with subprocess.Popen(  # where no sources hide the package that is installed
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here, cwd=folder
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = anonymous(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        time.sleep(0.1)
        after = anonymous(process.pid)
        process.stdin.write("\n")
    return after - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_models(tmp_path: Path) -> None:
    each = 8 * 1000**2  # of a matrix; a model adds eight, in two spaces
    free = growth(tmp_path, limited=False, count=6) - growth(tmp_path, limited=False, count=2)
    assert free > 4 * 6 * each  # it is seen
    kept = growth(tmp_path, limited=True, count=6) - growth(tmp_path, limited=True, count=2)
    assert kept < 4 * each
