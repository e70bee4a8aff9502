"""The command line: its parser and help, `inspect`, `info`, and what `demo` refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ccamerge
from ccamerge.cli import build_parser, main
from tests.projects import fails, network, run

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
    from ccamerge.config.reader import load_config

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
    from ccamerge.graph.networks.trial import Trial

    monkeypatch.setattr(Trial, "allows", lambda self, amount: False)
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
        assert json.loads(out)["threads"].startswith(
            "3 in ccamerge's core (by set_num_threads), 3 in torch"
        )
    finally:
        ccamerge.set_num_threads(before)
        torch.set_num_threads(torch_before)


def test_demo_without_its_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ccamerge.cli.demo.digits", raising=False)
    for name in [n for n in sys.modules if n.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    text = fails(capsys, 2, "demo", "--out", tmp_path / "demo")
    assert text == "the demo needs sklearn: pip install 'ccamerge[demo]'"
