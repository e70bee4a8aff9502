from __future__ import annotations

import pytest

from ccamerge.config.patterns import by_pattern

NAMES = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]


def test_the_first_pattern_that_matches_counts() -> None:
    found = by_pattern({"layer1.0*": 1, "layer1*": 2, "*conv1": 3}, NAMES, 0, "ridge")
    assert found == {"conv1": 3, "layer1.0.conv1": 1, "layer1.1.conv1": 2, "layer2.0.conv1": 3}


def test_others_get_the_default_and_names_keep_their_order() -> None:
    found = by_pattern({"layer[12].?.conv1": 1}, NAMES, 0, "ridge")
    assert list(found.items()) == [(name, int(name != "conv1")) for name in NAMES]
    assert by_pattern({}, NAMES, 7, "ridge") == dict.fromkeys(NAMES, 7)
    assert by_pattern({"anything": 1}, [], 7, "ridge") == {}


def test_case_counts_and_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="ridge: 'Conv1' matches no space; did you mean 'conv1'"):
        by_pattern({"Conv1": 1}, NAMES, 0, "ridge")
    with pytest.raises(
        ValueError, match="weights: 'zzz' matches no space; there are conv1, layer1"
    ):
        by_pattern({"zzz": 1}, NAMES, 0, "weights")


def test_a_pattern_behind_another_may_never_be_reached() -> None:
    assert by_pattern({"*": 1, "conv1": 2}, NAMES, 0, "ridge") == dict.fromkeys(NAMES, 1)
