"""What is held out is counted nowhere, and there is as much of it as there should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge import collect, spaces
from ccamerge.collection.held_out import are_apart
from tests import models as M


def _pair() -> list[nn.Module]:
    return [M.randomise(M.MLP(), seed) for seed in range(2)]


def _inputs(batches: list[list[Any]]) -> Tensor:
    return torch.cat([leaves[0] for leaves in batches]) if batches else torch.zeros(0, 12)


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([40] * 5, 50),  # a quarter of few
        ([250] * 8, 200),  # two hundred, until a tenth is more
        ([500] * 8, 400),
        ([20000, 20000], 1024),  # no more than tells anything
        ([2], 0),
        ([3], 0),
        ([10], 2),
        ([1] * 20, 5),  # whole batches, where there is but one input
        ([1000], 200),
    ],
)
def test_a_share_of_the_inputs_is_held_out(sizes: list[int], held: int) -> None:
    data = [torch.randn(size, 12) for size in sizes]
    found = collect(_pair(), data, progress=False, holdout=0.1)
    assert len(_inputs(found.held)) == held
    assert found.samples == sum(sizes) - held


def test_the_rest_is_counted_and_nothing_else() -> None:
    models, data = _pair(), [torch.randn(60, 12) for _ in range(4)]
    found = collect(models, data, progress=False, holdout=0.1)
    kept, held = _inputs(found.inputs), _inputs(found.held)
    rows = {tuple(row.tolist()) for row in torch.cat(data)}
    one, other = ({tuple(row.tolist()) for row in x} for x in (kept, held))
    assert not one & other
    assert one | other == rows
    hidden = models[0].layers[0](kept).relu().detach().double().numpy()
    space = found.spaces_of(models[0])["layers.0"]
    covariance = found.pooled(space).cov(0)
    np.testing.assert_allclose(covariance, np.cov(hidden.T, bias=True), rtol=1e-4, atol=1e-6)


def test_the_same_inputs_are_held_out_again() -> None:
    data = [torch.randn(50, 12) for _ in range(4)]
    one, two = (collect(_pair(), data, progress=False, holdout=0.1) for _ in range(2))
    torch.testing.assert_close(_inputs(one.held), _inputs(two.held), rtol=0, atol=0)


class _AcrossSamples(nn.Module):
    """Each output depends on all samples of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden - hidden.mean(0, keepdim=True))


def test_batches_whose_samples_are_not_apart_are_held_out_whole() -> None:
    models = [M.randomise(_AcrossSamples(), seed) for seed in range(2)]
    data = [torch.randn(20, 12) for _ in range(20)]
    found = collect(models, data, progress=False, holdout=0.1)
    assert {len(leaves[0]) for leaves in found.held} == {20}
    assert 0 < sum(len(leaves[0]) for leaves in found.held) <= 100
    assert not any(torch.equal(leaves[0], data[0]) for leaves in found.held)


def test_several_inputs_are_split_alike() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.last((self.one(x) + self.two(y)).relu())

    models = [M.randomise(Two(), seed) for seed in range(2)]
    mark = torch.arange(200.0)
    data = [(torch.cat([mark[:, None], torch.randn(200, 3)], 1), mark[:, None].expand(200, 6))]
    found = collect(models, data, progress=False, holdout=0.1)
    (leaves,) = found.held
    torch.testing.assert_close(leaves[0][:, 0], leaves[1][:, 0])


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    found = collect(_pair(), [torch.randn(64, 12)], progress=False, holdout=0.0)
    assert found.held == []
    assert found.samples == 64


def test_held_out_inputs_are_saved_with_the_statistics(tmp_path: Any) -> None:
    found = collect(_pair(), [torch.randn(64, 12)], progress=False, holdout=0.1)
    found.save(tmp_path / "statistics.safetensors")
    again = ccamerge.Statistics.load(tmp_path / "statistics.safetensors")
    torch.testing.assert_close(_inputs(again.held), _inputs(found.held), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [-0.1, 0.6, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="holdout"):
        collect(_pair(), [torch.randn(64, 12)], progress=False, holdout=wrong)


class _Graph(nn.Module):
    """Nodes, and pairs of them that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        joined = torch.zeros_like(hidden).index_add(0, edges[:, 1], hidden[edges[:, 0]])
        return self.last(hidden + joined)


def test_a_graph_with_as_many_edges_as_nodes_is_not_split() -> None:
    models = [M.randomise(_Graph(), seed) for seed in range(2)]
    sizes = [(30, 30), (30, 60)] * 10
    data = [(torch.randn(n, 12), torch.randint(0, n, (e, 2))) for n, e in sizes]
    found = collect(models, data, progress=False, holdout=0.1)
    assert found.held
    assert {len(leaves[0]) for leaves in found.held} == {30}


class _Pairs(nn.Module):
    """How well each of one kind goes with each of another (samples, samples)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(6, 8)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(self.one(x).relu()) @ self.two(y).relu().T


@pytest.mark.parametrize("size", [2, 20])
def test_what_compares_samples_is_not_split(size: int) -> None:
    models = [M.randomise(_Pairs(), seed) for seed in range(2)]
    data = [(torch.randn(size, 12), torch.randn(size, 6)) for _ in range(20)]
    found = collect(models, data, progress=False, holdout=0.1)
    assert {len(leaves[0]) for leaves in found.held} == {size}


class _Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).squeeze()


@pytest.mark.parametrize("size", [2, 3, 12])
def test_no_input_is_held_out_alone_of_a_larger_batch(size: int) -> None:
    models = [M.randomise(_Squeezed(), seed) for seed in range(2)]
    data = [torch.randn(size, 12) for _ in range(20)]
    found = collect(models, data, progress=False, holdout=0.1)
    assert found.held
    assert all(len(leaves[0]) > 1 for leaves in found.held)


def test_outputs_that_are_never_finite_are_apart_all_the_same() -> None:
    """Classes that are masked for some inputs have scores of minus infinity."""

    class Masked(M.MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(x[:, :5] > 1, -torch.inf)

    model, data = M.randomise(Masked(), 0), torch.randn(40, 12)
    program = spaces(model, torch.full((8, 12), -1.0)).program
    assert not bool(model(data).isfinite().all())
    assert are_apart(program, model.state_dict(), [data])
