"""`ccamerge merge` and `collect`: what they write."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import ccamerge
from ccamerge.checkpoints import load_into, load_state
from ccamerge.ridges import ridges_of
from tests.projects import CONFIG, DATA, change, fails, network, run, tree


def test_merge(capsys, project):
    status, out, err = run(capsys, "merge", "merge.yml", "merged")
    assert status == 0
    assert err == "ccamerge: wrote merged\n"
    assert tree(project / "merged") == [
        "README.md",
        "config.yml",
        "model.safetensors",
        "report.json",
    ]

    # The same as the library makes of the same networks and data.
    models = [network().eval() for _ in range(2)]
    load_into(models[0], "runs/0.safetensors")
    load_into(models[1], "runs/1.pt")
    import blobs_module

    data = list(blobs_module.batches(count=8, labels=False, seed=1))
    expected = ccamerge.merge(models, data, ridge=0.01, reference=1, seed=3, progress=False)
    state = load_state("merged/model.safetensors")
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0)

    report = json.loads((project / "merged/report.json").read_text())
    assert {space["ridge"] for space in report["report"]["spaces"]} == {0.01}
    assert report["report"]["seconds"]["collect"] > 0
    assert report["sources"][0]["path"] == "../runs/0.safetensors"
    assert report["config"]["base_model"] == "../runs/1.pt"
    assert [s.name for s in expected.report.spaces] == [
        s["name"] for s in report["report"]["spaces"]
    ]
    assert expected.report.spaces[0].name in out


def test_merging_the_written_configuration_again_gives_the_same(capsys, project):
    assert run(capsys, "merge", "merge.yml", "one", "--quiet") == (0, "", "")
    assert run(capsys, "merge", "one/config.yml", "two", "--quiet") == (0, "", "")
    one, two = load_state("one/model.safetensors"), load_state("two/model.safetensors")
    assert all(torch.equal(one[key], two[key]) for key in one)
    first = yaml.safe_load((project / "one/config.yml").read_text())
    assert first == yaml.safe_load((project / "two/config.yml").read_text())


def test_moments_replace_the_data(capsys, project):
    assert run(capsys, "merge", "merge.yml", "direct", "--quiet")[0] == 0
    status, out, err = run(capsys, "collect", "merge.yml", "stats.safetensors")
    assert (status, out) == (0, "")
    assert err.startswith("ccamerge: wrote stats.safetensors: 512 samples, ")
    start = CONFIG.index("data:")
    change(project, (CONFIG[start : CONFIG.index("evaluation:")], "moments: stats.safetensors\n"))
    assert run(capsys, "merge", "merge.yml", "later", "--quiet")[0] == 0
    one, two = load_state("direct/model.safetensors"), load_state("later/model.safetensors")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)
    # Collected for one reference, they do not serve another.
    change(project, ("base_model: runs/1.pt", "base_model: runs/0.safetensors"))
    assert "reference" in fails(capsys, 2, "merge", "merge.yml", "other")
    change(project, ("stats.safetensors", "gone.safetensors"))
    assert "merge.yml:10: moments: no file" in fails(capsys, 2, "merge", "merge.yml", "other")
    (project / "gone.safetensors").write_bytes(b"nothing of the kind")
    assert "gone.safetensors" in fails(capsys, 2, "merge", "merge.yml", "other")


def test_collect_all_pairs_serves_any_reference(capsys, project):
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--pairs", "all", "--quiet")[0] == 0
    change(project, ("base_model: runs/1.pt", "moments: s.safetensors"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")


def test_collect_takes_the_pairs_that_mode_or_method_need(capsys, project):
    assert run(capsys, "collect", "merge.yml", "one.safetensors", "--quiet")[0] == 0
    assert ccamerge.Collected.load("one.safetensors").pairs == "reference"
    change(
        project, ("seed: 3", "seed: 3, mode: universe"), ("base_", "merge_method: average\nbase_")
    )
    _, out, _ = run(capsys, "collect", "merge.yml", "two.safetensors", "--dry-run")
    assert "2 models, 2 spaces, pairs: all\nmoments: 0.0 MiB (folds: 2)" in out
    _, _, err = run(capsys, "collect", "merge.yml", "two.safetensors", "--folds", "3")
    assert "512 samples, pairs: all, folds: 3" in err
    collected = ccamerge.Collected.load("two.safetensors")
    assert collected.pairs == "all"
    assert {len(folds) for folds in collected.matched.values()} == {3}
    change(project, (", mode: universe", ""), ("average", '{"0": cca, "*": blobs_module:swap}'))
    assert run(capsys, "collect", "merge.yml", "three.safetensors", "--quiet")[0] == 0
    assert ccamerge.Collected.load("three.safetensors").pairs == "all"  # as swap needs
    given = ("--pairs", "reference", "--quiet")
    assert run(capsys, "collect", "merge.yml", "four.safetensors", *given)[0] == 0
    assert ccamerge.Collected.load("four.safetensors").pairs == "reference"


def test_folds_for_ridge_auto(capsys, project):
    change(project, ("ridge: 0.01", "ridge: auto"))
    text = fails(capsys, 2, "collect", "merge.yml", "one.safetensors", "--folds", "1")
    assert "merge.yml:15: parameters.ridge: auto needs --folds 2 or more" in text
    text = fails(capsys, 2, "collect", "merge.yml", "one.safetensors", "--folds", "0")
    assert text == "--folds must be at least 1, got 0"
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--quiet")[0] == 0
    change(project, ("base_model", "moments: s.safetensors\nbase_model"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    report = json.loads((project / "merged/report.json").read_text())
    chosen = {space["name"]: space["ridge"] for space in report["report"]["spaces"]}
    moments = ccamerge.Collected.load("s.safetensors")
    assert chosen == ridges_of("auto", moments.spaces_of(network()), moments, 1, set(chosen))


@pytest.mark.parametrize("command", ["merge", "collect"])
def test_dry_run_checks_and_writes_nothing(capsys, project, command):
    change(project, (DATA, "factory: blobs_module:interrupted"))
    before = tree(project)
    out_name = "merged" if command == "merge" else "s.safetensors"
    status, out, err = run(
        capsys, command, "merge.yml", out_name, "--dry-run", "--input-shape", "2,8"
    )
    assert (status, err) == (0, "")
    plan = ccamerge.plan(ccamerge.spaces(network(), torch.randn(2, 8)), models=2)
    assert str(plan) in out
    assert "runs/1.pt  weight 0.5  (reference)" in out
    assert tree(project) == before


def test_dtype_of_the_checkpoint(capsys, project):
    change(project, ("parameters: {ridge", "dtype: bfloat16\nparameters: {ridge"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet")[0] == 0
    state = load_state("merged/model.safetensors")
    assert state["0.weight"].dtype == torch.bfloat16
    assert state["1.num_batches_tracked"].dtype == torch.int64
    _, out, _ = run(capsys, "evaluate", "merge.yml", "--checkpoint", "merged", "--json")
    assert json.loads(out)["merged"][0]["metric"] > 0.8


def test_existing_folder(capsys, project):
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet")[0] == 0
    before = (project / "merged/report.json").read_text()
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert text == "merged exists; name another folder, or --force to replace an earlier merge"
    change(project, ("ridge: 0.01", "ridge: 0.5"))
    assert run(capsys, "merge", "merge.yml", "merged", "--force", "--quiet")[0] == 0
    report = json.loads((project / "merged/report.json").read_text())["report"]
    assert {space["ridge"] for space in report["spaces"]} == {0.5}
    assert before != (project / "merged/report.json").read_text()
    assert not [p for p in tree(project) if "partial" in p or ".old" in p]
    (project / "merged/diary.txt").write_text("mine")
    text = fails(capsys, 2, "merge", "merge.yml", "merged", "--force")
    assert "which merged is not" in text
    assert (project / "merged/diary.txt").read_text() == "mine"
    assert "which runs is not" in fails(capsys, 2, "merge", "merge.yml", "runs", "--force")
    assert "there is no folder" in fails(capsys, 2, "merge", "merge.yml", "no/where")
