"""Settings of the benchmarks: both sides get the same number of threads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# pytest imports by path (importlib mode); the benchmarks share modules that no package holds.
sys.path.insert(0, str(Path(__file__).parent))

import cases

import ccamerge


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads(), ccamerge.num_threads()
    torch.set_num_threads(cases.THREADS)
    ccamerge.set_num_threads(cases.THREADS)
    yield
    torch.set_num_threads(before[0])
    ccamerge.set_num_threads(before[1])


@pytest.fixture(scope="session")
def zoo() -> cases.Zoo:
    """Four ResNet20s with 1,000 calibration images."""
    try:
        return cases.zoo(images=1000, test=1000)
    except FileNotFoundError as error:
        pytest.skip(str(error))
