"""Heads tied to embeddings are given weights of their own where that is asked for."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.groups import ORTHOGONAL_FIXING_ONES, PERMUTATION
from ccamerge.graph.tracing.untying import keep_untied, tied_heads, untied
from tests import models as M

WORDS, WIDTH = 13, 6


class Language(nn.Module):
    """A stream under norms with gains, from an embedding to a head, with a configuration."""

    def __init__(self, tied: bool = True, scales: bool = False) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(tie_word_embeddings=tied)
        self.scales = scales
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = self.last(x + self.down(torch.tanh(self.up(self.norm(x)))))
        if self.scales and self.config.tie_word_embeddings:  # as T5 does
            x = x * WIDTH**-0.5
        found: Tensor = self.head(x)
        return found


def _models(**how: bool) -> list[nn.Module]:
    return [M.randomise(Language(**how), seed).double() for seed in range(2)]


def _data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(WORDS, (8, 5), generator=generator) for _ in range(3)]


def test_heads_are_what_shares_an_embedding() -> None:
    assert list(tied_heads(Language())) == ["head.weight"]
    assert tied_heads(Language(tied=False)) == {}
    assert tied_heads(M.TiedAutoencoder()) == {}  # ties of other layers are no business of this
    twice = nn.ModuleList([nn.Embedding(5, 4), nn.Embedding(5, 4), nn.Linear(4, 5)])
    twice[1].weight = twice[2].weight = twice[0].weight
    assert list(tied_heads(twice)) == ["2.weight"]
    other = untied(twice, "models[0]")
    assert other[0].weight is other[1].weight
    assert other[2].weight is not other[0].weight


def test_a_copy_is_untied_and_the_model_stays() -> None:
    model = _models()[0]
    before = copy.deepcopy(model.state_dict())
    other = untied(model, "models[0]")
    assert other is not model
    assert other.head.weight is not other.embedding.weight
    assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight.data_ptr() != model.head.weight.data_ptr()
    assert model.head.weight is model.embedding.weight
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loose = Language(tied=False)
    assert untied(loose, "models[0]") is loose


def test_a_configuration_says_so_unless_the_function_depends_on_it() -> None:
    ids = _data()[0]
    plain, scaled = (untied(Language(scales=scales), "the model") for scales in (False, True))
    assert keep_untied(plain, lambda own: own(ids))
    assert not plain.config.tie_word_embeddings
    assert not keep_untied(scaled, lambda own: own(ids))
    assert scaled.config.tie_word_embeddings
    assert keep_untied(nn.Linear(2, 2), lambda own: pytest.fail("there is nothing to try"))


def test_a_stream_is_aligned_by_more_maps_once_the_head_is_its_own() -> None:
    models, data = _models(), _data()
    before = [copy.deepcopy(model.state_dict()) for model in models]
    kept, free = (
        ccamerge.merge(models, data, ties=ties, progress=False) for ties in ("keep", "untie")
    )
    assert kept.spaces["embedding"].exact == PERMUTATION
    assert free.spaces["embedding"].exact == ORTHOGONAL_FIXING_ONES
    assert kept.model.head.weight is kept.model.embedding.weight
    assert free.model.head.weight is not free.model.embedding.weight
    assert not torch.equal(free.model.head.weight, free.model.embedding.weight)
    assert (kept.report.untied, kept.model.config.tie_word_embeddings) == ({}, True)
    assert free.report.untied == {"head.weight": 8 * WORDS * WIDTH}
    assert "untied: head.weight; the file grows by 0.00 MiB" in str(free.report)
    assert "untied" not in str(kept.report)
    assert not free.model.config.tie_word_embeddings
    assert free.model.state_dict().keys() == models[0].state_dict().keys()
    for model, state in zip(models, before, strict=True):
        assert model.config.tie_word_embeddings
        assert model.head.weight is model.embedding.weight
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_network_merged_with_itself_stays() -> None:
    model, data = _models()[0], _data()
    result = ccamerge.merge(
        [model, copy.deepcopy(model)], data, ties="untie", repair="none", progress=False
    )
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-9, atol=1e-9)


def test_it_warns_where_a_file_would_be_tied_again() -> None:
    with pytest.warns(RuntimeWarning, match="save its state_dict"):
        result = ccamerge.merge(
            _models(scales=True), _data(), ties="untie", repair="none", progress=False
        )
    assert result.model.config.tie_word_embeddings
    assert result.model.head.weight is not result.model.embedding.weight


def test_a_model_that_has_all_the_weight_is_untied_too() -> None:
    models, data = _models(), _data()
    result = ccamerge.merge(models, data, ties="untie", t=1.0, progress=False)
    torch.testing.assert_close(result.model(data[0]), models[1](data[0]), rtol=0, atol=0)
    assert result.model.head.weight is not result.model.embedding.weight
    assert models[1].head.weight is models[1].embedding.weight


def test_models_without_ties_merge_as_ever() -> None:
    models, data = _models(tied=False), _data()
    kept, free = (
        ccamerge.merge(models, data, ties=ties, repair="none", progress=False)
        for ties in ("keep", "untie")
    )
    assert free.report.untied == {}
    for key, value in kept.model.state_dict().items():
        assert torch.equal(value, free.model.state_dict()[key])
    again = ccamerge.merge(
        models, statistics=kept.statistics, ties="untie", repair="none", progress=False
    )
    assert torch.equal(again.model(data[0]), kept.model(data[0]))


def test_statistics_belong_to_models_that_are_tied_or_not() -> None:
    models, data = _models(), _data()
    kept, free = (
        ccamerge.merge(models, data, ties=ties, repair="none", progress=False)
        for ties in ("keep", "untie")
    )
    for statistics, ties in ((kept.statistics, "untie"), (free.statistics, "keep")):
        with pytest.raises(ValueError, match="ties"):
            ccamerge.merge(models, statistics=statistics, ties=ties, progress=False)
    again = ccamerge.merge(
        models, statistics=free.statistics, ties="untie", repair="none", progress=False
    )
    assert torch.equal(again.model(data[0]), free.model(data[0]))
