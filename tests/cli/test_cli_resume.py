"""`ccamerge collect` and `merge` go on after they were killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ccamerge
from tests.projects import CONFIG, DATA, MODULE, change, fails, run, tree
from tests.together import environment_in

STOPPING = """

def stopping():
    from pathlib import Path
    for index, batch in enumerate(batches(8, labels=False)):
        if index == 5 and Path("stop").exists():
            raise KeyboardInterrupt
        yield batch
"""

OFTEN = ("--checkpoint-every", "0.000001s")
KEPT = "stats.checkpoint.safetensors"


@pytest.fixture
def stopping(project: Path) -> Path:
    """A project whose data end with Ctrl-C after five batches, as long as a file says so."""
    (project / "blobs_module.py").write_text(MODULE + STOPPING)
    change(project, (DATA, "factory: blobs_module:stopping"))
    (project / "stop").touch()
    return project


def _stopped(capsys, project, *command):
    """Run a command until it is interrupted; the data go on from here on."""
    (project / "stop").touch()
    status, _, err = run(capsys, *command, *OFTEN)
    assert (status, err) == (130, "ccamerge: interrupted; no file is left half-written\n")
    (project / "stop").unlink()


def test_collect_ends_with_the_bytes_of_an_undisturbed_run(capsys, stopping):
    (stopping / "stop").unlink()
    assert run(capsys, "collect", "merge.yml", "whole.safetensors", "--quiet", *OFTEN)[0] == 0
    before = tree(stopping)
    _stopped(capsys, stopping, "collect", "merge.yml", "stats.safetensors")
    assert tree(stopping) == sorted([*before, KEPT])
    assert run(capsys, "collect", "merge.yml", "stats.safetensors", "--resume", "--quiet")[0] == 0
    assert tree(stopping) == sorted([*before, "stats.safetensors"])
    whole, resumed = (stopping / f"{name}.safetensors" for name in ("whole", "stats"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_what_is_kept_is_not_lost_unasked(capsys, stopping):
    command = ("collect", "merge.yml", "stats.safetensors")
    _stopped(capsys, stopping, *command)
    kept = (stopping / KEPT).read_bytes()
    text = fails(capsys, 2, *command)
    assert text == (
        f"{KEPT} keeps a collection that has not ended: --resume goes on with it, --force begins "
        "anew"
    )
    change(stopping, ("seed: 3", "seed: 4"))
    text = fails(capsys, 2, *command, "--resume")
    assert text == f"{KEPT} is of another collection: seed is 4, there 3"
    assert (stopping / KEPT).read_bytes() == kept
    assert run(capsys, *command, "--force", "--quiet")[0] == 0
    assert not (stopping / KEPT).exists()


def test_the_result_may_be_there_when_the_command_was_killed(capsys, stopping):
    """Between writing it and removing what was kept: the last batches are counted again."""
    command = ("collect", "merge.yml", "stats.safetensors", "--quiet")
    _stopped(capsys, stopping, *command)
    (stopping / "stats.safetensors").write_bytes(b"whole")
    (stopping / ".stats.safetensors.abcd1234").mkdir()
    assert run(capsys, *command, "--resume")[0] == 0
    assert ccamerge.Statistics.load("stats.safetensors").samples > 0
    assert not [p for p in tree(stopping) if "checkpoint" in p or p.startswith(".")]
    text = fails(capsys, 2, *command, "--resume")
    assert text == "stats.safetensors exists; --force replaces it"


def test_nothing_to_resume(capsys, project):
    status, _, err = run(capsys, "collect", "merge.yml", "stats.safetensors", "--resume")
    assert status == 0
    assert f"nothing to resume, there is no {KEPT}: beginning anew" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint-every", "often"), "expected a time such as 300s or 5min, or never"),
        (("--checkpoint-every", "5 epochs"), "expected a time such as 300s or 5min, or never"),
        (("--checkpoint-every", "never", "--resume"), "--resume goes on with what is kept"),
    ],
)
def test_options_that_make_no_sense(capsys, project, options, message):
    assert message in fails(capsys, 2, "collect", "merge.yml", "stats.safetensors", *options)


def test_nothing_is_kept_that_is_not_wanted(capsys, stopping, monkeypatch):
    """Nor are batches hashed."""
    monkeypatch.setattr("ccamerge.collection.data_pass.inputs_fingerprint", None)
    command = ("collect", "merge.yml", "stats.safetensors", "--checkpoint-every", "never")
    assert run(capsys, *command, "--quiet")[0] == 130
    assert KEPT not in tree(stopping)


def test_merge_goes_on(capsys, stopping):
    (stopping / "stop").unlink()
    assert run(capsys, "merge", "merge.yml", "whole", "--quiet")[0] == 0
    _stopped(capsys, stopping, "merge", "merge.yml", "merged", "--quiet")
    assert "keeps a collection that has not ended" in fails(
        capsys, 2, "merge", "merge.yml", "merged"
    )
    change(stopping, ("ridge: 0.01", "ridge: 0.01, refine: false"))  # nothing to the statistics
    assert run(capsys, "merge", "merge.yml", "merged", "--resume", "--quiet")[0] == 0
    assert not [p for p in tree(stopping) if "checkpoint" in p]
    files = [stopping / name / "model.safetensors" for name in ("whole", "merged")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_moments_of_a_file_need_no_checkpoint(capsys, stopping):
    (stopping / "stop").unlink()
    assert run(capsys, "collect", "merge.yml", "stats.safetensors", "--quiet")[0] == 0
    text = (stopping / "merge.yml").read_text()
    (stopping / "merge.yml").write_text(text + "moments: stats.safetensors\n")
    status, _, err = run(capsys, "merge", "merge.yml", "merged", "--resume")
    assert status == 0
    assert "resume" not in err
    assert "data" in CONFIG


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_random_moments(tmp_path, processes):
    command = [sys.executable, "-m", "tests.collection.killed", "--kills", "5"]
    command += ["--processes", str(processes)]
    alone = environment_in(tmp_path)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env=alone, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("collections ended: ")
