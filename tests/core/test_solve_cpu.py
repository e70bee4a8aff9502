"""Solves on the CPU: threads, signals, memory, and what they read in place."""

import signal
import time

import numpy as np
import pytest
import torch

from ccamerge.core.canonical import cca, cca_batch
from ccamerge.core.threads import num_threads, set_num_threads
from ccamerge.core.universes import universe_batch
from tests.core.test_solve import I3, problem
from tests.core.test_universe_solve import _features, _moments


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def restore_threads():
    before = num_threads()
    yield
    set_num_threads(before)


def test_the_number_of_threads_changes_nothing(rng, restore_threads):
    problems = [problem(rng, p, q) for p, q in ((40, 40), (7, 20), (90, 90), (33, 12), (1, 1))]
    single = [cca(*p, ridge=0.1, weights=True) for p in problems]
    for threads in (1, 2, 3):
        set_num_threads(threads)
        for a, b in zip(cca_batch(problems, ridge=0.1, weights=True), single, strict=True):
            for name in ("map", "inverse", "correlations", "x_weights", "y_weights"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert (a.rank, a.x_condition, a.method) == (b.rank, b.x_condition, b.method)


def test_tensors_of_other_devices_are_refused():
    with pytest.raises(TypeError, match="Sxx must be on the CPU"):
        cca(torch.eye(3, device="meta"), I3, I3)


def test_results_outlive_the_batch(rng):
    S = problem(rng, 500)  # large enough for a buffer of huge pages
    kept = cca(*S, ridge=0.1).map
    before = kept.copy()
    for _ in range(3):
        cca(*S, ridge=1.0)
    np.testing.assert_array_equal(kept, before)
    assert kept.flags.c_contiguous
    assert kept.flags.writeable


def test_a_signal_stops_a_long_batch(rng):
    class StopError(Exception):
        """What the handler raises."""

    def handler(number, frame):
        raise StopError

    problems = [problem(rng, 320)] * 400  # many seconds
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.perf_counter()
        with pytest.raises(StopError):
            cca_batch(problems, ridge=0.1)
        assert time.perf_counter() - start < 3  # one second promised; machines are busy
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    np.testing.assert_allclose(cca(I3, I3, I3).map, I3, atol=1e-15)  # the pool still works


def test_the_number_of_threads_changes_no_universe(restore_threads):
    problems = [_moments(_features(3, d=140, n=500)), _moments(_features(4, seed=1))]
    found = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        found.append(universe_batch(problems, ridge=[0.1, 0.01]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.objectives == b.objectives
            for left, right in zip(a.maps, b.maps, strict=True):
                np.testing.assert_array_equal(left, right)
