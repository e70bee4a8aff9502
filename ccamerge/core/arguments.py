"""Arguments of public functions: what has the wrong type is refused by name.

Each function here returns the argument as plain Python has it (a NumPy scalar as a float) or raises
a TypeError that says which argument it was, what was expected and what came. Bounds are the
callers', since what they mean differs.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

MOST_SEED = 2**63 - 1

_SHOWN = 60  # characters of a value in a message


def shown(value: Any) -> str:
    """A value as messages show it: short, with its type."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an {kind} of {value.bit_length()} bits"
    if isinstance(value, (int, float, complex, str, bytes)):
        text = repr(value)
        return f"{kind} {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return f"{kind} of {dtype or 'unknown dtype'} with shape {tuple(shape)}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"one {kind}"


def wrong(name: str, expected: str, value: Any, hint: str = "") -> TypeError:
    """The error for an argument of a wrong type, for the caller to raise."""
    return TypeError(f"{name} must be {expected}, got {shown(value)}{hint}")


def number(value: Any, name: str, expected: str = "a number") -> float:
    """A real number; NumPy's scalars and arrays or tensors without axes are numbers, bool is none.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If it is a whole number beyond float64.
    """
    kind = str(getattr(value, "dtype", ""))
    odd = isinstance(value, (bool, str, bytes, complex)) or "bool" in kind
    if odd or "complex" in kind or getattr(value, "shape", ()) != ():
        raise wrong(name, expected, value)
    try:
        return float(value)
    except OverflowError:
        message = f"{name} must be {expected}, got {shown(value)}, beyond float64"
        raise ValueError(message) from None
    except (TypeError, ValueError, RuntimeError):
        raise wrong(name, expected, value) from None


def integer(value: Any, name: str, expected: str = "a whole number") -> int:
    """A whole number of an integer type; bool is none, nor is 2.0."""
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool) or "bool" in kind or getattr(value, "shape", ()) != ():
        raise wrong(name, expected, value)
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise wrong(name, expected, value) from None


def index(value: Any, name: str, count: int) -> int:
    """A whole number that names one of ``count`` things; ValueError for one that does not."""
    found = integer(value, name, f"a whole number in 0..{count - 1}")
    if not 0 <= found < count:
        message = f"{name} must be in 0..{count - 1}, got {found}"
        raise ValueError(message)
    return found


def seed(value: Any, name: str = "seed") -> int:
    """What random generators start from: ValueError unless it is in 0..2^63 - 1."""
    found = integer(value, name, "a whole number >= 0")
    if not 0 <= found <= MOST_SEED:
        text = shown(found) if found > MOST_SEED else str(found)
        message = f"{name} must be a whole number >= 0 and below 2**63, got {text}"
        raise ValueError(message)
    return found


def flag(value: Any, name: str) -> bool:
    """True or False, also as 0 and 1 or NumPy's."""
    numpy = sys.modules.get("numpy")  # without it, which takes time to import, nothing is NumPy's
    kinds = (bool,) if numpy is None else (bool, numpy.bool_)
    if isinstance(value, kinds) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise wrong(name, "True or False", value)


def string(value: Any, name: str, expected: str = "a string") -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(name, expected, value)
    return value


def choice(value: T, name: str, known: Iterable[str]) -> T:
    """One of some words; ValueError for another."""
    listed = list(known)
    expected = f"one of {', '.join(map(repr, listed))}"
    if string(value, name, expected) not in listed:
        message = f"{name} must be {expected}; got {value!r}"
        raise ValueError(message)
    return value


def instance(
    value: Any, kind: type[T] | tuple[type[T], ...], name: str, expected: str, hint: str = ""
) -> T:
    """An instance of a class; ``hint`` ends the message."""
    if not isinstance(value, kind):
        raise wrong(name, expected, value, hint)
    return value


def items(value: Any, name: str, expected: str) -> list[Any]:
    """The items of a list, a tuple or another ordered collection, in a new list."""
    odd = isinstance(value, (str, bytes, Mapping, AnySet)) or getattr(value, "shape", None) == ()
    if odd or not (hasattr(value, "__iter__") or isinstance(value, Sequence)):
        raise wrong(name, expected, value)
    return list(value)


def mapping(value: Any, name: str, expected: str) -> Mapping[str, Any]:
    """A mapping with strings for keys."""
    if not isinstance(value, Mapping):
        raise wrong(name, expected, value)
    for key in value:
        string(key, f"a key of {name}")
    return value


def path(value: Any, name: str) -> Path:
    """A path in the file system."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise wrong(name, "a path", value)
    return Path(value)


def module(value: Any, name: str) -> nn.Module:
    """A network."""
    from torch import nn

    return instance(value, nn.Module, name, "a torch.nn.Module")


def modules(value: Any, name: str = "models") -> list[nn.Module]:
    """Networks, of which one is not a list, though iterating over an ``nn.Sequential`` works."""
    from torch import nn

    expected = "a list or tuple of modules"
    if isinstance(value, nn.Module) and not isinstance(value, nn.ModuleList):
        raise wrong(name, expected, value)
    found = items(value, name, expected)
    for place, item in enumerate(found):
        if not isinstance(item, nn.Module):
            message = f"{name}[{place}] must be a torch.nn.Module, got {type(item).__name__}"
            raise TypeError(message)
    return found


def batches(data: Any, name: str = "data") -> Iterable[Any]:
    """What gives batches; iterating over one batch would take every sample for a batch."""
    one = isinstance(data, (Mapping, str, bytes)) or hasattr(data, "shape")
    if one or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        hint = f"; if it is a function, call it: {name}()" if callable(data) else ""
        raise wrong(name, "an iterable of batches", data, hint)
    return data  # type: ignore[no-any-return]
