"""Moments of taps, against NumPy on activations recorded by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.collection.data_pass import KEEP_SAMPLES
from ccamerge.collection.kept_inputs import Reservoir
from ccamerge.collection.statistics import Statistics
from ccamerge.collection.taps import alignment_taps
from tests import models as M
from tests.backends import collect

pytestmark = pytest.mark.usefixtures("backend")


class _Net(nn.Module):
    """A convolution with BatchNorm and ReLU, a linear layer with ReLU; a module for each tap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu1 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
        self.fc, self.relu2, self.head = nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.conv(x))).flatten(1)
        return self.head(self.relu2(self.fc(x)))


def _nets(count: int = 3) -> list[nn.Module]:
    return [M.randomise(_Net(), seed).double() for seed in range(count)]


def _batches(sizes: tuple[int, ...] = (16, 16, 9)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, 3, 6, 6, generator=generator).double() + 0.5 for s in sizes]


def _hooked(model: Any, name: str, data: list[Tensor]) -> np.ndarray[Any, Any]:
    """Rows of features (samples and pixels, channels) at a module's output."""
    rows: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _i, out: rows.append(out.detach().clone()))
    with torch.no_grad():
        for batch in data:
            model(batch)
    handle.remove()
    return np.concatenate([r.movedim(1, -1).flatten(0, -2).numpy() for r in rows])


@pytest.mark.parametrize(("space", "module"), [("conv", "relu1"), ("fc", "relu2")])
@pytest.mark.parametrize("pairs", ["reference", "all"])
def test_moments_are_those_of_the_activations(space: str, module: str, pairs: Any) -> None:
    models, data = _nets(), _batches()
    collected = collect(models, data, pairs=pairs, reference=1, progress=False)
    moments = collected.pooled(collected.spaces_of(models[0])[space])
    features = [_hooked(m, module, data) for m in models]
    assert moments.count == len(features[0])
    scale = max(f.var() for f in features)
    for i, x in enumerate(features):
        np.testing.assert_allclose(moments.mean(i), x.mean(0), rtol=1e-12, atol=1e-12)
        for j, y in enumerate(features):
            if pairs == "reference" and i != j and 1 not in (i, j):
                continue
            expected = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
            np.testing.assert_allclose(moments.cov(i, j), expected, rtol=1e-10, atol=1e-12 * scale)


