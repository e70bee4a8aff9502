"""How a batch is read, and inputs of any structure from data to evaluation."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import OrderedDict, UserDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ccamerge
from ccamerge.graph.tracing.batches import batch_size, moved, split_batch
from tests import models as M

A, B, C = torch.randn(6, 4), torch.randn(6, 3), torch.randint(2, (6,))


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Labelled(NamedTuple):
    a: Tensor
    b: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    a: Tensor
    b: Tensor
    note: str = "x"


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 7), nn.Linear(3, 7), nn.Linear(7, 2)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0, b2: Tensor | None = None) -> Tensor:
        return self.out(torch.relu(self.first(a) + scale * self.second(b if b2 is None else b2)))


class _One(_Two):
    """The same of one argument that holds both."""

    def forward(self, both: Any) -> Tensor:  # type: ignore[override]
        if isinstance(both, (Pair, Record)):
            return super().forward(both.a, both.b)
        if isinstance(both, dict):
            return super().forward(both["a"], both["b"])
        return super().forward(*both)


class _Optional(_Two):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.out(torch.relu(self.first(a))) if b is None else super().forward(a, b)


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs"),
    [
        (nn.Linear(4, 2), A, (A,), {}),
        (nn.Linear(4, 2), (A, C), (A,), {}),
        (nn.Linear(4, 2), [A, C, C], (A,), {}),
        (_Two(), [[A, B], C], (A, B), {}),
        (_Two(), ((A, B), C), (A, B), {}),
        (_Two(), [A, B], (A, B), {}),
        (_Two(), (A, B, C), (A, B), {}),
        (_Two(), [[A, B, 2.0], C], (A, B, 2.0), {}),
        (_Optional(), [A, C], (A,), {}),
        (_Optional(), [[A, B], C], (A, B), {}),
        (_Two(), {"a": A, "b": B, "labels": C}, (), {"a": A, "b": B}),
        (_Two(), UserDict(b=B, a=A), (), {"a": A, "b": B}),
        (_Two(), ({"a": A, "b": B}, C), (), {"a": A, "b": B}),
        (_Two(), {"a": A, "b": B, "b2": None}, (), {"a": A, "b": B, "b2": None}),
        (_Two(), Pair(A, B), (), {"a": A, "b": B}),
        (_Two(), Labelled(A, B, C), (), {"a": A, "b": B}),
        (_Two(), Record(A, B), (), {"a": A, "b": B}),
        (_One(), [[A, B], C], ([A, B],), {}),
        (_One(), {"a": A, "b": B}, ({"a": A, "b": B},), {}),
        (_One(), (UserDict(a=A, b=B), C), ({"a": A, "b": B},), {}),
        (_One(), (Pair(A, B), C), (Pair(A, B),), {}),
        (_One(), Record(A, B), (Record(A, B),), {}),
        (_One(), {"both": (A, B)}, (), {"both": (A, B)}),
    ],
)
def test_what_forward_needs_decides(model: nn.Module, batch: Any, args: Any, kwargs: Any) -> None:
    found = split_batch(batch, model)
    assert [type(x) for x in found[0]] == [type(x) for x in args]
    assert found[1].keys() == kwargs.keys()

    def leaves(value: Any) -> list[Any]:
        if dataclasses.is_dataclass(value):
            return [value.a, value.b]
        return torch.utils._pytree.tree_leaves(value)

    ours = [x for value in (*found[0], *found[1].values()) for x in leaves(value)]
    wanted = [x for value in (*args, *(kwargs[key] for key in found[1])) for x in leaves(value)]
    assert len(ours) == len(wanted)
    assert all(a is b for a, b in zip(ours, wanted, strict=True))


class _Opaque:
    """Of a class in which torch finds no tensors."""


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (_Two(), {"a": A}, r"keys \['a'\], but _Two\.forward\(a: .*\) cannot do without 'b'"),
        (nn.Linear(4, 2), {"inputs": A}, r"keys \['inputs'\].*cannot do without 'input'"),
        (nn.Linear(4, 2), A.numpy(), "got ndarray"),
        (_Two(), (A.numpy(), B), "input 0 of a batch is a NumPy array.*from_numpy"),
        (_Two(), {"a": A, "b": UserDict(c=np.zeros(3))}, r"b\['c'\] of a batch is a NumPy array"),
        (_One(), [[_Opaque(), A], C], "input 0 of a batch is a _Opaque.*register_pytree_node"),
        (nn.Linear(4, 2), _Opaque(), r"got _Opaque for Linear\.forward"),
        (nn.Linear(4, 2), [], "got list"),
        (nn.Linear(4, 2), None, "got NoneType"),
    ],
)
def test_what_is_no_batch_is_named(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        split_batch(batch, model)


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ([A], 6),
        ([torch.tensor(3.0), A], 6),
        ([[A, {"b": B}], torch.zeros(9, 2)], 6),
        ([torch.zeros(2, 30), torch.zeros(9, 2)], 9),
        ([torch.tensor(3.0), "x", None], 1),
    ],
)
def test_the_number_of_samples(inputs: Any, size: int) -> None:
    assert batch_size(inputs) == size


def test_moving_keeps_what_a_batch_is() -> None:
    meta = torch.device("meta")
    for batch in (Pair(A, B), Record(A, B), OrderedDict(a=A, b=[B, None]), (A, "x")):
        there = moved(batch, meta)
        assert type(there) is type(batch)
        assert moved(batch, torch.device("cpu")) is batch
    assert moved(Record(A, B), meta).a.device == meta
    assert moved(OrderedDict(a=A, b=[B, None]), meta)["b"][0].device == meta


def _seeded(build: type[nn.Module]) -> list[nn.Module]:
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(M.randomise(build(), seed))
    return models


_PAIRS = [((torch.randn(4), torch.randn(3)), i % 2) for i in range(64)]


def _batches(kind: str) -> list[Any]:
    loaded = list(DataLoader(_PAIRS, batch_size=16))
    named = [{"a": a, "b": b} for (a, b), _ in loaded]
    return {
        "collated": loaded,
        "flat": [(a, b, y) for (a, b), y in loaded],
        "names": [{**inputs, "labels": y} for inputs, (_, y) in zip(named, loaded, strict=True)],
        "records": [(Record(a, b), y) for (a, b), y in loaded],
        "named tuples": [(Pair(a, b), y) for (a, b), y in loaded],
        "labelled": [Labelled(a, b, y) for (a, b), y in loaded],
        "other order": [
            *({**i, "labels": C[:0]} for i in named[:2]),
            *({"b": b, "a": a} for (a, b), _ in loaded[2:]),
        ],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["collated", "flat", "names", "records", "named tuples", "labelled", "other order"],
)
def test_the_structure_of_inputs_does_not_matter(kind: str, tmp_path: Path) -> None:
    """The same data in any form merges and evaluates to the same, from files too."""
    build = _One if kind in ("records", "named tuples") else _Two
    models, plain = _seeded(build), _seeded(_Two)
    data, wanted = _batches(kind), _batches("collated")
    merged = ccamerge.merge(models, data, progress=False)
    expected = ccamerge.merge(plain, wanted, progress=False)
    a, b = (r.model.state_dict() for r in (merged, expected))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert merged.statistics.samples == 64
    if kind != "other order":
        ours, theirs = (
            ccamerge.evaluate(*pair) for pair in ((merged.model, data), (expected.model, wanted))
        )
        assert ours == theirs
    merged.statistics.save(tmp_path / "m.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "m.safetensors")
    again = ccamerge.merge(models, statistics=loaded, progress=False).model.state_dict()
    for key, value in a.items():  # from inputs elsewhere in memory: sums in another order
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)


def test_a_class_that_is_not_imported_is_named(tmp_path: Path) -> None:
    models = [M.randomise(_One(), seed) for seed in range(2)]
    ccamerge.collect(models, _batches("records"), progress=False).save(tmp_path / "m.safetensors")
    program = (
        "import ccamerge, torch, sys\n"
        "loaded = ccamerge.Statistics.load(sys.argv[1])\n"
        "try: loaded.spaces_of(torch.nn.Linear(2, 2))\n"
        "except ValueError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.safetensors")],
        cwd=tmp_path,  # not beside the sources, which would be imported in place of the package
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not imported here" in ran.stdout
    assert "test_batches:Record" in ran.stdout


def test_one_tensor_given_twice_is_two_inputs() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 7), nn.Linear(4, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.out(torch.relu(self.a(x) - self.b(y)))

    model = M.randomise(Square()).eval()
    program = ccamerge.spaces(model, (A, A)).program
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    out = program.run(model.state_dict(), program.flatten_inputs((x, y), {}))
    torch.testing.assert_close(out, model(x, y))
