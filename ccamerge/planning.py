"""What a merge will cost, before any data is read."""

from __future__ import annotations

import dataclasses

from ccamerge.collecting import FOLDS, Pairs, alignment_taps, repair_taps
from ccamerge.graph.spaces import Space, Spaces, Tap


@dataclasses.dataclass(frozen=True)
class Plan:
    """Costs of a merge. ``str`` is a table.

    ``moments_bytes`` stay allocated while data is read; ``flops`` are those of the moments for one
    input sample, all models together, forward passes not included.
    """

    spaces: Spaces
    models: int
    pairs: Pairs
    folds: int
    moments_bytes: int
    flops: int

    def __str__(self) -> str:
        size = f"{self.moments_bytes / 2**20:.1f} MiB (folds: {self.folds})"
        lines = [
            str(self.spaces),
            "",
            f"{self.models} models, {len(self.spaces)} spaces, pairs: {self.pairs}",
            f"moments: {size}, {self.flops / 1e6:.1f} Mflop a sample",
        ]
        if self.spaces.pinned:
            lines.append("pinned axes (kept in their basis):")
            lines += [
                f"  {key}, axis {dim}: {why}"
                for (key, dim), why in sorted(self.spaces.pinned.items())
                if why != "position in the kernel"
            ]
        return "\n".join(lines)


def plan(spaces: Spaces, models: int, pairs: Pairs = "reference", folds: int = FOLDS) -> Plan:
    """Memory and arithmetic that the moments of ``models`` models need.

    Raises
    ------
    ValueError
        For fewer than two models, unknown ``pairs`` or no fold.
    """
    if models < 2:
        message = f"models must be at least 2, got {models}"
        raise ValueError(message)
    if pairs not in ("reference", "all"):
        message = f"pairs must be 'reference' or 'all', got {pairs!r}"
        raise ValueError(message)
    if folds < 1:
        message = f"folds must be at least 1, got {folds}"
        raise ValueError(message)
    nodes = {node.name: node for node in spaces.program.nodes}
    batch = next((s[0] for n, s in spaces.program.shapes.items() if n in spaces.program.inputs), 1)
    crosses = models - 1 if pairs == "reference" else models * (models - 1) // 2
    size = flops = 0

    def products(space: Space, tap: Tap) -> int:
        """Multiply-adds of one covariance block of a tap."""
        rows = 1
        for dim, length in enumerate(nodes[tap.node].shape or (1,)):
            rows *= length if dim != tap.dim else 1
        return rows * space.size**2 // batch

    for space in spaces.spaces:
        square, vectors = 8 * space.size**2, 8 * models * space.size
        matched, own = alignment_taps(space), repair_taps(space)
        size += folds * ((models + crosses) * square + vectors)
        size += len(own) * (models * square + vectors)
        flops += sum((models + 2 * crosses) * products(space, tap) for tap in matched)
        flops += sum(models * products(space, tap) for tap in own)
    return Plan(spaces, models, pairs, folds, size, flops)
