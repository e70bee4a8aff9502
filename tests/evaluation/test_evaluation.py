from __future__ import annotations

import math
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ccamerge
from ccamerge.evaluation.evaluating import measure
from ccamerge.evaluation.metrics import accuracy, cross_entropy, labels_of


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


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, None),
        lambda x: SimpleNamespace(logits=x),
        lambda x: {"loss": x.sum(), "logits": x},
    ],
)
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
    with pytest.raises(ValueError, match="batch 1: accuracy: the batch has no labels"):
        ccamerge.evaluate(_Fixed(), [_data()[0], batch])


@pytest.mark.parametrize("labels", [torch.zeros(4, 1).long(), torch.zeros(3).long()])
def test_labels_that_do_not_fit(labels: Tensor) -> None:
    """(4, 1) would broadcast against (4,) into sixteen comparisons."""
    with pytest.raises(ValueError, match="batch 0: accuracy: labels have shape"):
        ccamerge.evaluate(_Fixed(), [(torch.eye(4), labels)])


def test_no_logits() -> None:
    with pytest.raises(TypeError, match="the model returns str, expected logits"):
        ccamerge.evaluate(_Fixed(pack=lambda _: "text"), _data())


# Means over batches ------------------------------------------------------------------------


class _Counting(nn.Module):
    """A linear classifier that counts how often it runs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x @ self.weight.T


def _all(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(5, (n,), generator=generator)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_the_mean_does_not_depend_on_the_batches(sizes: list[int]) -> None:
    inputs, labels = _all(sum(sizes))
    batches = list(zip(inputs.split(sizes), labels.split(sizes), strict=True))
    for metric in ("accuracy", "cross_entropy"):
        found = ccamerge.evaluate(_Counting(), batches, metric)
        whole = ccamerge.evaluate(_Counting(), [(inputs, labels)], metric)
        assert found == pytest.approx(whole, rel=1e-14, abs=0)


def test_tokens_weigh_alike_whatever_their_batch_holds() -> None:
    """Ten tokens in one batch and one in the other: not the mean of the batches' means."""
    labels = torch.full((2, 10), -100)
    labels[0] = 0
    labels[1, 3] = 1
    logits = torch.zeros(2, 10, 4)
    logits[..., 0] = 5.0
    data = [{"inputs": x[None], "labels": y[None]} for x, y in zip(logits, labels, strict=True)]
    assert ccamerge.evaluate(_Fixed(), data) == pytest.approx(10 / 11)
    [[_, loss]], samples = measure([("", [_Fixed()])], data, ["accuracy", "cross_entropy"])
    rest = math.log(math.exp(5) + 3)
    assert loss == pytest.approx((10 * (rest - 5) + rest) / 11)
    assert samples == 2


def test_one_batch_may_have_nothing_that_counts_but_not_all() -> None:
    ignored = (torch.eye(4), torch.full((4,), -100))
    assert ccamerge.evaluate(_Fixed(), [ignored, *_data()]) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="accuracy: none of 4 samples counts; are all labels"):
        ccamerge.evaluate(_Fixed(), [ignored])


# A metric of the user's --------------------------------------------------------------------


def absolute_error(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs - batch[1]).abs().mean(-1)


def test_a_function_of_the_users() -> None:
    inputs, _ = _all(10)
    targets = torch.randn(10, 5, dtype=torch.float64)
    model = _Counting()
    expected = (model(inputs) - targets).abs().mean().item()
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    assert ccamerge.evaluate(model, batches, absolute_error) == pytest.approx(expected)
    members = [_Counting(0), _Counting(1)]
    expected = ((members[0](inputs) + members[1](inputs)) / 2 - targets).abs().mean().item()
    found = ccamerge.evaluate(members, batches, absolute_error, ensemble="outputs")
    assert found == pytest.approx(expected)


