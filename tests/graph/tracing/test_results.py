"""What of a forward's outputs a network computes, and what it returns by the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from tests import models as M


class Named(nn.Module):
    """Returns its hidden features beside something else, under names."""

    def __init__(self, result: str, hidden: str) -> None:
        super().__init__()
        self.names = result, hidden
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.tanh(self.first(x))
        return dict(zip(self.names, (self.last(hidden), hidden), strict=True))


@pytest.mark.parametrize("hidden", ["hidden_states", "encoder_last_hidden_state"])
def test_hidden_states_beside_logits_are_no_results(hidden: str) -> None:
    model, x = M.randomise(Named("logits", hidden)).double(), torch.randn(40, 6).double()
    assert [space.name for space in ccamerge.spaces(model, x)] == ["first"]
    assert all(check.passed for check in ccamerge.verify(model, x))
    merged = ccamerge.merge([model, model], [x], progress=False).model
    torch.testing.assert_close(merged(x)["logits"], model(x)["logits"], rtol=1e-8, atol=1e-10)
    assert hidden in merged(x)


@pytest.mark.parametrize(
    ("result", "hidden"), [("scores", "hidden_states"), ("logits", "embeddings")]
)
def test_all_else_that_is_returned_keeps_its_basis(result: str, hidden: str) -> None:
    found = ccamerge.spaces(M.randomise(Named(result, hidden)), torch.randn(8, 6))
    assert not found.spaces
    assert "network output" in found.pinned["first.weight", 0]


def test_what_is_read_for_its_size_alone_pins_nothing() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x))
            steps = torch.arange(hidden[:, :, -1].shape[1], dtype=x.dtype)
            return self.last(hidden) + steps[:, None]

    found = ccamerge.spaces(M.randomise(Sized()), torch.randn(8, 5, 6))
    assert [space.name for space in found] == ["first"]
