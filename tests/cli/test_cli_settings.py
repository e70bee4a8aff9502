"""Settings of a configuration that not every merge has."""

from __future__ import annotations

import pytest
import torch

import ccamerge
from ccamerge.checkpoints.reading import load_into, load_state
from tests.projects import DATA, change, fails, network, run, tree


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


WRONG = [
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
]
"""Changes of the configuration, and how what is said of them begins."""


@pytest.mark.parametrize(("changes", "message"), WRONG)
@pytest.mark.parametrize("dry", [True, False])
def test_settings_are_checked_before_the_data_is_read(capsys, project, changes, message, dry):
    change(project, *changes, (DATA, "factory: blobs_module:interrupted"))
    before = tree(project)
    args = ("--dry-run", "--input-shape", "2,8") if dry else ()
    assert message in fails(capsys, 2, "merge", "merge.yml", "merged", *args)
    assert tree(project) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("ridge: 0.01", "norm: paper, repair: regression")],
            "merge.yml:14: parameters.repair: repair='regression' needs norm='fold'",
        ),
        (
            [("base_", "merge_method: zipit\nbase_"), ("ridge: 0.01", "options: {alpha: 2}")],
            "merge.yml:15: parameters.options: alpha must be between 0 and 1, got 2.0",
        ),
        (
            [("base_", "merge_method: zipit\nbase_"), ("ridge: 0.01", "options: {alpha: x}")],
            "merge.yml:15: parameters.options: alpha must be a number, got str 'x'",
        ),
        (
            [
                ("ridge: 0.01", "options: {alpha: 1}, t: 0.5"),
                ("weight: 1}\n  -", "weight: 0}\n  -"),
            ],
            """\
merge.yml:14: parameters.options: 'alpha' is not known to 'cca'; known: none
merge.yml:14: parameters.weights: weights leave nothing but the reference""",
        ),
    ],
)
@pytest.mark.parametrize("command", ["merge", "evaluate"])
def test_what_needs_no_spaces_is_said_before_the_first_batch(
    capsys, project, changes, message, command
):
    change(project, *changes, (DATA, "factory: blobs_module:unread"))
    with (project / "blobs_module.py").open("a") as file:
        file.write("def unread():\n    raise AssertionError\n    yield\n")
    last = "merged" if command == "merge" else "--methods"
    found = fails(capsys, 2, command, "merge.yml", last)
    assert all(line in found for line in message.splitlines())


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
