"""What a merge will cost, before any data is read."""

from __future__ import annotations

import dataclasses

from ccamerge.collecting import Pairs, alignment_taps, repair_taps
from ccamerge.graph.spaces import Spaces


@dataclasses.dataclass(frozen=True)
class Plan:
    """Costs of a merge. ``str`` is a table.

    ``moments_bytes`` stay allocated while data is read; ``flops`` are those of the moments for one
    input sample, all models together, forward passes not included.
    """

    spaces: Spaces
    models: int
    pairs: Pairs
    moments_bytes: int
    flops: int

    def __str__(self) -> str:
        lines = [
            str(self.spaces),
            "",
            f"{self.models} models, {len(self.spaces)} spaces, pairs: {self.pairs}",
            f"moments: {self.moments_bytes / 2**20:.1f} MiB, {self.flops / 1e6:.1f} Mflop a sample",
        ]
        if self.spaces.pinned:
            lines.append("pinned axes (kept in their basis):")
            lines += [
                f"  {key}, axis {dim}: {why}"
                for (key, dim), why in sorted(self.spaces.pinned.items())
                if why != "position in the kernel"
            ]
        return "\n".join(lines)


def plan(spaces: Spaces, models: int, pairs: Pairs = "reference") -> Plan:
    """Memory and arithmetic that the moments of ``models`` models need.

    Raises
    ------
    ValueError
        For fewer than two models, or unknown ``pairs``.
    """
    if models < 2:
        message = f"models must be at least 2, got {models}"
        raise ValueError(message)
    nodes = {node.name: node for node in spaces.program.nodes}
    if pairs not in ("reference", "all"):
        message = f"pairs must be 'reference' or 'all', got {pairs!r}"
        raise ValueError(message)
    batch = next((s[0] for n, s in spaces.program.shapes.items() if n in spaces.program.inputs), 1)
    crosses = models - 1 if pairs == "reference" else models * (models - 1) // 2
    size = flops = 0
    for space in spaces.spaces:
        matched = set(alignment_taps(space))
        for tap in dict.fromkeys([*alignment_taps(space), *repair_taps(space)]):
            blocks = models + (crosses if tap in matched else 0)
            size += 8 * (blocks * space.size**2 + models * space.size)
            shape = nodes[tap.node].shape or (1,)
            rows = 1
            for dim, length in enumerate(shape):
                rows *= length if dim != tap.dim else 1
            products = models + 2 * (crosses if tap in matched else 0)
            flops += products * rows * space.size**2 // batch
    return Plan(spaces, models, pairs, size, flops)
