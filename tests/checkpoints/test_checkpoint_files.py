"""Shards, folders and the usual wrappings of checkpoints: read, or refused with the cure."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge.checkpoints.reading import (
    CheckpointError,
    check_file,
    check_state,
    load_into,
    load_shapes,
    load_state,
    save_state,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def shards(folder: Path, **change: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint in two shards, its index changed."""
    state = dict(network().state_dict())
    keys = list(state)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {key: names[i >= len(keys) // 2] for i, key in enumerate(keys)}
    for name in names:
        save_state({k: state[k] for k in keys if where[k] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**where, **change}}))
    return index, state


# Shards ------------------------------------------------------------------------------------


def test_shards_by_their_index_and_by_their_folder(tmp_path: Path) -> None:
    index, state = shards(tmp_path)
    for path in (index, tmp_path, str(index)):
        loaded, shapes = load_state(path), load_shapes(path)
        assert list(loaded) == list(shapes) == list(state)
        for key, value in state.items():
            assert torch.equal(loaded[key], value)
            assert (shapes[key].shape, shapes[key].dtype) == (value.shape, value.dtype)
        target = network(1)
        load_into(target, path)
        assert torch.equal(target[0].weight, state["0.weight"])


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    save_state(network().state_dict(), tmp_path / "model.safetensors")
    assert torch.equal(load_state(tmp_path)["0.bias"], network()[0].bias)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"which is one of model.*index\.json and model\.s"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": "/etc/model.safetensors"}, "shards must lie in its folder, not at /etc/"),
        ({"0.weight": "../model.safetensors"}, "shards must lie in its folder"),
        ({"0.weight": "a/../../model.safetensors"}, "shards must lie in its folder"),
        ({"0.weight": "gone.safetensors"}, "1 of 3 shards missing: gone.safetensors"),
        ({"0.weight": "pytorch_model-00001-of-00002.bin"}, "shards that are no safetensors files"),
        ({"more": "model-00001-of-00002.safetensors"}, "shard model-00001.* lacks more"),
        ({"0.weight": "model-00002-of-00002.safetensors"}, "does not say so, 0.weight"),
        ({"0.weight": 3}, "is no index of shards: expected"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    index, _ = shards(tmp_path, **change)
    for load in (load_state, load_shapes):
        with pytest.raises(CheckpointError, match=rf"index\.json: .*{message}"):
            load(index)


@pytest.mark.parametrize("content", ["", "[1", "[]", "{}", '{"weight_map": {}}'])
def test_something_that_is_no_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index of shards"):
        load_state(tmp_path)


def test_shards_without_an_index_and_an_index_of_torchs(tmp_path: Path) -> None:
    index, _ = shards(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"is a folder; name .* it holds shards .*-00001-of-"):
        load_state(tmp_path)
    listed = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="lists shards that are no safetensors files"):
        load_state(tmp_path / "pytorch_model.bin.index.json")


def test_one_shard_alone_says_what_to_name(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(CheckpointError, match=r"shard of several: name model\.safetensors\.index"):
        load_into(network(), tmp_path / "model-00001-of-00002.safetensors")


# Wrappings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [("model_state_dict",), ("net",), ("params",), ("ema",), ("state_dict", "model"), ("module",)],
)
def test_usual_keys_are_looked_under(
    tmp_path: Path, keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    content: Any = network().state_dict()
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
    torch.save(content, tmp_path / "m.pt")
    target = network(1)
    with caplog.at_level(logging.INFO, "ccamerge"):
        load_into(target, tmp_path / "m.pt")
    assert torch.equal(target[0].weight, network()[0].weight)
    assert f"the parameters are under {' / '.join(keys)}" in caplog.text
    assert load_shapes(tmp_path / "m.pt").keys() == target.state_dict().keys()


def test_of_several_sets_none_is_taken(tmp_path: Path) -> None:
    both = {"state_dict": network().state_dict(), "state_dict_ema": network(1).state_dict()}
    torch.save(both, tmp_path / "m.pt")
    for load in (load_state, load_shapes):
        with pytest.raises(CheckpointError, match="several sets of parameters") as caught:
            load(tmp_path / "m.pt")
        assert "['state_dict'] (9 tensors) and ['state_dict_ema'] (9 tensors)" in str(caught.value)
        assert "torch.load(path, weights_only=True)['state_dict_ema']" in str(caught.value)
    torch.save({"model": both["state_dict"], "net": network().state_dict()}, tmp_path / "m.pt")
    for load in (load_state, load_shapes):
        assert len(load(tmp_path / "m.pt")) == 9


def test_an_unusual_key_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "resnet": {"best": network().state_dict()}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError) as caught:
        load_state(tmp_path / "m.pt")
    assert "there are tensors under ['resnet']['best'] (9)" in str(caught.value)
    assert "torch.load(path, weights_only=True)['resnet']['best']" in str(caught.value)


