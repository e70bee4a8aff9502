"""Weight matching beside a plain coordinate descent as Git Re-Basin publishes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.space import Spaces
from ccamerge.methods.weight_matching import match
from tests import models as M
from tests.problems import Array

Spec = dict[str, tuple[str | None, ...]]
"""For each array its axes' permutations, in the manner of the publication."""


class Residual(nn.Module):
    """A stream that two blocks write to and all read."""

    def __init__(self, width: int = 8, inner: int = 6) -> None:
        super().__init__()
        self.enter = nn.Linear(5, width)
        self.a, self.b = nn.Linear(width, inner), nn.Linear(inner, width)
        self.leave = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.leave(x)


class Flattened(nn.Module):
    """Convolutions, a flatten of C x H x W, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3)
        self.c = nn.Linear(5 * 4, 7)
        self.d = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.d(torch.relu(self.c(x.flatten(1))))


def _mlp(_: object = None) -> nn.Module:
    return M.MLP((6, 9, 8, 7, 4))


def _arrays(name: str, state: dict[str, Tensor]) -> tuple[dict[str, Array], Spec]:
    """Weights as plain arrays, and which permutation each axis has."""
    arrays = {key: value.double().numpy() for key, value in state.items()}
    spec: Spec
    if name == "mlp":
        spec = {}
        for i in range(4):
            spec[f"layers.{i}.weight"] = (
                f"layers.{i}" if i < 3 else None,
                f"layers.{i - 1}" if i else None,
            )
            spec[f"layers.{i}.bias"] = (f"layers.{i}" if i < 3 else None,)
    elif name == "residual":
        spec = {
            "enter.weight": ("enter", None),
            "enter.bias": ("enter",),
            "a.weight": ("a", "enter"),
            "a.bias": ("a",),
            "b.weight": ("enter", "a"),
            "b.bias": ("enter",),
            "leave.weight": (None, "enter"),
            "leave.bias": (None,),
        }
    else:
        arrays["c.weight"] = arrays["c.weight"].reshape(7, 5, 4)  # channels first, then places
        spec = {
            "a.weight": ("a", None, None, None),
            "a.bias": ("a",),
            "b.weight": ("b", "a", None, None),
            "b.bias": ("b",),
            "c.weight": ("c", "b", None),
            "c.bias": ("c",),
            "d.weight": (None, "c"),
            "d.bias": (None,),
        }
    return arrays, spec


def _permuted(
    array: Array, axes: tuple[str | None, ...], perm: dict[str, Array], skip: int
) -> Array:
    for axis, name in enumerate(axes):
        if name is not None and axis != skip:
            array = np.take(array, perm[name], axis=axis)
    return array


def published(
    names: list[str], spec: Spec, a: dict[str, Array], b: dict[str, Array], seed: int
) -> tuple[dict[str, Array], list[float]]:
    """Coordinate descent: permutations of ``b``, and the objective after each sweep."""
    sizes = {
        name: a[key].shape[axis]
        for key, axes in spec.items()
        for axis, name in enumerate(axes)
        if name is not None
    }
    perm = {name: np.arange(sizes[name]) for name in names}
    random, objectives = np.random.default_rng(seed), []
    for _ in range(100):
        progress = False
        for index in random.permutation(len(names)):
            name = names[index]
            n = sizes[name]
            gains = np.zeros((n, n))
            for key, axes in spec.items():
                for axis, other in enumerate(axes):
                    if other != name:
                        continue
                    moved = _permuted(b[key], axes, perm, axis)
                    left = np.moveaxis(a[key], axis, 0).reshape(n, -1)
                    right = np.moveaxis(moved, axis, 0).reshape(n, -1)
                    gains += left @ right.T
            best = linear_sum_assignment(gains, maximize=True)[1]
            rows = np.arange(n)
            if gains[rows, best].sum() > gains[rows, perm[name]].sum() + 1e-9:
                progress = True
            perm[name] = best
        whole = sum((a[k] * _permuted(b[k], axes, perm, -1)).sum() for k, axes in spec.items())
        objectives.append(float(whole))
        if not progress:
            break
    return perm, objectives


BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, (2, 6)),
    "residual": (Residual, (2, 5)),
    "flattened": (Flattened, (2, 2, 6, 6)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BUILD)
def test_parity_with_the_published_coordinate_descent(name: str, seed: int) -> None:
    """The same visits: the same permutations after the same number of sweeps."""
    build, shape = BUILD[name]
    models = [M.randomise(build(), 2 * seed + i) for i in range(2)]
    found = spaces(models[0], torch.randn(shape))
    states = [folded_state(m.state_dict(), found.folds) for m in models]
    matching = match(found.spaces, states[0], states[1], seed)
    (a, spec), (b, _) = (_arrays(name, m.state_dict()) for m in models)
    names = [s.name for s in found.spaces]
    assert set(names) == {n for axes in spec.values() for n in axes if n is not None}
    expected, objectives = published(names, spec, a, b, seed)
    for space in names:
        np.testing.assert_array_equal(matching.orders[space], expected[space])
    assert matching.sweeps == len(objectives)
    # What no permutation moves, the last layer's bias, is not in the core's objective.
    fixed = sum((a[k] * b[k]).sum() for k, axes in spec.items() if not any(axes))
    assert matching.objectives[-1] + fixed == pytest.approx(objectives[-1], rel=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_objective_rises_to_a_local_optimum(seed: int) -> None:
    found = _spaces_of_mlp()
    states = [
        folded_state(M.randomise(_mlp(), seed + i).state_dict(), found.folds) for i in range(2)
    ]
    matching = match(found.spaces, *states, seed)
    assert (np.diff(matching.objectives) > 0).all()
    mapped = transform(
        states[1],
        found.spaces,
        {k: FeatureMap.permutation(v.tolist()) for k, v in matching.orders.items()},
    )
    keys = {slot.parameter for space in found.spaces for slot in space.slots}
    reached = sum(float((states[0][k].double() * mapped[k].double()).sum()) for k in keys)
    assert matching.objectives[-1] == pytest.approx(reached, rel=1e-5)  # float32 parameters
    again = match(found.spaces, states[0], mapped, seed)
    assert again.sweeps == 1
    assert all((order == np.arange(len(order))).all() for order in again.orders.values())


_CACHE: list[Spaces] = []


def _spaces_of_mlp() -> Spaces:
    if not _CACHE:
        _CACHE.append(spaces(_mlp(), torch.randn(2, 6)))
    return _CACHE[0]


def test_one_hidden_layer_is_solved_optimally() -> None:
    """Against every permutation, after one step."""
    models = [M.randomise(M.MLP((4, 6, 3)), s) for s in range(2)]
    found = spaces(models[0], torch.randn(2, 4))
    states = [folded_state(m.state_dict(), found.folds) for m in models]
    a, b = ({k: v.double() for k, v in s.items()} for s in states)
    best = max(
        float(
            (a["layers.0.weight"] * b["layers.0.weight"][list(p)]).sum()
            + (a["layers.0.bias"] * b["layers.0.bias"][list(p)]).sum()
            + (a["layers.1.weight"] * b["layers.1.weight"][:, list(p)]).sum()
        )
        for p in itertools.permutations(range(6))
    )
    matching = match(found.spaces, *states)
    assert matching.objectives[-1] == pytest.approx(best, rel=1e-12)
    assert len(matching.objectives) == 2


def test_spaces_that_another_method_aligns_stay_as_they_are() -> None:
    """The second layer is left to "average": the others are matched given its own order."""
    found = _spaces_of_mlp()
    states = [folded_state(M.randomise(_mlp(), s).state_dict(), found.folds) for s in range(2)]
    some = [s for s in found.spaces if s.name != "layers.1"]
    (a, spec), (b, _) = (_arrays("mlp", s) for s in states)
    held = {k: tuple(None if n == "layers.1" else n for n in axes) for k, axes in spec.items()}
    expected, _ = published([s.name for s in some], held, a, b, 3)
    orders = match(some, *states, 3).orders
    assert set(orders) == {"layers.0", "layers.2"}
    for name, order in orders.items():
        np.testing.assert_array_equal(order, expected[name])


def test_moments_and_data_do_not_matter() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    results = [
        ccamerge.merge(
            models, [torch.randn(40, 12) * scale], method="weight_matching", progress=False
        )
        for scale in (0.1, 3.0)
    ]
    for name, row in results[0].maps.items():
        for mine, other in zip(row, results[1].maps[name], strict=True):
            assert torch.equal(mine.forward, other.forward)


def test_the_seed_is_used_and_checked() -> None:
    found = _spaces_of_mlp()
    states = [folded_state(M.randomise(_mlp(), s).state_dict(), found.folds) for s in range(2)]
    reached = {match(found.spaces, *states, seed).objectives[-1] for seed in range(12)}
    assert len(reached) > 1  # visits in another order end in another optimum
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got -1"):
        ccamerge.merge(
            models,
            [torch.randn(8, 12)],
            method="weight_matching",
            options={"seed": -1},
            progress=False,
        )


def test_a_running_variance_is_not_a_weight() -> None:
    """Where BatchNorm cannot be folded, its statistics are permuted but do not decide."""
    models = [M.randomise(M.DenseBlockNet(), s) for s in range(2)]
    found = spaces(models[0], torch.randn(2, 3, 8, 8))
    states = [folded_state(m.state_dict(), found.folds) for m in models]
    plain = match(found.spaces, *states).orders
    key = next(k for k in states[1] if k.endswith("norms.0.running_var"))
    states[1][key] = 1e6 * torch.rand(states[1][key].shape)
    changed = match(found.spaces, *states).orders
    assert all((plain[name] == changed[name]).all() for name in plain)


def test_a_weight_that_writes_and_reads_one_space() -> None:
    """A shared layer's gains are only linear in a step that counts twice: never a step back."""
    for seed in range(6):
        models = [M.randomise(M.TiedAutoencoder(), 2 * seed + i) for i in range(2)]
        found = spaces(models[0], torch.randn(2, 10))
        states = [folded_state(m.state_dict(), found.folds) for m in models]
        matching = match(found.spaces, *states, seed)
        assert (np.diff(matching.objectives) > 0).all()
