"""Arguments of a wrong type are refused by a message that names them, before data is read."""

from __future__ import annotations

import fractions
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.checkpoints.reading import load_into, load_state, save_state
from ccamerge.core import arguments
from tests import models as M

HUGE = 10**400
EYE = np.eye(3)


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    return [M.randomise(M.MLP(), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(32, 12), torch.randint(5, (32,))) for _ in range(2)]


@pytest.fixture(scope="module")
def moments(networks: Any, batches: Any) -> ccamerge.Statistics:
    return ccamerge.collect(networks, batches, progress=False)


def _unread() -> Iterator[Tensor]:
    pytest.fail("data was read")
    yield torch.empty(0)


def _refused(call: Callable[..., Any], name: str, value: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**{name: value})
    text = str(caught.value)
    assert name in text
    assert "object is not" not in text
    assert "not supported between" not in text
    return text


WRONG = [
    ("t", ["0.5", True, np.True_, [0.5], 1j, HUGE]),
    ("ridge", ["much", True, [0.1], {"layers.0": "x"}, {0: 0.1}, {"layers.0": True}, HUGE]),
    ("gamma", ["auto", False, np.ones(1), HUGE]),
    ("reference", ["0", True, 0.0, None]),
    ("weights", [3, "12", {1.0, 2.0}, [1, "a"], [True, False], {"*": 3}, [HUGE, 1]]),
    ("method", [None, 3, ["cca"], {"*": 3}, {3: "cca"}]),
    ("options", [3, "alpha", ["alpha"], {1: 2}, {"alpha": 0.3}]),
    ("mode", [None, 3]),
    ("repair", [3, True]),
    ("norm", [None, "batch"]),
    ("progress", ["yes", None]),
    ("seed", ["0", 1.5, True, -1, 2**63, HUGE]),
    ("moments", ["stats.safetensors", 3]),
    ("aligned", ["maps", 3]),
    ("data", [3, "images", torch.ones(3, 3), {"x": torch.ones(3)}, len]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG for value in values]
)
def test_merge_refuses_by_name_before_it_reads(networks: Any, name: str, value: Any) -> None:
    given = {"data": _unread(), "progress": False}
    _refused(lambda **kw: ccamerge.merge(networks, **{**given, **kw}), name, value)


@pytest.mark.parametrize("models", [None, 3, "ab", {"a": nn.Linear(2, 2)}, [nn.Linear(2, 2), 3]])
def test_models_of_every_function(models: Any, batches: Any, moments: Any) -> None:
    for call in (
        lambda models: ccamerge.merge(models, batches),
        lambda models: ccamerge.collect(models, batches),
        lambda models: ccamerge.evaluate(models, batches),
        lambda models: ccamerge.compare(models, batches),
        lambda models: ccamerge.barrier(models, batches, statistics=moments),
    ):
        _refused(call, "models", models)


def test_what_to_do_with_the_name_of_a_file_or_a_whole_result(
    networks: Any, moments: ccamerge.Statistics
) -> None:
    for value in ("stats.safetensors", Path("stats.safetensors")):
        with pytest.raises(TypeError, match=r"load the file first, .*Statistics\.load\(.*stats"):
            ccamerge.merge(networks, statistics=value)  # type: ignore[arg-type]
    result = ccamerge.merge(networks, statistics=moments, repair="none", progress=False)
    with pytest.raises(TypeError, match=r"got one MergeResult: pass its moments"):
        ccamerge.merge(networks, statistics=result)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"aligned=result\.aligned"):
        ccamerge.merge(networks, statistics=moments, aligned=result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("zipit", {"alpha": "x"}),
        ("zipit", {"beta": True}),
        ("zipit", {"alpha": float("nan")}),
        ("weight_matching", {"seed": 1.5}),
        ("ot", {"standardize": "no"}),
        ({"layers.0": "zipit"}, {"alfa": 1}),
    ],
)
def test_options_are_checked_before_data_is_read(networks: Any, method: Any, options: Any) -> None:
    name = next(iter(options))
    with pytest.raises((TypeError, ValueError), match=f"options: .*{name}"):
        ccamerge.merge(networks, _unread(), method=method, options=options, progress=False)


