"""The ``repr`` of results says what they are in a few lines, whatever they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.core.brief import brief
from tests import models as M


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    models = [M.randomise(M.MLP(), seed) for seed in range(6)]
    data = [(torch.randn(32, 12), torch.randint(5, (32,))) for _ in range(20)]
    result = ccamerge.merge(models, data, progress=False)
    compared = ccamerge.compare(
        models,
        data,
        statistics=result.statistics,
        methods={f"method {i}" * 20: {"method": "average"} for i in range(9)},
        points=3,
        progress=False,
    )
    features = np.random.default_rng(0).standard_normal((400, 80))
    square = features.T @ features
    name = result.report.spaces[0].name
    return {
        "result": result,
        "aligned": result.aligned,
        "spaces": result.spaces,
        "space": result.spaces[name],
        "program": result.spaces.program,
        "collected": result.statistics,
        "report": result.report,
        "space report": result.report.spaces[0],
        "map": result.maps[name][1],
        "solution": result.aligned.solutions[name][1],
        "comparison": compared,
        "barrier": next(iter(compared.barriers.values())),
        "plan": ccamerge.plan(result.spaces, 6),
        "cca": ccamerge.cca(square, square, square, weights=True),
        "universe": ccamerge.universe([square] * 3, [square] * 3),
        "polar": ccamerge.polar_batch([features])[0],
        "whiten": ccamerge.whiten(square),
        "moments": ccamerge.Moments([1] * 2000, pairs="none"),
    }


def test_all_are_short_and_begin_with_their_class(results: dict[str, Any]) -> None:
    for name, value in results.items():
        text = repr(value)
        assert len(text) < 2000, name
        assert text.startswith(f"{type(value).__name__}("), name
        assert "\n" not in text
        assert "tensor(" not in text
        assert "array(" not in text


def test_they_say_what_one_wants_to_know(results: dict[str, Any]) -> None:
    text = repr(results["result"])
    for part in ("models=6", "method='cca'", "repair='regression'", "samples=640", "layers.0"):
        assert part in text
    assert "samples=640" in repr(results["collected"])
    assert "pairs='reference'" in repr(results["collected"])
    assert "map=<80x80 float64>" in repr(results["cca"])
    assert "rank=80" in repr(results["cca"])
    assert "... 2000]" in repr(results["moments"])
    assert "'models[0]': " in repr(results["comparison"])


def test_text_for_people_is_as_before(results: dict[str, Any]) -> None:
    assert "correlation" in str(results["report"])
    assert str(results["spaces"]).startswith("space")
    assert len(str(results["comparison"]).splitlines()) > 15


def test_plain_values() -> None:
    assert brief({"a": 1.0, "b": [1, 2]}) == "{'a': 1, 'b': [1, 2]}"
    assert brief(list(range(9))) == "[0, 1, 2, 3, ... 9 in all]"
    assert brief((3,)) == "(3,)"
    assert brief([[[1, 2]]]) == "[[<2 items>]]"
    assert brief(torch.ones(2, 3).half()) == "<2x3 float16>"
    assert brief(torch.nn.ReLU()) == "<ReLU>"
