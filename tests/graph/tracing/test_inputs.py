"""Inputs of other sizes in later batches, without a batch axis, or frozen by the forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.tracing.program import trace
from tests import models as M

R = torch.randn


class _Net(nn.Module):
    """Two linear layers over the last axis, with something done to the input before."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.a, self.b, self.before = nn.Linear(5, 8), nn.Linear(8, 3), before

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(self.before(x))))


def _pair(build: Callable[[], nn.Module]) -> list[Any]:
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(M.randomise(build(), seed).double())
    return models


def _equal(a: ccamerge.MergeResult, b: ccamerge.MergeResult, tolerance: float = 1e-9) -> None:
    one, two = a.model.state_dict(), b.model.state_dict()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=tolerance, atol=tolerance)


def _same_moments(a: ccamerge.Statistics, b: ccamerge.Statistics, model: nn.Module) -> None:
    for space in a.spaces_of(model):
        for pair in ((0, 0), (1, 1), (0, 1)):
            one, two = (c.pooled(space).cov(*pair) for c in (a, b))
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.view(len(x), -1),
        lambda x: x.reshape(int(x.shape[0]), 5),
        lambda x: x * (1.0 if x.shape[0] == 30 else 1),
        lambda x: x + x.new_zeros(len(x), 1),
    ],
)
def test_a_frozen_batch_size_is_traced_anew_for_each(before: Any) -> None:
    data = [R(n, 5).double() for n in (30, 30, 7, 30, 1)]
    frozen = ccamerge.collect(_pair(lambda: _Net(before)), data, progress=False)
    free = ccamerge.collect(_pair(_Net), data, progress=False)
    assert frozen.samples == 98
    _same_moments(frozen, free, _pair(lambda: _Net(before))[0])


def test_merging_from_batches_of_frozen_sizes(tmp_path: Path) -> None:
    models, plain = _pair(lambda: _Net(lambda x: x.view(len(x), -1))), _pair(_Net)
    data = [R(n, 5).double() for n in (40, 40, 9)]
    result = ccamerge.merge(models, data, progress=False)
    _equal(result, ccamerge.merge(plain, data, progress=False))
    result.statistics.save(tmp_path / "m.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "m.safetensors")
    _equal(ccamerge.merge(models, statistics=loaded, progress=False), result)


def test_a_batch_size_that_is_a_number_in_forward() -> None:
    models = _pair(lambda: _Net(lambda x: x.reshape(32, 5)))
    ccamerge.collect(models, [R(32, 5).double()] * 2, progress=False)
    with pytest.raises(ValueError, match=r"batch 1: .*\(7, 5\).*forward freezes the batch size 32"):
        ccamerge.collect(models, [R(32, 5).double(), R(7, 5).double()], progress=False)


def test_more_sizes_than_are_traced() -> None:
    models = _pair(lambda: _Net(lambda x: x.view(len(x), -1)))
    with pytest.raises(ValueError, match=r"batch 16: .*a trace of its own for each.*16 were made"):
        ccamerge.collect(models, [R(n, 5).double() for n in range(20, 50)], progress=False)


def test_a_batch_of_one_that_forward_treats_otherwise() -> None:
    models = _pair(lambda: _Net(lambda x: torch.cat(x.chunk(2))))
    data = [R(n, 5).double() for n in (6, 5, 1)]
    ccamerge.collect(models, data[:2], progress=False)
    with pytest.raises(ValueError, match="batch 2: input 'x' has a size of one along axis 0"):
        ccamerge.collect(models, data, progress=False)


class _Messages(nn.Module):
    """A graph network by a list of edges or an adjacency matrix."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.dense = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
            dense,
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.dense:
            return self.c(torch.relu(self.b(edges @ x @ self.a.weight.T)) + h)
        total = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.c(torch.relu(self.b(torch.relu(self.a(total)) + h)))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("sizes", [(40, 40), (40, 31, 52), (4, 40)])
def test_graphs_of_any_size(dense: bool, sizes: tuple[int, ...]) -> None:
    """No axis of the edges is one of samples; features are those of a plain run."""
    generator = torch.Generator().manual_seed(1)
    graphs = []
    for n in sizes:
        edges = torch.randint(n, (2, 3 * n), generator=generator)
        ones = torch.ones(3 * n).double()
        matrix = torch.zeros(n, n).double().index_put_((edges[1], edges[0]), ones, True)
        graphs.append((torch.randn(n, 5, generator=generator).double(), matrix if dense else edges))
    models = _pair(lambda: _Messages(dense))
    collected = ccamerge.collect(models, [(graph, 0) for graph in graphs], progress=False)
    assert collected.samples == sum(sizes)
    found = collected.spaces_of(models[0])
    for graph in graphs:
        leaves = found.program.flatten_inputs(graph, {})
        out = found.program.run(models[0].state_dict(), leaves)
        torch.testing.assert_close(out, models[0](*graph))
    merged = ccamerge.merge(
        models, [(graph, 0) for graph in graphs], weights=[1, 0], progress=False
    )
    for graph in graphs:
        torch.testing.assert_close(merged.model(*graph), models[0](*graph))


class _Table(nn.Module):
    """Inputs of no samples beside some: a scalar, a table of positions, a number, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, t: Tensor, table: Tensor, times: int, mask: Any = None) -> Tensor:
        h = torch.relu(self.a(x) + table) * t
        return self.b(h if mask is None else h * mask) * times


