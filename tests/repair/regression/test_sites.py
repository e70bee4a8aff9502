"""What follows the operations that are fitted: sums and functions, behind moves of elements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccamerge.graph.tracing.program import trace
from ccamerge.repair.regression.sites import _Sites


class Block(nn.Module):
    """A residual block over tokens, whose linear layers see them as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(6, 10), nn.Linear(10, 6), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        added, rows = torch.sigmoid(x), x.reshape(-1, 6)
        hidden = torch.relu(self.up(rows).view(*x.shape[:2], 10))
        down = self.drop(self.down(hidden.reshape(-1, 10)).view(x.shape))
        return torch.tanh(down + added)


def test_sums_and_functions_behind_views_and_dropout() -> None:
    program = trace(Block().eval(), (torch.randn(4, 5, 6),))
    up, down = (node for node in program.nodes if node.op == "aten.linear")
    added, function = _Sites(program).after(up)
    assert added is None
    assert function is not None
    assert function.op == "aten.relu"
    added, function = _Sites(program).after(down)
    assert added == next(node.name for node in program.nodes if node.op == "aten.sigmoid")
    assert function is not None
    assert function.op == "aten.tanh"


def test_views_that_take_features_apart_end_a_site() -> None:
    class Parted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x).view(-1, 2, 4)))

    program = trace(Parted().eval(), (torch.randn(5, 6),))
    first = next(node for node in program.nodes if node.op == "aten.linear")
    assert _Sites(program).after(first) == (None, None)
