from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.tracing.lockstep import lockstep
from ccamerge.repair import repairing as repair
from ccamerge.repair.repairing import walked_inputs
from tests import models as M
from tests.backends import channel_statistics, merge

pytestmark = pytest.mark.usefixtures("backend")


def _merge(build: Any, shape: tuple[int, ...], **settings: Any) -> ccamerge.MergeResult:
    models = [M.randomise(build(), s).double() for s in range(2)]
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(16, *shape, generator=generator).double() for _ in range(3)]
    return merge(models, data, progress=False, **settings)


def _taps(result: ccamerge.MergeResult) -> dict[str, tuple[Tensor, Tensor]]:
    """Each tap's mean and deviation in the merged model, on the kept inputs."""
    program = result.spaces.program
    state = folded_state(result.model.state_dict(), result.spaces.folds)
    wanted = {r.tap for r in result.report.repaired}
    found = {}
    with torch.inference_mode():
        for name, values in lockstep([(program, state, x) for x in result.statistics.inputs]):
            if name in wanted:
                found[name] = channel_statistics(values, 1, result.statistics.turns)
    return found


CASES = {
    "mlp": (M.MLP, (12,)),
    "vgg": (lambda: M.vgg11(False, width=2, size=16), (3, 16, 16)),
    "vgg-bn": (lambda: M.vgg11(True, width=2, size=16), (3, 16, 16)),
    "bottleneck": (M.BottleneckResNet, (3, 8, 8)),
    "dense": (M.DenseBlockNet, (3, 8, 8)),
    "depthwise": (M.DepthwiseSeparable, (3, 8, 8)),
}


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.8, 0.2]])
@pytest.mark.parametrize("name", CASES)
def test_every_tap_has_the_statistics_of_its_target(name: str, weights: list[float]) -> None:
    build, shape = CASES[name]
    result = _merge(build, shape, weights=weights, repair="variance")
    measured = _taps(result)
    assert measured
    # Without a bias there is nothing to absorb a shift: dense blocks' convolutions have none.
    biased = {n.name: n.argument(2, "bias") is not None for n in result.spaces.program.nodes}
    assert name == "dense" or all(biased[tap] for tap in measured)
    for space in result.spaces:
        for tap in (t for t in space.taps if t.name in measured and t.start == 0):
            mean, std = measured[tap.name]
            if len(mean) != space.size:
                continue  # a concatenation of spaces
            moments = result.statistics.outputs[space.name][tap.name]
            target_mean = torch.zeros_like(mean)
            target_std = torch.zeros_like(std)
            for i, (m, weight) in enumerate(zip(result.maps[space.name], weights, strict=True)):
                covariance = torch.from_numpy(moments.cov(i))
                target_mean += weight * torch.from_numpy(moments.mean(i)) @ m.forward
                target_std += weight * (m.forward.T @ covariance @ m.forward).diagonal().sqrt()
            alive = (target_std > 1e-9) & (std > 0)  # the average may have lost a channel's signal
            scale = target_std.max()
            torch.testing.assert_close(std[alive], target_std[alive], rtol=1e-7, atol=1e-9)
            if biased[tap.node]:
                torch.testing.assert_close(mean, target_mean, rtol=1e-7, atol=float(1e-9 * scale))


def test_the_report_says_what_averaging_lost_and_what_is_there_now() -> None:
    result = _merge(*CASES["vgg-bn"], repair="variance")
    assert all(0 < r.before < 2 for r in result.report.repaired)
    assert min(r.before for r in result.report.repaired) < 0.95
    assert all(r.after == pytest.approx(1.0) for r in result.report.repaired)


def test_without_repair_nothing_is_changed() -> None:
    result = _merge(*CASES["mlp"], repair="none")
    assert result.report.repaired == []


def test_dead_and_vanished_channels() -> None:
    """No signal to restore: nothing blows up, and the mean is still set."""
    build, shape = CASES["vgg-bn"]
    models: Any = [M.randomise(build(), s).double() for s in range(2)]
    with torch.no_grad():
        for model in models:
            model[0][1].weight[0] = 0.0  # constant after the norm
        models[1][0][5].weight[:3] = 0.0  # constant in one model, all channels but one
    data = [torch.randn(32, *shape).double()]
    result = merge(models, data, progress=False)
    assert all(torch.isfinite(v).all() for v in result.model.state_dict().values())
    assert torch.isfinite(result.model(data[0])).all()


