"""`ccamerge merge` of files as they stand: no architecture, no data, and nothing half written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ccamerge
from ccamerge.checkpoints.reading import load_state, save_state
from tests.checkpoints.folders import changed, llama
from tests.projects import change, fails, run, tree

Capture = pytest.CaptureFixture[str]

CONFIG = """\
merge_method: average
base_model: one
models:
  - model: one
    parameters: {weight: 3}
  - model: two
    parameters: {weight: 1}
parameters: {repair: none}
"""


def plain(folder: Path, seed: int, size: int = 40) -> dict[str, torch.Tensor]:
    """A folder as transformers has them, of a kind that nothing here needs to know."""
    generator = torch.Generator().manual_seed(seed)
    state = {f"layer.{i}.weight": torch.randn(size, size, generator=generator) for i in range(4)}
    folder.mkdir(exist_ok=True)
    save_state(state, folder / "model.safetensors")
    content = {"model_type": "of_nobody", "architectures": ["Own"], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"no")
    return state


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("one", "two")):
        plain(tmp_path / name, seed)
    (tmp_path / "merge.yml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_average_and_what_stands_beside_it(capsys: Capture, here: Path) -> None:
    status, out, err = run(capsys, "merge", "merge.yml", "merged")
    assert (status, err) == (0, "ccamerge: wrote merged\n")
    assert out.startswith("2 models, method average of the parameters as they stand, reference 0")
    assert tree(here / "merged") == [
        "README.md",
        "config.json",
        "config.yml",
        "model.safetensors",
        "report.json",
        "tokenizer.json",
    ]
    one, two, merged = (load_state(name) for name in ("one", "two", "merged"))
    for key, value in merged.items():
        mean = 0.75 * one[key].double() + 0.25 * two[key].double()
        assert torch.equal(value, mean.float())
    record = json.loads((here / "merged/report.json").read_text())
    assert record["report"]["weights"] == [0.75, 0.25]
    assert record["report"]["samples"] == 0
    assert [source["path"] for source in record["sources"]] == ["../one", "../two"]
    card = (here / "merged/README.md").read_text()
    assert "parameters were averaged as they stand" in card
    assert 'Own.from_pretrained(".")' in card
    # Again from its own configuration, in shards, in its place.
    more = ("--force", "--quiet", "--out-shard-size", "10KB")
    assert run(capsys, "merge", "merged/config.yml", "merged", *more) == (0, "", "")
    assert len(list((here / "merged").glob("model-0000?-of-00004.safetensors"))) == 4
    for key, value in load_state("merged").items():
        assert torch.equal(value, merged[key])


def test_the_file_in_a_folder_stands_for_it(capsys: Capture, here: Path) -> None:
    for name in ("one", "two"):
        change(here, (f"model: {name}\n", f"model: {name}/model.safetensors\n"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    assert (here / "merged/tokenizer.json").is_file()
    (here / "one/config.json").write_text('["of something else"]')
    assert run(capsys, "merge", "merge.yml", "other", "--quiet") == (0, "", "")
    assert not (here / "other/config.json").exists()


def test_it_is_the_librarys_average_of_networks(capsys: Capture, project: Path) -> None:
    """Where there is nothing to fold: without norms, with a mean of all features as they stand."""
    torch.manual_seed(0)
    networks = [
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        for _ in range(2)
    ]
    for index, network in enumerate(networks):
        save_state(network.state_dict(), f"{index}.safetensors")
    text = CONFIG.replace("one", "0.safetensors").replace("two", "1.safetensors")
    Path("merge.yml").write_text(text.replace("repair: n0.safetensors", "repair: none"))
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    data = [torch.randn(16, 4) for _ in range(4)]
    expected = ccamerge.merge(
        networks, data, method="average", repair="none", weights=[3, 1], progress=False
    )
    found = load_state("merged/model.safetensors")
    for key, value in expected.model.state_dict().items():
        assert torch.equal(found[key], value)
    assert "load_state(" in Path("merged/README.md").read_text()


def test_weights_by_patterns_over_parameters(capsys: Capture, here: Path) -> None:
    change(
        here,
        ("\n    parameters: {weight: 3}", ""),
        ("\n    parameters: {weight: 1}", ""),
        ("{repair: none}", '{repair: none, weights: {"*.0.*": [0, 1], "layer.1*": [1, 0]}}'),
    )
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    one, two, merged = (load_state(name) for name in ("one", "two", "merged"))
    assert torch.equal(merged["layer.0.weight"], two["layer.0.weight"])
    assert torch.equal(merged["layer.1.weight"], one["layer.1.weight"])
    both = one["layer.2.weight"].double() + two["layer.2.weight"].double()
    assert torch.equal(merged["layer.2.weight"], (both / 2).float())
    change(here, ("layer.1*", "head*"))
    text = fails(capsys, 2, "merge", "merge.yml", "other")
    names = ", ".join(f"layer.{i}.weight" for i in range(4))
    place = "merge.yml:6: parameters.weights"
    assert text == f"{place}: 'head*' matches no parameter; there are {names}"


def test_a_dtype_of_its_own(capsys: Capture, here: Path) -> None:
    state = {key: value.to(torch.bfloat16) for key, value in load_state("two").items()}
    save_state(state, "two/model.safetensors")
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert f"{here / 'two'}: differs in dtype from {here / 'one'}: layer.0.weight is bfl" in text
    (here / "merge.yml").write_text(CONFIG + "dtype: float16\n")
    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    assert {value.dtype for value in load_state("merged").values()} == {torch.float16}
    assert json.loads(Path("merged/config.json").read_text())["torch_dtype"] == "float16"
    save_state(
        {key: value + 1e5 for key, value in load_state("one").items()}, "one/model.safetensors"
    )
    text = fails(capsys, 2, "merge", "merge.yml", "other")
    assert re.search(r"merge\.yml:9: dtype: layer\.\d\.weight of the average has numbers too", text)
    assert not list(here.glob("other*"))


def test_a_dry_run_says_what_is_read_and_written(capsys: Capture, here: Path) -> None:
    status, out, err = run(capsys, "merge", "merge.yml", "merged", "--dry-run")
    assert (status, err) == (0, "")
    assert re.search(r"reads +51\.20 KB", out)
    assert re.search(r"writes +25\.60 KB: 4 tensors in 1 file\n", out)
    assert re.search(r"memory +\d+ MiB at most", out)
    assert not (here / "merged").exists()


def test_what_needs_a_network_or_data_asks_for_it(capsys: Capture, here: Path) -> None:
    for command in (("inspect", "merge.yml"), ("evaluate", "merge.yml")):
        (here / "merge.yml").write_text(CONFIG + "evaluation: {factory: 'a:b'}\n")
        text = fails(capsys, 2, *command)
        assert "architecture: missing; it says how to build the network" in text
    (here / "merge.yml").write_text(CONFIG.replace("none", "variance"))
    assert "architecture: missing" in fails(capsys, 2, "merge", "merge.yml", "merged")
    auto = CONFIG.replace("none", "variance") + "architecture: {transformers: auto}\n"
    (here / "merge.yml").write_text(auto)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert "or parameters: {repair: none} for the average of the parameters as they stand" in text


# Faults ------------------------------------------------------------------------------------


def test_each_fault_of_files_has_its_message(capsys: Capture, here: Path) -> None:
    two = here / "two"
    path = two / "model.safetensors"
    whole, state = path.read_bytes(), load_state(path)

    def told() -> str:
        text = fails(capsys, 2, "merge", "merge.yml", "merged")
        assert text.startswith("merge.yml:6: models[1].model: ")
        assert not list(here.glob("merged*"))
        return text.removeprefix("merge.yml:6: models[1].model: ")

    path.write_bytes(whole[:-1])
    assert told().startswith(f"{path}: truncated, corrupt or not a safetensors file")
    save_state({key: value[:20] for key, value in state.items()}, path)
    assert told().startswith(f"{two}: differs in shape from {here / 'one'}: layer.0.weight has")
    save_state({key: value.to(torch.int8) for key, value in state.items()}, path)
    assert told().startswith(f"{two}: differs in dtype from {here / 'one'}: layer.0.weight is int8")
    save_state({**state, "more": torch.ones(1)}, path)
    assert told() == f"{two}: is of another architecture than {here / 'one'}: it alone has more"
    path.write_bytes(whole)
    changed(two, model_type="another")
    assert told().startswith(f"{two}: is of another architecture, model_type 'another' in its")
    changed(two, model_type="of_nobody", quantization_config={"bits": 4})
    assert told().startswith(f"{two}: its parameters are quantised")
    path.unlink()
    changed(two, quantization_config=None)
    index = two / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert told().startswith(f"{index}: 1 of 1 shards missing: model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_has_one_message_and_leaves_nothing(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(here)
    monkeypatch.setattr(os, name, full)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert re.search(r"cannot write .*/model\.safetensors: no space left on the device", text)
    assert "\n" not in text
    assert tree(here) == before


def test_a_disk_that_is_full_at_the_small_files(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    before = tree(here)
    monkeypatch.setattr(Path, "write_text", full)
    text = fails(capsys, 2, "merge", "merge.yml", "merged")
    assert "No space left on device" in text
    assert tree(here) == before


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_nothing_or_all(here: Path) -> None:
    """What is under the name that was asked for is whole, whenever the process ends."""
    for seed, name in enumerate(("one", "two")):
        plain(here / name, seed, 1500)
    command = [sys.executable, "-m", "ccamerge", "merge", "merge.yml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(ccamerge.__file__).parents[1])}
    start = time.perf_counter()
    subprocess.run([*command, "whole", "--quiet"], check=True, env=environment)
    seconds = time.perf_counter() - start
    expected = load_state("whole")
    moments = torch.rand(4, generator=torch.Generator().manual_seed(0)).tolist()
    began = 0
    for index, moment in enumerate([*moments, "partial", "partial"]):
        out = here / f"out{index}"
        process = subprocess.Popen([*command, out.name, "--quiet"], env=environment)
        deadline = time.perf_counter() + 60
        if moment == "partial":  # as soon as there is something to spoil
            while not list(here.glob(f"{out.name}.partial-*")) and process.poll() is None:
                assert time.perf_counter() < deadline
        else:
            time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        began += bool(list(here.glob(f"{out.name}.partial-*")))
        if out.exists():
            found = load_state(out)
            assert all(torch.equal(value, found[key]) for key, value in expected.items())
            assert "README.md" in tree(out)
    assert began  # some were killed while they wrote


def test_what_a_killed_merge_left_is_told(capsys: Capture, here: Path) -> None:
    (here / "merged.partial-0123").mkdir()
    status, _, err = run(capsys, "merge", "merge.yml", "merged")
    assert status == 0
    assert f"{here / 'merged.partial-0123'} is left of a merge that was killed" in err


# With transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_average(capsys: Capture, here: Path, tied: bool) -> None:
    models = [
        llama(here / name, seed, tie_word_embeddings=tied)
        for seed, name in enumerate(("one", "two"))
    ]
    import transformers

    assert run(capsys, "merge", "merge.yml", "merged", "--quiet") == (0, "", "")
    found, told = transformers.AutoModelForCausalLM.from_pretrained(
        here / "merged", local_files_only=True, output_loading_info=True
    )
    assert not any(told.values())
    one, two = (model.state_dict() for model in models)
    for key, value in found.state_dict().items():
        mean = 0.75 * one[key].double() + 0.25 * two[key].double()
        assert torch.equal(value, mean.to(torch.bfloat16))
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    ids = torch.arange(8).reshape(1, 8)
    assert found.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 12)
