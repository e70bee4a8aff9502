"""Which positions of a feature map are counted.

Neighbouring pixels are alike, and there are far more of them than features: evenly spaced rows and
columns say as much about means and covariances as all of them, in a fraction of the time. The
lattice moves from batch to batch, so that borders, where features differ, keep their share.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCHED = 8
"""Rows and columns, at least, of features that are matched. Half as many lost nothing with 5,000
CIFAR images, and more than a point of accuracy with 100."""

RESTORED = 4
"""Of outputs of which only means and deviations are wanted."""

FITTED = 8
"""Of outputs to which an operation is fitted; half as many lost a third of a point."""


ALONG = 32
"""Of sequences, so many times the positions that are enough along an axis of a map: fewer than a
map's would be too few, since only those of one axis are alike."""


def lattice(shape: Sequence[int], dim: int, enough: int, turn: int = 0) -> tuple[slice, ...]:
    """The index of the positions that count in a value of a shape, with features on axis ``dim``.

    Of feature maps (four axes, samples first) at least ``enough`` rows and columns, and less than
    twice as many; of sequences with features on axis 1, as convolutions have them, ``ALONG`` times
    as many positions; of anything else, tokens included, everything. Turns that follow one another
    begin at other rows and columns: as many as it takes count each position once.
    """
    if len(shape) == 3 and dim == 1:
        enough *= ALONG
    index = []
    for axis, size in enumerate(shape):
        spatial = (len(shape) == 4 or (len(shape) == 3 and dim == 1)) and axis not in (0, dim)
        step = max(1, size // enough) if spatial else 1
        index.append(slice(turn % step, None, step))
        turn = turn % step + turn // step
    return tuple(index)