def test_a_mode_that_the_method_does_not_know_is_said_before_data_is_read(networks: Any) -> None:
    with pytest.raises(ValueError, match="mode 'universe' is not for method 'ot'"):
        ccamerge.merge(networks, _unread(), method="ot", mode="universe", progress=False)


def test_the_reference_alone_cannot_be_gone_away_from(networks: Any) -> None:
    with pytest.raises(ValueError, match="t needs another model to go to"):
        ccamerge.merge(networks, _unread(), weights=[1, 0], t=0.5, progress=False)


def test_numbers_of_numpy_and_torch_are_numbers(networks: Any, moments: Any) -> None:
    plain = ccamerge.merge(
        networks, statistics=moments, ridge=0.25, t=0.5, weights=[1, 3], reference=0, progress=False
    )
    result = ccamerge.merge(
        networks,
        statistics=moments,
        ridge=np.float32(0.25),
        t=torch.tensor(0.5),  # type: ignore[arg-type]
        weights=np.array([1, 3]),  # type: ignore[arg-type]
        reference=np.int64(0),  # type: ignore[arg-type]
        seed=np.uint8(0),  # type: ignore[arg-type]
        progress=False,
    )
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])
    assert type(result.report.reference) is int
    assert {type(space.ridge) for space in result.report.spaces} == {float}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("methods", "cca"),
        ("methods", 3),
        ("methods", [3]),
        ("methods", {"one": 3}),
        ("methods", {"one": {"methd": "cca"}}),
        ("points", "11"),
        ("points", 2.5),
        ("metric", 3),
        ("loss", 3),
        ("better", "more"),
        ("ensemble", 3),
        ("names", ["one"]),
        ("names", "ab"),
        ("others", [nn.Linear(2, 2)]),
        ("others", {"one": 3}),
        ("t", "x"),
        ("ridge", True),
        ("reference", "0"),
        ("repair", "all"),
    ],
)
def test_compare_checks_everything_before_it_evaluates(
    networks: Any, moments: Any, name: str, value: Any
) -> None:
    class Unread:
        def __iter__(self) -> Iterator[Tensor]:
            return _unread()

    given = {"statistics": moments, "methods": ["cca"], "progress": False}
    _refused(lambda **kw: ccamerge.compare(networks, Unread(), **{**given, **kw}), name, value)


def test_an_unknown_setting_of_compare_is_named_with_its_row(networks: Any, moments: Any) -> None:
    with pytest.raises(TypeError, match=r"methods\['one'\]: 'ridg' is no .* mean 'ridge'"):
        ccamerge.compare(networks, [], statistics=moments, methods={"one": {"ridg": 1}})


