"""The networks of others' ensembles, with the names of their files' parameters."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ELEMENTS = "HCNO"
"""Species 0 to 3; -1 is no atom."""

HARTREE = 627.5095
"""In kcal/mol."""


class ResidualBlock(nn.Module):
    """Normalisation, ReLU and a convolution, twice, beside the stream: (B, C, L) to the same."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)
        self.conv1, self.conv2 = (
            nn.Conv1d(channels, channels, width, dilation=dilation, padding="same")
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(inner)))


class Pangolin(nn.Module):
    """Splice sites from one-hot DNA: (B, 4, L) to probabilities (B, 12, L - 10,000)."""

    WIDTHS = (11,) * 8 + (21,) * 4 + (41,) * 4
    DILATIONS = (1,) * 4 + (4,) * 4 + (10,) * 4 + (25,) * 4
    CUT = 5000
    """Positions that are context only, on each side."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, channels, 1)
        self.skip = nn.Conv1d(channels, channels, 1)
        self.resblocks = nn.ModuleList(
            ResidualBlock(channels, width, dilation)
            for width, dilation in zip(self.WIDTHS, self.DILATIONS, strict=True)
        )
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(4))
        for head in range(1, 9):
            setattr(self, f"conv_last{head}", nn.Conv1d(channels, 2 if head % 2 else 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        skip = self.skip(x)
        for index, block in enumerate(self.resblocks):
            x = block(x)
            if index % 4 == 3:
                skip = skip + self.convs[index // 4](x)
        skip = F.pad(skip, (-self.CUT, -self.CUT))
        heads = []
        for head in range(1, 9):
            scores = getattr(self, f"conv_last{head}")(skip)
            heads.append(F.softmax(scores, dim=1) if head % 2 else torch.sigmoid(scores))
        return torch.cat(heads, dim=1)


def element_network(widths: list[int]) -> nn.Sequential:
    """ANI's network of one element: AEVs (atoms, 384) to energies (atoms, 1) in Hartree."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.CELU(0.1)]
    return nn.Sequential(*layers[:-1])


class ANI(nn.Module):
    """A potential: species (B, A) and AEVs (B, A, 384) to molecules' energies (B,) in Hartree.

    Each element's network reads all atoms, and what it says of other elements' is masked: the form
    of constant shapes, which torch.export follows. `ANIByElement` is the one that users run.
    """

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def atoms(self, species: Tensor, aevs: Tensor) -> Tensor:
        """Energies of all atoms (B, A), zero where there is none, from their own networks only."""
        flat, kinds = aevs.flatten(0, 1), species.flatten()
        energies = flat.new_zeros(len(flat))
        for element, network in enumerate(self.networks.values()):
            chosen = (kinds == element).nonzero().flatten()
            if len(chosen):
                energies = energies.index_put((chosen,), network(flat[chosen]).flatten())
        return energies.view_as(species)

    def forward(self, species: Tensor, aevs: Tensor) -> Tensor:
        energies = torch.zeros_like(aevs[..., 0])
        for element, network in enumerate(self.networks.values()):
            mask = (species == element).to(aevs.dtype)
            energies = energies + network(aevs).squeeze(-1) * mask
        return energies.sum(1)


class ANIByElement(ANI):
    """The same as torchani computes it: each network reads the atoms of its element only."""

    def forward(self, species: Tensor, aevs: Tensor) -> Tensor:
        return self.atoms(species, aevs).sum(1)
