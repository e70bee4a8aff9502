"""`ccamerge collect` and `merge` under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ccamerge
from tests.projects import DATA, MODULE, change, fails, run, tree

FAILING = """

def failing():
    import os
    from pathlib import Path
    for index, batch in enumerate(batches(8, labels=False)):
        if index == 5 and os.environ.get("RANK") == "1" and Path("stop").exists():
            how = Path("stop").read_text()
            if how:
                raise OSError(how)
            os.kill(os.getpid(), 9)
        yield batch
"""

OFTEN = ("--checkpoint-every", "0.000001s")


def _torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in two processes."""
    here = os.pathsep.join([str(Path(ccamerge.__file__).parents[1]), *sys.path])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "ccamerge", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
    )


def _close(one: ccamerge.Statistics, two: ccamerge.Statistics) -> None:
    assert (one.samples, one.turns) == (two.samples, two.turns)
    for space, folds in one.matched.items():
        for a, b in zip(folds, two.matched[space], strict=True):
            assert a.count == b.count > 0
            close = 64 * np.finfo(np.float32).eps * np.abs(a.cov(0)).max()
            np.testing.assert_allclose(a.cov(0), b.cov(0), rtol=0, atol=close)
            np.testing.assert_allclose(a.cov(0, 1), b.cov(0, 1), rtol=0, atol=close)


@pytest.mark.slow
@pytest.mark.as_users_do
def test_processes_share_a_collection_and_a_merge(capsys, project):
    done = _torchrun("collect", "merge.yml", "two.safetensors", *OFTEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote two.safetensors: ") == 1  # one of them tells
    status, _, err = run(capsys, "collect", "merge.yml", "one.safetensors")
    assert status == 0
    assert done.stderr.endswith(err.replace("one.safetensors", "two.safetensors"))
    _close(*(ccamerge.Statistics.load(f"{name}.safetensors") for name in ("one", "two")))
    done = _torchrun("merge", "merge.yml", "merged")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote merged") == 1
    assert (project / "merged/model.safetensors").is_file()
    assert not [p for p in tree(project) if "checkpoint" in p or p.startswith(".")]


@pytest.mark.slow
def test_processes_that_were_killed_go_on(capsys, project):
    (project / "blobs_module.py").write_text(MODULE + FAILING)
    change(project, (DATA, "factory: blobs_module:failing"))
    assert _torchrun("collect", "merge.yml", "whole.safetensors").returncode == 0
    (project / "stop").write_text("the disk is gone")
    command = ("collect", "merge.yml", "stats.safetensors", *OFTEN)
    done = _torchrun(*command)
    assert done.returncode != 0
    assert "process 1 of 2 failed: the disk is gone" in done.stderr  # says process 0
    kept = [f"stats.checkpoint-{rank}-of-2.safetensors" for rank in range(2)]
    assert [p for p in tree(project) if "checkpoint" in p] == kept
    (project / "stop").write_text("")  # this time by SIGKILL
    assert _torchrun(*command, "--resume").returncode != 0
    (project / "stop").unlink()
    text = fails(capsys, 2, *command, "--resume")
    assert "is of a collection by another number of processes, here there is one" in text
    done = _torchrun(*command, "--resume")
    assert done.returncode == 0, done.stderr
    files = [project / f"{name}.safetensors" for name in ("whole", "stats")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not [p for p in tree(project) if "checkpoint" in p or p.startswith(".")]


def test_other_commands_are_for_one_process(capsys, project, monkeypatch):
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    text = fails(capsys, 2, "evaluate", "merge.yml")
    assert text == "`ccamerge evaluate` is for one process: start it without torchrun"
