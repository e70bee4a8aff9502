"""All models aligned with each other, beside plain NumPy."""

from __future__ import annotations

import baseline_universe
import numpy as np
import pytest
import universe_case

from ccamerge import universe_batch

RIDGE, TOLERANCE = universe_case.RIDGE, universe_case.TOLERANCE


@pytest.fixture(scope="module")
def spaces():
    """Four spaces of four models, d = 64, and the objectives that plain NumPy reaches."""
    given = [universe_case.moments_of(4, 64, seed) for seed in range(4)]
    return given, [baseline_universe.universe(p, RIDGE, TOLERANCE)[1][-1] for p in given]


def test_universe_native(benchmark, spaces):
    given, expected = spaces
    benchmark.group = "universe, 4 spaces of N=4, d=64"
    found = benchmark.pedantic(
        universe_batch,
        (given,),
        {"ridge": RIDGE, "tolerance": TOLERANCE},
        rounds=3,
        warmup_rounds=1,
    )
    for result, objective in zip(found, expected, strict=True):
        assert result.objectives[-1] > objective * (1 - 1e-6)
        np.testing.assert_allclose(result.maps[1] @ result.inverses[1], np.eye(64), atol=1e-10)


def test_universe_baseline(benchmark, spaces):
    given, expected = spaces
    benchmark.group = "universe, 4 spaces of N=4, d=64"
    found = benchmark.pedantic(
        lambda: [baseline_universe.universe(p, RIDGE, TOLERANCE) for p in given], rounds=3
    )
    assert [f[1][-1] for f in found] == pytest.approx(expected, rel=1e-9)
