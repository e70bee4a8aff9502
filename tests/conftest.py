"""Two threads everywhere: what the small machines of CI have, and enough to show a race."""

from __future__ import annotations

import pytest
import torch

import ccamerge


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)
    ccamerge.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