def test_inputs_without_a_batch_axis() -> None:
    models = _pair(_Table)
    data = [
        {"x": R(n, 7, 5).double(), "t": torch.tensor(t), "table": R(7, 8).double(), "times": k}
        for n, t, k in ((6, 0.5, 2), (4, 2.0, 2), (4, 1.0, 3))
    ]
    result = ccamerge.merge(models, data, weights=[0, 1], progress=False)
    assert result.statistics.samples in (14, 21)
    batch = data[0]
    merged, reference = result.model, models[1]
    result = ccamerge.merge(models, data, reference=1, weights=[0, 1], progress=False)
    torch.testing.assert_close(result.model(**batch), reference(**batch))
    assert merged(**batch).shape == (6, 7, 3)


def test_another_constant_takes_another_trace() -> None:
    """The number is in the trace: a program for 2 must not run what was given 3."""
    model = M.randomise(_Table())
    x, table = R(4, 7, 5), R(7, 8)
    program = trace(model, (x, torch.tensor(1.0), table, 2))
    with pytest.raises(ValueError, match="input 'times' is 3, expected 2"):
        program.run(model.state_dict(), [x, torch.tensor(1.0), table, 3])


_CONVOLUTIONS = {
    "sequences": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 6, 3, stride=2), nn.ReLU(),
            nn.Conv1d(6, 2, 1),
        ),
        [(3, 4, 30), (3, 4, 41), (2, 4, 700), (2, 4, 30)],
    ),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        ),
        [(4, 3, 12, 12), (4, 3, 12, 17), (3, 3, 40, 9), (4, 3, 12, 12)],
    ),
    "upsampled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 1)
        ),
        [(4, 3, 12, 12), (4, 3, 8, 20)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _CONVOLUTIONS)
@pytest.mark.parametrize("repair", ["regression", "variance"])
def test_maps_of_several_sizes(kind: str, repair: Any, tmp_path: Path) -> None:
    build, shapes = _CONVOLUTIONS[kind]
    models = _pair(build)
    data = [R(*shape).double() for shape in shapes]
    result = ccamerge.merge(models, data, repair=repair, progress=False)
    assert result.report.walked == sum(shape[0] for shape in shapes)
    for i, model in enumerate(models):
        alone = ccamerge.merge(models, data, reference=i, weights=[1 - i, i], progress=False).model
        for x in data:
            torch.testing.assert_close(alone(x), model.eval()(x), rtol=1e-6, atol=1e-6)
    result.statistics.save(tmp_path / "m.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "m.safetensors")
    _equal(ccamerge.merge(models, statistics=loaded, repair=repair, progress=False), result)


def test_one_batch_in_two_sizes_is_counted_as_by_itself() -> None:
    """Moments over batches of two lengths are those of the lengths, one after the other."""
    models = _pair(_CONVOLUTIONS["sequences"][0])
    data = [R(4, 4, 20).double(), R(5, 4, 33).double()]
    both = ccamerge.collect(models, data, folds=1, progress=False)
    alone = [ccamerge.collect(models, [x], folds=1, progress=False) for x in data]
    for space in both.spaces_of(models[0]):
        total = alone[0].pooled(space)
        total.merge(alone[1].pooled(space))
        np.testing.assert_allclose(both.pooled(space).cov(0, 1), total.cov(0, 1), rtol=1e-9)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 8), nn.Parameter(torch.randn(40, 8))
        self.a, self.b, self.out = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids) + self.place[: ids.shape[1]]
        h = h + self.b(torch.relu(self.a(h)))
        return self.out((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def test_tokens_of_several_lengths_need_one_trace() -> None:
    models = _pair(_Tokens)
    data = [
        {"ids": torch.randint(20, (n, length)), "mask": torch.ones(n, length).double()}
        for n, length in ((6, 9), (6, 14), (5, 3), (5, 1))
    ]
    result = ccamerge.merge(models, data, progress=False)
    assert not result.spaces.program.variants
    assert result.statistics.samples == 22


def test_what_a_size_is_not_taken_for_is_said() -> None:
    models = _pair(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    )
    with pytest.raises(ValueError, match=r"batch 1: .*\(2, 3, 9, 8\), expected \(batch, 3, 8, 8\)"):
        ccamerge.collect(models, [R(2, 3, 8, 8).double(), R(2, 3, 9, 8).double()], progress=False)


def test_a_loop_over_a_length_is_another_network_for_each() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(sum(torch.relu(self.a(x[:, t])) for t in range(x.shape[1])))  # type: ignore[arg-type]

    models = _pair(Loop)
    ccamerge.collect(models, [R(6, 3, 5).double()] * 2, progress=False)
    with pytest.raises(ValueError, match=r"batch 1: .*something else with inputs of these sizes"):
        ccamerge.collect(models, [R(6, 3, 5).double(), R(6, 4, 5).double()], progress=False)