def test_a_metric_sees_the_whole_batch_and_logarithms_of_probabilities() -> None:
    seen = []

    def metric(outputs: Tensor, batch: Any) -> Tensor:
        seen.append((outputs, batch))
        return outputs[:, 0]

    batch = {"inputs": torch.eye(4), "labels": torch.arange(4), "weight": 3}
    value = ccamerge.evaluate([_Fixed(), _Fixed(scale=9.0)], [batch], metric)
    ((outputs, got),) = seen
    assert got is batch
    mean = (torch.eye(4).softmax(-1) + (9 * torch.eye(4)).softmax(-1)) / 2
    torch.testing.assert_close(outputs, mean.log())
    assert value == pytest.approx(mean.log()[:, 0].mean().item())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.tensor(0.5), "batch 0: metric: expected a tensor with one .*, got a single number"),
        (0.5, "batch 0: metric: expected a tensor with one number for each sample, got float"),
        (torch.tensor([1.0, math.inf]), "batch 0: metric: gives values that are not finite"),
        (torch.ones(3, dtype=torch.complex64), "batch 0: metric: expected a tensor"),
        (KeyError("mask"), "batch 0: metric failed: KeyError: 'mask'"),
        (ValueError("no mask"), "batch 0: metric: no mask"),
    ],
)
def test_metrics_that_fail(result: Any, message: str) -> None:
    def metric(outputs: Tensor, batch: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(ValueError, match=message):
        ccamerge.evaluate(_Fixed(), _data(), metric)


# Several at once ---------------------------------------------------------------------------


def test_each_network_runs_once_a_batch() -> None:
    a, b, c = (_Counting(seed) for seed in range(3))
    inputs, labels = _all(30)
    batches = list(zip(inputs.split(8), labels.split(8), strict=True))
    rows = [("a", [a]), ("b", [b]), ("c", [c]), ("both", [a, b])]
    values, samples = measure(rows, iter(batches), ["accuracy", "cross_entropy"])
    assert [m.runs for m in (a, b, c)] == [4, 4, 4]
    assert samples == 30
    for (_, members), (hits, loss) in zip(rows, values, strict=True):
        mean = np.mean([m(inputs).softmax(-1).numpy() for m in members], axis=0)
        assert hits == pytest.approx(np.mean(mean.argmax(1) == labels.numpy()))
        assert loss == pytest.approx(-np.log(mean[range(30), labels]).mean(), rel=1e-12)


def test_messages_name_the_network() -> None:
    rows = [("good", [_Fixed()]), ("bad", [_Fixed(scale=math.nan)])]
    with pytest.raises(ValueError, match=r"batch 0, bad: accuracy: outputs are not numbers \(NaN"):
        measure(rows, _data(), [accuracy])


def test_confident_members_that_contradict_each_other() -> None:
    """Probabilities of 0 in floating point have a logarithm all the same."""
    members = [_Fixed(scale=1e4), _Fixed(scale=-1e4)]
    loss = ccamerge.evaluate(members, [(torch.eye(2), torch.arange(2))], cross_entropy)
    assert loss == pytest.approx(math.log(2))


def test_members_that_do_not_fit_together() -> None:
    members = [nn.Linear(4, 3), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match=r"outputs of shapes \(4, 3\), \(4, 2\) cannot be aver"):
        ccamerge.evaluate(members, _data())
    members = [nn.Linear(4, 1), nn.Linear(4, 1)]
    with pytest.raises(ValueError, match=r"\(4, 1\) are no scores of classes; use ensemble 'outp"):
        ccamerge.evaluate(members, _data())
    with pytest.raises(ValueError, match="ensemble must be 'probabilities' or 'outputs', got 'no"):
        ccamerge.evaluate(members, _data(), ensemble="none")  # type: ignore[arg-type]


def test_labels_of_is_for_metrics_of_users_too() -> None:
    def top_two(outputs: Tensor, batch: Any) -> Tensor:
        return (outputs.topk(2).indices == labels_of(batch)[:, None]).any(-1)

    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert ccamerge.evaluate(_Fixed(), [(logits, torch.tensor([1, 2]))], top_two) == 0.5
