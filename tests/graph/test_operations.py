"""Operations of recurrent, gated, rearranging and reducing layers, each in a small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from tests import models as M
from tests.moved import mapped_copy


class Net(nn.Module):
    """Layers, and what a function makes of them and an input."""

    def __init__(self, call: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.layers)


def _added_rows(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    rows = torch.arange(len(x)) // 2
    found: Tensor = last(torch.zeros(len(x), 8).to(x).index_add(0, rows, first(x).relu()))
    return found


def _sampled(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    places = torch.linspace(-0.9, 0.7, 50).view(1, 5, 5, 2).expand(len(x), 5, 5, 2).to(x)
    found: Tensor = last(F.grid_sample(first(x).relu(), places, align_corners=False))
    return found


def _with_states(x: Tensor, state: nn.Module, cell: nn.Module, last: nn.Module) -> Tensor:
    hidden = state(x).tanh()
    for _ in range(2):
        hidden = cell(x, hidden)
    found: Tensor = last(hidden)
    return found


IMAGES, SEQUENCES, ROWS = (4, 3, 8, 8), (4, 5, 6), (4, 6)

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "lstm": (
        lambda: Net(lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "lstm of two directions": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, bidirectional=True), nn.Linear(16, 3)
        ),
        SEQUENCES,
        {
            "layers.0.weight_ih_l0": "permutation",
            "layers.0.weight_ih_l0_reverse": "permutation",
        },
    ),
    "stack of lstms": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]), nn.LSTM(6, 8, 3, batch_first=True), nn.Linear(8, 3)
        ),
        SEQUENCES,
        {f"layers.0.weight_ih_l{layer}": "permutation" for layer in range(3)},
    ),
    "stack of two directions": (
        lambda: Net(
            lambda x, a, b: b(a(x)[0]),
            *(nn.GRU(6, 5, 2, bidirectional=True, bias=False), nn.Linear(10, 3)),
        ),
        SEQUENCES,
        {
            f"layers.0.weight_ih_l{layer}{side}": "permutation"
            for layer in range(2)
            for side in ("", "_reverse")
        },
    ),
    "a stack's last layer": (
        lambda: Net(lambda x, a, b: b(a(x)[1][0][-1]), nn.LSTM(6, 8, 2), nn.Linear(8, 3)),
        SEQUENCES,
        {f"layers.0.weight_ih_l{layer}": "permutation" for layer in range(2)},
    ),
    "a stack's layers together": (
        lambda: Net(lambda x, a, b: b(a(x)[1].sum(0)), nn.GRU(6, 8, 2), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "gru's last state": (
        lambda: Net(lambda x, a, b: b(a(x)[1][-1]), nn.GRU(6, 8), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0.weight_ih_l0": "permutation"},
    ),
    "rnn behind a layer": (
        lambda: Net(
            lambda x, a, b, c: c(b(a(x).relu())[0]),
            *(nn.Linear(6, 7), nn.RNN(7, 8, bias=False), nn.Linear(8, 3)),
        ),
        SEQUENCES,
        {"layers.0": "general", "layers.1.weight_ih_l0": "permutation"},
    ),
    "cell that begins elsewhere": (
        lambda: Net(_with_states, nn.Linear(6, 8), nn.GRUCell(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "lstm cell": (
        lambda: Net(lambda x, a, b: b(a(x)[1]), nn.LSTMCell(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0.weight_ih": "permutation"},
    ),
    "glu": (
        lambda: Net(lambda x, a, b: b(F.glu(a(x))), nn.Linear(6, 16), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "permutation"},
    ),
    "glu of channels": (
        lambda: Net(lambda x, a, b: b(F.glu(a(x), 1)), nn.Conv2d(3, 16, 3), nn.Conv2d(8, 3, 3)),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "instance norm": (
        lambda: Net(
            lambda x, a, b, c: c(b(a(x)).relu()),
            *(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 3)),
        ),
        IMAGES,
        {"layers.0": "permutation"},
    ),
    "pixel shuffle": (
        lambda: Net(
            lambda x, a, b: b(F.pixel_shuffle(a(x), 2).relu()),
            *(nn.Conv2d(3, 16, 3), nn.Conv2d(4, 4, 3)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "pixel unshuffle": (
        lambda: Net(
            lambda x, a, b: b(F.pixel_unshuffle(a(x).relu(), 2)),
            *(nn.Conv2d(3, 6, 3), nn.Conv2d(24, 4, 2)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "patches": (
        lambda: Net(
            lambda x, a, b: b(F.unfold(a(x).relu(), 2).transpose(1, 2)),
            *(nn.Conv2d(3, 8, 3), nn.Linear(32, 4)),
        ),
        IMAGES,
        {"layers.0": "general"},
    ),
    "largest of positions": (
        lambda: Net(lambda x, a, b: b(a(x).relu().max(dim=1)[0]), nn.Linear(6, 8), nn.Linear(8, 3)),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "smallest, kept as an axis": (
        lambda: Net(
            lambda x, a, b: b(a(x).min(dim=1, keepdim=True).values),
            *(nn.Linear(6, 8), nn.Linear(8, 3)),
        ),
        SEQUENCES,
        {"layers.0": "general"},
    ),
    "rows added": (
        lambda: Net(_added_rows, nn.Linear(6, 8), nn.Linear(8, 3)),
        ROWS,
        {"layers.0": "general"},
    ),
    "tiled": (
        lambda: Net(lambda x, a, b: b(a(x).relu().tile(1, 2)), nn.Linear(6, 8), nn.Linear(16, 3)),
        ROWS,
        {"layers.0": "general"},
    ),
    "sampled": (
        lambda: Net(_sampled, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)),
        IMAGES,
        {"layers.0": "general"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_known_for_what_they_are(name: str) -> None:
    build, shape, expected = CASES[name]
    model = M.randomise(build(), 0).double().eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(shape, generator=generator).double() for _ in range(4)]
    found = ccamerge.spaces(model, data[0])
    assert {space.name: space.group.name for space in found} == expected
    checks = ccamerge.verify(model, data[0])
    assert all(check.passed for check in checks), [str(check) for check in checks]
    maps = {space.name: space.exact.random(space.size, generator) for space in found}
    moved = mapped_copy(model, found, maps)
    new = torch.randn(shape, generator=generator).double()
    wanted = _output(model, new)
    assert torch.allclose(_output(moved, new), wanted, rtol=1e-9, atol=1e-9)
    result = ccamerge.merge(
        [model, moved], data, method="permutation", repair="none", progress=False
    )
    whole = all(space.exact == "permutation" for space in found)
    if not whole:  # a map that scales is undone by no permutation
        maps = {s.name: _permutation(s.size, generator) for s in found}
        copied = mapped_copy(model, found, maps)
        result = ccamerge.merge(
            [model, copied], data, method="permutation", repair="none", progress=False
        )
    assert torch.allclose(_output(result.model, new), wanted, rtol=1e-9, atol=1e-9)


def _permutation(size: int, generator: torch.Generator) -> ccamerge.FeatureMap:
    return ccamerge.FeatureMap.permutation(torch.randperm(size, generator=generator))


def _output(model: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return model(x)


def test_states_of_both_directions_that_are_read_together_stay_as_they_are() -> None:
    gru = nn.GRU(6, 8, bidirectional=True)
    model = Net(lambda x, a, b: b(a(x)[1].sum(0)), gru, nn.Linear(8, 3))
    found = ccamerge.spaces(model, torch.randn(SEQUENCES))
    assert not found.spaces
    assert any("read together" in note for space in found.fixed for note in space.notes)
