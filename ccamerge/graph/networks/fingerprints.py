"""Digests that tell whether statistics belong to the models at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ccamerge.graph.tracing.program import Program


def program_fingerprint(program: Program) -> str:
    """A digest of operations and parameter shapes; equal for one architecture of one width.

    Sizes of values are left out: they are those of the example inputs.
    """
    lines = [n.op for n in program.operations]
    lines += [f"{k} {program.shapes[v]}" for v, k in sorted(program.parameters.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A digest of every byte: sums or norms would not tell a model from its permuted copy."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        data = state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(data.data)
    return digest.hexdigest()[:16]
