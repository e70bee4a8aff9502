"""How much of each model goes into the merged one: overall, by space, and between two of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ccamerge.graph.spaces import Role, Spaces
from ccamerge.patterns import by_pattern

Weights = Sequence[float] | Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Each model's share, summing to one, for parameters and for the features they write."""

    default: tuple[float, ...]
    spaces: Mapping[str, tuple[float, ...]]
    parameters: Mapping[str, tuple[float, ...]]

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
    ValueError
        For numbers that make no sense or patterns that match nothing.
    """
    if t is not None and not 0 <= t <= 1:
        message = f"t must be between 0 (the reference) and 1 (the other models), got {t}"
        raise ValueError(message)
    equal = [1.0] * count
    check_weights(weights, count)
    if not isinstance(weights, Mapping):
        return Shares(
            _normalised(equal if weights is None else weights, "weights", t, count, reference),
            {},
            {},
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
        name: _normalised(values, f"weights of {name!r}", t, count, reference)
        for name, values in given.items()
    }
    return Shares(
        _normalised(equal, "weights", t, count, reference),
        {s.name: shares[s.name] for s in spaces.spaces},
        {key: shares[writer.get(key, key)] for key in parameters},
    )


def check_weights(weights: Weights | None, count: int) -> None:
    """Raise ValueError for numbers that make no sense, whatever the spaces are."""
    if weights is None:
        return
    given = {"weights": weights}
    if isinstance(weights, Mapping):
        given = {f"weights of {name!r}": values for name, values in weights.items()}
    for name, values in given.items():
        numbers = [float(w) for w in values]
        if len(numbers) != count:
            message = f"{name} must hold one number a model ({count}), got {len(numbers)}"
            raise ValueError(message)
        if not all(math.isfinite(w) and w >= 0 for w in numbers) or sum(numbers) <= 0:
            message = f"{name} must be finite, not negative and not all zero, got {numbers}"
            raise ValueError(message)


def _normalised(
    weights: Sequence[float], name: str, t: float | None, count: int, reference: int
) -> tuple[float, ...]:
    values = [float(w) for w in weights]
    if t is None:
        return tuple(w / sum(values) for w in values)
    others = sum(values) - values[reference]
    if not others > 0:
        message = f"{name} leave nothing but the reference; t needs another model to go to"
        raise ValueError(message)
    return tuple(1 - t if i == reference else t * w / others for i, w in enumerate(values))