@pytest.mark.parametrize(
    ("before", "inside"),
    [("model.", ""), ("_orig_mod.", ""), ("module._orig_mod.", ""), ("", "_orig_mod.")],
)
def test_what_usual_wrappers_put_into_names_is_taken_away_and_told(
    tmp_path: Path, before: str, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = {before + k.replace("0.", f"0.{inside}"): v for k, v in network().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "m.ckpt")
    target = network(1)
    check_file(tmp_path / "m.ckpt", target)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "ccamerge"):
        load_into(target, tmp_path / "m.ckpt")
    for key, value in network().state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert "m.ckpt: the parameters are under state_dict" in caplog.text
    assert f"m.ckpt: names were taken without '{before or inside}'" in caplog.text


def test_a_usual_prefix_that_is_the_networks_own_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = nn.ModuleDict({"model": network(), "net": network()})
    save_state(whole.state_dict(), tmp_path / "m.safetensors")
    load_into(nn.ModuleDict({"model": network(), "net": network()}), tmp_path / "m.safetensors")
    half = nn.ModuleDict({"model": network()})
    save_state(half.state_dict(), tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="missing: net"):
        load_into(whole, tmp_path / "half.safetensors")
    assert not caplog.records


@pytest.mark.parametrize("prefix", ["encoder.body.", "backbone."])
def test_a_prefix_of_all_names(tmp_path: Path, prefix: str) -> None:
    state = {prefix + k: v for k, v in network().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError) as caught:
        load_into(network(), tmp_path / "m.ckpt")
    assert f"every name begins with {prefix!r}: " in str(caught.value)
    code = f"{{k.removeprefix({prefix!r}): v for k, v in load_state(path).items()}}"
    assert code in str(caught.value)
    path, new_path = tmp_path / "m.ckpt", tmp_path / "new.safetensors"
    save_state(eval(code, {"load_state": load_state, "path": path}), new_path)
    load_into(network(), new_path)


