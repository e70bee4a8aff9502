from __future__ import annotations

import hashlib
import re
import sys

import pytest
import torch
import yaml
from torch import nn

import ccamerge
from ccamerge.checkpoints.reading import save_state
from ccamerge.config.reader import load_config
from ccamerge.reporting.model_card import model_card, sources, versions

CONFIG = """\
merge_method: permutation
base_model: runs/b|`x`.pt
models:
  - {model: runs/a.safetensors, parameters: {weight: 3}}
  - {model: "runs/b|`x`.pt", parameters: {weight: 1}}
architecture:
  factory: torch.nn:Linear
  arguments: {in_features: 3, out_features: 2, bias: false}
parameters: {seed: 1}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a.safetensors").write_bytes(b"first")
    (tmp_path / "runs/b|`x`.pt").write_bytes(b"second")
    (tmp_path / "merge.yml").write_text(CONFIG)
    return load_config(tmp_path / "merge.yml")


def card(config, folder, report="| a table |"):
    merged = sources(config, (0.75, 0.25), folder)
    return model_card(config, merged, report, {"ccamerge": "1.2"}, folder)


def block(text, language):
    found = re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2]


def test_sources(config, tmp_path):
    first, second = sources(config, (0.75, 0.25), tmp_path / "out")
    assert (first.path, first.weight) == ("../runs/a.safetensors", 0.75)
    assert first.sha256 == hashlib.sha256(b"first").hexdigest()
    assert (second.path, second.weight) == ("../runs/b|`x`.pt", 0.25)


def test_what_the_card_holds(config, tmp_path):
    text = card(config, tmp_path / "out")
    header = yaml.safe_load(text.split("---")[1])
    assert "model-merging" in header["tags"]
    assert "# 2 networks merged with ccamerge" in text
    assert "aligned with the reference's (method: `permutation`)" in text
    assert "of their own" not in text
    assert "| a table |" in text
    assert text.rstrip().endswith("Made with ccamerge 1.2.")
    digest = hashlib.sha256(b"second").hexdigest()
    assert f"| `` ../runs/b\\|`x`.pt `` (reference) | 0.25 | `{digest[:16]}` |" in text


def test_card_of_settings_by_patterns(config, tmp_path):
    text = CONFIG.replace(", parameters: {weight: 3}", "").replace(", parameters: {weight: 1}", "")
    text = text.replace("permutation", '{"layer|1*": permutation, "*": cca}')
    extra = '{seed: 1, mode: universe, weights: {"0*": [1, 0]}}'
    (tmp_path / "merge.yml").write_text(text.replace("{seed: 1}", extra))
    text = card(load_config(tmp_path / "merge.yml"), tmp_path)
    assert "aligned with each other (method: `layer\\|1*: permutation, *: cca`)" in text
    assert "match a pattern of `weights` below have their own." in text
    assert yaml.safe_load(block(text, "yaml"))["parameters"]["weights"] == {"0*": [1.0, 0.0]}


def test_configuration_in_the_card_is_the_configuration(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yml").write_text(block(card(config, out), "yaml"))
    again = load_config(out / "config.yml")
    assert {**vars(again), "source": 0, "lines": 0} == {**vars(config), "source": 0, "lines": 0}


def test_fences_are_longer_than_what_they_hold(config, tmp_path):
    (tmp_path / "merge.yml").write_text(
        CONFIG.replace("{seed: 1}", "{seed: 1}\nmoments: '```yaml'")
    )
    text = card(load_config(tmp_path / "merge.yml"), tmp_path)
    assert "\n````yaml\n" in text
    assert yaml.safe_load(block(text, "yaml"))["moments"] == "```yaml"


def test_code_in_the_card_loads_the_checkpoint(config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    merged = nn.Linear(3, 2, bias=False)
    save_state(merged.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(block(card(config, tmp_path), "python"), namespace)
    assert torch.equal(namespace["model"].weight, merged.weight)
    assert not namespace["model"].training


@pytest.mark.parametrize("name", ["two words", "class"])
def test_arguments_that_are_no_names(config, tmp_path, name):
    text = CONFIG.replace("factory: torch.nn:Linear", "factory: builtins:dict")
    (tmp_path / "merge.yml").write_text(text.replace("bias: false", f'"{name}": x'))
    code = block(card(load_config(tmp_path / "merge.yml"), tmp_path), "python")
    line = next(line for line in code.splitlines() if line.startswith("model = "))
    expected = {"in_features": 3, "out_features": 2, name: "x"}
    assert eval(line.removeprefix("model = ")) == expected


def test_versions():
    found = versions()
    assert found["ccamerge"] == ccamerge.__version__
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "unknown" not in found.values()


def test_the_card_says_which_candidate_it_is_of(config, tmp_path):
    merged = sources(config, (0.75, 0.25), tmp_path)
    given = (config, merged, "", {"ccamerge": "1.2"}, tmp_path)
    assert "`models[0]`" in model_card(*given, "models[0]")
    assert "candidate" not in model_card(*given)
