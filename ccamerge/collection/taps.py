"""Which features of a space are counted: for the match between models, and for repair."""

from __future__ import annotations

from ccamerge.graph.space import Space, Tap


def alignment_taps(space: Space) -> list[Tap]:
    """The taps whose features are matched between models.

    The features after each non-linearity, which are what the next layer reads; where a space has
    none (a linear bottleneck), whatever it has. Nowhere beside other features.
    """
    taps = [tap for tap in space.taps if not tap.beside]
    return [tap for tap in taps if tap.kind == "activation"] or taps


def repair_taps(space: Space) -> list[Tap]:
    """The taps whose variance `repair` restores: outputs of linear operations and norms."""
    return [t for t in space.taps if t.kind in ("write", "norm")]
