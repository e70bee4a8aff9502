"""Padding counts nowhere: not in moments, nor in what operations are fitted to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from ccamerge.collection.tokens import Tokens
from ccamerge.graph.tracing.program import trace
from tests import models as M

VOCABULARY, LONGEST = 20, 9


class Tagger(nn.Module):
    """Scores for each token, after its neighbours have been looked at by attention.

    Features are (samples, positions, features), or ``flat``, as GPT-2 has them before its linear
    layers: (samples * positions, features).
    """

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scores = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        mask = None if attention_mask is None else attention_mask[:, None, :].bool()
        x = x + F.scaled_dot_product_attention(self.query(x), x, self.value(x), mask)
        shape = x.shape
        if self.flat:
            x = x.reshape(-1, shape[-1])
        x = x + self.down(torch.relu(self.up(x)))
        found: Tensor = self.scores(x).unflatten(0, shape[:2]) if self.flat else self.scores(x)
        return found


def _sequences(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = [3 + 5 * index % (LONGEST - 2) for index in range(count)]
    return [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in lengths]


def _padded(sequences: list[Tensor]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(s) for s in sequences])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
    }


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "flat"])
def models(request: pytest.FixtureRequest) -> list[nn.Module]:
    return [M.randomise(Tagger(request.param), seed).double() for seed in range(2)]


@pytest.fixture(scope="module")
def batches() -> tuple[list[Any], list[Any]]:
    """The same sequences, some at a time and padded, and each by itself with nothing to pad."""
    sequences = _sequences(24)
    padded = [_padded(sequences[i : i + 6]) for i in range(0, 24, 6)]
    alone = [_padded([s, s]) for s in sequences]  # twice: every token counts as often
    return padded, alone


def test_moments_are_those_of_what_is_no_padding(
    models: list[nn.Module], batches: tuple[list[Any], list[Any]]
) -> None:
    padded, alone = (ccamerge.collect(models, data, progress=False) for data in batches)
    spaces = padded.spaces_of(models[0]).spaces
    assert spaces
    for space in spaces:
        ours, theirs = padded.pooled(space), alone.pooled(space)
        assert 2 * ours.count == theirs.count
        for i, j in ((0, 0), (1, 1), (0, 1)):
            found, wanted = ours.cov_tensor(i, j), theirs.cov_tensor(i, j)
            scale = wanted.abs().max()
            assert torch.allclose(found, wanted, rtol=0, atol=float(1e-9 * scale))


@pytest.mark.parametrize("repair", ["none", "variance", "regression"])
def test_what_padding_holds_changes_no_merge(
    models: list[nn.Module], batches: tuple[list[Any], list[Any]], repair: Any
) -> None:
    generator = torch.Generator().manual_seed(1)
    noisy = []
    for batch in batches[0]:
        noise = torch.randint(1, VOCABULARY, batch["input_ids"].shape, generator=generator)
        ids = torch.where(batch["attention_mask"] == 1, batch["input_ids"], noise)
        noisy.append({**batch, "input_ids": ids})
    one, two = (
        ccamerge.merge(models, data, repair=repair, progress=False).model.state_dict()
        for data in (batches[0], noisy)
    )
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-9, atol=1e-12), key


def test_a_mask_of_ones_or_of_other_numbers_is_none(models: list[nn.Module]) -> None:
    ids = torch.stack([s[:3] for s in _sequences(8)])
    plain = ccamerge.collect(models, [{"input_ids": ids}] * 2, progress=False)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    masked = ccamerge.collect(models, [whole] * 2, progress=False)
    for space in plain.spaces_of(models[0]).spaces:
        assert plain.pooled(space).count == masked.pooled(space).count


def test_which_values_are_of_tokens() -> None:
    """Those with samples and positions in front, or both as one axis before that of features."""
    program = trace(Tagger(), (), _padded(_sequences(2)))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    leaves = [mask] * len(program.inputs)
    tokens = Tokens.of(program, leaves, torch.device("cpu"))
    assert tokens is not None
    whole = torch.arange(24.0).view(2, 3, 4)
    kept = torch.stack([whole[0, 0], whole[0, 1], whole[1, 0]])
    for value, dim in ((whole, 2), (whole.flatten(0, 1), 1)):
        found, axis = tokens.among(value, dim)
        assert axis == 1
        assert torch.equal(found, kept)
    for value, dim in (
        (whole.flatten(0, 1), 0),  # features first
        (whole.flatten(), 0),
        (whole.flatten(0, 1)[:, None], 2),  # more than features behind
        (whole.flatten(0, 1)[:, None], 1),
        (whole.transpose(0, 1), 2),
        (torch.zeros(5, 4), 1),  # as many rows as something else has
        (torch.zeros(2, 4), 1),  # one value a sample
    ):
        found, axis = tokens.among(value, dim)
        assert found is value
        assert axis == dim
