"""Distances from the ensemble beside NumPy's, and what they may decide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ccamerge import spaces
from ccamerge.core.device import memory_of
from ccamerge.fidelity.judging import Judge, closer
from ccamerge.fidelity.reading import Reading, reading_of
from ccamerge.graph.networks.network import Network, networks_of
from ccamerge.graph.networks.parameters import parameters_of
from tests import models as M


def _networks(
    make: Any, data: Any, count: int = 3
) -> tuple[list[nn.Module], list[Network], Reading]:
    models = [M.randomise(make(), seed).double() for seed in range(count)]
    known = [parameters_of(model, "model") for model in models]
    found = spaces(models[0], data)
    reading = reading_of(found.program, None)
    assert reading is not None
    return models, networks_of(known, [found] * count, memory_of(None)), reading


def test_divergence_is_that_of_numpy() -> None:
    data = [torch.randn(n, 12, dtype=torch.float64) for n in (7, 9)]
    models, networks, reading = _networks(M.MLP, data[0])
    weights = (0.5, 0.3, 0.2)
    judge = Judge(networks, [[x] for x in data], reading, weights)
    outputs = [model(torch.cat(data)).softmax(-1).detach().numpy() for model in models]
    ensemble = sum(w * p for w, p in zip(weights, outputs, strict=True))
    for own, found in zip(outputs, judge.members, strict=True):
        want = (ensemble * (np.log(ensemble) - np.log(own))).sum(-1)
        np.testing.assert_allclose(found.numpy(), want, rtol=1e-10)
    again = judge.distances(networks[1].program, networks[1].state)
    np.testing.assert_allclose(again.numpy(), judge.members[1].numpy(), rtol=1e-12)


def test_squared_errors_are_over_the_ensembles_variance() -> None:
    data = [torch.randn(n, 12, dtype=torch.float64) for n in (7, 9)]
    models, networks, reading = _networks(lambda: nn.Sequential(M.MLP(), nn.Tanh()), data[0], 2)
    assert reading.mean == "outputs"
    judge = Judge(networks, [[x] for x in data], reading, (0.5, 0.5))
    outputs = [model(torch.cat(data)).detach().numpy() for model in models]
    ensemble = sum(outputs) / 2
    scale = ensemble.var(0).mean()
    for own, found in zip(outputs, judge.members, strict=True):
        np.testing.assert_allclose(found.numpy(), ((own - ensemble) ** 2).mean(1) / scale)


class _Two(nn.Module):
    """Outputs of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.small, self.large = nn.Linear(12, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.small(hidden), 1e6 * self.large(hidden)


def test_several_outputs_count_alike_whatever_their_size() -> None:
    data = torch.randn(40, 12, dtype=torch.float64)
    models, networks, reading = _networks(_Two, data, 2)
    judge = Judge(networks, [[data]], reading, (0.5, 0.5))
    parts = []
    for place in range(2):
        outputs = [model(data)[place].detach().numpy() for model in models]
        ensemble = sum(outputs) / 2
        parts.append(((outputs[0] - ensemble) ** 2).mean(1) / ensemble.var())
    np.testing.assert_allclose(judge.members[0].numpy(), sum(parts) / 2)


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids).relu() * attention_mask[..., None])


def test_padding_does_not_count() -> None:
    ids = torch.randint(0, 9, (6, 7))
    mask = torch.ones(6, 7, dtype=torch.int64)
    mask[2:, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    models, networks, reading = _networks(_Tagger, batch, 2)
    judge = Judge(networks, [[ids, mask]], reading, (0.5, 0.5))
    logs = [model(ids, mask).log_softmax(-1) for model in models]
    ensemble = torch.stack(logs).exp().mean(0)
    error = (ensemble * (ensemble.log() - logs[0])).sum(-1)
    want = torch.stack([row[kept > 0].mean() for row, kept in zip(error, mask, strict=True)])
    torch.testing.assert_close(judge.members[0], want.detach())


def test_what_is_no_number_is_infinitely_far() -> None:
    data = torch.randn(8, 12, dtype=torch.float64)
    _, networks, reading = _networks(M.MLP, data, 2)
    judge = Judge(networks, [[data]], reading, (0.5, 0.5))
    broken = {key: value * math.nan for key, value in networks[0].state.items()}
    found = judge.distances(networks[0].program, broken)
    assert bool((found == math.inf).all())
    assert not closer(found, judge.members[0])
    assert closer(judge.members[0], found)


def test_inputs_that_are_all_alike_tell_nothing() -> None:
    data = torch.randn(1, 12, dtype=torch.float64).expand(9, 12)
    _, networks, reading = _networks(M.MLP, torch.randn(4, 12, dtype=torch.float64), 2)
    assert "same prediction" in Judge(networks, [[data]], reading, (0.5, 0.5)).alike()
    data = torch.randn(40, 12, dtype=torch.float64)
    assert not Judge(networks, [[data]], reading, (0.5, 0.5)).alike()


def test_inputs_of_one_class_tell_little() -> None:
    _, networks, reading = _networks(M.MLP, torch.randn(4, 12, dtype=torch.float64), 2)
    data = torch.randn(400, 12, dtype=torch.float64)
    with torch.no_grad():
        classes = sum(n.program.run(n.state, [data]).softmax(-1) for n in networks).argmax(-1)
    common = int(classes.bincount().argmax())
    judge = Judge(networks, [[data[classes == common]]], reading, (0.5, 0.5))
    assert f"class {common}" in judge.alike()


def test_one_input_decides_nothing() -> None:
    assert not closer(torch.zeros(1), torch.ones(1))


@given(st.integers(2, 60), st.integers(0, 10_000))
def test_chance_decides_nothing_most_of_the_time(count: int, seed: int) -> None:
    """Nothing is closer than itself, nor two networks each closer than the other."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, count, generator=generator, dtype=torch.float64)
    assert not closer(one, one)
    assert not (closer(one, other) and closer(other, one))
    assert closer(one - 200, other)


def test_five_of_a_hundred_are_called_closer_by_chance() -> None:
    """The level of the test that decides: 5 % of 4,000 draws, within four standard deviations."""
    draws = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = sum(closer(row, torch.zeros(12)) for row in draws) / len(draws)
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / len(draws))


def test_outputs_of_another_shape_are_refused() -> None:
    data = torch.randn(8, 12, dtype=torch.float64)
    _, networks, reading = _networks(M.MLP, data, 2)
    judge = Judge(networks, [[data]], reading, (0.5, 0.5))
    with pytest.raises(ValueError, match="shape"):
        judge.of_outputs([torch.zeros(8, 4)])
