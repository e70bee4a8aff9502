"""How much of each model goes into the merged one: overall, by space, and between two of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ccamerge.config.patterns import by_pattern
from ccamerge.config.settings import Weights, normalised
from ccamerge.graph.space import Role, Spaces


@dataclasses.dataclass(frozen=True)
class Shares:
    """Each model's share, summing to one, for parameters and for the features they write."""

    default: tuple[float, ...]
    spaces: Mapping[str, tuple[float, ...]]
    parameters: Mapping[str, tuple[float, ...]]

    @property
    def alone(self) -> int | None:
        """The model that has all the weight, everywhere; None if there is none."""
        rows = {*self.spaces.values(), *self.parameters.values()}
        (row, *others) = rows if self.parameters else {*rows, self.default}
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
    """Weights that sum to one, by what they are for.

    Parameters
    ----------
    weights : one number a model, checked; or such lists by patterns over the names of spaces and of
        parameters that write none (the network's last layer); default equal
    t : how far to go from the reference (0) to the weighted mean of the others (1)
    count, reference : number of models, and which one is the reference
    spaces : of the models

    Raises
    ------
    ValueError
        For patterns that match nothing, and as `check_t`.
    """
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


def shares_of_parameters(
    weights: Weights | None, t: float | None, count: int, reference: int, names: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Weights that sum to one, for each parameter that is averaged as it stands.

    As `shares_of`, with patterns over the ``names`` of parameters.
    """
    equal = [1.0] * count
    if not isinstance(weights, Mapping):
        own = _shares(equal if weights is None else weights, "weights", t, reference)
        return dict.fromkeys(names, own)
    given = by_pattern(weights, names, equal, "weights", "parameter")
    return {
        name: _shares(values, f"weights of {name!r}", t, reference)
        for name, values in given.items()
    }


def check_t(weights: Weights | None, t: float | None, reference: int) -> None:
    """Raise ValueError if ``t`` has no other model to go to, as far as weights tell by themselves.

    Both are checked each on its own.
    """
    if t is None or weights is None:
        return
    if not isinstance(weights, Mapping):
        _shares(weights, "weights", t, reference)
        return
    for pattern, own in weights.items():
        _shares(own, f"weights of {pattern!r}", t, reference)


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