def test_a_prefix_of_those_names_that_fit() -> None:
    state = {f"model.{k}": v for k, v in network().state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    with pytest.raises(CheckpointError) as caught:
        check_state(state, network(), "m.ckpt")
    assert "the names that fit begin with 'model.' (8 of 9)" in str(caught.value)
    assert "if k.startswith('model.')" in str(caught.value)


def test_a_part_that_was_compiled() -> None:
    state = {k.replace("0.", "0._orig_mod."): v for k, v in network().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"names fit without '_orig_mod\.' in them"):
        check_state(state, network(), "m.pt")


def test_a_network_that_is_wrapped() -> None:
    with pytest.raises(CheckpointError, match=r"as if it were wrapped: use network\.module"):
        check_state(network().state_dict(), nn.DataParallel(network()), "m.pt")


def test_no_hint_where_there_is_no_wrapper() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_state({"0.weight": torch.ones(4, 3)}, network(), "m.pt")
    assert "begin" not in str(caught.value)
    assert "wrapped" not in str(caught.value)


def test_a_whole_module_and_torchscript_say_what_to_save(tmp_path: Path) -> None:
    torch.save({"model": network(), "epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"whole module, .*torch\.save\(model\.state_dict"):
        load_state(tmp_path / "m.pt")


# Kinds of numbers --------------------------------------------------------------------------


def with_buffer(dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    module.register_buffer("value", torch.ones(3).to(dtype))
    return module


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (torch.int8, torch.float32),
        (torch.uint8, torch.float16),
        (torch.int64, torch.float64),
        (torch.bool, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e5m2, torch.bfloat16),
        (torch.complex64, torch.float32),
        (torch.float32, torch.complex64),
        (torch.float32, torch.int64),
        (torch.float32, torch.bool),
        (torch.uint8, torch.bool),
        (torch.bool, torch.int64),
        (torch.int64, torch.int8),
        (torch.float32, torch.float8_e4m3fn),
        (torch.int64, torch.complex64),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_other_kinds_of_numbers_are_refused(
    tmp_path: Path, found: torch.dtype, expected: torch.dtype, suffix: str
) -> None:
    path, state = tmp_path / f"m.{suffix}", {"value": torch.ones(3).to(found)}
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_state(state, path)
    module = with_buffer(expected)
    names = [str(dtype).removeprefix("torch.") for dtype in (found, expected)]
    message = f"wrong dtype: value is {names[0]}, expected {names[1]}"
    with pytest.raises(CheckpointError, match=message):
        load_into(module, path)
    with pytest.raises(CheckpointError, match=message):
        check_state(load_shapes(path), module, path)
    assert module.value.tolist() == torch.ones(3).to(expected).tolist()  # type: ignore[operator,union-attr]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float16),
        (torch.complex128, torch.complex64),
        (torch.int32, torch.int64),
        (torch.bool, torch.bool),
    ],
)
def test_the_same_kind_in_another_precision_is_converted(
    tmp_path: Path, found: torch.dtype, expected: torch.dtype
) -> None:
    torch.save({"value": torch.tensor([1, 0, 1]).to(found)}, tmp_path / "m.pt")
    module = with_buffer(expected)
    load_into(module, tmp_path / "m.pt")
    assert torch.equal(module.value, torch.tensor([1, 0, 1]).to(expected))  # type: ignore[arg-type]


def test_numbers_too_large_for_the_network(tmp_path: Path) -> None:
    save_state({"value": torch.tensor([1.0, 7e4, torch.inf])}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"too large .* value in float16"):
        load_into(with_buffer(torch.float16), tmp_path / "m.safetensors")
    save_state({"value": torch.tensor([1.0, torch.nan, torch.inf])}, tmp_path / "m.safetensors")
    load_into(with_buffer(torch.float16), tmp_path / "m.safetensors")  # not finite there either


def test_quantised_and_sparse_tensors_of_torch(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("value", torch.ones(2, 2))
    with warnings.catch_warnings():  # torch will drop them some day
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    for value, message in (
        (codes, "value is qint8"),
        (torch.eye(2).to_sparse(), "value is sparse_coo, expected a dense tensor"),
    ):
        torch.save({"value": value}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=message):
            load_into(module, tmp_path / "m.pt")


def test_a_counter_of_batches_may_have_been_cast_with_the_rest(tmp_path: Path) -> None:
    source = network()
    source[1].num_batches_tracked.fill_(7)
    save_state({k: v.half() for k, v in source.state_dict().items()}, tmp_path / "m.safetensors")
    target = network(1)
    load_into(target, tmp_path / "m.safetensors")
    assert int(target[1].num_batches_tracked) == 7


def test_networks_without_values_to_load_into(tmp_path: Path) -> None:
    save_state(network().state_dict(), tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    for module, message in ((empty, "on the meta device"), (nn.LazyLinear(4), "not initialised")):
        with pytest.raises(CheckpointError, match=message):
            load_into(module, tmp_path / "m.safetensors")
