"""How models are merged: the settings that Python, YAML and the command line have, without torch.

Here alone stand their names, types, defaults, ranges and what they are for. `TABLE` has them by
name: `ccamerge.merge` checks its arguments by it, the reader its keys, and help is written from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, get_args

from ccamerge.config.kinds import (
    Budget,
    Choice,
    ChoiceOrFunction,
    Flag,
    Keywords,
    Kind,
    NameOrPatterns,
    Number,
    NumberForEachModel,
    Seed,
)

MethodChoice = str | Mapping[str, str]
Mode = Literal["reference", "universe"]
RidgeChoice = float | Literal["auto"] | Mapping[str, float]
Weights = Sequence[float] | Mapping[str, Sequence[float]]
Repair = Literal["variance", "regression", "none"]
Norm = Literal["fold", "paper"]
Ties = Literal["keep", "untie"]
Select = Literal["fidelity", "none"]
Mean = Literal["probabilities", "outputs"]
"""What of its members an ensemble averages."""
Ensemble = Mean | Callable[[Any], Any]
Refine = bool | str

METHODS = (
    *("cca", "permutation", "signed_permutation", "procrustes", "average", "weight_matching"),
    *("ot", "zipit"),
)
DEFAULT_METHOD = "cca"
DEFAULT_RIDGE = 0.3


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes
    ----------
    name : as an argument of `ccamerge.merge`
    default : what it is there if it is not given
    kind : what it may be
    words : what it is for, and what else it may be
    usual : the default, or what None stands for as a default; None if that is nothing
    example : in YAML, of one that is nothing by default
    by_patterns : in YAML, of one that can be by patterns, and what other spaces get then
    """

    name: str
    default: Any
    kind: Kind
    words: str
    usual: Any
    example: str = ""
    by_patterns: tuple[str, str] | None = None

    @property
    def where(self) -> str:
        """Its place in a configuration."""
        return "merge_method" if self.name == "method" else f"parameters.{self.name}"

    def check(self, value: Any, models: int) -> Any:
        """The value as plain Python has it, for a number of models.

        Raises
        ------
        ValueError, TypeError
            For what it cannot be; the message names the setting.
        """
        if value is None and self.default is None:
            return None
        return self.kind.check(value, self.name, models)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Keyword arguments of `ccamerge.merge`, under its names and with its defaults.

    What depends on the files at hand is not among them: the models, their reference, the data and
    what was computed from them. ``merge(models, data, **vars(settings))`` passes them on. In a
    configuration ``method`` may also be "package.module:function", to be imported.
    """

    method: MethodChoice = field(
        default=DEFAULT_METHOD,
        metadata={
            "kind": NameOrPatterns(METHODS),
            "words": "see methods below; or names by patterns",
            "by_patterns": ('{"layer1*": permutation, "*": cca}', DEFAULT_METHOD),
        },
    )
    options: Mapping[str, Any] | None = field(
        default=None,
        metadata={"kind": Keywords(), "words": "of the methods", "example": "{alpha: 0.3}"},
    )
    mode: Mode = field(
        default="reference",
        metadata={
            "kind": Choice(get_args(Mode)),
            "words": "or universe: align all models with each other",
        },
    )
    ridge: RidgeChoice | None = field(
        default=None,
        metadata={
            "kind": Number(word="auto", patterns=True),
            "words": "relative to the features' variance; or auto; or gamma, absolute",
            "usual": DEFAULT_RIDGE,
            "by_patterns": ('{"layer3*": 1.0}', str(DEFAULT_RIDGE)),
        },
    )
    gamma: float | None = field(
        default=None,
        metadata={"kind": Number(), "words": "absolute, instead of ridge", "example": "0.1"},
    )
    weights: Weights | None = field(
        default=None,
        metadata={
            "kind": NumberForEachModel(),
            "words": "instead of the models' own",
            "example": "[1, 2]",
            "by_patterns": ('{"layer3*": [1, 0]}', "equal"),
        },
    )
    t: float | None = field(
        default=None,
        metadata={
            "kind": Number(most=1.0, ends=("the reference", "the other models")),
            "words": "between base_model (0) and the mean of the others (1)",
            "example": "0.5",
        },
    )
    repair: Repair | None = field(
        default=None,
        metadata={
            "kind": Choice(get_args(Repair)),
            "words": "or variance (less time, lesser networks), or none",
            "usual": "regression",
        },
    )
    norm: Norm = field(
        default="fold", metadata={"kind": Choice(get_args(Norm)), "words": "or paper"}
    )
    ties: Ties = field(
        default="keep",
        metadata={
            "kind": Choice(get_args(Ties)),
            "words": "or untie: heads get weights of their own beside embeddings",
        },
    )
    select: Select | None = field(
        default=None,
        metadata={
            "kind": Choice(get_args(Select)),
            "words": "the candidate closest to the ensemble; or none: the merge that is asked for",
            "usual": "fidelity",
        },
    )
    ensemble: Ensemble | None = field(
        default=None,
        metadata={
            "kind": ChoiceOrFunction(get_args(Mean)),
            "words": 'what is averaged: this, outputs, or "module:function"; default: guessed',
            "example": "probabilities",
        },
    )
    holdout: float | None = field(
        default=None,
        metadata={
            "kind": Number(most=0.5, ends=("none", "half")),
            "words": "share of the inputs kept from the merge to judge it by",
            "usual": 0.1,
        },
    )
    refine: Refine = field(
        default=False,
        metadata={
            "kind": Budget(),
            "words": 'train towards the ensemble, without labels: true, "60s", "5 epochs"',
        },
    )
    seed: int = field(
        default=0, metadata={"kind": Seed(), "words": "of the choice of inputs kept for repair"}
    )
    prove: bool = field(
        default=True,
        metadata={"kind": Flag(), "words": "try on two inputs that what is aligned may be"},
    )

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for but the average of the parameters as they stand."""
        return (
            self.method == "average"
            and (self.repair, self.norm, self.ties) == ("none", "fold", "keep")
            and self.select in (None, "none")
            and not self.refine
        )

    @property
    def method_words(self) -> str:
        """The method, or the methods by patterns, for people."""
        if isinstance(self.method, str):
            return self.method
        return ", ".join(f"{pattern}: {name}" for pattern, name in self.method.items())


TABLE = {
    f.name: Setting(f.name, f.default, **{"usual": f.default, **f.metadata})
    for f in dataclasses.fields(Settings)
}


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights, some of them positive, that sum to one.

    They are divided by the largest first: the sum of numbers near either end of float64 would
    overflow or lose its digits.
    """
    largest = max(weights)
    scaled = [w / largest for w in weights]
    total = math.fsum(scaled)
    return tuple(w / total for w in scaled)
