"""Queries and keys that models do not agree in: one model's are taken, since means of them fail.

Attention sees products of queries and keys. Of means of two models' the products are half what
either model attends to, and half of what no model does: queries of the one with keys of the other.
Where aligned features agree, the two halves are the same. Where they do not, attention to nothing
in particular is left, and every layer after it works on that. Values and all else enter linearly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ccamerge.graph.attention.heads import Heads
from ccamerge.methods.base import Solution
from ccamerge.methods.weights import Shares

ENOUGH = 0.5
"""Mean correlation of matched queries and keys from which on models are averaged: half of what
attention sees is then what all of them attend to. Three pairs of small language models with 0.2
lost 0.15 nats a character by averaging."""


def with_agreement(
    shares: Shares,
    attention: Sequence[Heads],
    solutions: Mapping[str, Sequence[Solution]],
    reference: int,
    unmoved: frozenset[str] = frozenset(),
) -> tuple[Shares, dict[str, str]]:
    """Shares in which models count for queries and keys only as far as they agree with one.

    That one is the model with the largest share, the reference if it is among several. If it is
    another model than the reference, with which no other was compared, it counts alone.

    Parameters
    ----------
    shares : as asked for
    attention : heads of the models
    solutions : for each space, each model's map to the reference
    reference : the model whose features the others are mapped to
    unmoved : spaces whose features are taken to correspond as they are

    Returns
    -------
    The shares, and for each space in which they changed why.
    """
    rows = dict(shares.spaces)
    reasons: dict[str, str] = {}
    for heads in attention:
        names = dict.fromkeys((heads.queries.space, heads.keys.space))
        if not unmoved.isdisjoint(names):
            continue
        agreement = _agreement([solutions[name] for name in names], reference)
        for name in names:
            asked = shares.of_space(name)
            row = _agreeing(asked, agreement, reference)
            if row != asked:
                rows[name] = row
                worst = min(a for a, share in zip(agreement, asked, strict=True) if share)
                reasons[name] = f"the models' correlate only {worst:.2f}"
    return dataclasses.replace(shares, spaces=rows), reasons


def _agreement(every: Sequence[Sequence[Solution]], reference: int) -> list[float]:
    """For each model the mean correlation of its features, mapped, with the reference's."""
    models = range(len(every[0]))
    found = []
    for model in models:
        rows = [row[model].correlations for row in every]
        known = [float(np.mean(row)) for row in rows if row is not None and len(row)]
        found.append(1.0 if model == reference or not known else float(np.mean(known)))
    return found


def _agreeing(
    asked: tuple[float, ...], agreement: Sequence[float], reference: int
) -> tuple[float, ...]:
    """The shares of models that agree with the one that counts the most."""
    if all(a >= ENOUGH for a, share in zip(agreement, asked, strict=True) if share):
        return asked
    largest = max(asked)
    if asked[reference] < largest:
        alone = asked.index(largest)
        return tuple(float(model == alone) for model in range(len(asked)))
    kept = [share if a >= ENOUGH else 0.0 for a, share in zip(agreement, asked, strict=True)]
    return tuple(share / sum(kept) for share in kept)
