"""A model as the pipeline sees it: its parameters, its spaces, and where it runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ccamerge.graph.networks.parameters import Parameters
from ccamerge.graph.networks.states import placed
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.program import Program


@dataclasses.dataclass(frozen=True)
class Network:
    """A model's parameters with its spaces, whose programs run on ``device``."""

    parameters: Parameters
    spaces: Spaces
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """The model with plain weights."""
        return self.parameters.plain

    @property
    def program(self) -> Program:
        """With normalisation folded."""
        return self.spaces.program

    @functools.cached_property
    def state(self) -> Mapping[str, Tensor]:
        """The program's parameters; not to be written to."""
        return self.parameters.folded(self.spaces.folds, self.device)

    def widths(self) -> dict[str, int]:
        """The number of features of each space."""
        return {space.name: space.size for space in self.spaces}


def networks_of(
    models: Sequence[Parameters], every: Sequence[Spaces], device: torch.device
) -> list[Network]:
    """Models with their spaces, on a device; those of equal widths share theirs."""
    there = {id(own): placed(own, device) for own in every}
    return [
        Network(model, there[id(own)], device) for model, own in zip(models, every, strict=True)
    ]
