"""Commands on data from local files: the same as by a function that returns them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.checkpoints.reading import load_into, load_state, save_state
from ccamerge.config.data_files import TABLES
from ccamerge.config.importing import current_folder_importable
from ccamerge.data import images, texts
from tests.data import words
from tests.projects import DATA, change, fails, network, run


@pytest.fixture
def files(project: Path) -> Path:
    """The project with what its functions return in a file."""
    with current_folder_importable():
        import blobs_module  # type: ignore[import-not-found]

    batches = list(blobs_module.batches(count=8, seed=1))
    arrays = [torch.cat(part).numpy() for part in zip(*batches, strict=True)]
    np.savez(project / "blobs.npz", inputs=arrays[0], labels=arrays[1])
    change(
        project,
        (DATA, "arrays: blobs.npz\n  key: inputs\n  batch_size: 32"),
        (
            "evaluation:\n  factory: blobs_module:batches",
            "evaluation:\n  arrays: blobs.npz\n  key: inputs\n  labels: labels",
        ),
    )
    return project


def test_merged_as_by_the_library(capsys: Any, files: Path) -> None:
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    models = [network().eval() for _ in range(2)]
    load_into(models[0], "runs/0.safetensors")
    load_into(models[1], "runs/1.pt")
    data = ccamerge.data.Arrays(files / "blobs.npz", "inputs", batch_size=32)
    result = ccamerge.merge(models, data, reference=1, ridge=0.01, seed=3, progress=False)
    found = load_state("merged/model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in result.model.state_dict().items())
    written = json.loads(Path("merged/report.json").read_text())["config"]["data"]
    assert written == {"arrays": "../blobs.npz", "key": "inputs", "batch_size": 32}


def test_other_commands_take_them_too(capsys: Any, files: Path) -> None:
    status, out, err = run(capsys, "merge", "merge.yml", "merged", "--dry-run")
    assert (status, err) == (0, "")
    assert "statistics  from the data" in out
    assert run(capsys, "inspect", "merge.yml")[0] == 0
    status, out, err = run(capsys, "evaluate", "merge.yml", "--json", "--methods", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 512


def test_moments_tell_what_they_are_of(capsys: Any, files: Path) -> None:
    assert run(capsys, "collect", "merge.yml", "stats.safetensors", "--quiet")[0] == 0
    kept = ccamerge.Statistics.load("stats.safetensors").data
    assert (kept["kind"], kept["batch_size"], kept["files"]) == ("Arrays", 32, 1)
    with (files / "merge.yml").open("a") as file:
        file.write("moments: stats.safetensors\n")
    assert run(capsys, "merge", "merge.yml", "same", "--quiet") == (0, "", "")
    change(files, ("batch_size: 32", "batch_size: 16"))
    status, _, err = run(capsys, "merge", "merge.yml", "other")
    assert status == 0
    assert "stats.safetensors is of other data than is said here: batch_size was 32, is 16" in err
    (files / "blobs.npz").unlink()  # then there is nothing to compare
    assert run(capsys, "merge", "merge.yml", "without", "--quiet") == (0, "", "")


def test_moments_of_a_function_tell_its_name(capsys: Any, project: Path) -> None:
    assert run(capsys, "collect", "merge.yml", "stats.safetensors", "--quiet")[0] == 0
    assert ccamerge.Statistics.load("stats.safetensors").data == {
        "kind": "blobs_module:batches",
        "arguments": {"count": "8", "labels": "False", "seed": "1"},
    }


@pytest.mark.parametrize(
    "command", [("merge", "merge.yml", "out"), ("collect", "merge.yml", "s.safetensors")]
)
def test_files_that_are_not_there_are_told_before_anything_else(
    capsys: Any, files: Path, command: tuple[str, ...]
) -> None:
    (files / "runs" / "1.pt").unlink()
    (files / "blobs.npz").unlink()
    found = fails(capsys, 2, *command)
    assert found == f"merge.yml:11: data: {files / 'blobs.npz'}: no such file"


def test_what_they_hold_is_told_with_its_place(capsys: Any, files: Path) -> None:
    change(files, ("key: inputs\n  batch_size", "key: imputs\n  batch_size"))
    found = fails(capsys, 2, "merge", "merge.yml", "out", "--quiet")
    assert found == (
        f"merge.yml:11: data: {files / 'blobs.npz'}: there is no array 'imputs'; arrays there: "
        "'inputs', 'labels'; did you mean 'inputs'?"
    )


LANGUAGE = '''\
from torch import nn


class Network(nn.Sequential):
    """Scores of the next token out of each one alone."""

    def get_input_embeddings(self):
        return self[0]

    def forward(self, input_ids):
        return super().forward(input_ids)


def network(rows):
    return Network(nn.Embedding(rows, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, rows))
'''

TEXT = """\
models: [{model: runs/0.safetensors}, {model: runs/1.safetensors}]
architecture: {factory: "language_module:network", arguments: {rows: ROWS}}
data: {text: corpus, length: 6}
evaluation: {text: corpus/*.jsonl, length: 6, metric: cross_entropy}
"""


def test_text_with_the_tokenizer_beside_the_base_model(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words.tokenizer(tmp_path / "runs")
    (tmp_path / "corpus").mkdir()
    documents = [words.document(number, 5) for number in range(60)]
    words.write_lines(tmp_path / "corpus" / "a.jsonl", documents)
    (tmp_path / "language_module.py").write_text(LANGUAGE)
    rows = len(words.WORDS)
    monkeypatch.setitem(sys.modules, "language_module", None)  # forgotten afterwards
    del sys.modules["language_module"]
    with current_folder_importable():
        import language_module  # type: ignore[import-not-found]
    for seed in (0, 1):
        save_state(language_module.network(rows).state_dict(), Path(f"runs/{seed}.safetensors"))
    Path("merge.yml").write_text(TEXT.replace("ROWS", str(rows)))
    assert run(capsys, "collect", "merge.yml", "stats.safetensors", "--quiet") == (0, "", "")
    kept = ccamerge.Statistics.load("stats.safetensors")
    held = sum(len(ids) for [ids] in kept.held)
    assert kept.samples + held == 60
    status, out, err = run(capsys, "evaluate", "merge.yml", "--json", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 51  # sequences of six tokens and the next
    Path("merge.yml").write_text(TEXT.replace("ROWS", "50"))
    for seed in (0, 1):
        save_state(language_module.network(50).state_dict(), Path(f"runs/{seed}.safetensors"))
    for command in (("inspect", "merge.yml"), ("collect", "merge.yml", "s.safetensors")):
        message = fails(capsys, 2, *command)
        start = (
            f"merge.yml:3: data: tokenizer {tmp_path / 'runs'}: it knows {rows} tokens (the data"
        )
        assert message.startswith(start)


def test_help_tells_of_each_setting(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "merge", "--help")
    text = capsys.readouterr().out
    text = text[text.index("data from local files") : text.index("\nmethods: ")]
    for key, table in TABLES.items():
        assert f"  {key}: " in text
        assert all(name in text for name in table)
        counts = {"text": texts.COUNT, "images": images.COUNT}
        assert f"count: {counts[key]}" in text if key in counts else "count (default: all)" in text
