"""What every family of `tests.families.families` owes: proofs, recovery, identity, and shares."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import ccamerge
from ccamerge.graph.groups import PERMUTATION
from tests.families import families as F
from tests.families.packages import available
from tests.moved import exact_maps, mapped_copy

TOLERANCE = 1e-6
"""Relative, for networks in double precision some of which normalise in single precision."""

RIDGE = 1e-10
"""What maps of general groups are off by; some units behind a ReLU do not vary on so few samples,
and their covariance would have no inverse without it."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:aligned. :RuntimeWarning"),  # tested apart
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module", params=F.FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """A family whose package is there; all that is asked of one comes after the other."""
    available(F.FAMILIES[request.param].package)
    return str(request.param)


@functools.lru_cache(maxsize=1)
def _case(name: str) -> tuple[nn.Module, Any, ccamerge.Spaces]:
    model, batch = F.built(name)
    return model, batch, ccamerge.spaces(model, batch)


@pytest.fixture
def case(name: str) -> tuple[nn.Module, Any, ccamerge.Spaces]:
    """A family's model, a batch, and its spaces, traced once."""
    return _case(name)


def off(found: Tensor, wanted: Tensor) -> float:
    """By how much outputs differ, relatively."""
    return float((found - wanted).norm() / wanted.norm())


def test_the_five_checks_pass(case: tuple[nn.Module, Any, ccamerge.Spaces]) -> None:
    model, batch, _ = case
    checks = ccamerge.verify(model, batch)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


def test_a_transformed_copy_merges_back(
    case: tuple[nn.Module, Any, ccamerge.Spaces],
) -> None:
    """Of a random element of the exact groups, by methods that know all of a group's maps."""
    model, batch, found = case
    moved = mapped_copy(model, found, exact_maps(found, seed=1)).eval()
    wanted = F.called(model, batch)
    assert off(F.called(moved, batch), wanted) < TOLERANCE
    permuted = {s.name: "permutation" for s in found.spaces if s.exact <= PERMUTATION}
    merge = functools.partial(
        ccamerge.merge,
        statistics=ccamerge.collect([model, moved], [batch], found=found, progress=False),
        repair="none",
        progress=False,
    )
    average = merge([model, moved], method="average")
    assert off(F.called(average.model, batch), wanted) > 1e-3  # there is something to undo
    merged = merge([model, moved], method={**permuted, "*": "cca"}, ridge=RIDGE)
    assert off(F.called(merged.model, batch), wanted) < TOLERANCE


def test_copies_merge_into_the_model_in_single_precision(name: str) -> None:
    """With the defaults, repair included."""
    model, batch = F.built(name)
    model = model.float()
    batch = pytree.tree_map(lambda x: x.float() if x.is_floating_point() else x, batch)
    merged = ccamerge.merge([model, copy.deepcopy(model)], [batch], progress=False).model
    assert off(F.called(merged, batch), F.called(model, batch)) < 1e-5


def test_as_much_is_aligned_as_the_table_says(
    case: tuple[nn.Module, Any, ccamerge.Spaces], name: str
) -> None:
    every, some, _ = case[2].aligned_shares()
    expected = F.FAMILIES[name]
    assert round(100 * every) >= expected.every
    assert round(100 * (every + some)) >= expected.some


def test_nothing_is_pinned_for_want_of_a_rule(
    case: tuple[nn.Module, Any, ccamerge.Spaces],
) -> None:
    reasons = {*case[2].pinned.values(), *(n for s in case[2].fixed for n in s.notes)}
    assert not {reason for reason in reasons if "no rule for" in reason}
