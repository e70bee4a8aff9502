"""Networks from folders of transformers: built as their configuration says, or refused with why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ccamerge.checkpoints.comparing import difference
from ccamerge.checkpoints.pretrained import as_filed, check, config_of, load
from ccamerge.checkpoints.reading import CheckpointError, load_shapes, load_state, save_state
from ccamerge.graph.tracing.untying import untied
from tests.checkpoints.folders import changed, llama
from tests.families import families as F
from tests.families.packages import available


def test_a_network_is_what_its_folder_holds(tmp_path: Path) -> None:
    expected = llama(tmp_path / "one")
    check(tmp_path / "one")
    model = load(tmp_path / "one")
    assert type(model) is type(expected)
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(32).reshape(2, 16)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_the_dtype_is_the_widest_in_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    llama(tmp_path / "one")
    state = load_state(tmp_path / "one")
    assert load(tmp_path / "one").dtype == torch.bfloat16
    assert load(tmp_path / "one", dtype=torch.float32).dtype == torch.float32
    state["model.norm.weight"] = state["model.norm.weight"].float() + 1e-4
    for path in (tmp_path / "one").glob("model*"):
        path.unlink()
    save_state(state, tmp_path / "one" / "model.safetensors")
    model = load(tmp_path / "one")
    assert torch.equal(model.model.norm.weight, state["model.norm.weight"])


def test_a_configuration_without_a_class_is_built_by_its_kind(tmp_path: Path) -> None:
    llama(tmp_path / "one")
    changed(tmp_path / "one", architectures=None)
    assert type(load(tmp_path / "one")).__name__ == "LlamaForCausalLM"
    changed(tmp_path / "one", architectures=["NoSuchNetwork"])
    with pytest.raises(CheckpointError, match="transformers has no NoSuchNetwork"):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "nothing_known"}, "'nothing_known'; transformers .* does not know it"),
        ({"quantization_config": {"bits": 4}}, "its parameters are quantised"),
        ({"hidden_size": 32}, "does not fit its config.json: wrong shape: .*expected"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}},
            "runs only with trust_remote_code: true",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    llama(tmp_path / "one")
    (tmp_path / "one" / "code.py").write_text("raise SystemExit('ran')")
    changed(tmp_path / "one", **entries)
    with pytest.raises(CheckpointError, match=message) as caught:
        check(tmp_path / "one")
    assert str(tmp_path / "one") in str(caught.value)


def test_code_in_a_folder_runs_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(tmp_path / "one")
    import transformers

    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    (tmp_path / "one" / "code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    changed(
        tmp_path / "one",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"},
    )
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load(tmp_path / "one")
    check(tmp_path / "one", trust_remote_code=True)
    found = load(tmp_path / "one", trust_remote_code=True)
    assert type(found).__name__ == "OwnModel"
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)


def test_folders_without_a_configuration(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "gone", "no such folder"),
        (tmp_path, "has no config.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            config_of(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        config_of(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        config_of(tmp_path / "config.json")


def test_parameters_that_do_not_fit_are_not_made_up(tmp_path: Path) -> None:
    llama(tmp_path / "one", shard="1GB")
    path = tmp_path / "one" / "model.safetensors"
    state = load_state(path)
    gone = state.pop("model.norm.weight")
    save_state(state, path)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM: missing: model\.norm\.weight$"):
        load(tmp_path / "one")
    save_state({**state, "model.norm.weight": gone, "more": gone}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: more$"):
        load(tmp_path / "one")


# Beside each other -------------------------------------------------------------------------


def told(tmp_path: Path, **allowed: bool) -> str | None:
    one, two = tmp_path / "one", tmp_path / "two"
    return difference(two, load_shapes(two), one, load_shapes(one), **allowed)


def test_folders_of_one_architecture_do_not_differ(tmp_path: Path) -> None:
    llama(tmp_path / "one")
    llama(tmp_path / "two", 1, shard="1GB")
    assert told(tmp_path) is None


@pytest.mark.parametrize(
    ("own", "allowed", "message"),
    [
        ({"num_hidden_layers": 1}, {}, r"another architecture than .*one: it lacks model\.layers"),
        ({"num_hidden_layers": 3}, {}, "it alone has model"),
        ({"intermediate_size": 48}, {}, r"differs in shape from .*mlp.* has shape .*48.*, there"),
        ({"dtype": torch.float32}, {}, 'is float32, there bfloat16.*"dtype: bfloat16"'),
        ({"intermediate_size": 48}, {"widths": True}, None),
        ({"dtype": torch.float32}, {"precisions": True}, None),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path, own: dict[str, Any], allowed: dict[str, bool], message: str | None
) -> None:
    llama(tmp_path / "one")
    llama(tmp_path / "two", 1, **own)
    if message is None:
        assert told(tmp_path, **allowed) is None
        return
    text = told(tmp_path, **allowed)
    assert text is not None
    assert text.startswith(f"{tmp_path / 'two'}: ")
    assert re.search(message, text)


def test_codes_are_no_other_precision(tmp_path: Path) -> None:
    for name, dtype in (("one", torch.float32), ("two", torch.int8)):
        (tmp_path / name).mkdir()
        save_state({"a": torch.ones(3).to(dtype)}, tmp_path / name / "model.safetensors")
    text = told(tmp_path, precisions=True)
    assert text is not None
    assert text.endswith(
        "differs in dtype from " + str(tmp_path / "one") + ": a is int8, there float32"
    )


def test_another_kind_of_network_is_told_by_its_configuration(tmp_path: Path) -> None:
    for name, kind in (("one", "llama"), ("two", "mistral")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
        save_state({"a": torch.ones(3)}, tmp_path / name / "model.safetensors")
    text = told(tmp_path)
    assert text is not None
    assert "model_type 'mistral' in its config.json, than" in text


# Names in files and in networks -----------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "GPT-NeoX", "GPT-2", "BERT", "T5", "ViT"])
def test_a_state_goes_back_under_the_names_of_its_files(tmp_path: Path, family: str) -> None:
    """Experts are stacked in the network and apart in files; heads are tied, or names older."""
    available("transformers")
    model, _ = F.FAMILIES[family].build()
    model.save_pretrained(tmp_path)
    files = load_state(tmp_path)
    network = load(tmp_path)
    filed = as_filed(network, network.state_dict(), list(files))
    assert list(filed) == list(files)
    for key, value in files.items():
        assert torch.equal(filed[key], value)


def test_a_head_of_its_own_goes_to_the_end_of_the_file(tmp_path: Path) -> None:
    llama(tmp_path / "one")
    names = list(load_shapes(tmp_path / "one"))
    tied = load(tmp_path / "one")
    assert list(as_filed(tied, tied.state_dict(), names)) == names
    own = untied(tied, "model")
    assert list(as_filed(own, own.state_dict(), names)) == [*names, "lm_head.weight"]
