"""What goes wrong in `merge` and `collect` is said, and leaves no file half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ccamerge
from ccamerge.checkpoints.reading import load_state
from tests.projects import CONFIG, DATA, MODULE, change, fails, run, tree


def test_collect_errors(capsys, project):
    assert "must end in .safetensors" in fails(capsys, 2, "collect", "merge.yml", "stats.pt")
    (project / "old.safetensors").write_bytes(b"old")
    text = fails(capsys, 2, "collect", "merge.yml", "old.safetensors")
    assert text == "old.safetensors exists; --force replaces it"
    assert (project / "old.safetensors").read_bytes() == b"old"
    assert run(capsys, "collect", "merge.yml", "old.safetensors", "--force", "--quiet")[0] == 0
    assert ccamerge.Statistics.load("old.safetensors").samples == 512
    assert "no folder" in fails(capsys, 2, "collect", "merge.yml", "nowhere/x.safetensors")


def test_dry_run_finds_bad_checkpoints(capsys, project):
    (project / "runs/0.safetensors").write_bytes(b"short")
    state = load_state("runs/1.pt")
    del state["3.bias"]
    torch.save(state, "runs/1.pt")
    lines = fails(capsys, 2, "merge", "merge.yml", "merged", "--dry-run").splitlines()
    assert lines[0].startswith("merge.yml:3: models[0].model: ")
    assert "0.safetensors: truncated, corrupt or not" in lines[0]
    assert lines[1].startswith("merge.yml:5: models[1].model: ")
    assert lines[1].endswith("does not fit Sequential: missing: 3.bias")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "blobs_module:network",
            "blobs_module:netwrk",
            "merge.yml:8: architecture: blobs_module has",
        ),
        ("blobs_module:network", "no_module_x:f", "merge.yml:8: architecture: there is no module"),
        (
            "{width: 16}",
            "{widht: 16}",
            "merge.yml:8: architecture: blobs_module:network(width=16) ca",
        ),
        (
            "{width: 16}",
            "{width: -1}",
            "merge.yml:8: architecture: blobs_module:network failed: Runt",
        ),
        ("{width: 16}", "{width: 17}", "models[0].model: "),
        ("ridge: 0.01", "ridge: -1", "merge.yml:15: parameters.ridge: expected a number >= 0"),
        ("labels: false", "lables: 1", "merge.yml:11: data: blobs_module:batches("),
        ("count: 8", "count: 0", "data is empty"),
        ("labels: false", "bad: true", "batch 7"),
        ("runs/0.safetensors", "runs/9.safetensors", "merge.yml:3: models[0].model: "),
    ],
)
def test_merge_errors_leave_nothing(capsys, project, old, new, message):
    change(project, (old, new))
    before = tree(project)
    assert message in fails(capsys, 2, "merge", "merge.yml", "merged")
    assert tree(project) == before


def test_data_that_is_none(capsys, project):
    data = CONFIG[CONFIG.index("data:") : CONFIG.index("evaluation:")]
    change(project, (data, ""))
    assert "merge.yml:1: data: missing" in fails(capsys, 2, "merge", "merge.yml", "merged")
    assert "merge.yml:1: data: missing" in fails(capsys, 2, "collect", "merge.yml", "s.safetensors")
    evaluation = CONFIG[CONFIG.index("evaluation:") : CONFIG.index("parameters: {ridge")]
    change(project, (evaluation, "data: {factory: 'blobs_module:wrong'}\n"))
    assert "wrong returned a int, expected b" in fails(capsys, 2, "merge", "merge.yml", "merged")


def test_numerical_failure_is_status_1(capsys, project):
    change(project, ("ridge: 0.01", "ridge: 0"), ("count: 8", "count: 1"))
    fewer = MODULE.replace("torch.randint(4, (64,)", "torch.randint(4, (5,)")
    fewer = fewer.replace("torch.randn(64, 8", "torch.randn(5, 8")
    (project / "blobs_module.py").write_text(fewer)  # samples than features: singular without ridge
    batches = "x = x[:5]"
    text = (project / "blobs_module.py").read_text()
    (project / "blobs_module.py").write_text(
        text.replace("if bad and", f"{batches}\n        if bad and")
    )
    message = fails(capsys, 1, "merge", "merge.yml", "merged")
    assert "ridge" in message
    assert not (project / "merged").exists()


def test_interruption(capsys, project):
    change(project, (DATA, "factory: blobs_module:interrupted"))
    before = tree(project)
    status, out, err = run(capsys, "merge", "merge.yml", "merged")
    assert (status, out) == (130, "")
    assert err == "ccamerge: interrupted; no file is left half-written\n"
    assert run(capsys, "collect", "merge.yml", "s.safetensors")[0] == 130
    assert tree(project) == before


def test_failure_while_writing_leaves_nothing(capsys, project, monkeypatch):
    from ccamerge.reporting import model_card as card

    def full(*_, **__):
        message = "No space left on device"
        raise OSError(28, message)

    monkeypatch.setattr(card, "model_card", full)
    assert run(capsys, "merge", "merge.yml", "kept", "--quiet")[0] == 2
    assert not [p for p in tree(project) if p.startswith("kept")]


def test_verbose_shows_the_traceback(capsys, project):
    change(project, ("{width: 16}", "{width: -1}"))
    status, _, err = run(capsys, "merge", "-v", "merge.yml", "merged")
    assert status == 2
    assert "Traceback" in err
    assert "blobs_module.py" in err


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_in_a_real_process(project):
    change(project, (DATA, "factory: blobs_module:endless"))
    before = tree(project)
    path = os.pathsep.join([str(Path(ccamerge.__file__).parents[1]), *sys.path])
    (project / "blobs_module.py").write_text(
        MODULE.replace("    while True:\n", "    open('started', 'w').close()\n    while True:\n")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ccamerge", "merge", "merge.yml", "merged"],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (project / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert err.endswith("ccamerge: interrupted; no file is left half-written\n")
    assert "Traceback" not in err
    # To a shell both are 130. Python ends by the signal where the interrupt, caught or not, has
    # passed through exec() of a string, as when it comes while a module makes dataclasses.
    assert process.returncode in (130, -signal.SIGINT)
    assert [p for p in tree(project) if p != "started"] == before
