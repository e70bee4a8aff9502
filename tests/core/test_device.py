"""Which device is meant, why there is none, and what is special of moments and solves on one."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge import _core
from ccamerge.core.device import Device, array_device, memory_of, obstacle, resolve
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import placed
from ccamerge.graph.tracing.batches import model_device, moved
from ccamerge.graph.tracing.precision import no_tf32
from tests import backends
from tests import models as M
from tests.backends import put


@pytest.fixture
def cuda() -> Iterator[str]:
    """Tests of what only a device does."""
    with backends.use("cuda") as name:
        yield name


class _Native(types.ModuleType):
    """A CUDA module without a device, to be told why there is none."""

    emulated = False
    libraries: str | None = None
    found: Any = ()

    def runtime_version(self) -> int:
        return 13000

    def load_libraries(self, cublas: list[str], cusolver: list[str]) -> None:
        assert cublas[-1] == "libcublas.so.13"
        assert cusolver[-1] == "libcusolver.so.12"
        if self.libraries:
            raise RuntimeError(self.libraries)

    def devices(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class _Driver:
    def __init__(self, code: int, count: int) -> None:
        self._code, self._count = code, count

    def cuInit(self, _flags: int) -> int:  # noqa: N802 its name
        return self._code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 its name
        count._obj.value = self._count
        return 0


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Native]:
    """As if built, with a driver that shows one device."""
    module = _Native("ccamerge._cuda")
    monkeypatch.setitem(sys.modules, "ccamerge._cuda", module)
    monkeypatch.setattr(ccamerge, "_cuda", module, raising=False)
    monkeypatch.setattr(_core, "cuda_built", True)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: _Driver(0, 1))
    obstacle.cache_clear()
    yield module
    obstacle.cache_clear()


BUILT = "built for CUDA 13.0, but not usable: "


def test_not_built(native: _Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "cuda_built", False)
    assert ccamerge.cuda_status() == "not built (no CUDA compiler when ccamerge was installed)"
    assert resolve("auto") is None
    with pytest.raises(RuntimeError, match=r"device 'cuda:1' cannot be used: not built"):
        resolve("cuda:1")


def test_no_driver(native: _Native, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        message = f"{name}: not found"
        raise OSError(message)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert ccamerge.cuda_status() == f"{BUILT}no NVIDIA driver (libcuda.so.1: not found)"


@pytest.mark.parametrize(("code", "count"), [(100, 0), (0, 0)])
def test_the_driver_shows_no_device(
    native: _Native, monkeypatch: pytest.MonkeyPatch, code: int, count: int
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: _Driver(code, count))
    assert ccamerge.cuda_status().startswith(f"{BUILT}the NVIDIA driver shows no device")


def test_the_driver_does_not_start(native: _Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: _Driver(999, 0))
    assert (
        ccamerge.cuda_status() == f"{BUILT}the NVIDIA driver does not start (error 999 of cuInit)"
    )


def test_libraries_are_missing(native: _Native) -> None:
    native.libraries = "libcublas.so.13: cannot open"
    status = ccamerge.cuda_status()
    assert status.startswith(f"{BUILT}libcublas.so.13: cannot open; pip install 'ccamerge[cuda13]'")


def test_libraries_of_packages_come_first(
    native: _Native, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    folder = tmp_path / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.13").touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    given: list[Any] = []
    monkeypatch.setattr(native, "load_libraries", lambda *names: given.extend(names), raising=False)
    obstacle()
    assert given == [[str(folder / "libcublas.so.13"), "libcublas.so.13"], ["libcusolver.so.12"]]


def test_the_runtime_finds_no_device(native: _Native) -> None:
    assert ccamerge.cuda_status() == f"{BUILT}no device was found"
    obstacle.cache_clear()
    native.found = RuntimeError("cudaGetDeviceCount: driver too old")
    assert ccamerge.cuda_status() == f"{BUILT}cudaGetDeviceCount: driver too old"


def test_torch_without_cuda(native: _Native, monkeypatch: pytest.MonkeyPatch) -> None:
    native.found = [types.SimpleNamespace(name="A", major=9, minor=0, memory=80 << 30)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA, and memory comes from torch" in ccamerge.cuda_status()
    obstacle.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ccamerge.cuda_status() == (
        "built for CUDA 13.0, found A (compute capability 9.0, 80 GiB); usable"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "auto:1", "", True, -1, 1.5])
def test_what_is_no_device(device: Any) -> None:
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda', 'cuda:N' or 'auto', got"):
        resolve(device)


def test_the_cpu() -> None:
    assert resolve(None) is resolve("cpu") is resolve(torch.device("cpu")) is None
    assert memory_of(None) == torch.device("cpu")
    assert array_device(np.ones(2)) is array_device(torch.ones(2)) is array_device([1.0]) is None


def test_names_of_a_device(cuda: str) -> None:
    names = (cuda, "cuda:0", 0, torch.device("cuda:0"), Device(0), "auto")
    assert {resolve(name) for name in names} == {Device(0)}
    assert str(Device(0)) == "cuda:0"
    with pytest.raises(RuntimeError, match="device 'cuda:99' cannot be used: there"):
        resolve("cuda:99")
    assert ccamerge.cuda_status().endswith("; usable")


def _features(bad: bool = False) -> list[Any]:
    x = torch.arange(24.0).reshape(6, 4).sin()
    if bad:
        x[4, 2] = torch.nan
    return put([x, x[:, :3].contiguous()])


def test_a_value_that_is_not_finite_is_known_at_the_next_check(cuda: str) -> None:
    moments, other = (ccamerge.Moments([4, 3], device=cuda) for _ in range(2))
    for kept in (moments, other):
        kept.update(_features(), label="batch 0")
    before = moments.state_dict()
    ccamerge.update_many([(moments, _features(bad=True)), (other, _features())], label="batch 1")
    moments.update(_features(), label="batch 2")
    with pytest.raises(ValueError, match=r"^batch 1: .*model 0.*sample 4, feature 2"):
        moments.check()
    for name, value in moments.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert other.count == 12  # its part of that update was fine
    moments.update(_features())
    assert moments.count == 12


@pytest.mark.parametrize(
    "read",
    [
        lambda m: m.count,
        lambda m: m.cov(0),
        lambda m: m.cov_tensor(0, 1),
        lambda m: m.mean_tensor(0),
        lambda m: m.state_dict(),
        lambda m: m.subset([0, 1]),
        lambda m: ccamerge.Moments([4, 3], device=m.device).merge(m),
    ],
)
def test_whatever_is_read_checks_first(cuda: str, read: Any) -> None:
    moments = ccamerge.Moments([4, 3], device=cuda)
    moments.update(_features())
    moments.update(_features(bad=True), label="batch 7")
    with pytest.raises(ValueError, match=r"batch 7: .*not finite"):
        read(moments)
    read(moments)


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_tensors_are_where_the_moments_are(backend: str) -> None:
    with backends.use(backend):
        moments = ccamerge.Moments([4, 3], device=backend)
        moments.update(_features())
        for tensor, array in (
            (moments.cov_tensor(0), moments.cov(0)),
            (moments.cov_tensor(1, 0), moments.cov(1, 0)),
            (moments.mean_tensor(1), moments.mean(1)),
        ):
            assert (tensor.dtype, tensor.device) == (torch.float64, memory_of(resolve(backend)))
            np.testing.assert_array_equal(backends.host(tensor), array)


def test_moments_go_from_place_to_place(cuda: str, tmp_path: Any) -> None:
    there, here = ccamerge.Moments([4, 3], device=cuda), ccamerge.Moments([4, 3])
    there.update(_features())
    here.update([backends.host(x) for x in _features()])
    copied = here.to(cuda)
    assert (there.device, here.device, copied.device) == ("cuda:0", "cpu", "cuda:0")
    assert there.to("cuda:0") is there
    for name, value in here.state_dict().items():
        np.testing.assert_array_equal(copied.state_dict()[name], value)
        np.testing.assert_allclose(there.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    there.merge(here)
    here.merge(copied)
    assert there.count == here.count == 12
    np.testing.assert_allclose(there.cov(0, 1), here.cov(0, 1), atol=1e-6)
    there.save(tmp_path / "m.safetensors")
    for device in ("cpu", "cuda:0"):
        loaded = ccamerge.Moments.load(tmp_path / "m.safetensors", device)
        assert loaded.device == device
        np.testing.assert_array_equal(loaded.cov(0), there.cov(0))


def test_updates_of_several_devices_at_once(cuda: str) -> None:
    there, here = ccamerge.Moments([4, 3], device=cuda), ccamerge.Moments([4, 3])
    with pytest.raises(ValueError, match="updates must be for one device, got cpu, cuda:0"):
        ccamerge.update_many([(there, _features()), (here, _features())])


@pytest.mark.parametrize("mask", [[1, 1, 0, 1, 0, 1], "numpy", "tensor"])
def test_masks_may_come_from_the_cpu(cuda: str, mask: Any) -> None:
    chosen = np.array([1, 1, 0, 1, 0, 1], bool)
    given = {"numpy": chosen, "tensor": put(torch.from_numpy(chosen))}.get(
        str(mask), chosen.tolist()
    )
    moments = ccamerge.Moments([4, 3], device=cuda)
    moments.update(_features(bad=True), mask=given)  # sample 4 is masked out
    assert moments.count == 4
    with pytest.raises(TypeError, match="mask must be bool, got int64"):
        moments.update(_features(), mask=np.ones(6, np.int64))


def test_solves_return_tensors_of_the_device(cuda: str) -> None:
    s = np.diag([3.0, 2.0, 1.0])
    s.flags.writeable = False
    results = [
        ccamerge.cca(s, s, s, ridge=0.1, device=cuda).map,
        ccamerge.polar(s, device=cuda),
        ccamerge.whiten(s, device=cuda).w,
        ccamerge.generalized_eigh(s, s, device=cuda)[1],
        ccamerge.universe([s, s], [s], ridge=0.1, device=cuda).maps[1],
    ]
    for result in results:
        assert isinstance(result, torch.Tensor)
        assert (result.dtype, result.device) == (torch.float64, memory_of(resolve(cuda)))
    single = torch.eye(3) * 2  # float32, on the CPU
    np.testing.assert_allclose(
        backends.host(ccamerge.polar(single, device=cuda)), np.eye(3), atol=1e-14
    )
    with pytest.raises(TypeError, match="A must be real"):
        ccamerge.polar(torch.ones(2, 2, dtype=torch.bool), device=cuda)


def test_batches_are_moved_whole() -> None:
    class Pair(tuple[Any, Any]):
        __slots__ = ()
        _fields = ("a", "b")

        def __new__(cls, a: Any, b: Any) -> Pair:
            return super().__new__(cls, (a, b))

    batch = {"x": torch.ones(2), "more": [Pair(torch.ones(1), "name"), (1, torch.ones(3))]}
    assert moved(batch, torch.device("cpu")) is batch
    there = moved(batch, torch.device("meta"))
    first, second = there["more"]
    assert there["x"].device == first[0].device == second[1].device == torch.device("meta")
    assert (type(first), first[1], second[0]) == (Pair, "name", 1)


def test_programs_run_on_another_device() -> None:
    """What they make anew and their constants go with them; inputs are brought to the model."""

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 3)
            self.register_buffer("offset", torch.ones(3), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x).relu() + self.offset + torch.arange(3, device=x.device)

    model = Shifted()
    found = spaces(model, torch.randn(2, 4))
    assert placed(found, torch.device("cpu")) is found
    meta = torch.device("meta")
    program = placed(found, meta).program
    state = {key: value.to(meta) for key, value in model.state_dict().items()}
    assert program.run(state, [torch.randn(2, 4, device=meta)]).device == meta
    assert model_device(model) == torch.device("cpu")
    assert model_device(torch.nn.ReLU()) == torch.device("cpu")
    assert len(spaces(M.MLP(), torch.randn(2, 12))) == 2


def test_no_tf32_holds_inside_and_leaves_things_as_they_were() -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def fail_inside() -> None:
        with no_tf32():
            assert settings() == (False, False)
            raise KeyError

    before = settings()
    with pytest.raises(KeyError):
        fail_inside()
    assert settings() == before
