"""Parameters that are moved, joined, repeated or rescaled before they meet features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import PERMUTATION
from ccamerge.graph.networks.inspection import spaces
from tests.moved import mapped_copy


class Gained(nn.Module):
    """A hidden layer whose features meet a parameter in a way of their own."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 12), nn.Linear(12, 4)
        self.p = nn.Parameter(torch.randn(shape))
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inputs(x))  # directly after the layer a product would be folded into it
        return self.outputs(torch.relu(self.meet(h, self.p)).mean(1))


WAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "view": (lambda h, p: h * p.view(1, 1, 12), (12,)),
    "expand": (lambda h, p: h + p.expand(h.shape[0], h.shape[1], 12), (1, 1, 12)),
    "unsqueeze": (lambda h, p: h * p[None, None], (12,)),
    "flattened": (lambda h, p: h * p.flatten(), (12, 1)),
    "transposed": (lambda h, p: h + p.t()[0], (12, 1)),
    "exp": (lambda h, p: h * p.exp(), (12,)),
    "one plus": (lambda h, p: h * (1 + p), (12,)),
    "softplus and negative": (lambda h, p: h * -nn.functional.softplus(p), (12,)),
    "halved": (lambda h, p: h + p / 2, (12,)),
    "two of one": (lambda h, p: h * p[0] + p[1], (2, 12)),
    "sliced": (lambda h, p: h + p[3:], (15,)),
    "split": (lambda h, p: h * p.chunk(2)[0] + p.chunk(2)[1], (24,)),
    "stacked": (lambda h, p: h + torch.stack([p, p])[0], (12,)),
    "joined": (lambda h, p: torch.cat([p.expand(h.shape[0], 2, 12), h], 1), (1, 2, 12)),
    "repeated": (lambda h, p: h + p.repeat(5, 1), (1, 12)),
    "product of two": (lambda h, p: h * (p[0] * p[1]), (2, 12)),
    "cast": (lambda h, p: h * p.double().float(), (12,)),
    "normalised": (lambda h, p: h * (p / p.norm()), (12,)),
    "softmax": (lambda h, p: h * p.softmax(0), (12,)),
    "matrix": (lambda h, p: h + h @ p, (12, 12)),
    "sum of matrices": (lambda h, p: h @ (p[0] + p[1]), (2, 12, 12)),
    "einsum": (lambda h, p: torch.einsum("btc,cd->btd", h, p), (12, 12)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_space_holds_the_parameter(way: str) -> None:
    torch.manual_seed(0)
    meet, shape = WAYS[way]
    model, x = Gained(meet, shape), torch.randn(8, 5, 6)
    checks = ccamerge.verify(model, x)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))
    found = spaces(model, x)
    held = {slot.parameter.split(":")[0] for space in found for slot in space.slots}
    assert "p" in held, str(found)


@pytest.mark.parametrize("way", WAYS)
def test_a_permuted_copy_merges_back(way: str) -> None:
    torch.manual_seed(1)
    meet, shape = WAYS[way]
    model = Gained(meet, shape).eval()
    found = spaces(model, torch.randn(8, 5, 6))
    maps = {space.name: FeatureMap.permutation(torch.randperm(space.size)) for space in found}
    other = mapped_copy(model, found, maps)
    x, new = torch.randn(64, 5, 6), torch.randn(16, 5, 6)
    torch.testing.assert_close(other(new), model(new), rtol=1e-4, atol=1e-5)
    merged = ccamerge.merge(
        [model, other], [x], method="permutation", repair="none", progress=False
    ).model
    torch.testing.assert_close(merged(new), model(new), rtol=1e-3, atol=1e-4)


def test_what_has_no_rule_pins_its_features_by_name() -> None:
    model = Gained(lambda h, p: h + torch.cumprod(p.sort()[0], 0), (12,))
    found = spaces(model, torch.randn(8, 5, 6))
    assert not found.spaces
    assert "sort" in found.pinned["inputs.weight", 0] or "meets" in found.pinned["inputs.weight", 0]


def test_rotary_positions_end() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            q = self.query(x).view(x.shape[0], 3, 8)
            turned = torch.cat((-q[..., 4:], q[..., :4]), -1)
            return self.down(torch.tanh(self.up((q + turned / 3).flatten(1))))

    found = spaces(Rotary(), torch.randn(4, 6))
    # Both halves of every head are in one basis, which turns with them.
    assert {space.name: space.size for space in found} == {"query": 4, "up": 10}


def test_features_multiplied_with_themselves_are_mapped_on_both_sides() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 7), nn.Linear(49, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.b((h[:, :, None] * h[:, None]).flatten(1))

    checks = ccamerge.verify(Outer(), torch.randn(8, 12))
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


@pytest.mark.parametrize("value", [1.0, -0.5])
def test_padding_with_a_number_leaves_permutations(value: float) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.pad(self.a(x), (1, 1, 1, 1), value=value))

    x = torch.randn(4, 3, 8, 8)
    assert spaces(Padded(), x)["a"].exact == PERMUTATION
    assert all(check.passed for check in ccamerge.verify(Padded(), x))


class Joined(nn.Module):
    """A bias that is learned at both ends, and constant between, as that of keys in BEiT."""

    def __init__(self, among: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 12, bias=False), nn.Linear(12, 4)
        self.first, self.last = (nn.Parameter(torch.randn(4)) for _ in range(2))
        self.register_buffer("middle", among, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.first, self.middle, self.last])
        return self.outputs(torch.tanh(nn.functional.linear(x, self.inputs.weight, bias)))


@pytest.mark.parametrize(
    ("among", "held"),
    [(torch.zeros(4), 12), (torch.full((4,), 0.5), 12), (torch.linspace(-1, 1, 4), 8)],
    ids=["zeros", "alike", "different"],
)
def test_constants_meet_features_that_they_do_not_tell_apart(among: Tensor, held: int) -> None:
    torch.manual_seed(0)
    model, x = Joined(among), torch.randn(8, 6)
    checks = ccamerge.verify(model, x)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))
    assert sum(space.size for space in spaces(model, x)) == held


class Positions(nn.Module):
    """Numbers for each position that a small network makes of where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 12), nn.Linear(12, 4)
        self.table = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 12))
        self.register_buffer("places", torch.randn(5, 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(torch.tanh(self.inputs(x) + self.table(self.places)))


def test_what_a_network_makes_of_constants_is_added_to_features() -> None:
    torch.manual_seed(0)
    model, x = Positions().double().eval(), torch.randn(64, 5, 6).double()
    checks = ccamerge.verify(model, x)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))
    found = spaces(model, x)
    held = [{(slot.parameter, slot.dim) for slot in space.slots} for space in found]
    assert {("table.2.weight", 0), ("table.2.bias", 0), ("inputs.weight", 0)} <= held[0]
    assert held[1] == {("table.0.weight", 0), ("table.0.bias", 0), ("table.2.weight", 1)}
    maps = {space.name: FeatureMap.permutation(torch.randperm(space.size)) for space in found}
    other = mapped_copy(model, found, maps)
    for repair in ("none", "regression"):
        merged = ccamerge.merge(
            [model, other], [x], method="permutation", repair=repair, progress=False
        )
        torch.testing.assert_close(merged.model(x), model(x), rtol=1e-6, atol=1e-8)
