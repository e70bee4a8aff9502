"""How outputs are read as predictions, guessed or as the user says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccamerge import spaces
from ccamerge.fidelity.reading import reading_of


def _mlp(*last: nn.Module, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), *last)


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"logits": self.head(hidden), "hidden_states": hidden}


class _Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.body(x).relu()), scale_factor=2.0)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).relu())


@pytest.mark.parametrize(
    ("model", "data", "mean", "axes"),
    [
        (_mlp(), torch.randn(4, 6), "probabilities", [1]),
        (_mlp(nn.LogSoftmax(-1)), torch.randn(4, 6), "probabilities", [1]),
        (_mlp(nn.Softmax(-1)), torch.randn(4, 6), "outputs", None),
        (_mlp(nn.Sigmoid()), torch.randn(4, 6), "outputs", None),
        (_mlp(outputs=1), torch.randn(4, 6), "outputs", None),
        (_mlp(nn.Dropout(0.5)), torch.randn(4, 6), "probabilities", [1]),
        (_Named(), torch.randn(4, 6), "probabilities", [1]),
        (_Segmenter(), torch.randn(2, 3, 8, 8), "probabilities", [1]),
        (_Tokens(), torch.randint(0, 9, (2, 7)), "probabilities", [2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_comes_last_tells(
    model: nn.Module, data: Tensor, mean: str, axes: list[int] | None
) -> None:
    found = reading_of(spaces(model, data).program, None)
    assert found is not None
    assert found.mean == mean
    assert "guessed" in found.why
    if axes is not None:
        assert list(found.leaves.values()) == axes


def test_probabilities_are_of_the_classes_axis() -> None:
    model, data = _Segmenter(), torch.randn(2, 3, 8, 8)
    found = reading_of(spaces(model, data).program, None)
    assert found is not None
    (logs,) = found.predictions(model(data))
    assert logs.shape == (2, 16, 16, 5)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(2, 16, 16))
    torch.testing.assert_close(logs, model(data).softmax(1).log().movedim(1, -1))


def test_the_mean_is_of_probabilities_or_outputs() -> None:
    model, data = _mlp(), torch.randn(4, 6)
    program = spaces(model, data).program
    outputs, weights = [torch.randn(4, 4), torch.randn(4, 4)], [0.25, 0.75]
    for mean in ("probabilities", "outputs"):
        found = reading_of(program, mean)  # type: ignore[arg-type]
        assert found is not None
        (combined,) = found.combined([found.predictions(x) for x in outputs], weights)
        if mean == "outputs":
            want = 0.25 * outputs[0] + 0.75 * outputs[1]
        else:
            want = (0.25 * outputs[0].softmax(-1) + 0.75 * outputs[1].softmax(-1)).log()
        torch.testing.assert_close(combined, want)


def test_a_member_without_weight_does_not_count() -> None:
    found = reading_of(spaces(_mlp(), torch.randn(4, 6)).program, "probabilities")
    assert found is not None
    outputs = [torch.randn(4, 4), torch.randn(4, 4)]
    (combined,) = found.combined([found.predictions(x) for x in outputs], [0.0, 1.0])
    torch.testing.assert_close(combined, outputs[1].log_softmax(-1))


def test_a_function_makes_the_prediction() -> None:
    def first(outputs: Any) -> Tensor:
        return outputs[:, 0].exp()  # type: ignore[no-any-return]

    model, data = _mlp(), torch.randn(4, 6)
    found = reading_of(spaces(model, data).program, first)
    assert found is not None
    assert "first" in found.why
    torch.testing.assert_close(found.predictions(model(data))[0], model(data)[:, 0].exp())


@pytest.mark.parametrize("bad", [lambda _: 1 / 0, lambda _: "no tensor", lambda out: out["none"]])
def test_a_function_that_fails_is_named(bad: Any) -> None:
    model, data = _mlp(), torch.randn(4, 6)
    found = reading_of(spaces(model, data).program, bad)
    assert found is not None
    with pytest.raises(ValueError, match="ensemble: the function"):
        found.predictions(model(data))
