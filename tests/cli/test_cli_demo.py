"""`ccamerge demo`: networks that know different digits, their merges, and what is shown of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.checkpoints.reading import save_state
from ccamerge.cli.demo import comparison
from ccamerge.cli.demo.networks import ResNet20
from ccamerge.cli.demo.outcome import table
from ccamerge.cli.demo.refinement import refined_member
from tests.projects import run

pytest.importorskip("sklearn", reason="comes with the demo extra")

from ccamerge.cli.demo import digits

pytestmark = [pytest.mark.as_users_do, pytest.mark.usefixtures("one_thread")]


def _trained(count: int) -> tuple[list[nn.Sequential], Tensor, tuple[Tensor, Tensor]]:
    """Narrow networks of the demo, digits without labels, and digits to test on."""
    train, other, test = digits.digits(0)
    chosen = digits.split(train[1], count, 0)
    networks = [
        digits.train_network(16, i, *(x[own] for x in train)) for i, own in enumerate(chosen)
    ]
    return networks, other[0], test


@pytest.mark.slow
def test_demo(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"REPEATS": 2, "INPUTS": (100,), "REFINE": "0.1 s"}.items():
        monkeypatch.setattr(digits, name, value)
    folder = tmp_path / "demo"
    options = ["--models", "2", "--widths", "16", "--out", folder, "--quiet"]
    status, out, _ = run(capsys, "demo", *options)
    assert status == 0
    header, rule, row = out.splitlines()[1:4]
    assert header.split("  ")[0] == "networks"
    assert set(rule) == {"-"}
    assert row.startswith("width 16, 100 inputs  2")
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads((folder / "demo.json").read_text())
    base = [own["accuracy"] for own in found["base"]]
    assert max(base) < 0.9  # each lacks what the other knows
    assert found["ensemble"]["accuracy"] > max(base) + 0.03
    assert found["merged"]["refined"]["accuracy"] > sum(base) / 2
    assert list(found["merged"]) == [*comparison.PLAIN, comparison.REFINED, comparison.MEMBER]


def test_each_network_hardly_sees_half_of_the_classes() -> None:
    labels = torch.arange(10).repeat(1000)
    for count, starts in ((2, (0, 5)), (4, (0, 2, 5, 7))):
        for own, first in zip(digits.split(labels, count, 3), starts, strict=True):
            shares = labels[own].bincount(minlength=10) / 1000
            known = {(first + k) % 10 for k in range(5)}
            for label in range(10):
                if label in known:
                    assert shares[label] == 1
                else:  # four standard deviations of a thousand draws
                    assert abs(float(shares[label]) - digits.SHARE) < 4 * (0.09 / 1000) ** 0.5


def test_parts_of_the_digits_share_none() -> None:
    parts = digits.digits(1)
    assert [len(y) for _, y in parts] == [898, 449, 450]
    for x, y in parts:
        assert len(x) == len(y)
    counts = sum(y.bincount(minlength=10) for _, y in parts)
    from sklearn.datasets import load_digits

    assert torch.equal(counts, torch.from_numpy(load_digits().target).bincount())
    assert abs(float(parts[0][0].mean())) < 1e-5


def test_score_by_class() -> None:
    outputs = torch.eye(3)[[0, 0, 1, 2, 2, 0]]
    found = comparison.score(outputs, torch.tensor([0, 1, 1, 2, 2, 2]))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.classes == pytest.approx([1, 1 / 2, 2 / 3])


def test_compare_and_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column is of the network it names, and repetitions are averaged."""
    monkeypatch.setattr(digits, "EPOCHS", 10)
    networks, inputs, test = _trained(2)
    statistics = ccamerge.collect(networks, inputs.split(128), progress=False)
    outputs = [comparison.logits(network, [test]) for network in networks]
    found = comparison.compare(
        "two", networks, statistics, [test], {"collect": 1.0}, outputs, ensemble="outputs"
    )
    own = ccamerge.merge(
        networks, statistics=statistics, select="none", ensemble="outputs", progress=False
    )
    assert found.merged["CCA"].accuracy == pytest.approx(ccamerge.evaluate(own.model, [test]))
    assert list(found.merged) == list(comparison.PLAIN)  # nothing is refined unless asked for
    mean = sum(outputs) / 2
    right = (mean.argmax(-1) == test[1]).float().mean()
    assert found.ensemble.accuracy == pytest.approx(float(right))
    turned = {"base": found.base[::-1], "seconds": {**found.seconds, "collect": 3.0}}
    other = dataclasses.replace(found, **turned)
    both = comparison.mean_of([found, other])
    assert both.seconds["collect"] == 2
    middle = (found.base[0].accuracy + found.base[1].accuracy) / 2
    assert [s.accuracy for s in both.base] == pytest.approx([middle, middle])
    assert f"{100 * middle:.1f}" in table([both])


def test_a_member_is_refined_towards_the_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 10)
    networks, inputs, test = _trained(2)
    statistics = ccamerge.collect(networks, inputs.split(128), progress=False)
    before: list[dict[str, Any]] = [
        {k: v.clone() for k, v in n.state_dict().items()} for n in networks
    ]
    refined = refined_member(networks, statistics, "outputs", 1.0)
    outputs = [comparison.logits(network, [test]) for network in (*networks, refined)]
    target = (outputs[0] + outputs[1]) / 2
    errors = [float((own - target).square().mean()) for own in outputs]
    assert errors[2] < 0.8 * min(errors[:2])
    for network, state in zip(networks, before, strict=True):
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key])


IMAGES = """
import numpy as np

MEAN, STD = [0.5] * 3, [0.25] * 3


def load(split, count):
    random = np.random.default_rng(len(split))
    images = random.integers(0, 256, (count or 40, 32, 32, 3), dtype=np.uint8)
    return images, random.integers(0, 10, len(images))
"""


@pytest.mark.slow
def test_demo_of_checkpoints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        save_state(ResNet20().state_dict(), tmp_path / f"resnet20-{seed}.safetensors")
    (tmp_path / "cifar10.py").write_text(IMAGES)
    folder = tmp_path / "demo"
    options = ["--data", tmp_path, "--zoo", tmp_path, "--samples", "60", "--out", folder]
    status, out, _ = run(capsys, "demo", *options, "--quiet")
    assert status == 0
    assert "ResNet20, seeds 0, 1  2" in out
    assert (folder / "demo.png").is_file()
    (found,) = json.loads((folder / "demo.json").read_text())
    assert list(found["merged"]) == list(comparison.WITH_NORM)
    assert len(found["ensemble"]["classes"]) == 10
