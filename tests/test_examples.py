"""The examples run as they are, and merge; so does the README's of how a merge is chosen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ccamerge
from ccamerge.cli.demo.networks import mlp

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
    assert found["merged"] > 2 + max(found[f"network {i}"] for i in range(3))


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


@pytest.mark.as_users_do
def test_the_readme_on_choosing(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme[readme.index("## Never worse than picking one") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    models = [mlp(16) for _ in range(2)]
    exec(code[1], {"ccamerge": ccamerge, "models": models, "data": [torch.randn(200, 64)] * 2})
    verdict, *rows = capsys.readouterr().out.splitlines()
    assert verdict.startswith("closer to the ensemble than any member")
    distances = {name: float(own) for name, own in (row.rsplit(" ", 1) for row in rows)}
    points = ["t = 0.25", "t = 0.5", "t = 0.75"]
    assert list(distances)[:-3] == ["models[0]", "models[1]", "plain average", "merge", *points]
    refined, *methods = list(distances)[-3:]
    assert refined.endswith(", refined")
    assert distances[refined] < min(distances["models[0]"], distances["models[1]"])
    assert methods == ["cca", "permutation"]
    assert distances["cca"] == pytest.approx(distances["merge"])