def test_a_space_that_is_constant_altogether_keeps_its_basis() -> None:
    build, shape = CASES["vgg-bn"]
    models: Any = [M.randomise(build(), s).double() for s in range(2)]
    with torch.no_grad():
        models[1][0][5].weight[:] = 0.0
    result = merge(models, [torch.randn(32, *shape).double()], progress=False)
    forward = result.maps["0.4"][1].forward
    assert torch.equal(forward, torch.eye(len(forward), dtype=torch.float64))
    assert all(v.isfinite().all() for v in result.model.state_dict().values())


def test_channel_statistics() -> None:
    values = [torch.randn(4, 3, 5, dtype=torch.float64) + 100 for _ in range(3)]
    whole = torch.cat(values).movedim(1, 0).flatten(1)
    mean, std = channel_statistics(values, 1)
    torch.testing.assert_close(mean, whole.mean(1))
    torch.testing.assert_close(std, whole.std(1, correction=0))


def test_channel_statistics_of_the_positions_that_count() -> None:
    values = [torch.randn(4, 3, 9, 10, dtype=torch.float64) for _ in range(2)]
    parts = [values[0][:, :, 1::2, 1::2], values[1][:, :, ::2, 1::2]]
    whole = torch.cat([p.movedim(1, 0).flatten(1) for p in parts], 1)
    mean, std = channel_statistics(values, 1, [1, 2])
    torch.testing.assert_close(mean, whole.mean(1))
    torch.testing.assert_close(std, whole.std(1, correction=0))


def test_channel_statistics_with_a_large_mean_in_float32() -> None:
    value = torch.randn(1000, 2) + 1e4
    _, std = channel_statistics([value], 1)
    expected = value.double().std(0, correction=0)
    torch.testing.assert_close(std, expected, rtol=1e-3, atol=0.0)


def test_the_walk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = M.vgg11(False)
    program = spaces(model, torch.randn(2, 3, 32, 32)).program
    batches = [[torch.randn(10, 3, 32, 32)] for _ in range(6)]
    assert len(walked_inputs([program], batches)) == 6
    # The peak is in the first block: input of a ReLU and its output, 8 channels at 32 x 32.
    peak = 4 * 2 * 8 * 32 * 32
    for limit, count in ((6 * 10 * peak, 6), (35 * peak, 3), (1, 1)):
        monkeypatch.setattr(repair, "WALK_BYTES", limit)
        assert len(walked_inputs([program], batches)) == count


@pytest.mark.parametrize("bound", [1, 16 * 4 * 250, 2 << 30])
def test_a_merge_says_how_many_inputs_were_walked(
    bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "WALK_BYTES", bound)
    seen = []
    real = repair.lockstep

    def watched(runs: Any) -> Any:
        seen.append(sum(len(leaves[0]) for _, _, leaves in runs))
        return real(runs)

    monkeypatch.setattr(repair, "lockstep", watched)
    report = _merge(*CASES["mlp"], repair="regression").report
    assert seen == [3 * report.walked]  # the merged network and two models
    assert report.kept == 48
    # Live at the second layer, of three networks: its input and output; and 3 outputs to fit it.
    assert report.walked == max(16, min(48, bound // (4 * (3 * 32 + 3 * 16)) // 16 * 16))
    told = f"{report.walked} of 48 kept inputs" in str(report)
    assert told == (report.walked < 48)


def test_a_walk_over_fewer_inputs_still_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "WALK_BYTES", 1)
    result = _merge(*CASES["mlp"])
    assert all(r.after == pytest.approx(1.0) for r in result.report.repaired)


def test_a_layer_used_twice_is_not_rescaled() -> None:
    """Its two outputs have different targets, one weight cannot serve both."""
    models = [M.randomise(M.TiedAutoencoder(), s).double() for s in range(2)]
    data = [torch.randn(64, 10).double()]
    result = merge(models, data, progress=False)
    plain = merge(models, statistics=result.statistics, repair="none", progress=False)
    for key in ("middle.weight", "encode.weight"):
        assert torch.equal(result.model.state_dict()[key], plain.model.state_dict()[key])


def test_linear_without_bias() -> None:
    class NoBias(M.MLP):
        def __init__(self) -> None:
            super().__init__(bias=False)

    result = _merge(NoBias, (12,))
    for _, (_, std) in _taps(result).items():
        assert torch.isfinite(std).all()
    assert all(r.after == pytest.approx(1.0) for r in result.report.repaired)
    assert isinstance(result.model, nn.Module)
