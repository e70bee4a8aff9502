from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import ccamerge
from ccamerge.checkpoints import load_into, load_state
from ccamerge.cli import build_parser, main
from ccamerge.ridges import ridges_of
from tests.projects import CONFIG, DATA, MODULE, change, fails, network, run, tree

# The parser --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["inspect", "collect", "merge", "evaluate", "report", "demo", "info"]
)
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: ccamerge {command}")
    assert "examples:\n  ccamerge" in out or command == "info"


def test_examples_in_the_help_can_be_parsed(capsys):
    parser = build_parser()
    with pytest.raises(SystemExit):
        main(["--help"])
    texts = [capsys.readouterr().out]
    for command in ("inspect", "collect", "merge", "evaluate", "report", "demo", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        texts.append(capsys.readouterr().out)
    examples = {
        tuple(re.split(r"  +|   #", line.strip())[0].split()[1:])
        for text in texts
        for line in text.splitlines()
        if line.startswith("  ccamerge ")
    }
    assert len(examples) > 10
    for example in examples:
        assert parser.parse_args(list(example)).command == example[0]


def test_configuration_in_the_help_is_valid(capsys, tmp_path):
    from ccamerge.config import load_config

    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    out = capsys.readouterr().out
    start = out.index("  merge_method: cca")
    example = out[start : out.index("more of parameters:")]
    (tmp_path / "merge.yml").write_text(example)
    config = load_config(tmp_path / "merge.yml")
    assert config.models[1] == tmp_path / "runs/seed1.safetensors"
    assert all(name in out for name in ccamerge.METHODS)

    # The parts below it in the place of what they replace.
    more = [
        line.strip() for line in out.splitlines() if re.match(r"  (t|options|ridge): .* #", line)
    ]
    lines = [line for line in out.splitlines() if line.startswith("  weights: {")]
    method = next(line for line in out.splitlines() if line.startswith("  merge_method: {"))
    text = re.sub(r"\n +parameters: {weight.*", "", example)
    text = re.sub(r" *merge_method: .*", method, text)
    inner = "".join(f"    {line.strip()}\n" for line in [*more, *lines])
    text = re.sub(r"    ridge: .*\n", inner, text)
    (tmp_path / "merge.yml").write_text(text)
    settings = load_config(tmp_path / "merge.yml").settings
    assert settings.method == {"layer1*": "permutation", "*": "cca"}
    assert (settings.t, settings.options) == (0.5, {"alpha": 0.3})
    assert settings.ridge == {"layer3*": 1.0}
    assert settings.weights == {"layer3*": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["mrge"], "invalid choice: 'mrge'"),
        (
            ["merge", "x.yml"],
            r"the following arguments are required: OUT \(see `ccamerge merge --h",
        ),
        (["info", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["demo", "--models", "1"], "expected a whole number of 2 or more, got '1'"),
        (["demo", "--widths", "x"], "expected a whole number of 1 or more, got 'x'"),
        (["demo", "--data", ".", "--zoo", ".", "--widths", "3"], "--widths is for the digits'"),
        (["demo", "--samples", "3"], "--samples is for --data"),
        (["demo", "--out", "no/where"], "there is no folder"),
        (["demo", "--data", "."], "--data and --zoo belong together"),
        (["demo", "--data", ".", "--zoo", "nowhere"], "--zoo: there is no folder nowhere"),
        (["inspect", "nothing"], "TARGET: expected a configuration file or"),
        (["inspect", "torch.nn:Linear", "--arg", "in"], "--arg: expected NAME=VALUE, got 'in'"),
        (["merge", "no.yml", "out"], r"no\.yml: no such file"),
    ],
)
def test_wrong_usage(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, fails(capsys, 2, *args))


