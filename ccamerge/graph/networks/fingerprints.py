"""Digests that tell whether statistics belong to the models at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.program import Program


def program_fingerprint(program: Program) -> str:
    """A digest of operations and parameter shapes; equal for one architecture of one width.

    Sizes of values are left out: they are those of the example inputs.
    """
    lines = [n.op for n in program.operations]
    lines += [f"{k} {program.shapes[v]}" for v, k in sorted(program.parameters.items())]
    return _of_lines(lines)


def spaces_fingerprint(found: Spaces) -> str:
    """A digest of what is counted of a model: the names, sizes and taps of its spaces."""
    return _of_lines(f"{s.name} {s.size} {[(t.name, t.kind) for t in s.taps]}" for s in found)


def _of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A digest of every byte: sums or norms would not tell a model from its permuted copy."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(_content(state[key]))
    return digest.hexdigest()[:16]


def inputs_fingerprint(leaves: Sequence[Any]) -> bytes:
    """A digest of eight bytes of a batch's inputs: every byte of tensors, and what else there is.

    It waits for tensors on a device.
    """
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(_content(leaf))
        else:
            digest.update(repr(leaf).encode())
    return digest.digest()[:8]


def _content(value: Tensor) -> memoryview:
    """The bytes of a tensor, row by row."""
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8).numpy().data
