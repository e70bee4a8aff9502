"""Networks whose features are mapped."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ccamerge import FeatureMap, Spaces
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.states import folded_state
from ccamerge.merging.loading import load_merged


def mapped_copy(model: nn.Module, found: Spaces, maps: Mapping[str, FeatureMap]) -> nn.Module:
    """A copy of a model with plain weights, its features mapped."""
    other = copy.deepcopy(model)
    state = folded_state(model.state_dict(), found.folds)
    load_merged(other, transform(state, found.spaces, maps), found, {})
    return other


def exact_maps(found: Spaces, seed: int) -> dict[str, FeatureMap]:
    """For each space a random map that leaves the network's function as it is."""
    return found.random_maps(torch.Generator().manual_seed(seed))


def permuted_heads(found: Spaces, generator: torch.Generator) -> dict[str, FeatureMap]:
    """For each space that attention divides into heads a permutation of these, and within them."""
    sizes = {space.name: space.size for space in found.spaces}
    maps: dict[str, FeatureMap] = {}
    for heads in found.attention:
        smaller = heads.permuting()
        maps |= smaller.maps(smaller.random(generator), sizes)
    return maps
