"""Old names still work, and say what they are called now."""

from __future__ import annotations

import pytest
import torch

import ccamerge
from tests import models as M


@pytest.fixture(scope="module")
def first() -> tuple[list[M.MLP], list[tuple[torch.Tensor, torch.Tensor]], ccamerge.MergeResult]:
    models = [M.randomise(M.MLP((6, 8, 3)), seed) for seed in range(2)]
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    return models, data, ccamerge.merge(models, data, progress=False)  # type: ignore[return-value]


def test_an_old_argument_is_taken_for_the_new_one(first: tuple) -> None:  # type: ignore[type-arg]
    models, data, result = first
    with pytest.warns(DeprecationWarning, match="the argument moments is called statistics now"):
        merged = ccamerge.merge(models, moments=result.statistics, progress=False)
    assert merged.statistics.samples == result.statistics.samples
    with (
        pytest.warns(DeprecationWarning, match="moments"),
        pytest.raises(TypeError, match="moments: statistics must be what"),
    ):
        ccamerge.merge(models, moments=3, progress=False)
    for call in (
        lambda given: ccamerge.barrier(models, data, points=3, **given),
        lambda given: ccamerge.compare(models, data, methods=["cca"], progress=False, **given),
    ):
        with pytest.warns(DeprecationWarning, match="statistics now"):
            call({"moments": result.statistics})
        with pytest.raises(TypeError, match="statistics and its old name moments were both given"):
            call({"moments": result.statistics, "statistics": result.statistics})


def test_old_names_of_classes_and_attributes(first: tuple) -> None:  # type: ignore[type-arg]
    with pytest.warns(DeprecationWarning, match=r"ccamerge\.Collected is called ccamerge\.Stat"):
        assert ccamerge.Collected is ccamerge.Statistics
    with pytest.warns(DeprecationWarning, match="moments is called statistics now"):
        assert first[2].moments is first[2].statistics
