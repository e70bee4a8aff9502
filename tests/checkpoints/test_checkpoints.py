from __future__ import annotations

import contextlib
import os
import pickle
import resource
import stat
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from ccamerge.checkpoints.reading import (
    CheckpointError,
    check_state,
    load_into,
    load_shapes,
    load_state,
    save_state,
)


class RunsCode:
    def __reduce__(self):
        return (os.system, (f"touch {Path.cwd() / 'ran'}",))


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 4, generator=generator),
        "b": torch.arange(5),
        "c": torch.randn(2, generator=generator).to(torch.bfloat16),
    }


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        assert torch.equal(left[key], right[key])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS"])
def test_safetensors_round_trip(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    save_state(state(), path, {"made": "here"})
    same(load_state(path), state())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_torch_files(tmp_path, suffix, zipped, wrap):
    path = tmp_path / f"m{suffix}"
    content = state() if wrap is None else {"epoch": 3, wrap: state(), "name": "x"}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    same(load_state(path), state())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_shapes_without_values(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(state(), path)
    else:
        save_state(state(), path)
    shapes = load_shapes(path)
    for key, value in state().items():
        assert shapes[key].device.type == "meta"
        assert (shapes[key].shape, shapes[key].dtype) == (value.shape, value.dtype)


@pytest.mark.parametrize("load", [load_state, load_shapes])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files(tmp_path, load, suffix):
    path = tmp_path / f"m{suffix}"
    with pytest.raises(CheckpointError, match=r"m\.\w+: no such file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="the file is empty"):
        load(path)
    big = {"a": torch.ones(1000)}
    if suffix == ".pt":
        torch.save(big, path)
    else:
        save_state(big, path)
    whole = path.read_bytes()
    for length in (3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"m\.\w+: (truncated, corrupt or not|.*is damaged or holds)"
        ):
            load(path)
    path.write_bytes(b"hello, this is no checkpoint at all")
    with pytest.raises(
        CheckpointError, match=r"m\.\w+: (truncated, corrupt or not|.*is damaged or holds)"
    ):
        load(path)


def test_each_kind_under_the_others_name(tmp_path):
    torch.save(state(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_state(tmp_path / "m.safetensors")
    save_state(state(), tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: "):
        load_state(tmp_path / "m.pt")


@pytest.mark.parametrize("protocol", [2, 4, None])
def test_code_is_refused_and_not_run(folder, protocol):
    content = {"a": torch.ones(2), "b": RunsCode()}
    if protocol is None:
        torch.save(content, "m.pt")
    else:
        Path("m.pt").write_bytes(pickle.dumps(content["b"], protocol=protocol))
    for load in (load_state, load_shapes):
        with pytest.raises(CheckpointError, match=r"m\.pt: refused, because it .* could run code"):
            load("m.pt")
    assert not (folder / "ran").exists()
    pickle.loads(pickle.dumps(RunsCode()))  # the same file would have run it otherwise
    assert (folder / "ran").exists()


def test_whole_module_is_refused(folder):
    torch.save(nn.Linear(2, 2), "m.pt")
    with pytest.raises(CheckpointError, match=r"asks to call torch\.nn.*Linear"):
        load_state("m.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, expected a dict of tensors"),
        (torch.ones(2), "holds a Tensor, expected a dict of tensors"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors"),
        ({"step": 3, "a": torch.ones(2)}, r"not tensors: step \(int\)"),
        ({"state_dict": {"a": 1, "b": torch.ones(1)}}, r"not tensors: a \(int\)"),
    ],
)
def test_other_content(folder, content, message):
    torch.save(content, "m.pt")
    with pytest.raises(CheckpointError, match=rf"m\.pt: .*{message}"):
        load_state("m.pt")


def test_no_tensors_in_safetensors(tmp_path):
    safetensors.torch.save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_state(tmp_path / "m.safetensors")


def test_folder_and_unknown_suffix(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; name the checkpoint file"):
        load_state(tmp_path)
    (tmp_path / "m.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"unknown kind of checkpoint '\.npz'"):
        load_state(tmp_path / "m.npz")


# Into modules ------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_load_into(tmp_path):
    torch.manual_seed(0)
    source, target = network(), network()
    save_state(source.state_dict(), tmp_path / "m.safetensors")
    load_into(target, tmp_path / "m.safetensors")
    same(target.state_dict(), source.state_dict())


def test_num_batches_tracked_may_be_missing(tmp_path):
    source = network()
    kept = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    save_state(kept, tmp_path / "m.safetensors")
    target = network()
    load_into(target, tmp_path / "m.safetensors")
    same(target.state_dict(), source.state_dict())


def test_names_and_shapes_must_agree(tmp_path):
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    wrong = dict(network().state_dict())
    del wrong["1.running_mean"]
    wrong["head.weight"] = torch.ones(1)
    wrong["2.bias"] = torch.ones(3)
    save_state(wrong, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_into(target, tmp_path / "m.safetensors")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'm.safetensors'}: does not fit Sequential: ")
    assert "missing: 1.running_mean;" in text
    assert "unexpected: head.weight;" in text
    assert "wrong shape: 2.bias has shape (3,), expected (2,)" in text
    same(target.state_dict(), before)


def test_only_the_first_names_are_listed():
    with pytest.raises(CheckpointError, match=r"missing: .*0\.weight.* and 2 more"):
        check_state({"0.bias": torch.ones(4)}, network_of(4), "m.pt")


def network_of(count):
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)])


def test_prefix_of_a_wrapper_is_pointed_out():
    wrapped = {f"module.{k}": v for k, v in network().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"every name begins with 'module\.'"):
        check_state(wrapped, network(), "m.pt")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_parameters(tmp_path):
    torch.manual_seed(1)
    source, target = Tied(), Tied()
    save_state(source.state_dict(), tmp_path / "both.safetensors")
    safetensors.torch.save_model(source, tmp_path / "one.safetensors")
    assert len(load_state(tmp_path / "one.safetensors")) == 1
    for name in ("both", "one"):
        target = Tied()
        load_into(target, tmp_path / f"{name}.safetensors")
        assert torch.equal(target.head.weight, source.head.weight)
        assert target.head.weight is target.embed.weight


def test_missing_parameter_is_not_excused_by_another_of_equal_shape(tmp_path):
    one = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.weight": torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match=r"missing: 1\.bias"):
        check_state(one, network_of(2), "m.pt")


# Writing -----------------------------------------------------------------------------------


def test_memory_layouts_are_kept_as_values(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    mixed = {
        "base": base,
        "transposed": base.T,
        "row": base[1],
        "expanded": torch.ones(1).expand(3),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "grad": torch.ones(2, requires_grad=True),
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(2.5),
    }
    save_state(mixed, tmp_path / "m.safetensors")
    loaded = load_state(tmp_path / "m.safetensors")
    same(loaded, {k: v.detach() for k, v in mixed.items()})
    assert mixed["transposed"].data_ptr() == base.data_ptr()


def test_what_cannot_be_stored(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\] must be a dense tensor, got int"):
        save_state({"a": 1}, tmp_path / "m.safetensors")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"got torch.sparse_coo"):
        save_state({"a": torch.eye(2).to_sparse()}, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


def test_existing_file_is_replaced_and_readable_by_others(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    save_state(state(), path)
    same(load_state(path), state())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@contextlib.contextmanager
def full_disk():
    """Files of this process may not grow beyond 1 kB.

    Not a fixture: the runner writes its progress between a test and its teardown, and dies of the
    limit where its output goes to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failing_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    with (
        pytest.raises(OSError, match=r"cannot write .*m\.safetensors: .*(too large|os error)"),
        full_disk(),
    ):
        save_state({"a": torch.ones(10_000)}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_no_folder_to_write_in(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*: .*nowhere is not a folder"):
        save_state(state(), tmp_path / "nowhere" / "m.safetensors")


def test_folder_that_takes_no_files():
    with pytest.raises(OSError, match=r"cannot write /proc/m\.safetensors: "):
        save_state(state(), "/proc/m.safetensors")


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_tensors, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(state(), tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []
