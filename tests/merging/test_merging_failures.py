"""Wrong input is refused by name, and an interrupted merge leaves nothing broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from tests import models as M


def _mlps(count: int = 2) -> list[nn.Module]:
    return [M.randomise(M.MLP(), seed) for seed in range(count)]


def _batches(count: int = 4) -> list[Tensor]:
    return [torch.randn(32, 12) for _ in range(count)]


def _merge(models: Any, data: Any = None, **settings: Any) -> ccamerge.MergeResult:
    return ccamerge.merge(models, data, progress=False, **settings)


def test_one_model_is_not_enough() -> None:
    with pytest.raises(ValueError, match="models must hold at least two models, got 1"):
        _merge(_mlps(1), _batches())
    with pytest.raises(ValueError, match="models must hold at least two models, got 0"):
        _merge([], _batches())


@pytest.mark.parametrize("model", [M.MLP(), nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 2))])
def test_a_module_instead_of_a_list(model: nn.Module) -> None:
    with pytest.raises(TypeError, match="models must be a list or tuple of modules"):
        _merge(model, _batches())


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"models\[1\] must be a torch\.nn\.Module, got str"):
        _merge([M.MLP(), "model.pt"], _batches())


def test_different_architectures() -> None:
    with pytest.raises(ValueError, match=r"models\[1\] has another architecture than models\[0\]"):
        _merge([M.MLP(), M.MLP((12, 16, 5))], _batches())


def test_different_dtypes() -> None:
    with pytest.raises(ValueError, match=r"models\[1\].*float64.*float32"):
        _merge([M.MLP(), M.MLP().double()], _batches())


def test_same_parameters_but_another_function() -> None:
    class Other(M.MLP):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = torch.tanh(layer(x))
            return self.layers[-1](x)

    with pytest.raises(ValueError, match=r"models\[1\] does not compute what the traced program"):
        _merge([M.randomise(M.MLP()), M.randomise(Other(), 1)], _batches())


def test_a_batch_of_another_shape() -> None:
    data = [*_batches(2), torch.randn(32, 13)]
    with pytest.raises(ValueError, match=r"batch 2: .*\(32, 13\), expected \(batch, 12\)"):
        _merge(_mlps(), data)


def test_a_first_batch_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"torch\.export cannot follow models\[0\] \(MLP\)"):
        _merge(_mlps(), [torch.randn(32, 13)])


def test_a_batch_of_another_structure() -> None:
    with pytest.raises(ValueError, match="batch 1: batch has structure"):
        _merge(_mlps(), [torch.randn(8, 12), {"x": torch.randn(8, 12)}])


@pytest.mark.parametrize("batch", [3, "text", None, [], {"nothing": torch.randn(3, 12)}])
def test_something_that_is_no_batch(batch: Any) -> None:
    with pytest.raises(TypeError, match="batch"):
        _merge(_mlps(), [batch])


def test_a_tensor_instead_of_batches() -> None:
    """Iterating over a tensor would take every sample for a batch of features."""
    with pytest.raises(TypeError, match="data must be an iterable of batches"):
        _merge(_mlps(), torch.randn(64, 12))


def test_nan_in_weights_names_model_space_and_batch() -> None:
    models = _mlps(3)
    with torch.no_grad():
        models[2].layers[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"space 'layers\.1'.*batch 0.*model 2"):
        _merge(models, _batches())


def test_nan_in_the_last_layer() -> None:
    models = _mlps()
    with torch.no_grad():
        models[1].layers[2].bias[0] = torch.inf
    with pytest.raises(ValueError, match=r"models\[1\] gives outputs that are not finite"):
        _merge(models, _batches())


def test_nan_in_activations_names_model_space_and_batch() -> None:
    """An overflow in one model only, on a later batch."""
    models, data = _mlps(), _batches()
    with torch.no_grad():
        models[1].layers[0].weight.mul_(1e10)
    data[2][5] *= 1e12
    with pytest.raises(ValueError, match=r"space 'layers\.0'.*batch 2.*model 1"):
        _merge(models, data)


@pytest.mark.parametrize("data", [[], iter(())])
def test_an_empty_loader(data: Any) -> None:
    with pytest.raises(ValueError, match="data is empty"):
        _merge(_mlps(), data)


def test_no_data_and_no_moments() -> None:
    with pytest.raises(ValueError, match="data is needed"):
        _merge(_mlps())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": -0.1}, "ridge must be a finite number >= 0, got -0.1"),
        ({"ridge": float("nan")}, "ridge must be a finite number"),
        ({"gamma": float("inf")}, "gamma must be a finite number"),
        ({"ridge": 0.1, "gamma": 0.1}, "not both"),
        ({"method": "magic"}, "method must be one of .*'cca'.*got 'magic'"),
        ({"norm": "batch"}, "norm must be one of 'fold', 'paper'; got 'batch'"),
        (
            {"norm": "paper", "repair": "regression"},
            "repair='regression' needs norm='fold'",
        ),
        ({"repair": "all"}, "repair must be one of 'variance', 'regression', 'none'.*; got 'all'"),
        ({"reference": 2}, r"reference must be in 0\.\.1, got 2"),
        ({"reference": -1}, r"reference must be in 0\.\.1, got -1"),
        ({"weights": [1.0]}, "weights must hold one number a model"),
        ({"weights": [1.0, -1.0]}, "weights must be finite, not negative"),
        ({"weights": [0.0, 0.0]}, "not all zero"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite"),
    ],
)
def test_settings_are_checked_before_data_is_read(settings: dict[str, Any], message: str) -> None:
    def data() -> Iterator[Tensor]:
        pytest.fail("data was read")
        yield torch.empty(0)

    with pytest.raises(ValueError, match=message):
        _merge(_mlps(), data(), **settings)


def test_moments_of_other_models() -> None:
    models, data = _mlps(3), _batches()
    moments = _merge(models[:2], data).statistics
    with pytest.raises(ValueError, match=r"moments belong to other parameters.*models\[1\]"):
        _merge([models[0], models[2]], statistics=moments)
    with pytest.raises(ValueError, match="moments are of 2 models, but 3 were given"):
        _merge(models, statistics=moments)
    with pytest.raises(ValueError, match="collected with reference 0, not 1"):
        _merge(models[:2], statistics=moments, reference=1)


def test_moments_of_a_permuted_model_are_other_moments() -> None:
    """Sums and norms do not see a permutation: the digest must."""
    models = _mlps()
    moments = _merge(models, _batches()).statistics
    with torch.no_grad():
        order = torch.randperm(16)
        models[1].layers[0].weight.copy_(models[1].layers[0].weight[order])
        models[1].layers[0].bias.copy_(models[1].layers[0].bias[order])
        models[1].layers[1].weight.copy_(models[1].layers[1].weight[:, order])
    with pytest.raises(ValueError, match="moments belong to other parameters"):
        _merge(models, statistics=moments)


def test_moments_of_another_architecture() -> None:
    moments = _merge(_mlps(), _batches()).statistics
    others = [M.randomise(M.MLP((12, 8, 5)), s) for s in range(2)]
    with pytest.raises(ValueError, match="moments belong to"):
        _merge(others, statistics=moments)


def test_ctrl_c_while_data_is_read() -> None:
    models, data = [m.train() for m in _mlps()], _batches()

    def interrupted() -> Iterator[Tensor]:
        yield from data[:2]
        raise KeyboardInterrupt

    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    with pytest.raises(KeyboardInterrupt):
        _merge(models, interrupted())
    for model, state in zip(models, states, strict=True):
        assert all(m.training for m in model.modules())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.isfinite(_merge(models, data).model(data[0])).all()


SCRIPT = """
    import itertools, sys, time, torch, ccamerge
    from torch import nn
    def network(seed):
        torch.manual_seed(seed)
        first, last = nn.Linear(64, 256), nn.Linear(256, 8)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), last)
    models = [network(seed) for seed in range(2)]
    example = torch.randn(256, 64)
    found = ccamerge.spaces(models[0], example)
    def data():
        for index in itertools.count():
            if index == 2:
                print("ready", flush=True)
            yield example
    try:
        ccamerge.collect(models, data(), found=found, progress=False)
    except KeyboardInterrupt:
        assert all(torch.isfinite(v).all() for m in models for v in m.state_dict().values())
        ccamerge.merge(models, [example], progress=False)
        print("merged afterwards", flush=True)
"""


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_real_sigint_during_collection(tmp_path: Path) -> None:
    # Not in the checkout, whose package has no built core when an installed one is tested.
    path = str(Path(ccamerge.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", process.communicate()[1]
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "merged afterwards" in out