def test_repair_taps_hold_the_folded_output() -> None:
    """Before the ReLU: what the BatchNorm gave, as the folded convolution does."""
    models, data = _nets(), _batches()
    collected = collect(models, data, progress=False)
    taps = collected.outputs["conv"]
    (write,) = (t for t in collected.spaces_of(models[0])["conv"].taps if t.kind == "write")
    for i, model in enumerate(models):
        x = _hooked(model, "norm", data)
        np.testing.assert_allclose(taps[write.name].mean(i), x.mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(taps[write.name].cov(i), np.cov(x.T, bias=True), rtol=1e-9)


def test_of_large_maps_other_rows_and_columns_count_in_each_batch() -> None:
    """The folds' batches take turns on their own: the second begins with what the first did."""
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(2)]
    models = [M.randomise(m, seed).double() for seed, m in enumerate(models)]
    data = list(torch.randn(5, 4, 3, 19, 18).double())  # maps of 17 x 16
    collected = collect(models, data, progress=False, folds=2)
    with torch.no_grad():
        maps = [[m[:1](x) for x in data] for m in models]
    starts = [(0, 0), (1, 1), (0, 1)]  # of every second; the batches of a fold come in turn
    for fold, moments in enumerate(collected.matched["0"]):
        for i, own in enumerate(maps):
            turns = zip(own[fold::2], starts, strict=False)
            parts = [v.relu()[:, :, a::2, b::2] for v, (a, b) in turns]
            x = torch.cat([p.movedim(1, -1).flatten(0, -2) for p in parts]).numpy()
            assert moments.count == len(x)
            np.testing.assert_allclose(moments.mean(i), x.mean(0), rtol=1e-10)
            np.testing.assert_allclose(moments.cov(i), np.cov(x.T, bias=True), rtol=1e-9)
    starts = [(0, 0), (1, 1), (2, 2)]  # outputs: every fourth
    (outputs,) = collected.outputs["0"].values()
    for i, own in enumerate(maps):
        parts = [v[:, :, starts[k // 2][0] :: 4, starts[k // 2][1] :: 4] for k, v in enumerate(own)]
        x = torch.cat([p.movedim(1, -1).flatten(0, -2) for p in parts]).numpy()
        np.testing.assert_allclose(outputs.mean(i), x.mean(0), rtol=1e-10)
        np.testing.assert_allclose(outputs.cov(i), np.cov(x.T, bias=True), rtol=1e-9)


def test_a_residual_stream_is_pooled_over_its_taps() -> None:
    models = [M.randomise(M.BottleneckResNet(), s).double() for s in range(2)]
    data = [torch.randn(8, 3, 8, 8).double()]
    collected = collect(models, data, progress=False)
    space = collected.spaces_of(models[0])["blocks.2.downsample.0"]
    names = ["blocks.2", "blocks.3"]  # both end with a ReLU
    assert len(alignment_taps(space)) == len(names)
    features = [np.concatenate([_hooked(m, n, data) for n in names]) for m in models]
    moments = collected.pooled(space)
    x, y = (f - f.mean(0) for f in features)
    np.testing.assert_allclose(moments.cov(0, 1), x.T @ y / len(x), rtol=1e-9, atol=1e-11)
    before = [m.count for m in collected.matched[space.name]]
    collected.pooled(space)  # pooling must not add to what is kept
    assert [m.count for m in collected.matched[space.name]] == before


def test_the_split_into_batches_does_not_matter() -> None:
    models, data = _nets(2), torch.cat(_batches())
    whole = collect(models, [data], progress=False)
    parts = collect(models, data.split([1, 20, 2, 18]), progress=False)
    assert whole.samples == parts.samples == 41
    for space in whole.spaces_of(models[0]):
        one, two = whole.pooled(space), parts.pooled(space)
        for pair in ((0, 0), (1, 1), (0, 1)):
            np.testing.assert_allclose(one.cov(*pair), two.cov(*pair), rtol=1e-9, atol=1e-12)


def test_data_is_read_once_and_labels_are_ignored() -> None:
    class Once:
        read = 0

        def __iter__(self) -> Iterator[Any]:
            Once.read += 1
            assert Once.read == 1, "data was read twice"
            for batch in _batches():
                yield batch, "no label at all"

    models = _nets(2)
    labelled = collect(models, Once(), progress=False)
    plain = collect(models, iter(_batches()), progress=False)
    for space in plain.spaces_of(models[0]):
        assert np.array_equal(labelled.pooled(space).cov(0, 1), plain.pooled(space).cov(0, 1))


def test_saving_and_loading_is_exact(tmp_path: Path) -> None:
    models, data = _nets(), _batches()
    collected = collect(models, data, pairs="all", reference=2, progress=False)
    path = tmp_path / "moments.safetensors"
    collected.save(path)
    loaded = Statistics.load(path)
    assert (loaded.models, loaded.samples, loaded.pairs, loaded.reference) == (3, 41, "all", 2)
    assert loaded.fingerprint == collected.fingerprint
    found = loaded.spaces_of(models[0])
    assert [s.name for s in found] == [s.name for s in collected.spaces_of(models[0])]
    for space in found:
        pairs = list(zip(collected.matched[space.name], loaded.matched[space.name], strict=True))
        outputs = collected.outputs[space.name]
        pairs += [(moments, loaded.outputs[space.name][tap]) for tap, moments in outputs.items()]
        for one, two in pairs:
            other = two.state_dict()
            for key, value in one.state_dict().items():
                assert np.array_equal(value, other[key]), (space.name, key)
    assert collected.turns == loaded.turns
    assert sorted(loaded.turns) == [0, 0, 1]  # of two folds
    for one, two in zip(collected.inputs, loaded.inputs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_loading_another_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a file of collected moments"):
        Statistics.load(path)
    save_file({"w": torch.zeros(2)}, path, {"format": "ccamerge-moments-3"})
    with pytest.raises(ValueError, match=r"'ccamerge-moments-3', but .*-6': collect again"):
        Statistics.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such file"):
        Statistics.load(tmp_path / "absent.safetensors")


def test_the_size_does_not_depend_on_the_data() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    collected = collect(models, (torch.randn(300, 12) for _ in range(20)), progress=False)
    assert sum(len(leaves[0]) for leaves in collected.inputs) <= KEEP_SAMPLES
    assert collected.samples == 6000


@pytest.mark.parametrize("sizes", [[256] * 30 + [100], [1] * 50 + [900] * 9, [3000, 10, 10], [7]])
def test_the_reservoir_is_bounded_whatever_the_sizes(sizes: list[int]) -> None:
    for seed in range(20):
        reservoir = Reservoir(1024, 1 << 40, seed)
        for size in sizes:
            reservoir.offer([torch.zeros(size)], size)
            held = [len(leaves[0]) for leaves in reservoir.batches]
            assert held
            assert sum(held) <= 1024 or len(held) == 1


def test_the_reservoir_is_bounded_in_bytes() -> None:
    for seed in range(20):
        reservoir = Reservoir(1024, 4 * 100, seed)
        for size in (30, 70, 20, 500, 40):
            reservoir.offer([torch.zeros(size), "no tensor"], size)
            held = [len(leaves[0]) for leaves in reservoir.batches]
            assert held
            assert sum(held) <= 100 or len(held) == 1


def test_the_reservoir_is_uniform() -> None:
    """4 of 12 batches: each in a third of 3,000 draws, within five standard deviations."""
    counts = np.zeros(12)
    for seed in range(3000):
        reservoir = Reservoir(40, 1 << 40, seed)
        for index in range(12):
            reservoir.offer([torch.full((10,), index)], 10)
        assert len(reservoir.batches) == 4
        for (leaf,) in reservoir.batches:
            counts[int(leaf[0])] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(3000 * (1 / 3) * (2 / 3))


def test_kept_inputs_are_copies() -> None:
    models, buffer = [M.randomise(M.MLP(), s) for s in range(2)], torch.empty(8, 12)

    def reused() -> Iterator[Tensor]:  # a loader that fills one buffer again and again
        for index in range(3):
            yield buffer.fill_(float(index))

    collected = collect(models, reused(), progress=False, folds=2)
    kept = [float(leaves[0][0, 0]) for leaves in collected.inputs]
    assert {*zip(kept, collected.turns, strict=True)} == {(0.0, 0), (1.0, 0), (2.0, 1)}


def test_a_reference_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"reference must be in 0\.\.1, got 5"):
        collect(_nets(2), _batches(), reference=5, progress=False)


def test_known_spaces_are_not_derived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    models, data = _nets(2), _batches()
    found = ccamerge.spaces(models[0], data[0])
    monkeypatch.setattr("ccamerge.collection.data_pass.spaces_of_models", None)
    collected = collect(models, data, found=found, progress=False)
    assert collected.spaces_of(models[1]) is found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_may_round_folded_norms(dtype: torch.dtype) -> None:
    models = [M.randomise(M.vgg11(True, width=2, size=16), s).to(dtype) for s in range(2)]
    data = [torch.randn(16, 3, 16, 16).to(dtype)]
    collected = collect(models, data, progress=False)
    assert collected.samples == 16
