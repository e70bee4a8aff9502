"""`ccamerge merge` and `collect`: what they write."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import ccamerge
from ccamerge.checkpoints.reading import load_into, load_state, save_state
from ccamerge.methods.ridges import ridges_of
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
    # Statistics for one reference, they do not serve another.
    change(project, ("base_model: runs/1.pt", "base_model: runs/0.safetensors"))
    assert "reference" in fails(capsys, 2, "merge", "merge.yml", "other")
    change(project, ("stats.safetensors", "gone.safetensors"))
    assert "merge.yml:10: moments: no file" in fails(capsys, 2, "merge", "merge.yml", "other")
    (project / "gone.safetensors").write_bytes(b"nothing of the kind")
    assert "gone.safetensors" in fails(capsys, 2, "merge", "merge.yml", "other")


def test_collect_holds_out_what_the_configuration_says(capsys, project):
    change(project, ("seed: 3", "seed: 3, holdout: 0.25"))
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--quiet")[0] == 0
    collected = ccamerge.Statistics.load("s.safetensors")
    assert collected.samples == 384
    assert sum(len(leaves[0]) for leaves in collected.held) == 128


def test_collect_all_pairs_serves_any_reference(capsys, project):
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--pairs", "all", "--quiet")[0] == 0
    change(project, ("base_model: runs/1.pt", "moments: s.safetensors"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")


def test_collect_takes_the_pairs_that_mode_or_method_need(capsys, project):
    assert run(capsys, "collect", "merge.yml", "one.safetensors", "--quiet")[0] == 0
    assert ccamerge.Statistics.load("one.safetensors").pairs == "reference"
    change(
        project, ("seed: 3", "seed: 3, mode: universe"), ("base_", "merge_method: average\nbase_")
    )
    _, out, _ = run(capsys, "collect", "merge.yml", "two.safetensors", "--dry-run")
    assert "2 models, 2 spaces, pairs: all\nmoments: 0.0 MiB (folds: 2)" in out
    _, _, err = run(capsys, "collect", "merge.yml", "two.safetensors", "--folds", "3")
    assert "512 samples, pairs: all, folds: 3" in err
    collected = ccamerge.Statistics.load("two.safetensors")
    assert collected.pairs == "all"
    assert {len(folds) for folds in collected.matched.values()} == {3}
    change(project, (", mode: universe", ""), ("average", '{"0": cca, "*": blobs_module:swap}'))
    assert run(capsys, "collect", "merge.yml", "three.safetensors", "--quiet")[0] == 0
    assert ccamerge.Statistics.load("three.safetensors").pairs == "all"  # as swap needs
    given = ("--pairs", "reference", "--quiet")
    assert run(capsys, "collect", "merge.yml", "four.safetensors", *given)[0] == 0
    assert ccamerge.Statistics.load("four.safetensors").pairs == "reference"


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
    moments = ccamerge.Statistics.load("s.safetensors")
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


def _cast(path, dtype, only=""):
    """Rewrite a checkpoint of the project as a safetensors file with another dtype."""
    state = load_state(path)
    for key, value in state.items():
        if value.is_floating_point() and key.startswith(only):
            state[key] = value.to(dtype)
    save_state(state, path)


@pytest.fixture
def both(project):
    """The project with two safetensors files."""
    save_state(load_state("runs/1.pt"), "runs/1.safetensors")
    change(project, ("runs/1.pt", "runs/1.safetensors"))
    return project


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_checkpoints_of_one_dtype_give_this_dtype(capsys, both, dtype):
    for seed in range(2):
        _cast(f"runs/{seed}.safetensors", dtype)
    status, _, err = run(capsys, "merge", "merge.yml", "merged")
    assert (status, err) == (0, "ccamerge: wrote merged\n")
    state = load_state("merged/model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {dtype}
    assert state["1.num_batches_tracked"].dtype == torch.int64
    target = network()
    load_into(target, "merged")  # the folder will do
    assert torch.equal(target[0].weight, state["0.weight"].float())


def test_each_tensor_keeps_its_own_dtype(capsys, both):
    for seed in range(2):
        _cast(f"runs/{seed}.safetensors", torch.bfloat16, only="3.")
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    state = load_state("merged/model.safetensors")
    assert {state[k].dtype for k in ("3.weight", "3.bias")} == {torch.bfloat16}
    assert {state[k].dtype for k in ("0.weight", "5.bias", "1.running_var")} == {torch.float32}


def test_of_different_dtypes_the_widest_and_a_note(capsys, both):
    _cast("runs/0.safetensors", torch.float16)
    _cast("runs/1.safetensors", torch.bfloat16, only="3.")
    _, _, err = run(capsys, "merge", "merge.yml", "merged")
    state = load_state("merged/model.safetensors")
    floats = {k: v.dtype for k, v in state.items() if v.is_floating_point()}
    assert set(floats.values()) == {torch.float32}  # that both float16 and bfloat16 fit into
    assert "checkpoints differ in dtype (" in err
    assert "models[1], float16 before it; 10 in all)" in err
    change(both, ("parameters: {ridge", "dtype: float64\nparameters: {ridge"))
    _, _, err = run(capsys, "merge", "merge.yml", "other")
    assert err == "ccamerge: wrote other\n"


def test_numbers_that_the_dtype_cannot_hold(capsys, both):
    for seed in range(2):
        state = load_state(f"runs/{seed}.safetensors")
        state["5.weight"] *= 1e6
        save_state(state, f"runs/{seed}.safetensors")
    change(both, ("parameters: {ridge", "dtype: float16\nparameters: {ridge"))
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert text.startswith("merge.yml:15: dtype: 5.weight of the merged network has numbers too")
    assert not (both / "merged").exists()


def test_the_same_merge_gives_the_same_file(capsys, both):
    for out in ("one", "two"):
        assert run(capsys, "merge", "merge.yml", out, "--quiet") == (0, "", "")
    one, two = ((both / out / "model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


def test_models_in_shards(capsys, both):
    """By the folder, with a digest that is of all shards."""
    state = load_state("runs/0.safetensors")
    folder = both / "runs/sharded"
    folder.mkdir()
    where = {k: f"part-{i % 2}.safetensors" for i, k in enumerate(state)}
    for name in set(where.values()):
        save_state({k: v for k, v in state.items() if where[k] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert run(capsys, "merge", "merge.yml", "one", "--quiet") == (0, "", "")
    change(both, ("runs/0.safetensors", "runs/sharded"))
    assert run(capsys, "merge", "merge.yml", "two", "--quiet") == (0, "", "")
    one, two = load_state("one"), load_state("two")
    assert all(torch.equal(one[key], two[key]) for key in one)
    digests = []
    for name in sorted(set(where.values())):
        state = load_state(folder / name)
        save_state({k: v + 1 for k, v in state.items()}, folder / name)
        assert run(capsys, "merge", "merge.yml", f"out {name}", "--quiet") == (0, "", "")
        record = json.loads((both / f"out {name}/report.json").read_text())
        digests.append(record["sources"][0]["sha256"])
    first = json.loads((both / "two/report.json").read_text())["sources"][0]["sha256"]
    assert len({first, *digests}) == 3
    (folder / "part-1.safetensors").unlink()
    text = fails(capsys, 2, "merge", "merge.yml", "three", "--dry-run")
    assert text.startswith("merge.yml:3: models[0].model: ")
    assert "1 of 2 shards missing: part-1.safetensors" in text


def test_quantised_checkpoints_are_found_before_the_merge(capsys, both):
    state = {k: v.to(torch.int8) for k, v in load_state("runs/0.safetensors").items()}
    save_state(state, "runs/0.safetensors")
    text = fails(capsys, 2, "merge", "merge.yml", "merged", "--dry-run")
    assert text.startswith("merge.yml:3: models[0].model: ")
    assert "0.weight is int8, expected float32" in text


@pytest.mark.as_users_do
def test_refinement_shows_progress_only_to_people(capsys, project):
    change(project, ("seed: 3", "seed: 3, refine: 1 epoch, select: none, holdout: 0.1"))
    status, _, err = run(capsys, "merge", "merge.yml", "merged")
    assert status == 0
    assert "held out=" not in err
    assert "from the ensemble" in err.splitlines()[-1] or "to the ensemble" in err.splitlines()[-1]
    report = json.loads((project / "merged/report.json").read_text())["report"]
    assert report["fidelity"]["progress"]
    assert run(capsys, "report", "merged")[0] == 0
