"""Moments on the CPU: threads, and updates that are all or nothing, interrupts included."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from ccamerge.core.moments import Moments, update_many
from ccamerge.core.threads import num_threads, set_num_threads
from tests.core.test_moments import assert_same
from tests.core.test_moments_failures import A, B, filled, unchanged


@pytest.fixture
def threads():
    before = num_threads()
    yield set_num_threads
    set_num_threads(before)


@pytest.mark.parametrize(("dims", "n"), [((20, 16), 9000), ((200, 140, 300), 3000)])
def test_threads_do_not_change_a_bit(threads, dims, n):
    rng = np.random.default_rng(7)
    xs = [(rng.standard_normal((n, d)) + 3).astype(np.float32) for d in dims]
    states = []
    for count in (1, 2, 5):
        threads(count)
        moments = Moments(dims, pairs="all")
        moments.update(xs)
        moments.update(xs)
        states.append(moments.state_dict())
    assert_same(states[1], states[0])
    assert_same(states[2], states[0])


def test_interrupt_is_all_or_nothing():
    row = np.random.default_rng(15).standard_normal((100, 256), dtype=np.float32)
    long = np.broadcast_to(row, (20_000, 100, 256))  # seconds of work in little memory
    moments = Moments([256])
    moments.update([row])
    before = moments.state_dict()

    def stop(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            moments.update([long])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert_same(moments.state_dict(), before)


class OnOtherDevice:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        raise AssertionError


def test_arrays_of_other_memory_and_byte_order():
    moments = filled()
    with pytest.raises(ValueError, match="model 1 must be in CPU memory"):
        moments.update([A, OnOtherDevice()])
    with pytest.raises(TypeError, match="model 1 cannot be read through DLPack"):
        moments.update([A, B.astype(">f8")])
    unchanged(moments, filled().state_dict())


def test_update_many_is_all_or_nothing():
    first, second = filled(), filled()
    before = first.state_dict()
    good = [A[:, :, None], B[:, :, None]]
    with pytest.raises(ValueError, match="model 1 are not finite"):
        update_many([(first, good), (second, [good[0], good[1] * np.nan])])
    unchanged(first, before)
    unchanged(second, before)
    with pytest.raises(ValueError, match="update 1: features of model 1 must have 4"):
        update_many([(first, good), (second, [good[0], good[0]])])
    unchanged(first, before)
