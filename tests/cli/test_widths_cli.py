"""Networks of different widths from configurations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import ccamerge
from ccamerge.checkpoints.reading import load_into, load_state, save_state
from ccamerge.cli import main
from ccamerge.config.importing import ConfigError, Factory
from ccamerge.config.reader import load_config

MODULE = '''\
"""A user's module."""
import torch
from torch import nn


def network(width=6, classes=4, norm=False):
    middle = nn.LayerNorm(width) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(8, width), middle, nn.ReLU(), nn.Linear(width, classes))


def batches(labels=True):
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        x = torch.randn(64, 8, generator=generator)
        y = x[:, :4].argmax(1)
        yield (x, y) if labels else x
'''

CONFIG = """\
base_model: small.safetensors
models:
  - model: large.safetensors
    arguments: {width: 10}
  - model: small.safetensors
architecture:
  factory: widths_module:network
  arguments: {width: 6, classes: 4}
data:
  factory: widths_module:batches
  arguments: {labels: false}
evaluation:
  factory: widths_module:batches
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module, a configuration and networks of 6 and 10 hidden units."""
    (tmp_path / "widths_module.py").write_text(MODULE)
    (tmp_path / "merge.yml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(MODULE, namespace)
    for name, width in (("small", 6), ("large", 10)):
        save_state(namespace["network"](width).state_dict(), tmp_path / f"{name}.safetensors")
    yield tmp_path
    sys.modules.pop("widths_module", None)


def _change(project: Path, old: str, new: str) -> None:
    text = (project / "merge.yml").read_text()
    assert old in text
    (project / "merge.yml").write_text(text.replace(old, new))


def _error(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(list(args)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("base", "width"), [("small", 6), ("large", 10)])
def test_a_merge_has_the_width_of_the_base_model(
    project: Path, capsys: pytest.CaptureFixture[str], base: str, width: int
) -> None:
    _change(project, "base_model: small", f"base_model: {base}")
    assert main(["merge", "merge.yml", "out"]) == 0
    assert "10, 6 to " in capsys.readouterr().out
    merged = load_state(project / "out/model.safetensors")
    assert merged["0.weight"].shape == (width, 8)
    config = load_config(project / "merge.yml")
    models = []
    for path, architecture in zip(config.models, config.architectures, strict=True):
        models.append(architecture())
        load_into(models[-1], path)
    expected = ccamerge.merge(
        models, config.data(), reference=config.reference, progress=False
    ).model.state_dict()
    for key, value in merged.items():
        torch.testing.assert_close(value, expected[key])

    # The card loads it, the configuration beside it does the same again, and it can be evaluated.
    card = (project / "out/README.md").read_text()
    assert "the same architecture as those, in the size of the reference, below" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    scope: dict = {}
    exec(code.replace('"model.safetensors"', '"out/model.safetensors"'), scope)
    assert scope["model"][0].out_features == width
    again = load_config(project / "out/config.yml")
    assert again.architectures == config.architectures
    assert main(["merge", "out/config.yml", "again"]) == 0
    assert torch.equal(
        load_state(project / "again/model.safetensors")["0.weight"], merged["0.weight"]
    )
    capsys.readouterr()
    assert main(["evaluate", "merge.yml", "--checkpoint", "out", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2
    report = json.loads((project / "out/report.json").read_text())["report"]
    assert report["spaces"][0]["widths"] == [10, 6]


def test_collected_moments_serve_both_widths(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "merge.yml", "stats.safetensors", "--pairs", "all"]) == 0
    (project / "merge.yml").write_text(CONFIG + "moments: stats.safetensors\n")
    assert main(["merge", "merge.yml", "down"]) == 0
    _change(project, "base_model: small", "base_model: large")
    assert main(["merge", "merge.yml", "up"]) == 0
    shapes = [
        load_state(project / out / "model.safetensors")["0.weight"].shape[0]
        for out in ("down", "up")
    ]
    assert shapes == [6, 10]


def test_methods_are_compared_in_the_base_models_width(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["cca", "procrustes"]
    assert main(["evaluate", "merge.yml", "--methods", *methods, "--barrier", "3", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"cca", "procrustes"} <= set(re.findall(r"[a-z_]+", json.dumps(out)))
    error = _error(capsys, "evaluate", "merge.yml", "--methods", "cca", "permutation")
    assert "method 'permutation' needs equal widths" in error


def test_a_plan_counts_each_width(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "merge.yml", "out", "--dry-run"]) == 0
    out = capsys.readouterr().out
    from widths_module import network  # type: ignore[import-not-found]

    every = [ccamerge.spaces(network(width), torch.randn(2, 8)) for width in (10, 6)]
    planned = ccamerge.plan(every, reference=1)
    assert f"{planned.moments_bytes / 2**20:.1f} MiB" in out
    assert str(planned) in out
    assert not (project / "out").exists()


def test_inspect_shows_the_base_models_width(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(project, "base_model: small", "base_model: large")
    assert main(["inspect", "merge.yml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spaces"][0]["size"] == 10


def test_arguments_are_the_architectures_and_the_models_own(project: Path) -> None:
    config = load_config(project / "merge.yml")
    expected = [{"width": 10, "classes": 4}, {"width": 6, "classes": 4}]
    assert [a.arguments for a in config.architectures] == expected
    assert config.architecture == Factory("widths_module:network", expected[1])
    written = yaml.safe_load(config.to_yaml())
    assert written["architecture"]["arguments"] == {"classes": 4}  # what all have in common
    assert [m["arguments"] for m in written["models"]] == [{"width": 10}, {"width": 6}]


def test_an_argument_that_only_one_model_has_survives_the_round_trip(project: Path) -> None:
    _change(project, "arguments: {width: 10}", "arguments: {norm: false}")
    _change(project, "base_model: small", "base_model: large")
    config = load_config(project / "merge.yml")
    (project / "again.yml").write_text(config.to_yaml())
    assert load_config(project / "again.yml").architectures == config.architectures


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{width: 10}",
            "[10]",
            r"yml:4: models\[0\]\.arguments: expected names with values",
        ),
        ("{width: 10}", "{1: 2}", r"merge\.yml:4: models\[0\]\.arguments"),
        ("    arguments: {width: 10}\n", "    argument: {width: 10}\n", "did you mean 'arguments'"),
    ],
)
def test_mistakes_in_a_models_arguments(project: Path, old: str, new: str, message: str) -> None:
    _change(project, old, new)
    with pytest.raises(ConfigError, match=message):
        load_config(project / "merge.yml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{width: 10}",
            "{wide: 10}",
            r"merge\.yml:4: models\[0\]\.arguments: widths_module:network\(.*cannot be called so",
        ),
        ("{width: 10}", "{width: 9}", r"models\[0\]\.model: .*0\.weight has shape \(10, 8\)"),
        (
            "base_model: small.safetensors\n",
            "merge_method: permutation\n",
            r"merge_method: space '0' has 10, 6 features in the models: method 'permutation' needs",
        ),
        (
            "evaluation:",
            "parameters: {mode: universe}\nevaluation:",
            "mode 'universe' needs equal widths",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_does_not_fit_is_said_before_data_is_read(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
    dry: list[str],
) -> None:
    _change(project, old, new)
    assert re.search(message, _error(capsys, "merge", "merge.yml", "out", *dry))
    assert not (project / "out").exists()


def test_widths_that_cannot_be_mapped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _change(project, "classes: 4", "classes: 4, norm: true")
    config = load_config(project / "merge.yml")
    for path, architecture in zip(config.models, config.architectures, strict=True):
        save_state(architecture().state_dict(), path)
    error = _error(capsys, "merge", "merge.yml", "out")
    assert "models[1] cannot be merged with models[0]: space '0' has 6 features, not 10" in error
    assert "its parameters can carry no more than permutation (" in error
