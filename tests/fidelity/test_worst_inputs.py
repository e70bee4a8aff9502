"""Outputs, inputs and models of which judging and refinement could make too much, or too little."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ccamerge import collect, merge
from ccamerge.fidelity import refining
from ccamerge.merging import selecting
from tests import models as M

pytestmark = pytest.mark.as_users_do


def _models(make: Callable[[], nn.Module], count: int = 2) -> list[nn.Module]:
    return [M.randomise(make(), seed) for seed in range(count)]


def _data(count: int = 400, size: int = 50) -> list[Tensor]:
    return list(torch.randn(count, 12, generator=torch.Generator().manual_seed(9)).split(size))


def _merged(models: list[nn.Module], data: Any, **settings: Any) -> Any:
    return merge(models, data, progress=False, **settings)


class _Body(nn.Module):
    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, outputs)


class _WithLoss(_Body):
    """An output has no samples, as auxiliary losses have none."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x).relu()
        return self.last(hidden), hidden.square().mean()


def test_outputs_with_and_without_samples_are_judged_by_batches() -> None:
    models = _models(_WithLoss)
    with pytest.warns(RuntimeWarning, match="itself"):  # few batches tell little
        found = _merged(models, _data(1000)).report.fidelity
    assert found.inputs >= 200
    assert all(0 < own < 100 for own in found.members)


class _WithConstant(_Body):
    """An output is the same for all inputs, but not for all models."""

    def __init__(self) -> None:
        super().__init__(1)
        self.width = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(self.first(x).relu()), (2 * self.width).expand(len(x), 1) + 0 * x[:, :1]


def test_outputs_that_never_vary_do_not_outweigh_the_others() -> None:
    models = _models(_WithConstant)
    for model, width in zip(models, (1.0, 3.0), strict=True):
        torch.nn.init.constant_(model.get_parameter("width"), width)
    found = _merged(models, _data(), select="none").report.fidelity
    x = torch.cat(_data())
    with torch.no_grad():
        ensemble = (models[0](x)[0] + models[1](x)[0]) / 2
        varying = float((models[0](x)[0] - ensemble).square().mean() / ensemble.var())
    # The constant one is 2 in one model and 4 in the ensemble.
    assert found.members[0] == pytest.approx((varying + 0.25) / 2, rel=0.5)


def _lengths_differ(outputs: Tensor) -> Tensor:
    return outputs[outputs[:, 0] > 0]


def test_predictions_of_differing_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        _merged(_models(M.MLP), _data(), ensemble=_lengths_differ)


def test_a_function_may_write_to_the_outputs() -> None:
    def shifted(outputs: Tensor) -> Tensor:
        return outputs.sub_(1).sigmoid_()

    found = _merged(_models(M.MLP), _data(), ensemble=shifted, select="none").report.fidelity
    assert found.merged < min(found.members)


