"""Recurrent networks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from families import Case, features, several, tokens
from families.plain.convolutions import conv, pictures
from families.plain.parts import CLASSES, LENGTH, WORDS, D, Fn, lin


def sequences(model: nn.Module) -> Case:
    return Case(model, features(LENGTH, 4), 16)


def recurrent(kind: type[nn.RNNBase], read: str = "last", **kw: Any) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        found = m.cells(x)[0]
        return m.head(
            found[:, -1] if read == "last" else found.mean(1) if read == "mean" else found
        )

    width = kw.get("proj_size") or D * (1 + bool(kw.get("bidirectional")))
    return sequences(Fn(run, cells=kind(4, D, batch_first=True, **kw), head=lin(width, CLASSES)))


def cell(kind: type[nn.Module]) -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return sequences(Fn(run, cell=kind(4, D), head=lin(D, CLASSES)))  # type: ignore[call-arg]


def tagger() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.cells(m.embed(x))[0])

    cells = nn.LSTM(D, D, batch_first=True, bidirectional=True)
    model = Fn(run, embed=nn.Embedding(WORDS, D), cells=cells, head=lin(2 * D, CLASSES))
    return Case(model, tokens(WORDS, LENGTH), 16)


def sequence_to_sequence() -> Case:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        states, last = m.encode(m.embed(x))
        found, _ = m.decode(m.embed(y), last)
        weights = (found @ m.score(states).transpose(1, 2)).softmax(-1)
        return m.head(torch.cat([found, weights @ states], -1))

    gru = functools.partial(nn.GRU, D, D, batch_first=True)
    parts = {"embed": nn.Embedding(WORDS, D), "encode": gru(), "decode": gru(), "score": lin()}
    model = Fn(run, head=lin(2 * D, WORDS), **parts)
    return Case(model, several(tokens(WORDS, LENGTH), tokens(WORDS, LENGTH)), 16)


def linear_recurrence() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.inputs(x)
        decay = m.decay.sigmoid()
        state, found = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = decay * state + (1 - decay) * x[:, t]
            found.append(state)
        return m.head(torch.stack(found, 1).relu())

    return sequences(Fn(run, inputs=lin(4), decay=torch.randn(D), head=lin(D, CLASSES)))


def convolutional_recurrence() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).relu().flatten(2).transpose(1, 2)
        return m.head(m.cells(x)[0][:, -1])

    cells = nn.GRU(8, D, batch_first=True)
    return pictures(Fn(run, stem=conv(3, 8, stride=4), cells=cells, head=lin(D, CLASSES)))
