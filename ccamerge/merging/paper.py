"""BatchNorm as the published CCA Merge code treats it, to reproduce its results.

Gamma and beta go through the map like a bias, and the statistics are then reset from data. Under a
map that is not a permutation this is not the function that the model computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.core.device import Device
from ccamerge.graph.derivation import Derivation
from ccamerge.graph.folds import BatchNormFold
from ccamerge.graph.forming import formed
from ccamerge.graph.rules import operation
from ccamerge.graph.space import Spaces
from ccamerge.graph.tracing.program import Program, Ref
from ccamerge.repair.repairing import walked_statistics


def unfolded_spaces(found: Spaces) -> Spaces:
    """The same spaces, by the same names, of the program in which no BatchNorm is folded.

    Those of attention are no others: no BatchNorm stands in it.
    """
    kept = tuple(fold for fold in found.folds if not isinstance(fold, BatchNormFold))
    walk = Derivation(found.unfolded)
    own = formed(walk.facts, walk.attended, kept, found.unfolded)
    attended = tuple(found[name] for heads in found.attention for name in heads.spaces)
    return dataclasses.replace(own, spaces=(*own.spaces, *attended))


def reset_statistics(
    state: dict[str, Tensor],
    program: Program,
    inputs: Sequence[list[Any]],
    device: Device | None = None,
) -> None:
    """Set every BatchNorm's running statistics, in place, to those of the kept inputs.

    One walk in which each normalisation already uses its new statistics; on the device where
    parameters and program are.
    """
    norms: dict[str, list[tuple[str, str]]] = {}
    for node in program.nodes:
        if "running_var" in operation(node).places and isinstance(node.args[0], Ref):
            given = [operation(node).place(node, f"running_{name}") for name in ("mean", "var")]
            keys = [program.parameters[g.name] for g in given if isinstance(g, Ref)]
            if len(keys) == 2:  # else it normalises by the batch and has nothing to reset
                norms.setdefault(node.args[0].name, []).append((keys[0], keys[1]))
    dims = dict.fromkeys(norms, 1)
    with torch.inference_mode():
        for value, mean, std in walked_statistics(program, state, inputs, dims, device):
            for mean_key, variance_key in norms[value]:
                # In place: the running programs hold these very tensors.
                state[mean_key].copy_(mean)
                state[variance_key].copy_(std**2)
