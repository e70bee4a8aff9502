"""Models, ensemble and methods side by side."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from tests import models as M

Data = list[tuple[Tensor, Tensor]]


class _Once:
    """Batches that may be read a number of times."""

    def __init__(self, data: Data, times: int) -> None:
        self.data, self.left = data, times

    def __iter__(self) -> Any:
        assert self.left > 0, "read too often"
        self.left -= 1
        return iter(self.data)


def _data(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    sizes = (32, 7, 19)
    return [
        (torch.randn(n, 12, generator=generator), torch.randint(5, (n,), generator=generator))
        for n in sizes
    ]


@pytest.fixture(scope="module")
def models() -> list[nn.Module]:
    return [M.randomise(M.MLP(), seed) for seed in range(3)]


@pytest.fixture(scope="module")
def moments(models: list[nn.Module]) -> ccamerge.Statistics:
    return ccamerge.collect(models, [torch.randn(256, 12)], pairs="all", progress=False)


def test_everything_is_what_the_parts_say(
    models: list[nn.Module], moments: ccamerge.Statistics
) -> None:
    data = _data()
    other = M.randomise(M.MLP(), 9)
    found = ccamerge.compare(
        models,
        _Once(data, 3),  # for the models, and for each method
        statistics=moments,
        methods=["cca", "permutation"],
        points=4,
        names=["a", "b", "c"],
        others={"other": other},
        progress=False,
        reference=2,
        repair="none",
    )

    def both(networks: Any) -> tuple[float, float]:
        return (
            ccamerge.evaluate(networks, data),
            ccamerge.evaluate(networks, data, "cross_entropy"),
        )

    assert [(s.metric, s.loss) for s in found.models] == [both(m) for m in models]
    assert found.ensemble is not None
    assert (found.ensemble.metric, found.ensemble.loss) == both(models)
    assert [s.name for s in found.merged] == ["cca", "permutation", "other"]
    settings = {"statistics": moments, "reference": 2, "repair": "none", "progress": False}
    for score in found.merged[:2]:
        merged = ccamerge.merge(models, method=score.name, **settings)  # type: ignore[arg-type]
        assert (score.metric, score.loss) == both(merged.model)
        assert score.seconds is not None
        assert score.seconds > 0
        own = ccamerge.barrier(
            models,
            data,
            points=4,
            statistics=moments,
            method=score.name,
            reference=2,
            repair="none",
        )
        assert found.barriers[score.name] == own
    assert (found.merged[2].metric, found.merged[2].loss) == both(other)
    assert found.merged[2].seconds is None
    assert found.samples == 58

    record = found.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert {k: type(v) for k, v in record.items()} == {
        "metric": str, "better": str, "loss": str, "samples": int, "models": list,
        "ensemble": dict, "merged": list, "barriers": list,
    }  # fmt: skip
    assert set(record["models"][0]) == {"name", "metric", "loss"}
    assert set(record["ensemble"]) == {"metric", "loss"}
    assert set(record["merged"][0]) == {"name", "metric", "loss", "seconds"}
    assert set(record["barriers"][0]) == {"name", "t", "metric", "loss", "ends", "barrier"}
    assert record["barriers"][1]["name"] == "permutation"
    assert record["barriers"][1]["barrier"] == found.barriers["permutation"].barrier


def test_the_table(models: list[nn.Module], moments: ccamerge.Statistics) -> None:
    found = ccamerge.compare(
        models, _data(), statistics=moments, methods=["average"], points=3, progress=False
    )
    lines = str(found).splitlines()
    assert lines[0].split() == ["accuracy", "cross_entropy", "seconds"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "models[0]", "models[1]", "models[2]", "ensemble of 3", "average",
    ]  # fmt: skip
    assert lines[1].split()[1:] == [
        f"{found.models[0].metric:.2%}",
        f"{found.models[0].loss:#.4g}",
    ]
    assert lines[7] == "cross_entropy from the reference (t = 0) to the others (1)"
    assert [line.split()[0] for line in lines[8:]] == ["t", "0", "0.5", "1", "barrier"]
    assert lines[-1].split()[1] == f"{found.barriers['average'].barrier:#.4g}"
    plain = ccamerge.compare(models, iter(_data()), ensemble="none")
    assert "seconds" not in str(plain)
    assert "ensemble" not in str(plain)
    assert (plain.ensemble, plain.merged, plain.barriers) == (None, [], {})


def test_rows_of_any_settings(models: list[nn.Module], moments: ccamerge.Statistics) -> None:
    found = ccamerge.compare(
        models,
        _data(),
        statistics=moments,
        methods={"weak": {"ridge": 1e-3}, "strong": {"ridge": 10.0, "repair": "none"}},
        progress=False,
        repair="variance",
    )
    for name, ridge, repair in (("weak", 1e-3, "variance"), ("strong", 10.0, "none")):
        merged = ccamerge.merge(models, statistics=moments, ridge=ridge, repair=repair)  # type: ignore[arg-type]
        loss = ccamerge.evaluate(merged.model, _data(), "cross_entropy")
        assert {s.name: s.loss for s in found.merged}[name] == loss


def test_better(models: list[nn.Module]) -> None:
    def norm(outputs: Tensor, batch: Any) -> Tensor:
        return outputs.norm(dim=-1)

    for metric, better, expected in (
        ("accuracy", None, "higher"),
        ("cross_entropy", None, "lower"),
        (norm, None, "higher"),
        (norm, "lower", "lower"),
    ):
        found = ccamerge.compare(models, _data(), metric=metric, better=better)
        assert found.better == expected
        assert found.metric == (metric if isinstance(metric, str) else "norm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": None}, "statistics are needed to merge by methods"),
        ({"methods": ["cca", "ccaa"]}, "method must be one of .*; got 'ccaa'"),
        ({"methods": ["cca", "ot"], "mode": "universe"}, "mode 'universe' is not for method 'ot'"),
        ({"options": {"alpha": 1}}, "options: 'alpha' is not known to 'cca'"),
        ({"points": 2}, "points must be at least 3"),
    ],
)
def test_errors_before_the_data_is_read(
    models: list[nn.Module],
    moments: ccamerge.Statistics,
    changes: dict[str, Any],
    message: str,
) -> None:
    data = _Once(_data(), 0)
    with pytest.raises(ValueError, match=message):
        ccamerge.compare(models, data, **{"statistics": moments, "methods": ["cca"], **changes})


def test_generators_last_for_one_pass_only(
    models: list[nn.Module], moments: ccamerge.Statistics
) -> None:
    with pytest.raises(ValueError, match="data is read several times: pass a list"):
        ccamerge.compare(models, iter(_data()), statistics=moments, methods=["cca"])


def test_without_pot(
    models: list[nn.Module], moments: ccamerge.Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match="method 'ot' needs the package POT: pip install"):
        ccamerge.compare(models, _Once(_data(), 0), statistics=moments, methods=["cca", "ot"])
    with pytest.raises(ImportError, match="method 'ot' needs the package POT"):
        ccamerge.merge(models, _Once(_data(), 0), method="ot")


def test_numerical_failures_name_the_method(models: list[nn.Module]) -> None:
    few = ccamerge.collect(models, [torch.randn(4, 12)], progress=False)
    with pytest.raises(np.linalg.LinAlgError, match=r"exact: .*ridge"):
        ccamerge.compare(
            models, _data(), statistics=few, methods={"exact": {"ridge": 0.0}}, progress=False
        )
