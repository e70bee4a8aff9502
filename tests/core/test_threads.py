"""Whose threads the core runs on: torch's where torch is, else its own; each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import ccamerge

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads there")

COMMON = """
    import os
    import numpy as np
    import ccamerge

    def threads():
        return len(os.listdir("/proc/self/task"))

    def use_the_core():
        rng = np.random.default_rng(0)
        x = rng.standard_normal((20_000, 96)).astype(np.float32)
        moments = ccamerge.Moments([96])
        moments.update([x], axis=1)
        assert np.abs(moments.cov(0) - np.cov(x.astype(np.float64).T, bias=True)).max() < 1e-6
        return moments.cov(0)

    ccamerge.Moments  # loads the core, and NumPy's and SciPy's BLAS with their threads
    ccamerge.set_num_threads(3)
"""


def run(script: str, folder: Path, preamble: str = COMMON) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,  # not the source tree, which has no compiled core unless installed in place
        env={**os.environ, "PYTHONPATH": str(Path(ccamerge.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_the_core_has_threads_of_its_own(tmp_path: Path) -> None:
    run(
        """
        import sys
        before = threads()
        use_the_core()
        assert "torch" not in sys.modules
        assert threads() == before + 2, (before, threads())
    """,
        tmp_path,
    )


def test_beside_torch_no_thread_is_added(tmp_path: Path) -> None:
    """Not unless cores are busy: then torch's threads are left alone, and this tries again."""
    for _ in range(7):
        try:
            return _use_the_core_beside_torch(tmp_path)
        except AssertionError as error:
            last = error
            time.sleep(1)
    if os.getloadavg()[0] > len(os.sched_getaffinity(0)):
        pytest.skip("other processes keep the cores busy")
    raise last


def _use_the_core_beside_torch(tmp_path: Path) -> None:
    run(
        """
        ccamerge.set_num_threads(2)
        import torch
        if not any("/torch/lib/libgomp" in line for line in open("/proc/self/maps")):
            raise SystemExit(0)  # this build of torch brings another OpenMP runtime
        torch.set_num_threads(2)
        x = torch.randn(4_000_000)
        x.sigmoid()
        before = threads()
        use_the_core()
        x.sigmoid()
        assert threads() == before, (before, threads())
    """,
        tmp_path,
    )


def test_own_threads_are_used_until_torch_comes(tmp_path: Path) -> None:
    run(
        """
        first = use_the_core()
        import torch
        torch.randn(4_000_000).sigmoid()
        assert np.array_equal(first, use_the_core())  # the same, bit for bit, on either
    """,
        tmp_path,
    )


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_again(tmp_path: Path) -> None:
    run(
        """
        import torch
        torch.randn(4_000_000).sigmoid()
        expected = use_the_core()
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(expected, use_the_core()) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """,
        tmp_path,
    )


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_may_be_the_first_to_use_the_core(tmp_path: Path) -> None:
    script = """
        import os, signal, torch
        torch.set_num_threads(3)
        torch.randn(4_000_000).sigmoid()
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a hang ends the child
            import numpy as np, ccamerge
            ccamerge.set_num_threads(3)
            ccamerge.Moments([96]).update([np.ones((20_000, 96), np.float32)], axis=1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    run(script, tmp_path, preamble="")


NUMBERS = """
    import os
    import ccamerge
    from ccamerge._core import num_threads_reason
    cores = len(os.sched_getaffinity(0))
"""


@pytest.mark.parametrize("given", ["1", "1,4", " 1 "])
def test_the_number_of_threads_follows_openmp(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    run(
        """
        assert ccamerge.num_threads() == 1
        assert cores == 1 or num_threads_reason() == "OMP_NUM_THREADS"
        ccamerge.set_num_threads(2)
        assert (ccamerge.num_threads(), num_threads_reason()) == (2, "set_num_threads")
    """,
        tmp_path,
        NUMBERS,
    )


@pytest.mark.parametrize("given", [None, "many", "0", "-3", "100000"])
def test_a_setting_of_openmp_that_says_nothing_is_ignored(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    run(
        """
        assert 1 <= ccamerge.num_threads() <= cores
        assert num_threads_reason() != "OMP_NUM_THREADS"
    """,
        tmp_path,
        NUMBERS,
    )


def test_the_number_of_threads_follows_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run(
        """
        import torch
        torch.set_num_threads(1)
        if any("/torch/lib/libgomp" in line for line in open("/proc/self/maps")):
            assert ccamerge.num_threads() == 1
    """,
        tmp_path,
        NUMBERS,
    )


@pytest.mark.parametrize("given", [True, 2.0, "2", None])
def test_a_number_of_threads_is_a_whole_number(given: object) -> None:
    with pytest.raises(TypeError, match=r"count must be a whole number, got"):
        ccamerge.set_num_threads(given)  # type: ignore[arg-type]


def test_the_core_says_whose_threads_it_runs_on(tmp_path: Path) -> None:
    run(
        """
        import contextlib, io
        from ccamerge import _core
        assert not _core.runs_on_torch_threads()
        import torch
        there = any("/torch/lib/libgomp" in line for line in open("/proc/self/maps"))
        assert _core.runs_on_torch_threads() == there
        from ccamerge.cli import main
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(["info"])
        told = next(line for line in out.getvalue().splitlines() if line.startswith("threads"))
        assert "3 in ccamerge's core (by set_num_threads)" in told, told
        assert f"the core runs on {'torch' if there else 'its own'}" in told, told
        child = os.fork()
        if child == 0:
            os._exit(_core.runs_on_torch_threads())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """,
        tmp_path,
    )


def test_numbers_of_threads_have_a_bound() -> None:
    for count in (0, -1, 1025, 2**31 - 1, 2**64, 10**5000):
        with pytest.raises(ValueError, match=r"count must be in 1\.\.1024"):
            ccamerge.set_num_threads(count)
