"""Collecting and merging on a device, beside the same on the CPU."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.core.device import Device
from ccamerge.core.side_stream import LEAD, SideStream
from ccamerge.graph.tracing.precision import no_tf32
from tests import backends
from tests import models as M
from tests import projects as P


@pytest.fixture(autouse=True, scope="module")
def _cuda() -> Iterator[None]:
    with backends.use("cuda"):
        yield


def _nets(count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [M.randomise(M.vgg11(True, width=4, size=16), seed) for seed in range(count)]


def _images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, 3, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def both() -> tuple[ccamerge.Statistics, ccamerge.Statistics]:
    """Statistics of three networks, on the CPU and on the device."""
    models, data = _nets(), _images()
    with no_tf32():  # features are to be the same
        here, there = (
            ccamerge.collect(models, data, pairs="all", progress=False, device=device)
            for device in ("cpu", "cuda")
        )
    return here, there


def test_statistics_are_those_of_the_cpu(both: Any) -> None:
    here, there = both
    assert (here.device, there.device) == ("cpu", "cuda:0")
    assert here.fingerprint == there.fingerprint
    assert here.samples == there.samples
    for name, folds in here.matched.items():
        pairs = list(zip(folds, there.matched[name], strict=True))
        pairs += [(m, there.outputs[name][tap]) for tap, m in here.outputs[name].items()]
        for a, b in pairs:
            assert a.count == b.count
            for i in range(3):
                scale = a.cov(i).diagonal().max()
                np.testing.assert_allclose(b.cov(i), a.cov(i), atol=1e-4 * scale)
                np.testing.assert_allclose(b.mean(i), a.mean(i), atol=1e-4 * np.sqrt(scale))
    for (one,), (two,) in zip(here.inputs, there.inputs, strict=True):
        assert two.device.type == "cpu"  # kept where they came from
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("settings", "on_cpu"),
    [
        ({"repair": "regression"}, []),
        ({"mode": "universe"}, []),
        ({"method": "procrustes", "mode": "universe"}, []),
        ({"method": "procrustes"}, []),
        ({"ridge": "auto", "repair": "variance"}, []),
        ({"method": "permutation"}, ["permutation"]),
        ({"method": "zipit"}, ["zipit"]),
        ({"method": "weight_matching"}, ["weight_matching"]),
        ({"method": "average"}, []),
        ({"norm": "paper"}, []),
    ],
)
def test_maps_from_the_same_moments_are_those_of_the_cpu(
    both: Any, settings: dict[str, Any], on_cpu: list[str]
) -> None:
    models, moments = _nets(), both[0]
    settings = {"repair": "none", **settings}
    here = ccamerge.merge(models, statistics=moments, progress=False, **settings)
    there = ccamerge.merge(models, statistics=moments, progress=False, device="cuda", **settings)
    for name, row in here.maps.items():
        for a, b in zip(row, there.maps[name], strict=True):
            scale = float(a.forward.abs().max())
            np.testing.assert_allclose(backends.host(b.forward), a.forward, atol=1e-9 * scale)
    assert there.report.on_cpu == on_cpu
    assert ("on the CPU: " in str(there.report)) == bool(on_cpu)
    assert re.fullmatch(r"cuda:0 \(.+\)", there.report.device)
    assert there.report.device in there.report.to_markdown()
    assert (here.report.device, here.report.on_cpu) == ("cpu", [])
    x = _images(1)[0]
    with torch.inference_mode():
        wanted, got = here.model(x), there.model(x)  # on the reference's device: the CPU
    assert float((wanted - got).norm() / wanted.norm()) < 0.02


def test_a_merge_is_done_where_its_moments_are(both: Any) -> None:
    models, (here, there) = _nets(), both
    first = ccamerge.merge(models, statistics=there, progress=False, repair="none")
    assert first.report.device.startswith("cuda:0")
    assert first.statistics.device == "cuda:0"
    again = ccamerge.merge(
        models, statistics=here, aligned=first.aligned, t=0.25, progress=False, repair="none"
    )
    assert again.report.device == "cpu"
    assert all(m.forward.device.type == "cpu" for row in again.maps.values() for m in row)
    third = ccamerge.merge(models, statistics=there, device="cpu", progress=False, repair="none")
    assert (third.report.device, third.statistics.device) == ("cpu", "cpu")


def test_statistics_go_from_place_to_place(both: Any, tmp_path: Any) -> None:
    there = both[1]
    path = tmp_path / "moments.safetensors"
    there.save(path)
    assert ccamerge.Statistics.load(path).device == "cpu"
    for copied in (
        ccamerge.Statistics.load(path, "cuda"),
        there.to("cpu").to("cuda"),
        dataclasses.replace(there, matched=copy.deepcopy(there.matched)),
        there.subset([0, 1, 2]),
    ):
        assert copied.device == "cuda:0"
        for name, folds in there.matched.items():
            for a, b in zip(folds, copied.matched[name], strict=True):
                np.testing.assert_array_equal(a.cov(0, 1), b.cov(0, 1))
    moments = there.matched["0.0"][0]
    assert pickle.loads(pickle.dumps(moments)).device == "cpu"


def test_a_value_that_is_not_finite_names_space_tap_and_batch() -> None:
    data = _images()
    data[2][5] = torch.nan
    words = r"space '.*', tap '.*', batch 2: .*model 0.*not finite"
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match=words):
            ccamerge.collect(_nets(2), data, progress=False, device=device)
    with pytest.raises(ValueError, match=r"batch 0: .*not finite"):
        ccamerge.collect(_nets(2), data[2:], progress=False, device="cuda")


def test_models_on_a_device_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ccamerge.collection.collecting.model_device", lambda _model: torch.device("cuda:0")
    )
    monkeypatch.setattr("ccamerge.collection.collecting.obstacle", lambda: "not built")
    with pytest.warns(RuntimeWarning, match="on cuda:0, but work is done on the CPU: CUDA is not"):
        collected = ccamerge.collect(_nets(2), _images(1), progress=False)
    assert collected.device == "cpu"


def test_counting_without_a_side_stream_is_done_at_once() -> None:
    for device in (None, Device(0)):
        overlap, counted = SideStream(device), []
        for value in range(2 * LEAD):
            with overlap.counting(value):
                counted.append(value)
            assert len(overlap._held) <= LEAD
        overlap.join()
        assert not overlap._held
        assert counted == list(range(2 * LEAD))


def test_the_command_line(project: Any, capsys: Any) -> None:
    status, out, _ = P.run(capsys, "merge", "merge.yml", "merged", "--dry-run", "--device", "cuda")
    assert status == 0
    assert re.search(r"^device      cuda:0 \(.+\)$", out, re.MULTILINE)
    P.change(project, ("base_model:", "device: auto\nbase_model:"))
    assert P.run(capsys, "merge", "merge.yml", "merged")[0] == 0
    assert "device cuda:0" in (project / "merged/README.md").read_text()
    assert "device: auto" in (project / "merged/config.yml").read_text()
    assert P.run(capsys, "report", "merged")[0] == 0
    assert "device cuda:0" in (project / "merged/report.html").read_text()
    assert P.run(capsys, "collect", "merge.yml", "stats.safetensors", "--device", "cuda")[0] == 0
    P.change(project, ("device: auto", "moments: stats.safetensors"))
    arguments = ("evaluate", "merge.yml", "--methods", "cca", "permutation", "--device", "cuda")
    status, out, _ = P.run(capsys, *arguments)
    assert status == 0
    assert "permutation" in out
    words = P.fails(capsys, 2, "merge", "merge.yml", "other", "--device", "cuda:99")
    assert words.startswith("--device: device 'cuda:99' cannot be used: there ")