def test_predictions_without_gradients_are_not_refined() -> None:
    def classes(outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    with pytest.raises(ValueError, match="gradients"):
        _merged(_models(M.MLP), _data(), ensemble=classes, select="none", refine="1 epoch")


class _Scaled(_Body):
    def forward(self, size: float, x: Tensor) -> Tensor:
        return self.last((self.first(x) * size).relu())


def test_inputs_may_begin_with_a_number() -> None:
    found = _merged(
        _models(_Scaled), [(0.5, x) for x in _data()], select="none", refine="1 epoch"
    ).report.fidelity
    assert found.chosen == "merge, refined"


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_whoever_merges_without_gradients_may_refine(around: Any) -> None:
    models, data = _models(M.MLP), _data()
    with around():
        result = _merged(models, data, refine="1 epoch")
    found = result.report.fidelity
    assert found.progress[-1][2] < found.progress[0][2]


def test_a_reparametrised_average_is_judged_as_what_its_network_holds() -> None:
    def make() -> nn.Module:
        model = M.MLP()
        spectral_norm(model.layers[1])
        return model

    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(make())
    with pytest.warns(RuntimeWarning, match="cannot hold"):
        result = _merged(models, _data(), method="average", repair="none")
    found = result.report.fidelity
    handed = next(c.distance for c in found.candidates if c.name == found.chosen)
    assert found.chosen in ("plain average", "merge")
    assert found.average == pytest.approx(found.merged, rel=1e-2)
    assert handed == pytest.approx(found.merged, rel=1e-3)


def test_a_refined_model_is_no_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    real = refining.Trainer.train

    def of_the_reference(self: Any, starts: Any, refine: Any) -> Any:
        return real(self, [s for s in starts if s.name == "models[0]"], refine)

    monkeypatch.setattr(refining, "RATES", (1e-2,))
    monkeypatch.setattr(refining.Trainer, "train", of_the_reference)
    how = {"method": "average", "repair": "none", "select": "fidelity", "refine": "10 epochs"}
    result = _merged(_models(M.MLP), _data(1000), **how)
    found = result.report.fidelity
    assert found.chosen == "models[0], refined"
    assert "itself" not in found.verdict()
    assert not found.disappoints


def test_what_is_asked_for_alone_is_refined() -> None:
    models = _models(M.MLP)
    found = _merged(
        models, _data(), method="average", repair="none", select="none", refine="1 epoch"
    ).report.fidelity
    assert found.chosen == "merge, refined"


def test_few_inputs_refine_nothing_by_chance() -> None:
    models = _models(M.MLP)
    with pytest.warns(RuntimeWarning, match="inputs"):
        result = _merged(models, _data(12, 12), refine="20 epochs")
    assert result.report.fidelity.chosen == "models[0]"


def test_refinement_that_cannot_be_judged_is_refused_or_warned_of() -> None:
    models, data = _models(M.MLP), _data()
    with pytest.raises(ValueError, match="refine"):
        _merged(models, data, refine=True, holdout=0)
    statistics = collect(models, data, progress=False, holdout=0.0)
    with pytest.warns(RuntimeWarning, match="not refined"):
        merge(models, statistics=statistics, refine="1 epoch", progress=False)


class _AcrossSamples(_Body):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(hidden - hidden.mean(0, keepdim=True))


def test_epochs_are_as_long_where_batches_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = refining.Trainer._loss

    def counted(self: Any, state: Any, examples: Any) -> Tensor:
        steps.append(examples.size)
        return real(self, state, examples)

    monkeypatch.setattr(refining, "STARTS", 1)
    monkeypatch.setattr(refining, "RATES", (1e-3,))
    monkeypatch.setattr(refining.Trainer, "_loss", counted)
    result = _merged(_models(_AcrossSamples), _data(), select="none", refine="3 epochs")
    assert sum(steps) == (1 + 3) * result.report.samples
    assert result.report.fidelity.trained == result.report.samples
    assert set(steps) == {50}


def test_frozen_networks_stay_as_they_are() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    models = _models(make)
    for model in models:
        model.requires_grad_(False)
    found = _merged(models, _data(), select="none", refine="2 epochs").report.fidelity
    assert found.chosen == "merge"


def test_norms_of_candidates_have_running_statistics() -> None:
    """A network that is trained further normalises by what it saw, and does then what it did."""
    models = _models(lambda: M.vgg11(True, 4))
    data = [torch.randn(40, 3, 32, 32) for _ in range(4)]
    model = _merged(models, data, select="none", refine="1 epoch", ensemble="outputs").model
    assert isinstance(model, nn.Sequential)
    block = model[0]
    assert isinstance(block, nn.Sequential)
    norm = block[1]
    assert isinstance(norm, nn.BatchNorm2d)
    x = torch.randn(200, 3, 32, 32)
    with torch.no_grad():
        before = block[0](x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, before.mean(1), rtol=0.1, atol=0.05)
    torch.testing.assert_close(norm.running_var, before.var(1), rtol=0.2, atol=0)


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.middle(self.table(input_ids)).relu()) * (
            1 + attention_mask[..., None]
        )


def test_training_goes_by_what_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding does not count, nor do short texts count less."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(40, 7, dtype=torch.int64)
    mask[20:, 3:] = 0
    data = [
        {
            "input_ids": torch.randint(0, 9, (40, 7), generator=generator),
            "attention_mask": mask,
        }
        for _ in range(4)
    ]
    seen: list[tuple[float, float]] = []
    real = refining.Trainer._loss

    def compared(self: Any, state: Any, examples: Any) -> Tensor:
        loss = real(self, state, examples)
        with torch.no_grad():
            logs = self._program.run(state, examples.leaves).log_softmax(-1)
        (target,) = examples.target
        error = (target.exp() * (target - logs)).sum(-1)
        rows = [e[m > 0].mean() for e, m in zip(error, examples.leaves[1], strict=True)]
        seen.append((float(loss.detach()), float(torch.stack(rows).mean())))
        return loss

    monkeypatch.setattr(refining.Trainer, "_loss", compared)
    _merged(_models(_Tagger), data, select="none", refine="1 epoch", ensemble="probabilities")
    assert seen
    for one, other in seen:
        assert one == pytest.approx(other, rel=1e-4)


def test_an_interrupt_keeps_the_best_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = refining.Trainer._run, [0]

    def interrupted(self: Any, *given: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        real(self, *given)

    monkeypatch.setattr(refining.Trainer, "_run", interrupted)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        result = _merged(_models(M.MLP), _data(1000), refine="10 epochs")
    assert result.report.fidelity.chosen.endswith("refined")


def test_equal_models_are_as_close_as_each_other() -> None:
    model = M.randomise(M.MLP(), 0)
    twin = M.MLP()
    twin.load_state_dict(model.state_dict())
    found = _merged([model, twin], _data(), select="none").report.fidelity
    assert "as close" in found.verdict()
    assert not found.disappoints
    only = _merged(_models(M.MLP), _data(), weights=[0, 1]).report.fidelity
    assert "inf" not in only.verdict()


def test_what_candidates_leave_to_the_reference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unused(M.MLP):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    def halfway(options: Any, reference: str) -> Any:
        return options["t = 0.5"]

    monkeypatch.setattr(selecting, "_closest", halfway)
    with pytest.warns(RuntimeWarning, match="unused"):
        report = _merged(_models(Unused), _data()).report
    assert any("unused" in key for key in report.from_reference)
    assert report.fitted
