"""Old names of arguments, which still work and say what they are called now."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function take arguments under their old names, too, with a DeprecationWarning.

    Parameters
    ----------
    names : new names by old ones

    Raises
    ------
    TypeError
        When the function is called with both.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = kwargs
            used = {new: old for old, new in names.items() if old in given}
            for old, new in names.items():
                if old not in given:
                    continue
                if new in given:
                    message = f"{new} and its old name {old} were both given"
                    raise TypeError(message)
                message = f"the argument {old} is called {new} now"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                given[new] = given.pop(old)
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError) as error:  # it names the argument as it is called now
                old = used.get(str(error).partition(" ")[0], "")
                if not old:
                    raise
                message = f"{old}: {error}"
                raise type(error)(message) from error

        return call

    return decorate
