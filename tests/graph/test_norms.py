"""Norms that a forward writes out step by step become one operation, and compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ccamerge.graph.norms import recognised
from ccamerge.graph.tracing.program import Program, trace

EPS = 1e-3
"""Large, so that it counts."""

Spelling = Callable[[Tensor], Tensor]


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def _llama(x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def _t5(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + EPS)


def _centred(x: Tensor) -> Tensor:
    y = x - _mean(x)
    return y / torch.sqrt(_mean(y**2) + EPS)


RMS: dict[str, Spelling] = {
    "rsqrt": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
    "rsqrt first": lambda x: torch.rsqrt(EPS + _mean(x * x)) * x,
    "sqrt": lambda x: x / torch.sqrt(_mean(torch.square(x)) + EPS),
    "one over sqrt": lambda x: x * (1 / torch.sqrt(_mean(x**2) + EPS)),
    "reciprocal": lambda x: x * torch.sqrt(_mean(x**2) + EPS).reciprocal(),
    "power": lambda x: x * (_mean(x**2) + EPS).pow(-0.5),
    "over a power": lambda x: x / (_mean(x**2) + EPS) ** 0.5,
    "no eps": lambda x: x * torch.rsqrt(_mean(x**2)),
    "in float32": _llama,
    "squares in float32": _t5,
    "two casts": lambda x: x.float() * torch.rsqrt(_mean(x.float().pow(2)) + EPS),
}
LAYER: dict[str, Spelling] = {
    "squares": _centred,
    "variance": lambda x: (x - _mean(x)) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + EPS),
    "unbiased": lambda x: (
        (x - _mean(x)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + EPS)
    ),
}
OTHERS: dict[str, Spelling] = {
    "another axis": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS),
    "two axes": lambda x: x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + EPS),
    "biased": lambda x: (x - _mean(x)) / torch.sqrt(x.var(-1, keepdim=True) + EPS),
    "not centred": lambda x: x / torch.sqrt(x.var(-1, correction=0, keepdim=True) + EPS),
    "centred by half": lambda x: (
        (x - _mean(x) / 2) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + EPS)
    ),
    "of another value": lambda x: x * torch.rsqrt(_mean(x.sin().pow(2)) + EPS),
    "cubes": lambda x: x * torch.rsqrt(_mean(x.pow(3).abs()) + EPS),
    "eps outside": lambda x: x / (torch.sqrt(_mean(x**2)) + EPS),
    "a tensor as eps": lambda x: x * torch.rsqrt(_mean(x**2) + x.abs().amax()),
    "root twice": lambda x: x * torch.rsqrt(torch.sqrt(_mean(x**2) + EPS)),
    "squares returned": lambda x: torch.stack([y := x.pow(2), x * torch.rsqrt(_mean(y) + EPS)]),
    "scale read twice": lambda x: x * (s := torch.rsqrt(_mean(x**2) + EPS)) + s,
}


class _Of(nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.gain = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.spelling(x + self.gain)


def _program(
    spelling: Spelling, dtype: torch.dtype
) -> tuple[nn.Module, Tensor, Program, list[str]]:
    model, x = _Of(spelling).to(dtype), 3 * torch.randn(2, 4, 6).to(dtype)
    program = recognised(trace(model, (x,)))
    return model, x, program, [node.op for node in program.nodes]


@pytest.mark.parametrize("name", [*RMS, *LAYER])
def test_norms_are_recognised_and_compute_the_same(name: str) -> None:
    model, x, program, names = _program({**RMS, **LAYER}[name], torch.float64)
    own = "aten.rms_norm" if name in RMS else "aten.layer_norm"
    assert names.count(own) == 1
    assert set(names) <= {own, "aten.add", "aten.mul", "aten.to"}
    assert names.count("aten.add") == names.count("aten.mul") == 1
    found, expected = program.run(model.state_dict(), [x]), model(x)
    assert found.dtype is expected.dtype
    tolerance = 1e-6 if "float32" in name or "casts" in name else 1e-13
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["in float32", "squares in float32", "two casts"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precisions_are_those_of_the_steps(name: str, dtype: torch.dtype) -> None:
    model, x, program, names = _program(RMS[name], dtype)
    assert "aten.rms_norm" in names
    found, expected = program.run(model.state_dict(), [x]), model(x)
    assert found.dtype is expected.dtype
    eps = 4 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected.detach(), rtol=eps, atol=eps)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_norm_of_the_last_axis_stays(name: str) -> None:
    model, x, program, names = _program(OTHERS[name], torch.float64)
    assert not {"aten.rms_norm", "aten.layer_norm"} & set(names)
    torch.testing.assert_close(program.run(model.state_dict(), [x]), model(x).detach())


def test_the_norm_bears_the_name_of_its_last_step() -> None:
    model, x = _Of(RMS["rsqrt"]), torch.randn(2, 4, 6)
    before = trace(model, (x,))
    after = recognised(before)
    assert after.outputs == before.outputs
    (norm,) = (node for node in after.nodes if node.op == "aten.rms_norm")
    (last,) = (node for node in before.nodes if node.name == norm.name)
    assert last.op == "aten.mul"
    assert norm.args[3] == EPS
