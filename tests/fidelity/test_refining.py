"""Training towards the ensemble: closer, within its budget, and nothing else is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge import merge
from ccamerge.fidelity import refining
from tests import models as M

pytestmark = pytest.mark.as_users_do


def _models(make: Any = M.MLP, count: int = 2) -> list[nn.Module]:
    return [M.randomise(make(), seed) for seed in range(count)]


def _data(count: int = 800) -> list[Tensor]:
    return list(torch.randn(count, 12, generator=torch.Generator().manual_seed(9)).split(100))


def _merged(models: list[nn.Module], data: list[Tensor], **settings: Any) -> Any:
    return merge(models, data, progress=False, **settings)


def test_the_network_comes_closer_to_the_ensemble() -> None:
    models, data = _models(), _data()
    result = _merged(models, data, refine="10 epochs")
    found = result.report.fidelity
    assert found.chosen.endswith("refined")
    assert found.merged < 0.5 * min(found.members)
    new = torch.randn(4000, 12, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        ensemble = torch.stack([m(new).softmax(-1) for m in models]).mean(0)
        own = (ensemble * (ensemble.log() - result.model(new).log_softmax(-1))).sum(-1).mean()
    assert float(own) == pytest.approx(found.merged, rel=0.5)
    assert found.progress[0][2] >= found.merged


def test_it_is_repeated_to_the_last_bit() -> None:
    models = _models()
    one, two = (_merged(models, _data(), refine="2 epochs").model for _ in range(2))
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[key], rtol=0, atol=0)


def test_models_are_left_alone_and_nothing_carries_gradients() -> None:
    models = _models()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    result = _merged(models, _data(), refine="1 epoch")
    for model, old in zip(models, before, strict=True):
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, old[key], rtol=0, atol=0)
    assert all(p.grad is None and p.requires_grad for p in result.model.parameters())


def test_a_network_with_batch_norm_is_what_was_trained() -> None:
    models = _models(lambda: M.vgg11(True, 4))
    data = [torch.randn(40, 3, 32, 32) for _ in range(4)]
    result = _merged(models, data, refine="3 epochs", ensemble="outputs")
    found = result.report.fidelity
    distance = next(c.distance for c in found.candidates if c.name == found.chosen)
    # The module has its norms put back: what it computes must be what the training measured.
    assert found.merged == pytest.approx(distance, rel=1e-3)


def test_frozen_parameters_stay() -> None:
    models = _models()
    for model in models:
        model.layers[2].weight.requires_grad_(False)
    start = _merged(models, _data(), refine=False, select="none")
    refined = _merged(models, _data(), refine="3 epochs", select="none")
    same = torch.equal(refined.model.layers[2].weight, start.model.layers[2].weight)
    ends = [model.layers[2].weight for model in (start.model, *models)]
    assert same or any(torch.equal(refined.model.layers[2].weight, w) for w in ends)
    assert not refined.model.layers[2].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    models = [model.to(dtype) for model in _models()]
    result = _merged(models, [x.to(dtype) for x in _data()], refine="2 epochs")
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.report.fidelity.chosen.endswith("refined")


def test_a_budget_in_seconds_is_kept() -> None:
    result = _merged(_models(), _data(), refine="1s")
    # Looks at the held-out inputs come on top, and machines that run tests are busy.
    assert result.report.seconds["refine"] < 20
    assert sum(seconds for _, seconds, _ in result.report.fidelity.progress[-1:]) < 10


def test_an_interrupt_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = refining.Trainer._loss, [0]

    def interrupted(self: Any, *given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 120:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(refining, "STARTS", 1)
    monkeypatch.setattr(refining, "RATES", (1e-3,))
    monkeypatch.setattr(refining.Trainer, "_loss", interrupted)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        result = _merged(_models(), _data(), refine="50 epochs")
    assert result.report.fidelity.chosen.endswith("refined")


def test_an_interrupt_before_the_training_hands_over_what_there_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: Any, *given: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(refining.Trainer, "_loss", interrupted)
    with pytest.warns(RuntimeWarning):
        result = _merged(_models(), _data(), refine=True)
    assert not result.report.fidelity.chosen.endswith("refined")


def test_numbers_are_trained_towards_their_mean() -> None:
    models = _models(lambda: M.MLP((12, 16, 16, 1)), 3)
    found = _merged(models, _data(), refine="10 epochs").report.fidelity
    assert "variance" in found.unit
    assert found.merged < 0.5 * min(found.members)


def test_a_function_is_trained_through() -> None:
    def total(outputs: Tensor) -> Tensor:
        return outputs.square().sum(-1)

    found = _merged(_models(), _data(), refine="5 epochs", ensemble=total).report.fidelity
    assert found.merged < min(found.members)
