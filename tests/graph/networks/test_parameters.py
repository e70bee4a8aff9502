"""What is known of a model's parameters is known as long as they are what they were."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ccamerge
from ccamerge.graph.networks import inspection, parameters
from ccamerge.graph.networks.parameters import parameters_of
from tests import models as M


def _model() -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
    return M.randomise(nn.Sequential(*layers), 0)


def _permute(model: nn.Module) -> None:
    weight = next(model.parameters())
    weight.data.copy_(weight.data.flip(0))


def _one_element(model: nn.Module) -> None:
    next(model.parameters()).data.view(-1)[-7] += 1e-6


def _shared_memory(model: nn.Module) -> None:
    next(model.parameters()).detach().numpy()[0] *= 2


def _buffer(model: nn.Module) -> None:
    model.get_buffer("1.running_mean").add_(1)


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)


def _loaded(model: nn.Module) -> None:
    model.load_state_dict(M.randomise(copy.deepcopy(model), 1).state_dict())


def _replaced(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)  # type: ignore[index]


def _reparametrised(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[0])  # type: ignore[index]


CHANGES = [
    *(_permute, _one_element, _shared_memory, _buffer, _in_place, _loaded, _replaced),
    *(lambda model: model.double(), _reparametrised),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_model_is_noticed(change: Callable[[nn.Module], Any]) -> None:
    model = _model()
    known = parameters_of(model, "model")
    digest = known.fingerprint
    assert parameters_of(model, "model") is known
    change(model)
    again = parameters_of(model, "model")
    assert again is not known
    if change is not _reparametrised:  # another way to hold the same weights
        assert again.fingerprint != digest


@pytest.mark.parametrize("change", [_permute, _one_element, _shared_memory, _buffer, _loaded])
def test_statistics_of_a_model_before_it_was_changed_are_refused(
    change: Callable[[nn.Module], Any],
) -> None:
    models = [M.randomise(_model(), seed) for seed in range(2)]
    result = ccamerge.merge(models, [torch.randn(8, 3, 8, 8)] * 2, progress=False)
    change(models[1])
    with pytest.raises(ValueError, match=r"moments belong to other parameters.*models\[1\]"):
        ccamerge.merge(models, statistics=result.statistics, progress=False)


def test_what_changes_nothing_makes_nothing_anew() -> None:
    model = _model()
    known = parameters_of(model, "model")
    model.train()
    model.requires_grad_(False)
    with torch.inference_mode():
        model.eval()(torch.randn(2, 3, 8, 8))
    assert parameters_of(model, "model") is known


def test_nothing_keeps_a_model_alive() -> None:
    model = _model()
    known = parameters_of(model, "model")
    seen = weakref.ref(model), weakref.ref(known)
    del model, known
    gc.collect()
    assert seen[0]() is None
    assert seen[1]() is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often states are folded, weights are hashed, and programs are traced."""
    counts: Counter[str] = Counter()

    def counting(module: Any, name: str) -> None:
        whole = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counting(parameters, "folded_state")
    counting(parameters, "state_fingerprint")
    counting(inspection, "trace")
    return counts


def test_many_merges_fold_hash_and_trace_once(counted: Counter[str]) -> None:
    models = [M.randomise(_model(), seed) for seed in range(3)]
    data = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(3)]
    first = ccamerge.merge(models, data, progress=False)
    once = {"folded_state": 3, "state_fingerprint": 3, "trace": 1}
    assert counted == once
    for repair in ("none", "variance", "regression"):
        ccamerge.merge(models, statistics=first.statistics, repair=repair, progress=False)
    methods = ["cca", "permutation", "procrustes", "average", "weight_matching"]
    ccamerge.compare(
        models, data, statistics=first.statistics, methods=methods, points=5, progress=False
    )
    ccamerge.barrier(models, data, statistics=first.statistics, points=3)
    assert counted == once