def fresh_process(folder, code):
    path = os.pathsep.join([str(Path(ccamerge.__file__).parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_no_torch_for_help_version_and_wrong_configurations(tmp_path):
    (tmp_path / "merge.yml").write_text("models: 3\n")
    code = """
import sys
from ccamerge.cli import main
for args in (["--help"], ["--version"], ["merge", "--help"], ["merge", "merge.yml", "out"], ["x"]):
    try:
        print("status", main(args))
    except SystemExit as error:
        print("status", error.code)
heavy = {"torch", "numpy", "scipy", "ccamerge._core"} & set(sys.modules)
print("imported", heavy)
"""
    done = fresh_process(tmp_path, code)
    assert [x for x in done.stdout.splitlines() if x.startswith("status")] == [
        *["status 0"] * 3,
        *["status 2"] * 2,
    ]
    assert done.stdout.splitlines()[-1] == "imported set()"
    assert f"ccamerge {ccamerge.__version__}" in done.stdout


def test_as_a_module(tmp_path):
    done = fresh_process(
        tmp_path, "import runpy; runpy.run_module('ccamerge', run_name='__main__')"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ccamerge: error: the following arguments are required: COMMAND")


# inspect and info --------------------------------------------------------------------------


def test_inspect_a_configuration(capsys, project):
    status, out, err = run(capsys, "inspect", "merge.yml")
    assert (status, err) == (0, "")
    found = ccamerge.spaces(network(), torch.randn(2, 8))
    assert str(found) in out
    assert "pinned axes of parameters" in out
    assert "network output: 5.weight axis 0, 5.bias axis 0" in out
    assert "checks" not in out


def test_inspect_a_function_and_verify(capsys, project):
    args = ("inspect", "blobs_module:network", "--arg", "width=6", "--input-shape", "16,8")
    status, out, _ = run(capsys, *args, "--verify", "--json")
    content = json.loads(out)
    assert status == 0
    assert [space["size"] for space in content["spaces"]] == [6, 12]
    assert content["pinned"]["5.bias"] == {"0": "network output"}
    assert len(content["checks"]) == 5
    assert all(check["passed"] for check in content["checks"])
    status, out, _ = run(capsys, *args, "--verify")
    assert status == 0
    for check in content["checks"]:
        assert check["name"] in out.split("\nchecks\n")[1]


def test_inspect_fails_when_a_check_does(capsys, project, monkeypatch):
    from ccamerge import verification

    monkeypatch.setattr(verification, "EXACT_TOLERANCE", -1.0)  # which nothing can meet
    args = ("inspect", "blobs_module:network", "--input-shape", "16,8", "--verify")
    status, out, _ = run(capsys, *args)
    assert status == 1
    assert "FAIL" in out


def test_inspect_whole_numbers_and_several_inputs(capsys, project):
    (project / "tokens_module.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.scale = nn.Embedding(7, 6), nn.Linear(3, 6)\n"
        "        self.head = nn.Linear(6, 4)\n"
        "    def forward(self, ids, x):\n"
        "        return self.head((self.embed(ids).mean(1) + self.scale(x)).relu())\n"
    )
    status, out, _ = run(
        capsys, "inspect", "tokens_module:Net", "--input-shape", "2,5:int", "2,3", "--json"
    )
    assert status == 0
    assert [space["size"] for space in json.loads(out)["spaces"]] == [6]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["blobs_module:network"], "give --input-shape, such as --input-shape 2,3,32,32"),
        (["blobs_module:network", "--input-shape", "2,x"], "got '2,x'"),
        (["blobs_module:network", "--input-shape", "0,8"], "got '0,8'"),
        (["blobs_module:network", "--input-shape", "2,8:long"], "got '2,8:long'"),
        (["blobs_module:netwrk"], "TARGET: blobs_module has no 'netwrk'; did you mean 'network'?"),
        (["blobs_module:network", "--arg", "depth=3"], "cannot be called so"),
        (["blobs_module:wrong", "--input-shape", "2,8"], "returned a int, expected a torch.nn.Mod"),
        (["merge.yml", "--arg", "width=3"], "--arg is for a function"),
    ],
)
def test_inspect_errors(capsys, project, args, message):
    assert message in fails(capsys, 2, "inspect", *args)


def test_info(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["torch"] == torch.__version__
    assert facts["ccamerge"] == ccamerge.__version__
    assert facts["CUDA"]
    assert "openblas" in facts["BLAS"]
    status, out, _ = run(capsys, "info")
    assert [line.split("  ")[0] for line in out.splitlines()] == list(facts)


def test_threads_are_set(capsys):
    before, torch_before = ccamerge.num_threads(), torch.get_num_threads()
    try:
        _, out, _ = run(capsys, "info", "--threads", "3", "--json")
        assert json.loads(out)["threads"].startswith("3 in ccamerge's core, 3 in torch")
    finally:
        ccamerge.set_num_threads(before)
        torch.set_num_threads(torch_before)


@pytest.mark.slow
def test_demo(capsys, tmp_path):
    status, out, _ = run(
        capsys, "demo", "--models", "2", "--widths", "8", "--out", tmp_path / "demo", "--quiet"
    )
    assert status == 0
    assert "cca" in out.lower()
    assert {"demo.json", "demo.png"} <= {p.name for p in (tmp_path / "demo").iterdir()}


def test_demo_without_its_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ccamerge.demo.digits", raising=False)
    for name in [n for n in sys.modules if n.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    text = fails(capsys, 2, "demo", "--out", tmp_path / "demo")
    assert text == "the demo needs sklearn: pip install 'ccamerge[demo]'"


# merge -------------------------------------------------------------------------------------


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


# Settings that not every merge has ---------------------------------------------------------


def merged_state(capsys, out="merged"):
    assert run(capsys, "merge", "merge.yml", out, "--quiet") == (0, "", "")
    return load_state(f"{out}/model.safetensors")


def by_library(**settings):
    import blobs_module

    models = [network().eval() for _ in range(2)]
    load_into(models[0], "runs/0.safetensors")
    load_into(models[1], "runs/1.pt")
    data = list(blobs_module.batches(count=8, labels=False, seed=1))
    return ccamerge.merge(models, data, reference=1, seed=3, progress=False, **settings)


@pytest.mark.parametrize(
    ("method", "parameters", "settings"),
    [
        (
            '{"0": permutation, "*": cca}',
            'ridge: {"3": 0.2}, weights: {"3": [1, 0], "5*": [1, 3]}',
            {
                "method": {"0": "permutation"},
                "ridge": {"3": 0.2},
                "weights": {"3": [1, 0], "5*": [1, 3]},
            },
        ),
        (
            "average",
            "mode: universe, t: 0.25",
            {"method": "average", "mode": "universe", "t": 0.25},
        ),
        ("cca", "repair: regression, gamma: 0.2", {"repair": "regression", "gamma": 0.2}),
        (
            "blobs_module:swap",
            "options: {first: 2}",
            {"method": "swapped", "options": {"first": 2}},
        ),
        (
            '{"3": "blobs_module:swap"}',
            "options: {first: 2}",
            {"method": {"3": "swapped", "*": "cca"}, "options": {"first": 2}},
        ),
    ],
)
def test_settings_reach_the_merge(capsys, project, method, parameters, settings):
    for weight in ("1.pt", "0.safetensors"):
        change(project, (f"{weight}\n    parameters: {{weight: 1}}", weight))
    change(
        project, ("base_", f"merge_method: {method}\nbase_"), ("ridge: 0.01, ", f"{parameters}, ")
    )
    found = merged_state(capsys)
    expected = by_library(**settings).model.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)
    plain = by_library().model.state_dict()
    assert not torch.equal(found["3.weight"], plain["3.weight"])
    # What was written is enough to do the same again.
    assert run(capsys, "merge", "merged/config.yml", "again", "--quiet") == (0, "", "")
    again = load_state("again/model.safetensors")
    assert all(torch.equal(found[key], again[key]) for key in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("base_", 'merge_method: {"zero*": average}\nbase_')],
            "merge.yml:1: merge_method: 'zero*' matches no space; there are ",
        ),
        (
            [("ridge: 0.01", 'ridge: {"33": 1}')],
            "merge.yml:14: parameters.ridge: '33' matches no space; did you mean '3'?",
        ),
        (
            [
                ("    parameters: {weight: 1}\n", ""),
                ("ridge: 0.01", 'weights: {"9*": [0, 1]}'),
            ],
            "merge.yml:12: parameters.weights: '9*' matches no space; there are ",
        ),
        (
            [("ridge: 0.01", "options: {alpha: 1}")],
            "merge.yml:14: parameters.options: 'alpha' is not known to 'cca'; known: none",
        ),
        (
            [("base_", "merge_method: ot\nbase_"), ("seed: 3", "seed: 3, mode: universe")],
            "merge.yml:1: merge_method: mode 'universe' is not for method 'ot'",
        ),
        (
            [("base_", "merge_method: blobs_module:wrong\nbase_")],
            "merge.yml:1: merge_method: blobs_module:wrong() cannot be called so: too many pos",
        ),
        (
            [("base_", "merge_method: blobs_module:no_method\nbase_")],
            "merge.yml:1: merge_method: blobs_module:no_method is no method; decorate it with",
        ),
        (
            [("base_", 'merge_method: {"0": blobs_module:sawp}\nbase_')],
            "merge.yml:1: merge_method.0: blobs_module has no 'sawp'; did you mean 'swap'?",
        ),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_settings_are_checked_before_the_data_is_read(capsys, project, changes, message, dry):
    change(project, *changes, (DATA, "factory: blobs_module:interrupted"))
    before = tree(project)
    args = ("--dry-run", "--input-shape", "2,8") if dry else ()
    assert message in fails(capsys, 2, "merge", "merge.yml", "merged", *args)
    assert tree(project) == before


def test_dry_run_with_patterns(capsys, project):
    for weight in ("1.pt", "0.safetensors"):
        change(project, (f"{weight}\n    parameters: {{weight: 1}}", weight))
    change(
        project,
        ("base_", 'merge_method: {"0": average}\nbase_'),
        ("ridge: 0.01", 'weights: {"3": [0, 1]}'),
    )
    _, out, _ = run(capsys, "merge", "merge.yml", "merged", "--dry-run", "--input-shape", "2,8")
    assert "method      0: average\n" in out
    assert "runs/1.pt  weight by patterns  (reference)" in out


def test_collect_errors(capsys, project):
    assert "must end in .safetensors" in fails(capsys, 2, "collect", "merge.yml", "stats.pt")
    (project / "old.safetensors").write_bytes(b"old")
    text = fails(capsys, 2, "collect", "merge.yml", "old.safetensors")
    assert text == "old.safetensors exists; --force replaces it"
    assert (project / "old.safetensors").read_bytes() == b"old"
    assert run(capsys, "collect", "merge.yml", "old.safetensors", "--force", "--quiet")[0] == 0
    assert ccamerge.Collected.load("old.safetensors").samples == 512
    assert "no folder" in fails(capsys, 2, "collect", "merge.yml", "nowhere/x.safetensors")


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
    from ccamerge import card

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
