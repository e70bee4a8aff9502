from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge


class _Fixed(nn.Module):
    """Logits straight from the input; training mode would add noise."""

    def __init__(self, scale: float = 1.0, pack: Any = None) -> None:
        super().__init__()
        self.scale, self.pack, self.dropout = scale, pack, nn.Dropout(0.9)

    def forward(self, inputs: Tensor) -> Any:
        out = self.dropout(inputs * self.scale)
        return out if self.pack is None else self.pack(out)


def _data() -> list[tuple[Tensor, Tensor]]:
    """Three of four, then one of two."""
    eye = torch.eye(4)
    return [(eye, torch.tensor([0, 1, 2, 0])), (eye[:2], torch.tensor([0, 3]))]


def test_accuracy_of_one_model() -> None:
    assert ccamerge.evaluate(_Fixed().train(), _data()) == pytest.approx(4 / 6)


@pytest.mark.parametrize("pack", [lambda x: (x, None), lambda x: SimpleNamespace(logits=x)])
def test_logits_in_a_container(pack: Any) -> None:
    assert ccamerge.evaluate(_Fixed(pack=pack), _data()) == pytest.approx(4 / 6)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_with_labels(kind: Any) -> None:
    data = [kind(inputs=x, labels=y) for x, y in _data()]
    assert ccamerge.evaluate(_Fixed(), data) == pytest.approx(4 / 6)


def test_an_ensemble_averages_probabilities_not_logits() -> None:
    class Says(nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    # Mean logits (10, 8, -9) choose 0. Probabilities: (1, 0, 0), (0, 1, 0), (0, 1, 0): 1.
    members = [Says(50.0, 0.0, -9.0), Says(-10.0, 12.0, -9.0), Says(-10.0, 12.0, -9.0)]
    assert ccamerge.evaluate(members, [(torch.zeros(3, 1), torch.ones(3).long())]) == 1.0


def test_models_are_left_as_they_were() -> None:
    models = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train() for _ in range(2)]
    models[0][0].eval()
    ccamerge.evaluate(models, _data())
    assert [m.training for model in models for m in model.modules()] == [
        True, False, True, True, True, True,
    ]  # fmt: skip
    assert all(m[1].num_batches_tracked == 0 for m in models)
    with pytest.raises(ValueError, match="labels"):
        ccamerge.evaluate(models, [torch.zeros(2, 4)])
    assert models[1].training


def test_no_data() -> None:
    with pytest.raises(ValueError, match="data is empty"):
        ccamerge.evaluate(_Fixed(), [])


def test_no_models() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        ccamerge.evaluate([], _data())


@pytest.mark.parametrize("batch", [torch.eye(4), [torch.eye(4)], {"inputs": torch.eye(4)}])
def test_no_labels(batch: Any) -> None:
    with pytest.raises(ValueError, match="batch 1 has no labels"):
        ccamerge.evaluate(_Fixed(), [_data()[0], batch])


@pytest.mark.parametrize("labels", [torch.zeros(4, 1).long(), torch.zeros(3).long()])
def test_labels_that_do_not_fit(labels: Tensor) -> None:
    """(4, 1) would broadcast against (4,) into sixteen comparisons."""
    with pytest.raises(ValueError, match="batch 0: labels have shape"):
        ccamerge.evaluate(_Fixed(), [(torch.eye(4), labels)])


def test_no_logits() -> None:
    with pytest.raises(TypeError, match="the model returns str, expected logits"):
        ccamerge.evaluate(_Fixed(pack=lambda _: "text"), _data())
