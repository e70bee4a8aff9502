"""Two threads everywhere: what the small machines of CI have, and enough to show a race."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ccamerge
from ccamerge.checkpoints.reading import save_state
from ccamerge.config.settings import TABLE
from tests import backends
from tests import projects as P


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)
    ccamerge.set_num_threads(2)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small problems: threads would do nothing but wait for each other."""
    before = torch.get_num_threads(), ccamerge.num_threads()
    torch.set_num_threads(1)
    ccamerge.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    ccamerge.set_num_threads(before[1])


@pytest.fixture(scope="module", params=backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each place where the library computes; what is taken from `tests.backends` does so there."""
    with backends.use(request.param) as name:
        yield name


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


EXACT = {"holdout": 0.0, "select": "none"}
"""Defaults of merges that are of all the data, and what is asked for: what most tests state."""

USUAL = {name: TABLE[name] for name in EXACT}


@pytest.fixture(autouse=True, scope="module")
def _exactly_as_asked() -> Iterator[None]:
    """Other defaults than users have, for what modules set up, too.

    Tests that are marked ``as_users_do`` have those, and so have commands in their own processes.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in EXACT.items():
            patch.setitem(TABLE, name, dataclasses.replace(TABLE[name], usual=value))
        yield


@pytest.fixture(autouse=True)
def _as_users_do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults that users have, where a test or its module is marked so."""
    if request.node.get_closest_marker("as_users_do") is not None:
        for name, setting in USUAL.items():
            monkeypatch.setitem(TABLE, name, setting)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Processes started here heed Ctrl-C, even where this one ignores it: a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module, two networks trained from different seeds and a configuration."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "blobs_module.py").write_text(P.MODULE)
    (folder / "runs").mkdir()
    namespace: dict[str, Any] = {}
    with P.registering():
        exec(P.MODULE, namespace)
    for seed in range(2):
        torch.manual_seed(seed)
        net = namespace["network"]()
        optimiser = torch.optim.Adam(net.parameters(), 0.01)
        for x, y in namespace["batches"](60, seed=seed + 10):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
        if seed == 0:
            save_state(net.state_dict(), folder / "runs/0.safetensors")
        else:
            torch.save({"epoch": 1, "state_dict": net.state_dict()}, folder / "runs/1.pt")
    (folder / "merge.yml").write_text(P.CONFIG)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh folder of the same content."""
    for name in ("blobs_module.py", "merge.yml"):
        (tmp_path / name).write_text((trained / name).read_text())
    (tmp_path / "runs").mkdir()
    for path in (trained / "runs").iterdir():
        (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    with P.registering():
        yield tmp_path
    sys.modules.pop("blobs_module", None)
