"""Whatever the command line refuses, Python refuses as early, before data is read in vain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.config.reader import parse_value
from tests import models as M
from tests.cli.test_cli_settings import WRONG
from tests.config.test_config import BAD
from tests.projects import CONFIG, MODULE, registering

ONLY_YAML = (
    "given twice",
    "expected a pattern,",
    "expected patterns with values",  # none at all are no wish in Python
    "not valid YAML",
    "the models have weights of their own",
    "parameters.prove",  # 1 is as good as True in Python
)
"""What says that a mistake cannot be made in Python."""


def _settings(text: str) -> dict[str, Any]:
    """The settings of a configuration as keyword arguments."""
    content = parse_value(text)
    method = {"method": content["merge_method"]} if "merge_method" in content else {}
    return {**method, **content.get("parameters", {})}


def _by_the_reader() -> Iterator[dict[str, Any]]:
    for text, message in BAD:
        where = message.split(": ")[1]
        wrong = where.startswith(("merge_method", "parameters")) and where != "merge_metod"
        if wrong and not any(words in message for words in ONLY_YAML):
            yield _settings(text)


def _by_the_commands() -> Iterator[tuple[dict[str, Any], str]]:
    for changes, message in WRONG:
        text = CONFIG
        for old, new in changes:
            text = text.replace(old, new)
        settings = _settings(text)
        if "blobs_module" not in str(settings):  # functions are for configurations only
            yield settings, message.split(": ", 2)[2]


OF_SPACES = [
    ({"method": {"zero*": "average"}}, "method: 'zero\\*' matches no space"),
    ({"method": {"*": "ot"}, "mode": "universe"}, "mode 'universe' is not for method 'ot'"),
    ({"ridge": {"33": 1.0}}, "ridge: '33' matches no space; did you mean '3'"),
    ({"weights": {"9*": [0, 1]}}, "weights: '9\\*' matches no space"),
    # Known to a method that is named, but to none that a space gets.
    (
        {"method": {"*": "cca", "3": "zipit"}, "options": {"alpha": 0.1}},
        "options: 'alpha' is not known to 'cca'",
    ),
]
"""What can be said once a first batch shows the spaces."""

ALONE = [
    {"norm": "paper", "repair": "regression"},
    {"weights": [1, 0], "t": 0.5},
    {"weights": {"*": [1, 0]}, "t": 0.5},
    {"method": "zipit", "options": {"alpha": 2}},
    {"method": {"0": "zipit"}, "options": {"beta": -0.5}},
    {"method": "ot", "options": {"entropy": float("inf")}},
    {"method": "weight_matching", "options": {"seed": -1}},
    {"method": {"*": "cca", "0": "zpiit"}},
]
"""More that can be said before."""


class Counted:
    """Batches that say how many were drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(3):
            self.drawn += 1
            yield torch.randn(32, 8)


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    namespace: dict[str, Any] = {}
    with registering():
        exec(MODULE, namespace)
    return [M.randomise(namespace["network"](), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def statistics(networks: list[nn.Module]) -> ccamerge.Statistics:
    return ccamerge.collect(networks, Counted(), progress=False, pairs="all")


def test_there_are_enough_mistakes() -> None:
    assert len(list(_by_the_reader())) > 15
    assert len(list(_by_the_commands())) >= 5


@pytest.mark.parametrize("settings", [*_by_the_reader(), *ALONE], ids=str)
def test_before_the_first_batch(
    networks: list[nn.Module], statistics: ccamerge.Statistics, settings: dict[str, Any]
) -> None:
    data = Counted()
    with pytest.raises((ValueError, TypeError)) as merging:
        ccamerge.merge(networks, data, progress=False, **settings)
    rows = {"right": {}, "wrong": settings}
    with pytest.raises((ValueError, TypeError)) as comparing:
        ccamerge.compare(networks, data, statistics=statistics, methods=rows, progress=False)
    assert data.drawn == 0
    assert str(merging.value) == str(comparing.value)


@pytest.mark.parametrize(("settings", "message"), list(_by_the_commands()), ids=str)
def test_what_the_commands_say(
    networks: list[nn.Module], settings: dict[str, Any], message: str
) -> None:
    data = Counted()
    with pytest.raises(ValueError, match=re.escape(message)):
        ccamerge.merge(networks, data, progress=False, **settings)
    assert data.drawn == ("matches no space" in message)


@pytest.mark.parametrize(("settings", "message"), OF_SPACES)
def test_what_depends_on_spaces_before_the_second_batch(
    networks: list[nn.Module],
    statistics: ccamerge.Statistics,
    settings: dict[str, Any],
    message: str,
) -> None:
    data = Counted()
    with pytest.raises(ValueError, match=message):
        ccamerge.merge(networks, data, progress=False, **settings)
    assert data.drawn == 1
    with pytest.raises(ValueError, match=message):
        ccamerge.merge(networks, statistics=statistics, progress=False, **settings)
    rows = {"right": {}, "wrong": settings}
    with pytest.raises(ValueError, match=message):  # where the spaces are known already
        ccamerge.compare(networks, data, statistics=statistics, methods=rows, progress=False)
    assert data.drawn == 1


@pytest.mark.parametrize("settings", [{"method": "permutation"}, {"mode": "universe"}])
def test_widths_before_the_second_batch(settings: dict[str, Any]) -> None:
    models = [
        nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)) for width in (10, 6)
    ]
    data = Counted()
    with pytest.raises(ValueError, match="needs equal widths"):
        ccamerge.merge(models, data, progress=False, **settings)
    assert data.drawn == 1


def test_a_way_that_leads_nowhere_before_the_first_batch(
    networks: list[nn.Module], statistics: ccamerge.Statistics
) -> None:
    data = Counted()
    with pytest.raises(ValueError, match="weights leave nothing but the reference"):
        ccamerge.compare(
            networks, data, statistics=statistics, methods=["cca"], points=3, weights=[1, 0]
        )
    assert data.drawn == 0
