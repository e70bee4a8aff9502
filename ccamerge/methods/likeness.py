"""How alike two models' features are by their weights: what decides where data say nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ccamerge.graph.maps import slot_view
from ccamerge.graph.space import Space

_WIDTH = 0.1
"""Distance, in deviations between features, at which two are half as alike as copies are."""

_FLAT = 1e-4
"""Numbers that differ by less than this share of their size do not tell features apart."""


def likeness(
    space: Space, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Tensor | None:
    """From 0 to 1 for each feature of one model (rows) and of another (columns).

    Two are compared by what no permutation or rotation of other spaces changes: the norms of the
    weights that write and read them, and their biases. A permuted copy's feature and its original
    have 2/3; of others, those of the same number have 1/3 more. None where the models' parameters
    differ in shape, or there are none: nothing is known then.

    Parameters
    ----------
    space : of the first model
    first, second : parameters of the folded program
    """
    keys = {slot.parameter for slot in space.slots}
    if not keys or any(first[key].shape != second[key].shape for key in keys):
        return None
    marks = [_marks(space, state) for state in (first, second)]
    both = torch.cat(marks)
    scale = torch.maximum(both.std(0, correction=0), _FLAT * both.abs().amax(0))
    a, b = (own / torch.where(scale > 0, scale, 1.0) for own in marks)
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    alike = 1 / (1 + distance.square() / (a.shape[1] * _WIDTH**2))
    same = torch.eye(space.size, dtype=torch.float64, device=alike.device)
    result: Tensor = (2 * alike + same) / 3
    return result


def _marks(space: Space, state: Mapping[str, Tensor]) -> Tensor:
    """Numbers (size, slots) for each feature."""
    columns = []
    for slot in space.slots:
        part = slot_view(state[slot.parameter], slot, space.size).reshape(-1, space.size)
        wide = part.abs().double() if part.is_complex() or len(part) > 1 else part.double()
        columns.append(wide.square().sum(0).sqrt() if len(wide) > 1 else wide[0])
    return torch.stack(columns, 1)