@pytest.mark.parametrize(
    ("call", "name", "values"),
    [
        (lambda **kw: ccamerge.cca(**{"Sxx": EYE, "Syy": EYE, "Sxy": EYE, **kw}), "Sxx",
         [None, "x", [[1, 2], [3]], EYE > 0, EYE * 1j, torch.eye(3) > 0]),
        (lambda **kw: ccamerge.cca(EYE, EYE, EYE, **kw), "ridge", ["0.1", True, [0.1], {}, HUGE]),
        (lambda **kw: ccamerge.cca(EYE, EYE, EYE, **kw), "correlations", ["yes", None]),
        (lambda **kw: ccamerge.cca_batch(**kw), "problems", [3, None, "x", [3], [(EYE, EYE)]]),
        (lambda **kw: ccamerge.cca_batch([], **kw), "gamma", [[True], ["x"], "x"]),
        (lambda **kw: ccamerge.polar_batch(**kw), "matrices", [None, 3, "x"]),
        (lambda **kw: ccamerge.generalized_eigh(EYE, EYE, **kw), "k", ["1", True, 1.5]),
        (lambda **kw: ccamerge.whiten(EYE, **kw), "kind", [3, None]),
        (lambda **kw: ccamerge.universe([EYE, EYE], **kw), "crosses", [None, 3]),
        (lambda **kw: ccamerge.universe([EYE, EYE], [EYE], **kw), "weights",
         [3, "ab", [True, True], ["a", 1]]),
        (lambda **kw: ccamerge.universe([EYE, EYE], [EYE], **kw), "reference", ["0", 0.5, True]),
        (lambda **kw: ccamerge.universe([EYE, EYE], [EYE], **kw), "tolerance", ["x", None]),
        (lambda **kw: ccamerge.universe([EYE, EYE], [EYE], **kw), "max_sweeps", [1.5, "3"]),
        (lambda **kw: ccamerge.universe_batch(**kw), "problems", [3, [3]]),
        (lambda **kw: ccamerge.Moments(**kw), "dims", [None, 3, "ab", [3.7, 2], [True, 2]]),
        (lambda **kw: ccamerge.Moments([2, 2], **kw), "reference", ["0", True, 1.5]),
        (lambda **kw: ccamerge.Moments([2]).update(**kw), "features", [None, 3, "x"]),
        (lambda **kw: ccamerge.Moments([2]).update([np.ones((3, 2))], **kw), "axis", ["x", 1.5]),
        (lambda **kw: ccamerge.Moments([2]).mean(**kw), "i", ["0", 0.5, None]),
        (lambda **kw: ccamerge.Moments([2, 2]).subset(**kw), "models", [3, "ab", [0.5]]),
        (lambda **kw: ccamerge.Moments.load(**kw), "path", [3, None]),
        (lambda **kw: ccamerge.Moments.from_state(**kw), "state", [3, None]),
        (lambda **kw: ccamerge.Statistics.load(**kw), "path", [3, None]),
        (lambda **kw: ccamerge.spaces(example_inputs=torch.ones(2, 3), **kw), "model", [3, "x"]),
        (lambda **kw: ccamerge.verify(example_inputs=torch.ones(2, 3), **kw), "model", [3, "x"]),
        (lambda **kw: ccamerge.verify(nn.Linear(3, 2), torch.ones(2, 3), **kw), "seed", ["1", 1.5]),
        (lambda **kw: ccamerge.plan(**kw), "spaces", [3, [1, 2]]),
        (lambda **kw: load_state(**kw), "path", [3, None]),
        (lambda **kw: load_into(path="x.pt", **kw), "module", [3, None]),
        (lambda **kw: save_state(path="x", **kw), "state", [3, [1]]),
    ],
)  # fmt: skip
def test_functions_below_the_merge(call: Any, name: str, values: list[Any]) -> None:
    for value in values:
        _refused(call, name, value)


def test_a_subset_is_of_distinct_models(moments: ccamerge.Statistics) -> None:
    for models in ([0, 0], [0, 5], [0], [0.5, 1], 3, [True, False]):
        _refused(lambda models: moments.subset(models), "models", models)


def test_a_damaged_file_of_moments_is_named(tmp_path: Path, moments: ccamerge.Statistics) -> None:
    from ccamerge.core.tensorfile import load_tensors, save_tensors

    moments.save(tmp_path / "s.safetensors")
    tensors, metadata = load_tensors(tmp_path / "s.safetensors")
    for about in (
        {"format": metadata["format"]},
        {**metadata, "header": "{"},
        {**metadata, "header": '{"inputs": []}'},
    ):
        save_tensors(tmp_path / "s.safetensors", tensors, about)
        with pytest.raises(ValueError, match=r"s\.safetensors: damaged"):
            ccamerge.Statistics.load(tmp_path / "s.safetensors")


def test_messages_stay_short_whatever_came() -> None:
    for value in ("x" * 5000, HUGE, list(range(5000)), torch.ones(500, 500), b"x" * 5000):
        with pytest.raises((TypeError, ValueError)) as caught:
            arguments.number(value, "amount")
        assert len(str(caught.value)) < 200


def test_what_counts_as_a_number() -> None:
    for value in (1, 1.0, np.float16(1), np.int8(1), np.array(1.0), fractions.Fraction(1)):
        assert arguments.number(value, "amount") == 1.0
    assert arguments.integer(np.int16(3), "amount") == 3
    for wrong in (2.0, "2", True, np.True_, np.float64(2)):
        with pytest.raises(TypeError, match="amount must be a whole number, got"):
            arguments.integer(wrong, "amount")
