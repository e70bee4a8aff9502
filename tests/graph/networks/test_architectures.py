"""Every method on every kind of network, from Python and from YAML, and without data again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from torch import Tensor, nn

import ccamerge
from ccamerge.checkpoints.reading import load_state, save_state
from ccamerge.cli import main
from ccamerge.cli.demo.networks import ResNet20
from ccamerge.graph.groups import GENERAL, PERMUTATION
from ccamerge.methods import METHODS
from tests import models as M
from tests.moved import mapped_copy

MODULE = """\
import functools
import torch
from ccamerge.cli.demo.networks import ResNet20 as resnet20
from tests import models as M

mlp, bottleneck, dense = M.MLP, M.BottleneckResNet, M.DenseBlockNet
depthwise = M.DepthwiseSeparable
vgg11 = functools.partial(M.vgg11, False, width=2, size=16)
vgg11_bn = functools.partial(M.vgg11, True, width=2, size=16)


def noise(shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(3)]
"""

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (M.MLP, (32, 12)),
    "vgg11": (functools.partial(M.vgg11, False, width=2, size=16), (16, 3, 16, 16)),
    "vgg11_bn": (functools.partial(M.vgg11, True, width=2, size=16), (16, 3, 16, 16)),
    "resnet20": (ResNet20, (8, 3, 8, 8)),
    "bottleneck": (M.BottleneckResNet, (8, 3, 8, 8)),
    "depthwise": (M.DepthwiseSeparable, (8, 3, 8, 8)),
    "dense": (M.DenseBlockNet, (8, 3, 8, 8)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Three models, the second the first in another order; and their moments, all pairs."""

    models: list[nn.Module]
    data: list[Tensor]
    collected: ccamerge.Statistics

    def change(self, merged: nn.Module) -> float:
        """Of the first model's outputs, relative."""
        with torch.inference_mode():
            before = torch.cat([self.models[0](x) for x in self.data])
            after = torch.cat([merged(x) for x in self.data])
        return float((after - before).norm() / before.norm())


@functools.cache
def case(name: str) -> Case:
    build, shape = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, third = (M.randomise(build(), seed).double() for seed in (0, 5))
    data = [torch.randn(shape, dtype=torch.float64) for _ in range(8)]
    found = ccamerge.spaces(model, data[0])
    generator = torch.Generator().manual_seed(1)
    maps = {s.name: PERMUTATION.random(s.size, generator) for s in found.spaces}
    copied = mapped_copy(model, found, maps)
    models = [model, copied, third]
    collected = ccamerge.collect(models, data, pairs="all", found=found, progress=False)
    return Case(models, data, collected)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_a_permuted_copy_into_the_model(method: str, name: str) -> None:
    """Permutations belong to every network's group: only "average" does not look for them."""
    found = case(name)
    result = ccamerge.merge(
        found.models[:2],
        statistics=found.collected.subset([0, 1]),
        method=method,
        repair="none",
        progress=False,
    )
    change = found.change(result.model)
    # Rotations come from float64 polar factors of covariances whose condition is up to 1e6.
    assert change > 0.1 if method == "average" else change < 1e-9


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_three_different_networks(method: str, name: str) -> None:
    found = case(name)
    result = ccamerge.merge(found.models, statistics=found.collected, method=method, progress=False)
    assert all(torch.isfinite(v).all() for v in result.model.state_dict().values())
    assert math.isfinite(found.change(result.model))
    general = {s.name for s in result.spaces if s.group == GENERAL}
    assert general
    assert all(result.aligned.methods[space] == method for space in general)


