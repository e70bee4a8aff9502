"""The examples in public docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest

import ccamerge

SHOWN = ["merge", "collect", "cca", "Moments", "spaces", "verify", "compare"]


@pytest.mark.parametrize("name", SHOWN)
def test_the_example_does_what_it_shows(name: str) -> None:
    shown: Any = getattr(ccamerge, name)
    scope = vars(importlib.import_module(shown.__module__))
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(shown, name, globs=dict(scope))
        if test.examples
    ]
    assert tests, f"{name} has no example"
    for test in tests:
        seen: list[str] = []
        failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
            test, out=seen.append
        )
        assert not failed, "".join(seen)
        assert tried
