"""Commands on folders of transformers, whose networks need no factory."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ccamerge
from ccamerge.checkpoints.pretrained import load
from ccamerge.checkpoints.reading import load_state
from tests.checkpoints.folders import CONFIG, MODULE, changed, llama
from tests.projects import change, fails, run, tree

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two networks, their configuration and data, that is the current one."""
    for seed, name in enumerate(("one", "two")):
        llama(tmp_path / name, seed)
    (tmp_path / "merge.yml").write_text(CONFIG)
    (tmp_path / "tokens_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("tokens_module", None)


@pytest.mark.parametrize("target", ["merge.yml", "one"])
def test_inspect(capsys: Capture, here: Path, target: str) -> None:
    shape = ("--input-shape", "2,16:int")
    status, out, err = run(capsys, "inspect", target, *shape)
    assert (status, err) == (0, "")
    assert "model.layers.1.mlp.gate_proj" in out


def test_collect_reads_folders(capsys: Capture, here: Path) -> None:
    assert (
        "model.layers.0.self_attn.v_proj"
        in run(capsys, "collect", "merge.yml", "s.safetensors", "--dry-run")[1]
    )
    status, _, err = run(capsys, "collect", "merge.yml", "s.safetensors")
    assert status == 0
    assert err.startswith("ccamerge: wrote s.safetensors: ")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_hidden_layers": 1}, "4: models[1].model: {two}: is of another architecture than"),
        ({"intermediate_size": 48}, "4: models[1].model: {two}: differs in shape from {one}: "),
    ],
)
def test_another_architecture_is_refused_before_anything_is_loaded(
    capsys: Capture, here: Path, own: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccamerge.checkpoints.pretrained.load", None)
    change(here, ("data:", "merge_method: permutation\ndata:"))
    llama(here / "two", 1, **own)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert message.format(one=here / "one", two=here / "two") in text
    assert not (here / "merged").exists()


def test_other_faults_of_folders_each_have_their_message(capsys: Capture, here: Path) -> None:
    two = here / "two"

    def told() -> str:
        return fails(capsys, 2, "merge", "merge.yml", "merged")

    index = two / "model.safetensors.index.json"
    [shard] = two.glob("model-00002-of-*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    assert f"models[1].model: {shard}: truncated, corrupt or not a safetensors file" in told()
    shard.unlink()
    assert f"models[1].model: {index}: 1 of 2 shards missing: {shard.name}" in told()
    shard.write_bytes(whole)
    changed(two, model_type="mistral", architectures=["MistralForCausalLM"])
    assert f"{two}: is of another architecture, model_type 'mistral' in its config.json" in told()
    (two / "config.json").unlink()
    assert f"models[1].model: {two}: has no config.json" in told()


# What is written ---------------------------------------------------------------------------


def settings(here: Path, text: str) -> None:
    change(here, ("data:", f"{text}\ndata:"))


def generated(folder: Path) -> list[int]:
    """Tokens that transformers' network out of a folder generates, none of its parameters new."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not any(found.values())
    ids = torch.arange(8).reshape(1, 8)
    made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return list(made[0].tolist())


def test_a_merge_is_a_folder_that_transformers_loads(capsys: Capture, here: Path) -> None:
    (here / "one" / "modeling_own.py").write_text("")
    settings(here, "parameters: {select: none, prove: false}")
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    assert tree(here / "merged") == [
        "README.md",
        "config.json",
        "config.yml",
        "generation_config.json",
        "model.safetensors",
        "report.json",
        "tokenizer_config.json",
    ]
    assert read(here / "merged/config.json") == read(here / "one/config.json")
    models = [load(here / name) for name in ("one", "two")]
    import tokens_module  # type: ignore[import-not-found]

    data = list(tokens_module.batches(8))
    expected = ccamerge.merge(models, data, select="none", prove=False, progress=False).model
    expected.save_pretrained(here / "expected")
    assert_same(load_state(here / "merged"), load_state(here / "expected"))
    assert generated(here / "merged") == generated(here / "expected")

    [code] = re.findall(r"```python\n(.*?)```", (here / "merged/README.md").read_text(), re.S)
    found: dict[str, Any] = {}
    exec(code.replace('"."', '"merged"'), found)
    assert type(found["model"]).__name__ == "LlamaForCausalLM"

    # The same in shards, in its place; and it is no different to whoever merges it again.
    more = ("--force", "--out-shard-size", "8KB", "--quiet")
    assert run(capsys, "merge", "merge.yml", "merged", *more) == (0, "", "")
    index = read(here / "merged/model.safetensors.index.json")
    like = read(here / "one/model.safetensors.index.json")
    assert index["metadata"] == like["metadata"]
    assert index["weight_map"].keys() == like["weight_map"].keys()
    assert set(index["weight_map"].values()) == set(like["weight_map"].values())
    assert not (here / "merged/model.safetensors").exists()
    assert_same(load_state(here / "merged"), load_state(here / "expected"))
    status, out, _ = run(capsys, "evaluate", "merge.yml", "--checkpoint", "merged")
    assert status == 0
    assert "merged" in out


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value.dtype == two[key].dtype
        assert torch.equal(value, two[key]), key


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_an_untied_head_and_another_dtype_are_said_in_the_configuration(
    capsys: Capture, here: Path
) -> None:
    settings(here, "dtype: float32\nparameters: {ties: untie, select: none, prove: false}")
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    assert read(here / "merged/config.json") == {
        **read(here / "one/config.json"),
        "dtype": "float32",
        "tie_word_embeddings": False,
    }
    generated(here / "merged")
    model = load(here / "merged")
    assert model.dtype == torch.float32
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_factory_beside_folders_writes_a_folder_too(capsys: Capture, here: Path) -> None:
    (here / "tokens_module.py").write_text(
        f"{MODULE}\n\ndef network():\n    from transformers import AutoConfig, LlamaForCausalLM\n"
        "    return LlamaForCausalLM(AutoConfig.from_pretrained('one'))\n"
    )
    change(here, ("{transformers: auto}", '{factory: "tokens_module:network"}'))
    settings(here, "parameters: {select: none, prove: false}")
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    assert load_state(here / "merged").keys() == load_state(here / "one").keys()
    generated(here / "merged")


@pytest.mark.parametrize("size", ["5", "0GB", "GB", "five GB", "-1GB"])
def test_sizes_of_shards_that_are_none(capsys: Capture, here: Path, size: str) -> None:
    text = fails(capsys, 2, "merge", "merge.yml", "merged", f"--out-shard-size={size}")
    assert "--out-shard-size: expected a size such as 5GB, 500MB or 2GiB" in text


def test_room_is_looked_for_before_the_merge(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Room:
        f_bavail, f_frsize = 10, 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Room)
    monkeypatch.setattr("ccamerge.checkpoints.pretrained.load", None)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert text == "cannot write merged: it will take 11.42 KB or more, and 10.00 KB are free"


def test_a_disk_that_is_full_leaves_nothing_behind(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(here, "parameters: {select: none, prove: false, repair: none}")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("posix_fallocate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            text = fails(capsys, 2, "merge", "merge.yml", "merged", "--quiet")
        assert re.search(
            r"cannot write .*merged\.partial-.*/model\.safetensors: no space left", text
        )
        assert "B are free now" in text
        assert "\n" not in text
        assert not list(here.glob("merged*"))


def test_dtypes_that_differ_are_refused_unless_one_is_chosen(capsys: Capture, here: Path) -> None:
    llama(here / "two", 1, dtype=torch.float32)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert f"{here / 'two'}: differs in dtype from {here / 'one'}: " in text
    assert '"dtype: bfloat16"' in text