class _Linear(nn.Module):
    """Without non-linearities any invertible map leaves the function as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("method", ["cca", "procrustes"])
@pytest.mark.parametrize("mode", ["reference", "universe"])
def test_a_rotated_copy_of_a_linear_network(method: str, mode: Any) -> None:
    model = M.randomise(_Linear()).double()
    data = [torch.randn(64, 6).double() for _ in range(4)]
    found = ccamerge.spaces(model, data[0])
    maps = {}
    for space in found.spaces:
        turn = torch.linalg.qr(torch.randn(space.size, space.size).double())[0]
        maps[space.name] = ccamerge.FeatureMap(turn, turn.T.contiguous())
    rotated = mapped_copy(model, found, maps)
    merged = ccamerge.merge(
        [model, rotated], data, method=method, mode=mode, repair="none", progress=False
    ).model
    with torch.inference_mode():
        torch.testing.assert_close(merged(data[0]), model(data[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_method_from_yaml(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pass over the data by ``collect``, then a merge for each method without any."""
    monkeypatch.chdir(tmp_path)
    module = f"networks_of_{name}"  # imported once for each test
    Path(f"{module}.py").write_text(MODULE)
    build, shape = ARCHITECTURES[name]
    for seed in range(2):
        save_state(M.randomise(build(), seed).state_dict(), Path(f"{seed}.safetensors"))
    config: dict[str, Any] = {
        "models": [{"model": "0.safetensors"}, {"model": "1.safetensors"}],
        "architecture": {"factory": f"{module}:{name}"},
        "data": {"factory": f"{module}:noise", "arguments": {"shape": list(shape)}},
        "merge_method": "zipit",
    }
    Path("merge.yml").write_text(yaml.safe_dump(config))
    assert main(["collect", "merge.yml", "stats.safetensors", "--quiet"]) == 0
    del config["data"]
    config["moments"] = "stats.safetensors"
    before = load_state(Path("0.safetensors"))
    for method in METHODS:
        config["merge_method"] = method
        Path("merge.yml").write_text(yaml.safe_dump(config))
        assert main(["merge", "merge.yml", method, "--quiet"]) == 0, capsys.readouterr().err
        merged = load_state(Path(method) / "model.safetensors")
        assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in before.items()}
        assert all(torch.isfinite(v).all() for v in merged.values())
        assert any(not torch.equal(merged[k], before[k]) for k in merged)


WRONG = """
from ccamerge.methods import register


@register("short")
def short(alignment):
    return {name: row[:1] for name, row in alignment.identities().items()}
"""


def test_a_wrong_method_of_the_users_from_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "short", METHODS["average"])  # removed again after the test
    Path("networks_and_short.py").write_text(MODULE + WRONG)
    for seed in range(2):
        save_state(M.randomise(M.MLP(), seed).state_dict(), Path(f"{seed}.safetensors"))
    config = {
        "models": [{"model": "0.safetensors"}, {"model": "1.safetensors"}],
        "architecture": {"factory": "networks_and_short:mlp"},
        "data": {"factory": "networks_and_short:noise", "arguments": {"shape": [32, 12]}},
        "merge_method": {"layers.1": "networks_and_short:short", "*": "cca"},
    }
    Path("merge.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["merge", "merge.yml", "out", "--quiet"]) != 0
    message = "method 'short', space 'layers.1': expected 2 solutions, one for each model, got 1"
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def _raise(*_: Any, **__: Any) -> NoReturn:
    pytest.fail("a model was run after its moments had been collected")


class _Raising:
    def __iter__(self) -> Iterator[Any]:
        pytest.fail("data was read after moments had been collected")


SETTINGS: list[dict[str, Any]] = [
    {},
    {"ridge": 2.0},
    {"ridge": "auto"},
    {"gamma": 0.3},
    {"weights": [3, 1, 1]},
    {"weights": {"layers.0": [1, 0, 0]}},
    {"t": 0.25},
    {"repair": "none"},
    {"repair": "regression"},
    {"norm": "paper"},
    {"reference": 2},
]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_after_collecting_touches_data_or_models(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    loader = iter([torch.randn(32, 12) for _ in range(4)])
    collected = ccamerge.collect(models, loader, pairs="all", progress=False)
    assert next(loader, None) is None  # exhausted
    monkeypatch.setattr(M.MLP, "forward", _raise)
    merge = functools.partial(ccamerge.merge, method=method, progress=False)
    chosen = list(SETTINGS)
    if "universe" in METHODS[method].modes:
        chosen.append({"mode": "universe"})
    for given in chosen:
        for data in (None, loader, _Raising()):
            result = merge(models, data, statistics=collected, **given)
            assert all(torch.isfinite(v).all() for v in result.model.state_dict().values())
    for subset in ([0, 1], [2, 0], [1, 2], [2, 1, 0]):
        some = [models[i] for i in subset]
        assert len(merge(some, statistics=collected.subset(subset)).maps["layers.0"]) == len(subset)
    aligned = merge(models, statistics=collected).aligned
    assert merge(models, statistics=collected, aligned=aligned, t=0.5).aligned is aligned
