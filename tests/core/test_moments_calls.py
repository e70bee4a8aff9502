"""Calls that meet on the same moments: from signal handlers, other threads and forked processes."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import ccamerge
from ccamerge.core.moments import Moments
from tests import backends

ROW = np.random.default_rng(2).standard_normal((50, 192), dtype=np.float32)
LONG = np.broadcast_to(ROW, (4_000, 50, 192))  # some tenths of a second of work in little memory


@contextmanager
def interrupted_by(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs a call in a signal handler, again and again; yields what it returned or raised."""
    seen: list[Any] = []

    def handler(*_: object) -> None:
        try:
            seen.append(call())
        except RuntimeError as error:
            seen.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.06, 0.06)
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.count,
        lambda m: m.cov(0),
        lambda m: m.state_dict(),
        lambda m: copy.copy(m),
        lambda m: m.update([ROW]),
        lambda m: m.merge(m),
        lambda m: Moments([192]).merge(m),
    ],
    ids=["count", "cov", "state_dict", "copy", "update", "merge", "merge into another"],
)
def test_a_handler_may_not_enter_the_moments_that_its_thread_is_updating(
    call: Callable[[Moments], Any],
) -> None:
    """Neither a hang nor half an update: an error in the handler, and the update is as ever."""
    moments, alone = Moments([192]), Moments([192])
    alone.update([LONG])
    with interrupted_by(lambda: call(moments)) as seen:
        while not any(isinstance(s, RuntimeError) for s in seen):
            moments = Moments([192])
            seen.clear()
            moments.update([LONG])
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            try:
                state = moments.state_dict()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    refused = [s for s in seen if isinstance(s, RuntimeError)]
    assert all("in use by the call that this one interrupts" in str(error) for error in refused)
    if len(refused) == len(seen):  # else a handler came before or after, and was let in
        assert state["count"] == alone.count
        np.testing.assert_array_equal(state["m2.0.0"], alone.state_dict()["m2.0.0"])


def test_a_handler_may_use_the_core_for_anything_else() -> None:
    other = Moments([192])
    expected = Moments([192])
    expected.update([ROW])
    s = np.diag([3.0, 2.0, 1.0])

    def call() -> float:
        other.update([ROW])
        ccamerge.num_threads()
        return float(ccamerge.cca(s, s, s / 2, correlations=True).correlations[0])

    moments, alone = Moments([192]), Moments([192])
    alone.update([LONG])
    with interrupted_by(call) as seen:
        while not seen:
            moments = Moments([192])
            moments.update([LONG])
    assert seen == pytest.approx([0.5] * len(seen))
    assert other.count == len(seen) * len(ROW)
    np.testing.assert_allclose(other.cov(0), expected.cov(0), atol=1e-6)
    np.testing.assert_array_equal(moments.cov(0), alone.cov(0))


def test_a_handler_that_raises_stops_the_outer_call_only() -> None:
    """After a nested call the interrupted one polls as before, and can still be stopped."""
    calls = []

    def handler(*_: object) -> None:
        calls.append(Moments([3]).count)  # a call of its own first
        if len(calls) >= 2:
            raise KeyboardInterrupt

    moments = Moments([192])

    def update_for_ever() -> None:
        while True:
            moments.update([LONG])

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(KeyboardInterrupt):
            update_for_ever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls == [0, 0]
    assert moments.count % LONG[..., 0].size == 0


def test_a_handler_does_not_wait_for_another_thread() -> None:
    """That might be waiting for what the interrupted call holds."""
    stop, wide = threading.Event(), np.broadcast_to(ROW, (2_000, 50, 192))
    shared, own = Moments([192]), Moments([192])

    def work() -> None:
        while not stop.is_set():
            shared.update([wide])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with interrupted_by(lambda: shared.count) as seen:
            for _ in range(100):
                own.update([wide])
                if any(isinstance(s, RuntimeError) for s in seen):
                    break
    finally:
        stop.set()
        thread.join()
    size = wide[..., 0].size
    for found in seen:
        if isinstance(found, RuntimeError):
            assert "must not wait" in str(found)
        else:
            assert found % size == 0
    assert any(isinstance(s, RuntimeError) for s in seen)


SNAPSHOTS: dict[str, Callable[[Moments], Moments]] = {
    "state_dict": lambda m: Moments.from_state(m.state_dict()),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "subset": lambda m: m.subset([0, 1]),
}


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_snapshots_beside_updates_fit_their_own_count(snapshot: str, backend: str) -> None:
    x = np.random.default_rng(3).standard_normal((300, 128)).astype(np.float32) + 2
    want = np.cov(x.T.astype(np.float64), bias=True)
    moments: Moments = backends.Moments([128, 128], pairs="all")
    moments.update([x, x])
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            moments.update([x, x])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        counts = []
        for _ in range(15 if backend == "cpu" else 3):
            one = SNAPSHOTS[snapshot](moments)
            assert one.count % len(x) == 0
            counts.append(one.count)
            for i, j in ((0, 0), (0, 1), (1, 1)):
                np.testing.assert_allclose(one.cov(i, j), want, atol=1e-4)
            np.testing.assert_allclose(one.mean(1), x.mean(0), atol=1e-5)
    finally:
        stop.set()
        thread.join()
    assert counts == sorted(counts)


def test_a_saved_file_is_of_one_moment(tmp_path: Any) -> None:
    x = np.random.default_rng(4).standard_normal((300, 96))
    moments, stop = Moments([96]), threading.Event()
    moments.update([x])

    def work() -> None:
        while not stop.is_set():
            moments.update([x])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            moments.save(tmp_path / "m.safetensors")
            one = Moments.load(tmp_path / "m.safetensors")
            np.testing.assert_allclose(one.cov(0), np.cov(x.T, bias=True), atol=1e-9)
    finally:
        stop.set()
        thread.join()


def in_a_child(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked process, which is ended if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_process_has_the_moments_as_they_were() -> None:
    moments = Moments([192])
    moments.update([LONG])
    cov = moments.cov(0)

    def check() -> bool:
        same = np.array_equal(moments.cov(0), cov) and moments.count == LONG[..., 0].size
        moments.update([LONG])
        return bool(same) and moments.count == 2 * LONG[..., 0].size

    assert in_a_child(check)
    assert moments.count == LONG[..., 0].size


@pytest.mark.parametrize("call", [lambda m: m.count, lambda m: m.update([ROW]), copy.copy])
def test_a_forked_process_is_told_of_moments_that_another_thread_held(
    call: Callable[[Moments], Any],
) -> None:
    moments, stop = Moments([192]), threading.Event()

    def work() -> None:
        while not stop.is_set():
            moments.update([LONG])

    def check() -> bool:
        """Refused, if the thread was in an update; else as after some whole updates."""
        try:
            call(moments)
        except RuntimeError as error:
            return "when this process was forked" in str(error)
        return moments.count % len(ROW) == 0

    def others_work() -> bool:
        fresh = Moments([192])
        fresh.update([LONG])
        return fresh.count == LONG[..., 0].size

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(4):
            assert in_a_child(check)
        assert in_a_child(others_work)
    finally:
        stop.set()
        thread.join()
