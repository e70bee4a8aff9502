"""The backend under test: what is computed by the names here is computed there.

Tests that do not care where the library computes take ``Moments`` and the solves from here and run
once for each backend, by the fixture ``backend`` (see conftest.py). A body is the same for all: the
solves return NumPy arrays, and ``put`` brings features to where moments read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.core import canonical as solve
from ccamerge.core import decompositions as factors
from ccamerge.core import moments
from ccamerge.core import universes as universe_solve
from ccamerge.core.device import memory_of, obstacle, resolve
from ccamerge.graph.tracing.batches import moved
from ccamerge.repair import regression
from ccamerge.repair import repairing as repair

BACKENDS = ("cpu", "cuda")
CPU = torch.device("cpu")

_current = "cpu"


@contextmanager
def use(backend: str) -> Iterator[str]:
    """Compute on a backend inside; skips the test if it is not there."""
    global _current
    if backend != "cpu" and (reason := obstacle()) is not None:
        pytest.skip(f"CUDA is {reason}")
    before, _current = _current, backend
    try:
        yield backend
    finally:
        _current = before


class Moments(ccamerge.Moments):
    """On the backend under test, of features that may be anywhere."""

    def __init__(self, dims: Any, *, device: Any = None, **options: Any) -> None:
        super().__init__(dims, **options, device=_current if device is None else device)

    def update(self, features: Any, **options: Any) -> None:
        super().update(put(features), **options)


def update_many(updates: Any, **options: Any) -> None:
    """As the library's, of features that may be anywhere."""
    moments.update_many([(m, put(features)) for m, features in updates], **options)


def put(value: Any) -> Any:
    """Arrays, or lists of them, in the memory of the backend; as they are if they are there."""
    if isinstance(value, (list, tuple)):
        return [put(item) for item in value]
    memory = memory_of(resolve(_current))
    if memory.type == "cpu":
        return value
    return torch.as_tensor(value if isinstance(value, torch.Tensor) else np.array(value)).to(memory)


def host(value: Any) -> Any:
    """Results as NumPy arrays."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: host(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, (list, tuple)):
        items = [host(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _there(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return host(function(*args, **{"device": _current, **options}))

    return call


cca, cca_batch = _there(solve.cca), _there(solve.cca_batch)
polar, polar_batch, whiten = map(_there, (factors.polar, factors.polar_batch, factors.whiten))
generalized_eigh = _there(factors.generalized_eigh)
generalized_eigh_batch = _there(factors.generalized_eigh_batch)
universe, universe_batch = _there(universe_solve.universe), _there(universe_solve.universe_batch)


def collect(models: Any, data: Any, **options: Any) -> ccamerge.Statistics:
    """As the library's."""
    return ccamerge.collect(models, data, **{"device": _current, **options})


def merge(models: Any, *args: Any, **options: Any) -> ccamerge.MergeResult:
    """As the library's, with maps on the CPU."""
    result = ccamerge.merge(models, *args, **{"device": _current, **options})
    return dataclasses.replace(result, aligned=result.aligned.to(CPU))


def fit(job: regression.Fit, state: dict[str, Any], samples: Any) -> regression.Fitted:
    """As the library's, of what is on the CPU."""
    device = resolve(_current)
    there = moved(state, memory_of(device))
    pieces = tuple(
        dataclasses.replace(p, maps=moved(p.maps, memory_of(device))) for p in job.pieces
    )
    samples = [
        regression.Sample(*moved(tuple(vars(s).values()), memory_of(device))) for s in samples
    ]
    found = regression.fit(dataclasses.replace(job, pieces=pieces), there, samples, device)
    state.update(moved(there, CPU))
    return found


def channel_statistics(values: Any, dim: int, turns: Any = None) -> Any:
    """As the library's, of what is on the CPU."""
    device = resolve(_current)
    there = moved(values, memory_of(device))
    return moved(repair.channel_statistics(there, dim, turns, device), CPU)


def assert_equal(a: Any, b: Any) -> None:
    """What was computed in two ways of which the result does not depend.

    On the CPU to the last bit. On a device, problems of one shape are solved in lock-step, with the
    steps that the worst of them needs, and products of several are other kernels than those of one.
    """
    if _current == "cpu":
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max(initial=0.0))
