"""What is handed over is never further from the ensemble than the reference, and says how far."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge import collect, merge
from tests import models as M

pytestmark = pytest.mark.as_users_do


def _unlike(count: int = 2) -> list[nn.Module]:
    """One function, of units in other orders: the plain average is far from it."""
    first = M.randomise(M.MLP(), 0)
    found = []
    for seed in range(count):
        found.append(copy.deepcopy(first))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        one, two = found[-1].layers[:2]
        with torch.no_grad():
            one.weight.copy_(one.weight[order])
            one.bias.copy_(one.bias[order])
            two.weight.copy_(two.weight[:, order])
            two.weight.mul_(1 + 0.01 * seed)  # not quite the same: there is an ensemble
    return found


def _other(count: int = 2) -> list[nn.Module]:
    """Networks of other functions."""
    return [M.randomise(M.MLP(), seed) for seed in range(count)]


def _alike(count: int = 2, noise: float = 0.3) -> list[nn.Module]:
    """One network with noise, so that means are closer to the ensemble than any of them."""
    first = M.randomise(M.MLP(), 0)
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        found.append(copy.deepcopy(first))
        with torch.no_grad():
            for parameter in found[-1].parameters():
                size = noise * parameter.std()
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return found


def _data(count: int = 1000) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return list(torch.randn(count, 12, generator=generator).split(100))


def _of_one_class(models: list[nn.Module]) -> Tensor:
    """Inputs that the ensemble takes for its most frequent class."""
    every = torch.cat(_data(4000))
    with torch.no_grad():
        classes = torch.stack([m(every).softmax(-1) for m in models]).mean(0).argmax(-1)
    return every[classes == classes.mode().values]


def _divergence(models: list[nn.Module], model: nn.Module, x: Tensor) -> Tensor:
    """KL of a network from the ensemble (n,)."""
    with torch.no_grad():
        ensemble = torch.stack([m(x).softmax(-1) for m in models]).mean(0)
        found: Tensor = (ensemble * (ensemble.log() - model(x).log_softmax(-1))).sum(-1)
    return found


def test_the_closest_candidate_is_handed_over() -> None:
    models, data = _alike(3), _data()
    result = merge(models, data, method="permutation", progress=False)
    found = result.report.fidelity
    assert found is not None
    assert not found.chosen.startswith("models[")
    new = torch.randn(4000, 12, generator=torch.Generator().manual_seed(7))
    own = [float(_divergence(models, m, new).mean()) for m in models]
    merged = float(_divergence(models, result.model, new).mean())
    assert merged < min(own)
    assert found.merged == pytest.approx(merged, rel=0.3)
    assert "closer to the ensemble than any member" in found.verdict()
    assert found.verdict() in str(result.report)


def test_a_model_itself_is_handed_over_where_no_merge_is_closer() -> None:
    models = _unlike()
    with pytest.warns(RuntimeWarning, match=r"models\[\d\] itself"):
        result = merge(
            models, _data(), method="average", repair="none", select="fidelity", progress=False
        )
    found = result.report.fidelity
    assert found is not None
    assert found.chosen.startswith("models[")
    own = models[int(found.chosen[7])]
    for key, value in result.model.state_dict().items():
        torch.testing.assert_close(value, own.state_dict()[key], rtol=0, atol=0)
    assert result.model is not own


def test_what_is_asked_for_is_handed_over_all_the_same() -> None:
    models, data = _unlike(), _data()
    with pytest.warns(RuntimeWarning, match="FURTHER from the ensemble"):
        result = merge(models, data, method="average", repair="none", progress=False)
    found = result.report.fidelity
    assert found is not None
    assert found.chosen == "merge"
    for key, value in result.model.state_dict().items():
        want = torch.stack([m.state_dict()[key] for m in models]).mean(0)
        torch.testing.assert_close(value, want)


@pytest.mark.parametrize("count", [2, 10, 50])
@pytest.mark.parametrize("kind", ["networks", "copies"])
def test_few_inputs_never_lead_further_than_the_reference(count: int, kind: str) -> None:
    models = _other() if kind == "networks" else _alike()
    data = [_data()[0][:count]]
    with pytest.warns(RuntimeWarning, match="inputs"):
        result = merge(models, data, progress=False)
    new = torch.randn(4000, 12, generator=torch.Generator().manual_seed(7))
    merged, reference = (_divergence(models, m, new).mean() for m in (result.model, models[0]))
    assert merged <= reference * (1 + 1e-6)


def test_inputs_that_are_all_alike_hand_over_the_reference() -> None:
    models = _alike()
    data = [_data()[0][:1].expand(200, 12).clone()]
    with pytest.warns(RuntimeWarning, match="same prediction"):
        result = merge(models, data, progress=False)
    assert result.report.fidelity is not None
    assert result.report.fidelity.chosen == "models[0]"


def test_inputs_of_one_class_hand_over_the_reference() -> None:
    models = _unlike()
    with pytest.warns(RuntimeWarning, match="class"):
        result = merge(models, [_of_one_class(models)], progress=False)
    assert result.report.fidelity is not None
    assert result.report.fidelity.chosen == "models[0]"


def test_equal_models_need_no_choice() -> None:
    model = M.randomise(M.MLP(), 0)
    result = merge([model, copy.deepcopy(model)], _data(), progress=False)
    assert result.report.fidelity is not None
    assert result.report.fidelity.chosen == "merge"


def test_one_model_with_all_the_weight_is_handed_over() -> None:
    models = _unlike()
    result = merge(models, _data(), weights=[0, 1], progress=False)
    assert result.report.fidelity is not None
    assert result.report.fidelity.candidates
    x = _data()[0]
    torch.testing.assert_close(result.model(x), models[1](x), rtol=0, atol=0)


def test_the_reference_may_be_any_model() -> None:
    models = _other(3)
    with pytest.warns(RuntimeWarning, match="itself"):
        result = merge(models, [_data()[0][:10]], reference=2, progress=False)
    x = _data()[0]
    torch.testing.assert_close(result.model(x), models[2](x), rtol=0, atol=0)


def test_weights_are_those_of_the_ensemble() -> None:
    models = _alike()
    result = merge(models, _data(), weights=[0.999, 0.001], select="none", progress=False)
    found = result.report.fidelity
    assert found is not None
    assert found.members[0] < 0.01 * found.members[1]


def test_a_function_says_what_is_predicted() -> None:
    def difference(outputs: Tensor) -> Tensor:
        return outputs[:, 0] - outputs[:, 1]

    result = merge(_alike(), _data(), ensemble=difference, select="none", progress=False)
    found = result.report.fidelity
    assert found is not None
    assert "difference" in found.reading
    assert "variance" in found.unit


def test_statistics_without_held_out_inputs_judge_nothing() -> None:
    models, data = _alike(), _data()
    statistics = collect(models, data, progress=False, holdout=0.0)
    result = merge(models, statistics=statistics, progress=False)
    assert result.report.fidelity is None


def test_statistics_with_held_out_inputs_choose_again() -> None:
    models, data = _alike(), _data()
    first = merge(models, data, method="permutation", progress=False)
    again = merge(models, statistics=first.statistics, method="permutation", progress=False)
    assert again.report.fidelity == first.report.fidelity


def test_networks_of_other_widths_are_no_candidates() -> None:
    models = [M.randomise(M.MLP(sizes), 0) for sizes in ((12, 16, 16, 5), (12, 24, 24, 5))]
    result = merge(models, _data(), progress=False)
    found = result.report.fidelity
    assert found is not None
    names = [candidate.name for candidate in found.candidates]
    assert "models[0]" in names
    assert "models[1]" not in names
    assert "plain average" not in names
    assert len(found.members) == 2


def test_the_papers_norm_is_judged_too() -> None:
    models = [M.randomise(M.vgg11(True, 4), seed) for seed in range(2)]
    data = [torch.randn(20, 3, 32, 32) for _ in range(4)]
    result = merge(models, data, norm="paper", select="none", progress=False)
    assert result.report.fidelity is not None


def test_the_report_is_plain_data() -> None:
    result = merge(_alike(), _data(), progress=False)
    plain = json.loads(json.dumps(result.report.to_dict()))
    assert plain["fidelity"]["members"] == result.report.fidelity.members  # type: ignore[union-attr]
    assert "fidelity" in result.report.to_markdown()


@pytest.mark.parametrize(
    ("name", "value"),
    [("select", "best"), ("ensemble", "votes"), ("holdout", 0.7), ("refine", "5 parsecs")],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        merge(_unlike(), _data(), progress=False, **{name: value})


def test_comparisons_are_of_what_their_rows_ask_for() -> None:
    models, data = _unlike(), _data()
    statistics = collect(models, data, progress=False)
    labelled = [(x, x[:, :5].argmax(-1)) for x in data]
    rows: dict[str, dict[str, Any]] = {"average": {"method": "average", "repair": "none"}}

    def scored() -> tuple[float, float]:
        found = ccamerge.compare(
            models, labelled, statistics=statistics, methods=rows, progress=False
        )
        how = {**rows["average"], "statistics": statistics, "select": "none", "progress": False}
        plain = merge(models, **how)
        return found.merged[0].loss, ccamerge.evaluate(plain.model, labelled, "cross_entropy")

    with pytest.warns(RuntimeWarning, match="FURTHER"):
        one, other = scored()
    assert one == other


@pytest.mark.parametrize("method", ["cca", "permutation"])
def test_copies_by_few_inputs_leave_no_divergence_to_divide_by(method: str) -> None:
    model = M.randomise(M.MLP(), 0)
    data = list(_data()[0][:8].split(4))
    with pytest.warns(RuntimeWarning, match="held-out"):
        result = merge([model, copy.deepcopy(model)], data, method=method, progress=False)
    found = result.report.fidelity
    assert found is not None
    assert min(c.distance for c in found.candidates) >= 0
    assert "closest" in found.verdict() or "itself" in found.verdict()


def test_the_report_tells_of_the_merge_that_is_not_handed_over() -> None:
    models = _other()
    with pytest.warns(RuntimeWarning, match="class"):
        result = merge(models, [_of_one_class(models)], progress=False)
    assert result.report.fitted
