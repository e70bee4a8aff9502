"""The examples run as they are, and merge."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "benchmarks" / "examples"
SHARED = Path(os.environ.get("CCAMERGE_SHARED", Path(__file__).parents[2] / "shared"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # seconds, unless the cores are busy


def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def accuracies(name: str) -> dict[str, float]:
    """What a script prints at the end, by the first words of its lines."""
    done = run(name)
    assert done.returncode == 0, done.stderr
    rows = [line.rpartition(" ") for line in done.stdout.splitlines() if line.endswith("%")]
    return {row[0].strip(): float(row[2].rstrip("%")) for row in rows}


def test_mlp() -> None:
    pytest.importorskip("sklearn", reason="comes with the demo extra")
    found = accuracies("mlp.py")
    assert list(found) == [*(f"network {i}" for i in range(3)), "ensemble", "average", "merged"]
    assert found["average"] < 80
    assert found["merged"] > 94


def test_resnets() -> None:
    if not (SHARED / "zoo").is_dir() or not (SHARED / "data").is_dir():
        pytest.skip(f"no checkpoints or images in {SHARED}")
    found = accuracies("resnets.py")
    assert list(found)[-2:] == ["ensemble", "merged"]
    assert found["merged"] > 74


def test_resnets_says_what_is_missing(tmp_path: Path) -> None:
    done = run("resnets.py", CCAMERGE_SHARED=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"not there: {tmp_path / 'zoo' / 'resnet20-w1-s0.safetensors'}, ")
    assert str(tmp_path / "data" / "cifar10.py") in done.stderr
