"""Networks of graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import Case, features, several
from families.plain.parts import CLASSES, LENGTH, D, Fn, lin


def graphs(model: nn.Module) -> Case:
    def adjacency(count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, LENGTH, LENGTH, generator=generator).softmax(-1)

    return Case(model, several(features(LENGTH, 4), adjacency), 16)


def graph_convolution(sage: bool) -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = (edges @ m.a(x) + (m.own(x) if sage else 0)).relu()
        return m.head((edges @ m.b(x)).relu().mean(1))

    own = {"own": lin(4)} if sage else {}
    return graphs(Fn(run, a=lin(4), b=lin(), head=lin(D, CLASSES), **own))


def graph_attention() -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = m.a(x)
        scores = F.leaky_relu(m.target(x) + m.source(x).transpose(1, 2), 0.2) + edges.log()
        return m.head((scores.softmax(-1) @ x).relu().mean(1))

    return graphs(Fn(run, a=lin(4), target=lin(D, 1), source=lin(D, 1), head=lin(D, CLASSES)))


def messages() -> Case:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = m.inputs(x)
        pairs = torch.cat(
            [x[:, :, None].expand(-1, -1, LENGTH, -1), x[:, None].expand(-1, LENGTH, -1, -1)], -1
        )
        told = (m.message(pairs).relu() * edges[..., None]).sum(2)
        return m.head(m.update(torch.cat([x, told], -1)).relu().sum(1))

    parts = {"inputs": lin(4), "message": lin(2 * D), "update": lin(2 * D)}
    return graphs(Fn(run, head=lin(D, CLASSES), **parts))
