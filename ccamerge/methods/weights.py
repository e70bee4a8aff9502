"""How much of each model goes into the merged one: overall, by space, and between two of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ccamerge.config.patterns import by_pattern
from ccamerge.config.settings import normalised
from ccamerge.core import arguments
from ccamerge.graph.space import Role, Spaces

Weights = Sequence[float] | Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Each model's share, summing to one, for parameters and for the features they write."""

    default: tuple[float, ...]
    spaces: Mapping[str, tuple[float, ...]]
    parameters: Mapping[str, tuple[float, ...]]

    @property
    def alone(self) -> int | None:
        """The model that has all the weight, everywhere; None if there is none."""
        rows = {*self.spaces.values(), *self.parameters.values()} or {self.default}
        (row, *others) = rows
        return row.index(1.0) if not others and 1.0 in row else None

    def of_space(self, name: str) -> tuple[float, ...]:
        """For the features of a space."""
        return self.spaces.get(name, self.default)

    def of_parameter(self, key: str) -> tuple[float, ...]:
        """For a parameter of the folded program: that of the space it writes."""
        return self.parameters.get(key, self.default)


def shares_of(
    weights: Weights | None, t: float | None, count: int, reference: int, spaces: Spaces
) -> Shares:
    """Check and normalise weights.

    Parameters
    ----------
    weights : one number a model; or such lists by patterns over the names of spaces and of
        parameters that write none (the network's last layer); default equal
    t : how far to go from the reference (0) to the weighted mean of the others (1)
    count, reference : number of models, and which one is the reference
    spaces : of the models

    Raises
    ------
    ValueError, TypeError
        For what makes no sense, or patterns that match nothing.
    """
    t = checked_t(t)
    weights = check_weights(weights, count)
    equal = [1.0] * count
    if not isinstance(weights, Mapping):
        return Shares(
            _shares(equal if weights is None else weights, "weights", t, reference), {}, {}
        )
    writer: dict[str, str] = {}
    for space in spaces.spaces:
        for slot in space.slots:
            if slot.role is not Role.READ:
                writer.setdefault(slot.parameter, space.name)
    parameters = dict.fromkeys(spaces.program.parameters.values())
    names = [s.name for s in spaces.spaces]
    names += [key for key in parameters if key not in writer]
    given = by_pattern(weights, names, equal, "weights")
    shares = {
        name: _shares(values, f"weights of {name!r}", t, reference)
        for name, values in given.items()
    }
    return Shares(
        _shares(equal, "weights", t, reference),
        {s.name: shares[s.name] for s in spaces.spaces},
        {key: shares[writer.get(key, key)] for key in parameters},
    )


def checked_t(t: float | None) -> float | None:
    """The number that ``t`` is; ValueError or TypeError unless it is one between 0 and 1."""
    if t is None:
        return None
    expected = "a number between 0 (the reference) and 1 (the other models)"
    found = arguments.number(t, "t", expected)
    if not 0 <= found <= 1:
        message = f"t must be between 0 (the reference) and 1 (the other models), got {found}"
        raise ValueError(message)
    return found


def check_weights(
    weights: Weights | None, count: int, t: float | None = None, reference: int = 0
) -> Weights | None:
    """Weights as plain numbers; ValueError or TypeError for what no spaces can make sense of."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        by_name = arguments.mapping(weights, "weights", "a list of numbers or a dict by patterns")
        names = {key: f"weights of {key!r}" for key in by_name}
        found = {key: _checked(by_name[key], name, count) for key, name in names.items()}
    else:
        names, found = {"": "weights"}, {"": _checked(weights, "weights", count)}
    if t is not None:
        for key, name in names.items():
            _shares(found[key], name, t, reference)
    return found if isinstance(weights, Mapping) else found[""]


def _checked(values: Sequence[float], name: str, count: int) -> list[float]:
    given = arguments.items(values, name, f"a list of {count} numbers, one for each model")
    numbers = [arguments.number(w, f"{name}[{i}]") for i, w in enumerate(given)]
    if len(numbers) != count:
        message = f"{name} must hold one number a model ({count}), got {len(numbers)}"
        raise ValueError(message)
    if not all(math.isfinite(w) and w >= 0 for w in numbers) or not any(numbers):
        message = f"{name} must be finite, not negative and not all zero, got {numbers}"
        raise ValueError(message)
    return numbers


def _shares(
    weights: Sequence[float], name: str, t: float | None, reference: int
) -> tuple[float, ...]:
    if t is None:
        return normalised(weights)
    others = [0.0 if i == reference else w for i, w in enumerate(weights)]
    if not any(others):
        message = f"{name} leave nothing but the reference; t needs another model to go to"
        raise ValueError(message)
    shares = normalised(others)
    return tuple(1 - t if i == reference else t * w for i, w in enumerate(shares))
