"""``ccamerge evaluate``."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
import torch

import ccamerge
from ccamerge.checkpoints.reading import load_into, save_state
from ccamerge.config.reader import load_config
from tests.projects import CONFIG, DATA, change, fails, network, run, tree

EVALUATION = "evaluation:\n  factory: blobs_module:batches\n"
METRIC = """

def squared(outputs, batch):
    return (outputs - torch.eye(4)[batch[1]]).square().mean(-1)

def single(outputs, batch): return outputs.sum()
def no_metric(outputs): return outputs
"""


def test_batches():
    import blobs_module

    return list(blobs_module.batches())


test_batches.__test__ = False  # type: ignore[attr-defined]


def networks():
    models = [network().eval() for _ in range(2)]
    load_into(models[0], "runs/0.safetensors")
    load_into(models[1], "runs/1.pt")
    return models


def calibration():
    import blobs_module

    return list(blobs_module.batches(count=8, labels=False, seed=1))


def scores(model, *metrics):
    metrics = metrics or ("accuracy", "cross_entropy")
    return [ccamerge.evaluate(model, test_batches(), metric) for metric in metrics]


def found(entry):
    return [entry["metric"], entry["loss"]]


def test_models_ensemble_and_checkpoints(capsys, project):
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet")[0] == 0
    status, out, err = run(capsys, "evaluate", "merge.yml", "--checkpoint", "merged", "--json")
    assert (status, err) == (0, "")
    record = json.loads(out)
    models = networks()
    assert [m["name"] for m in record["models"]] == ["runs/0.safetensors", "runs/1.pt"]
    assert [found(m) for m in record["models"]] == [scores(m) for m in models]
    assert found(record["ensemble"]) == scores(models)
    merged = network().eval()
    load_into(merged, "merged/model.safetensors")
    (entry,) = record["merged"]
    assert (entry["name"], entry["seconds"]) == ("merged", None)
    assert found(entry) == scores(merged)
    assert entry["metric"] > 0.85
    assert record["barriers"] == []
    assert record["samples"] == 256
    assert [record[k] for k in ("metric", "better", "loss")] == [
        "accuracy", "higher", "cross_entropy",
    ]  # fmt: skip

    status, out, err = run(
        capsys, "evaluate", "--quiet", "merge.yml", "--checkpoint", "merged/model.safetensors"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["accuracy", "cross_entropy"]
    assert out.splitlines()[-1].split() == [
        "merged/model.safetensors",
        f"{entry['metric']:.2%}",
        f"{entry['loss']:#.4g}",
    ]


def test_methods_and_barriers(capsys, project):
    status, out, err = run(
        capsys, "evaluate", "merge.yml", "--json", "--barrier", "4", "--methods", "average",
        "permutation", "zipit", "cca",
    )  # fmt: skip
    assert status == 0
    assert re.fullmatch(r"ccamerge: collected the moments in [\d.]+ s\n", err)
    record = json.loads(out)
    models = networks()
    moments = ccamerge.collect(
        models, calibration(), reference=1, pairs="all", progress=False, seed=3
    )
    assert [m["name"] for m in record["merged"]] == ["average", "permutation", "zipit", "cca"]
    settings = {"statistics": moments, "reference": 1, "ridge": 0.01, "seed": 3}
    for entry, way in zip(record["merged"], record["barriers"], strict=True):
        own = {**settings, "method": entry["name"]}
        assert found(entry) == scores(ccamerge.merge(models, **own).model)
        assert entry["seconds"] > 0
        expected = ccamerge.barrier(models, test_batches(), points=4, **own)
        assert way == {
            "name": entry["name"],
            "t": [0.0, 1 / 3, 2 / 3, 1.0],
            "metric": list(expected.metric),
            "loss": list(expected.loss),
            "ends": list(expected.ends),
            "barrier": expected.barrier,
        }
    for way in record["barriers"]:  # both ends are the models themselves, whatever the method
        assert [way["loss"][0], way["loss"][-1]] == pytest.approx(way["ends"], rel=1e-6)


def test_one_pass_over_the_data_serves_all_methods(capsys, project):
    text = (project / "blobs_module.py").read_text()
    count = (
        "passes = []\ndef once(**given):\n    passes.append(1)\n    yield from batches(**given)\n"
    )
    (project / "blobs_module.py").write_text(text + "\n\n" + count)
    change(project, (DATA, DATA.replace(":batches", ":once")))
    args = ("--methods", "all", "--barrier", "3", "--out", "found.json", "--quiet")
    status, out, err = run(capsys, "evaluate", "merge.yml", *args)
    assert (status, err) == (0, "")
    import blobs_module

    assert len(blobs_module.passes) == 1
    record = json.loads((project / "found.json").read_text())
    names = [entry["name"] for entry in record["merged"]]
    assert names == list(ccamerge.METHODS)  # the project's own among them
    assert {"swapped", "ot", "weight_matching"} < set(names)
    table = out.splitlines()
    assert table[0].split() == ["accuracy", "cross_entropy", "seconds"]
    assert table[-5].split() == ["t", *names]
    assert table[-1].split()[0] == "barrier"
    assert not [path for path in tree(project) if "partial" in path]


@pytest.mark.parametrize("args", [("--methods",), ("--barrier",)])
def test_the_configurations_own_method(capsys, project, args):
    method = 'merge_method: {"0": permutation, "*": "blobs_module:swap"}\n'
    change(project, ("base_", f"{method}base_"), ("ridge: 0.01", "options: {first: 2}"))
    status, out, _ = run(capsys, "evaluate", "merge.yml", *args, "--json")
    assert status == 0
    record = json.loads(out)
    expected = ccamerge.merge(
        networks(), calibration(), reference=1, seed=3, progress=False,
        method={"0": "permutation", "*": "swapped"}, options={"first": 2},
    )  # fmt: skip
    (entry,) = record["merged"]
    assert entry["name"] == "0: permutation, *: swapped"
    assert found(entry) == scores(expected.model)
    assert [len(way["t"]) for way in record["barriers"]] == ([11] if "--barrier" in args else [])


def test_each_method_gets_the_options_that_it_knows(capsys, project):
    change(project, ("ridge: 0.01", "options: {alpha: 0.9, first: 3}"))
    args = ("--methods", "zipit", "cca", "blobs_module:swap", "--json")
    _, out, _ = run(capsys, "evaluate", "merge.yml", *args)
    moments = ccamerge.collect(
        networks(), calibration(), reference=1, pairs="all", progress=False, seed=3
    )
    for entry in json.loads(out)["merged"]:
        options = {"zipit": {"alpha": 0.9}, "cca": {}, "swapped": {"first": 3}}[entry["name"]]
        merged = ccamerge.merge(
            networks(), statistics=moments, reference=1, method=entry["name"], options=options
        )
        assert found(entry) == scores(merged.model)


def test_moments_of_an_earlier_day(capsys, project):
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--pairs", "all", "--quiet")[0] == 0
    before, after = run(capsys, "evaluate", "merge.yml", "--methods", "zipit", "--json")[1], None
    change(project, (f"data:\n  {DATA}\n", "moments: s.safetensors\n"))
    after = run(capsys, "evaluate", "merge.yml", "--methods", "zipit", "--json")[1]
    one, two = (json.loads(text)["merged"][0] for text in (before, after))
    assert found(one) == pytest.approx(found(two), rel=1e-4)


def test_a_metric_of_the_users(capsys, project):
    with (project / "blobs_module.py").open("a") as file:
        file.write(METRIC)
    own = "  metric: blobs_module:squared\n  better: lower\n  loss: blobs_module:squared\n"
    change(project, (EVALUATION, f"{EVALUATION}{own}  ensemble: outputs\n"))
    status, out, _ = run(capsys, "evaluate", "merge.yml", "--json")
    assert status == 0
    record = json.loads(out)
    assert [record[k] for k in ("metric", "better", "loss")] == [
        "blobs_module:squared", "lower", "blobs_module:squared",
    ]  # fmt: skip
    models, eye = networks(), torch.eye(4)
    x, y = (torch.cat(parts) for parts in zip(*test_batches(), strict=True))
    with torch.no_grad():
        outputs = [model(x) for model in models]
    for entry, output in zip(
        [*record["models"], record["ensemble"]], [*outputs, sum(outputs) / 2], strict=True
    ):
        expected = (output - eye[y]).square().mean().item()
        assert found(entry) == pytest.approx([expected, expected])
    change(project, ("  ensemble: outputs", "  ensemble: none"))
    assert json.loads(run(capsys, "evaluate", "merge.yml", "--json")[1])["ensemble"] is None
    change(project, ("metric: blobs_module:squared", "metric: blobs_module:single"))
    text = fails(capsys, 2, "evaluate", "merge.yml")
    assert "batch 0, runs/0.safetensors: blobs_module:single: expected a tensor with one" in text


@pytest.mark.parametrize("once", ["true", "false"])
def test_all_networks_see_the_same_random_data(capsys, project, once):
    evaluation = "evaluation:\n  factory: blobs_module:"
    change(project, (f"{evaluation}batches", f"{evaluation}random\n  arguments: {{once: {once}}}"))
    copies = ("--checkpoint", "runs/0.safetensors", "runs/1.pt")
    args = ("--methods", "average", "--barrier", "3")
    _, out, _ = run(capsys, "evaluate", "merge.yml", *copies, *args, "--json")
    record = json.loads(out)
    models = [found(entry) for entry in record["models"]]
    assert models == [found(entry) for entry in record["merged"][1:]]
    assert models[0] != models[1]
    (way,) = record["barriers"]  # another pass, the same data: its ends are the models
    ends = [[way["metric"][i], way["loss"][i]] for i in (-1, 0)]
    assert ends[0] == pytest.approx(models[0], rel=1e-4)
    assert ends[1] == pytest.approx(models[1], rel=1e-4)


def test_a_result_is_replaced_whole_or_not_at_all(capsys, project, monkeypatch):
    args = ("evaluate", "merge.yml", "--json", "--out", "found.json")
    status, out, err = run(capsys, *args)
    assert (status, err) == (0, "ccamerge: wrote found.json\n")
    text = (project / "found.json").read_text()
    assert text == out
    before = tree(project)

    def full(*_):
        message = "No space left on device"
        raise OSError(28, message)

    change(project, ("seed: 3", "seed: 4"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr("pathlib.Path.replace", full)
        assert run(capsys, *args)[0] == 2
    assert tree(project) == before
    assert (project / "found.json").read_text() == text
    assert run(capsys, *args)[0] == 0
    assert fails(capsys, 2, *args[:-1], "runs") == "--out: runs is a folder, expected a file"
    assert "there is no folder" in fails(capsys, 2, *args[:-1], "no/where.json")


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ([], ["cca", "cac"], "--methods: method must be one of .*; got 'cac'"),
        ([], ["cca", "cac"], "--methods: these can run: cca$"),
        (
            [("seed: 3", "seed: 3, mode: universe")],
            ["all"],
            "--methods: method 'ot' does not know mode 'universe'",
        ),
        (
            [("seed: 3", "seed: 3, mode: universe")],
            ["all"],
            "--methods: these can run: average cca permutation procrustes$",
        ),
        ([], ["blobs_module:swpa"], "--methods: blobs_module has no 'swpa'; did you mean 'swap'"),
        ([], ["blobs_module:no_method"], "--methods: blobs_module:no_method is no method"),
        (
            [("ridge: 0.01", "options: {alhpa: 1}")],
            ["zipit"],
            r"merge\.yml:14: parameters.options: 'alhpa' is not known to any method",
        ),
        (
            [("ridge: 0.01", 'ridge: {"33": 1}')],
            ["cca"],
            r"merge\.yml:14: parameters.ridge: '33' matches no space",
        ),
        (
            [("parameters: {weight: 1}\n  - ", "parameters: {weight: 0}\n  - ")],
            ["cca", "--barrier"],
            r"merge\.yml:14: parameters.weights: weights leave nothing but the reference",
        ),
        ([], ["cca", "--barrier", "2"], "expected a whole number of 3 or more, got '2'"),
        (
            [(EVALUATION, f"{EVALUATION}  metric: blobs_module:nothing\n")],
            [],
            r"merge\.yml:14: evaluation.metric: blobs_module:nothing\(\) cannot be called so",
        ),
        (
            [(EVALUATION, f"{EVALUATION}  loss: blobs_module:los\n")],
            [],
            r"merge\.yml:14: evaluation.loss: blobs_module has no 'los'",
        ),
        ([("data:\n  " + DATA + "\n", "")], ["cca"], "data: missing, and there are no moments"),
        ([(EVALUATION, "")], ["cca"], "evaluation: missing; it says where batches"),
    ],
)
def test_errors_before_any_data_is_read(capsys, project, changes, args, message):
    change(project, *changes)
    text = (project / "merge.yml").read_text()
    (project / "merge.yml").write_text(text.replace(DATA, "factory: blobs_module:interrupted"))
    before = tree(project)
    text = fails(capsys, 2, "evaluate", "merge.yml", "--methods", *args)
    assert re.search(message, text, re.MULTILINE)
    assert tree(project) == before


def test_ot_without_its_package(capsys, project, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    change(project, (DATA, "factory: blobs_module:interrupted"))
    lacks = "method 'ot' needs the package POT: pip install 'ccamerge[ot]', or pip install pot"
    text = fails(capsys, 2, "evaluate", "merge.yml", "--methods", "cca", "ot")
    assert text == f"--methods: {lacks}\n--methods: these can run: cca"
    change(project, ("base_model", "merge_method: ot\nbase_model"))
    for command in (("evaluate", "merge.yml", "--methods"), ("merge", "merge.yml", "merged")):
        assert f"merge.yml:1: merge_method: {lacks}" in fails(capsys, 2, *command)
    change(project, ("factory: blobs_module:interrupted", DATA))
    assert run(capsys, "collect", "merge.yml", "s.safetensors", "--quiet")[0] == 0  # nor is it used


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch.randint(4,", "4 + torch.randint(4,", "labels must be in 0..3, or -100"),
        ("if labels else x", "if index else x", "batch 0, runs/0.safetensors: accuracy: the batch"),
        ("count=4,", "count=0,", "data is empty"),
    ],
)
def test_data_that_cannot_be_evaluated(capsys, project, old, new, message):
    text = (project / "blobs_module.py").read_text()
    assert old in text
    text = text.replace(old, new).replace("centres[y]", "centres[y % 4]")
    (project / "blobs_module.py").write_text(text)
    assert message in fails(capsys, 2, "evaluate", "merge.yml")


def test_the_configuration_in_the_help_is_valid(capsys, tmp_path):
    from ccamerge.cli import main

    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    part = out[out.index("  evaluation:\n") : out.index("Labels are whole numbers")]
    lines = "".join(f"{line[2:]}\n" for line in part.splitlines())
    rest = CONFIG.replace(EVALUATION, "")
    (tmp_path / "merge.yml").write_text(rest + lines)
    evaluation = load_config(tmp_path / "merge.yml").evaluation
    assert evaluation is not None
    assert evaluation.data.arguments == {"count": 10000}
    assert (evaluation.metric, evaluation.better, evaluation.loss, evaluation.ensemble) == (
        "accuracy", "higher", "cross_entropy", "probabilities",
    )  # fmt: skip
    code = out[out.index("  def squared_error") : out.index("The rest of the configuration")]
    namespace: dict = {}
    exec("".join(f"{line[2:]}\n" for line in code.splitlines()), namespace)
    data = [(torch.eye(4), torch.zeros(4, 4)), (torch.eye(4)[:1], torch.zeros(1, 4))]
    value = ccamerge.evaluate(torch.nn.Identity(), data, namespace["squared_error"])
    assert value == pytest.approx(0.25)


def test_a_checkpoint_of_another_shape(capsys, project):
    save_state({"0.weight": torch.zeros(2, 2)}, project / "wrong.safetensors")
    text = fails(capsys, 2, "evaluate", "merge.yml", "--checkpoint", "wrong.safetensors")
    assert text.startswith("wrong.safetensors: does not fit Sequential: missing: ")
