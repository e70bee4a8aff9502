"""Whose threads the core runs on: torch's where torch is, else its own; each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
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
    run(
        """
        import torch
        if not any("/torch/lib/libgomp" in line for line in open("/proc/self/maps")):
            raise SystemExit(0)  # this build of torch brings another OpenMP runtime
        torch.set_num_threads(3)
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
