"""`ties: untie` on the command line: in the plan, the moments, the merge and its evaluation."""

from __future__ import annotations

import pytest
import torch

from ccamerge.checkpoints.reading import load_state
from tests.projects import run

MODULE = """\
import torch
from torch import nn


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(self.norm(x + self.down(torch.tanh(self.up(x)))))


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ids = torch.randint(11, (8, 5), generator=generator)
        yield ids, ids
"""
CONFIG = """\
base_model: 0.pt
models:
  - model: 0.pt
  - model: 1.pt
architecture: {factory: tied_module:Language}
data: {factory: tied_module:batches}
evaluation: {factory: tied_module:batches}
parameters: {ties: untie, repair: none}
"""


@pytest.fixture
def tied(tmp_path, monkeypatch):
    (tmp_path / "tied_module.py").write_text(MODULE)
    (tmp_path / "merge.yml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import tied_module  # type: ignore[import-not-found]

    for seed in range(2):
        torch.manual_seed(seed)
        model = tied_module.Language()
        torch.nn.init.uniform_(model.norm.weight, 0.5, 1.5)  # of the head's own from now on
        torch.save(model.state_dict(), f"{seed}.pt")
    return tmp_path


def test_heads_are_untied_in_all_commands(capsys, tied):
    status, out, err = run(capsys, "merge", "merge.yml", "plan", "--dry-run")
    assert (status, err) == (0, "")
    assert "any orthogonal map that fixes the vector of ones" in out
    status, out, _ = run(capsys, "merge", "merge.yml", "merged")
    assert status == 0
    assert "untied: head.weight" in out
    state = load_state("merged/model.safetensors")
    assert not torch.equal(state["head.weight"], state["embedding.weight"])
    status, out, err = run(capsys, "evaluate", "merge.yml", "--checkpoint", "merged", "--quiet")
    assert (status, err) == (0, "")
    assert "merged" in out

    assert run(capsys, "collect", "merge.yml", "moments.safetensors", "--quiet")[0] == 0
    (tied / "merge.yml").write_text(CONFIG + "moments: moments.safetensors\n")
    assert run(capsys, "merge", "merge.yml", "again", "--quiet") == (0, "", "")
    again = load_state("again/model.safetensors")
    assert all(torch.equal(value, again[key]) for key, value in state.items())
