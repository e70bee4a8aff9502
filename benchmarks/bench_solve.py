"""Batches of CCA problems and sweeps of the regulariser, beside the baseline's three SVDs."""

from __future__ import annotations

import baseline
import cases
import numpy as np
import pytest

from ccamerge import cca_batch, generalized_eigh_batch, polar_batch, whiten

BATCHES = [(16, 64), (16, 256), (4, 512)]
SWEEPS = [(4, 64), (4, 128)]
GAMMA = 0.01


@pytest.fixture(params=BATCHES, ids=lambda p: f"{p[0]}x{p[1]}", scope="module")
def batch(request):
    given = cases.problems(*request.param)
    return (
        f"{request.param[0]} of d={request.param[1]}",
        given,
        cases.reference_map(given[0], GAMMA),
    )


@pytest.fixture(params=SWEEPS, ids=lambda p: f"{p[0]}x{p[1]}", scope="module")
def sweep(request):
    return f"{request.param[0]} of d={request.param[1]}", cases.problems(*request.param)


def test_maps_native(benchmark, batch):
    name, given, expected = batch
    benchmark.group = f"CCA maps, {name}"
    found = benchmark.pedantic(cca_batch, (given,), {"gamma": GAMMA}, rounds=3, warmup_rounds=1)
    assert cases.relative(found[0].map, expected) < 1e-11
    assert cases.relative(found[-1].map @ found[-1].inverse, np.eye(len(expected))) < 1e-11


def test_maps_baseline(benchmark, batch):
    name, given, expected = batch
    benchmark.group = f"CCA maps, {name}"
    single = cases.in_float32(given)
    found = benchmark.pedantic(lambda: [baseline.pair_maps(*p, GAMMA) for p in single], rounds=3)
    assert cases.relative(found[0][0], expected) < 1e-2


def test_sweep_native(benchmark, sweep):
    name, given = sweep
    benchmark.group = f"sweep of 14, {name}"
    gammas = list(baseline.GAMMAS)
    found = benchmark.pedantic(cca_batch, (given,), {"gamma": gammas}, rounds=3, warmup_rounds=1)
    for result, gamma in zip(found[0], gammas, strict=True):
        assert cases.relative(result.map, cases.reference_map(given[0], gamma)) < 1e-8


def test_sweep_baseline(benchmark, sweep):
    name, given = sweep
    benchmark.group = f"sweep of 14, {name}"
    single = cases.in_float32(given)
    found = benchmark.pedantic(
        lambda: [[baseline.pair_maps(*p, g) for g in baseline.GAMMAS] for p in single], rounds=3
    )
    at = baseline.GAMMAS.index(0.1)
    assert cases.relative(found[0][at][0], cases.reference_map(given[0], 0.1)) < 1e-2


@pytest.fixture(scope="module")
def square():
    """Covariances and their whitened crosses, d = 256."""
    return cases.problems(8, 256, seed=1)


def test_polar_native(benchmark, square):
    benchmark.group = "polar factors, 8 of d=256"
    found = benchmark(polar_batch, [p[2] for p in square])
    u, _, vt = np.linalg.svd(square[0][2])
    assert cases.relative(found[0].q, u @ vt) < 1e-10


def test_polar_baseline(benchmark, square):
    benchmark.group = "polar factors, 8 of d=256"

    def svd():
        return [u @ vt for u, _, vt in (np.linalg.svd(p[2]) for p in square)]

    found = benchmark.pedantic(svd, rounds=3)
    assert cases.relative(found[0] @ found[0].T, np.eye(256)) < 1e-12


def test_whiten_native(benchmark, square):
    benchmark.group = "inverse square roots, 8 of d=256"
    found = benchmark(lambda: [whiten(p[0], gamma=GAMMA) for p in square])
    c = square[0][0] + GAMMA * np.eye(256)
    assert cases.relative(found[0].w.T @ c @ found[0].w, np.eye(256)) < 1e-11


def test_whiten_baseline(benchmark, square):
    benchmark.group = "inverse square roots, 8 of d=256"

    def svd():
        found = []
        for p in square:
            u, s, vt = np.linalg.svd(p[0] + GAMMA * np.eye(256))
            found.append(u @ np.diag(s**-0.5) @ vt)
        return found

    found = benchmark.pedantic(svd, rounds=3)
    c = square[0][0] + GAMMA * np.eye(256)
    assert cases.relative(found[0].T @ c @ found[0], np.eye(256)) < 1e-11


def test_generalized_eigh_native(benchmark, square):
    benchmark.group = "generalised eigenproblems, 8 of d=256"
    given = [(p[0], p[1]) for p in square]
    found = benchmark.pedantic(generalized_eigh_batch, (given,), {"gamma": GAMMA}, rounds=3)
    w, v = found[0]
    b = given[0][1] + GAMMA * np.eye(256)
    assert cases.relative(given[0][0] @ v, (b @ v) * w) < 1e-10


def test_generalized_eigh_baseline(benchmark, square):
    from scipy.linalg import eigh

    benchmark.group = "generalised eigenproblems, 8 of d=256"
    given = [(p[0], p[1] + GAMMA * np.eye(256)) for p in square]
    found = benchmark.pedantic(lambda: [eigh(a, b) for a, b in given], rounds=3)
    w, v = found[0]
    assert cases.relative(given[0][0] @ v, (given[0][1] @ v) * w) < 1e-10
