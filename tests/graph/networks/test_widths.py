"""Networks of different widths merge into the reference's, exactly where nothing is lost."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.states import folded_state
from ccamerge.merging.loading import load_merged
from ccamerge.merging.paper import unfolded_spaces
from ccamerge.methods.ridges import GRID, held_out_errors
from tests import models as M


class Halves(nn.Module):
    """One layer whose output is cut in two, so that the second half starts elsewhere by width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(12, 2 * width)
        self.mixed = nn.Linear(2 * width + 12, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, dim=-1)
        y = torch.cat([F.relu(b), x, F.relu(a)], -1)  # inputs, which keep their basis, in between
        return self.head(F.relu(self.mixed(y)))


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda k: M.MLP((12, 6 * k, 8 * k, 5)), (12,)),
    "flatten": (lambda k: M.vgg11(True, width=2 * k, size=32), (3, 32, 32)),
    "residual": (lambda k: M.BottleneckResNet(width=3 * k), (3, 8, 8)),
    "concatenation": (lambda k: M.DenseBlockNet(growth=4 * k), (3, 8, 8)),
    "grouped": (lambda k: M.GroupedConv(width=6 * k), (3, 8, 8)),
    "halves": (lambda k: Halves(4 * k), (12,)),
}


def _doubled(size: int, generator: torch.Generator) -> FeatureMap:
    """Each feature twice, in random order; what read it reads both, in unequal parts."""
    order = torch.randperm(2 * size, generator=generator)
    part = torch.rand(size, generator=generator, dtype=torch.float64) / 2
    eye = torch.eye(size, dtype=torch.float64)
    return FeatureMap(
        torch.cat([eye, eye], 1)[:, order],
        torch.cat([part[:, None] * eye, (1 - part[:, None]) * eye])[order],
    )


@functools.cache
def _pair(name: str) -> tuple[nn.Module, nn.Module, Tensor, ccamerge.Statistics]:
    """A network, one of twice its width that computes the same, inputs, moments; float64."""
    make, shape = NETWORKS[name]
    narrow, wide = M.randomise(make(1)).double(), M.randomise(make(2), 1).double()
    x = torch.randn(64, *shape).double()
    ours, theirs = ccamerge.spaces(narrow, x[:4]), ccamerge.spaces(wide, x[:4])
    generator = torch.Generator().manual_seed(3)
    maps = {space.name: _doubled(space.size, generator) for space in ours}
    state = transform(
        folded_state(narrow.state_dict(), ours.folds), ours.spaces, maps, into=theirs.spaces
    )
    load_merged(wide, state, theirs, {})
    collected = ccamerge.collect(
        [narrow, wide], [x], pairs="all", found=[ours, theirs], progress=False
    )
    return narrow, wide, x, collected


def _change(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        return float((a(x) - b(x)).norm() / a(x).norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_other_widths_are_those_of_the_mapped_features(name: str) -> None:
    narrow, wide, x, _ = _pair(name)
    assert _change(narrow, wide, x) < 1e-12


@pytest.mark.parametrize("repair", ["variance", "regression", "none"])
@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_expansion_are_one_network(
    name: str, reference: int, repair: Any
) -> None:
    """All of the wider network's features are the narrower's: nothing is lost in either width."""
    if (name, reference, repair) == ("concatenation", 0, "none"):
        pytest.skip("a BatchNorm that cannot be folded takes the copies as uncorrelated: see Role")
    narrow, wide, x, moments = _pair(name)
    result = ccamerge.merge(
        [narrow, wide], statistics=moments, reference=reference, ridge=1e-9, repair=repair
    )
    expected = (narrow, wide)[reference].state_dict()
    merged = result.model.state_dict()
    assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in expected.items()}
    assert _change(narrow, result.model, x) < 1e-4
    ratio = {2 * a == b for a, b in (space.widths for space in result.report.spaces)}
    assert ratio == {True}


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize(
    ("method", "options"), [("ot", {}), ("zipit", {"alpha": 1.0, "beta": 1.0})]
)
@pytest.mark.parametrize("name", ["mlp", "flatten", "residual"])
def test_other_methods_find_the_copies(
    name: str, method: str, options: dict[str, Any], reference: int
) -> None:
    narrow, wide, x, moments = _pair(name)
    if method == "ot":
        pytest.importorskip("ot")
    result = ccamerge.merge(
        [narrow, wide],
        statistics=moments,
        reference=reference,
        method=method,
        options=options,
        repair="none",
    )
    assert _change(narrow, result.model, x) < 1e-10


def _linear(sizes: tuple[int, ...]) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers).double()


def _embedded(network: nn.Sequential, width: int, orthogonal: bool) -> nn.Sequential:
    """A wider linear network of equal function, its features mixed by random matrices.

    What reads them also reads directions in which they never vary.
    """
    sizes = [network[0].in_features, *[width] * (len(network) - 1), network[-1].out_features]
    wide = _linear(tuple(sizes))
    into = torch.eye(sizes[0], dtype=torch.float64)
    for index, (layer, own) in enumerate(zip(network, wide, strict=True)):
        back = torch.linalg.pinv(into)
        idle = torch.eye(len(back), dtype=torch.float64) - back @ into
        out = torch.eye(layer.out_features, dtype=torch.float64)
        if index < len(network) - 1:
            out = torch.randn(layer.out_features, width, dtype=torch.float64)
            out = torch.linalg.qr(out.T)[0].T if orthogonal else out
        with torch.no_grad():
            noise = torch.randn(out.shape[1], len(back), dtype=torch.float64) @ idle.T
            own.weight.copy_(out.T @ layer.weight @ back.T + noise)
            own.bias.copy_(layer.bias @ out)
        into = out
    return wide


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("method", ["cca", "procrustes"])
def test_a_mixed_linear_network_comes_back(method: str, reference: int) -> None:
    narrow = _linear((10, 6, 4, 3))
    wide = _embedded(narrow, 9, orthogonal=method == "procrustes")
    x = torch.randn(200, 10).double()
    assert _change(narrow, wide, x) < 1e-12
    result = ccamerge.merge(
        [narrow, wide],
        [x],
        method=method,
        ridge=1e-10,
        repair="none",
        reference=reference,
        progress=False,
    )
    assert _change(narrow, result.model, x) < 1e-5
    if method == "cca":
        for space in result.report.spaces:  # as many correlations as the narrower has features
            (row,) = space.correlations
            assert len(row) == min(space.widths)
            np.testing.assert_allclose(row, 1, atol=1e-6)


@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("repair", ["variance", "regression"])
def test_trained_networks_merge_into_either_width(
    monkeypatch: pytest.MonkeyPatch, reference: int, repair: Any
) -> None:
    pytest.importorskip("sklearn")
    from ccamerge.cli.demo import digits

    monkeypatch.setattr(digits, "EPOCHS", 4)
    train, _, test = digits.digits(0)
    networks = [digits.train_network(width, seed, *train) for seed, width in enumerate((64, 128))]
    result = ccamerge.merge(
        networks, train[0].split(256), reference=reference, repair=repair, progress=False
    )
    base = [ccamerge.evaluate(network, [test]) for network in networks]
    assert ccamerge.evaluate(result.model, [test]) > min(base) - 0.05
    assert result.model[0].out_features == (64, 128)[reference]


def test_three_widths_and_the_order_of_the_models() -> None:
    """The models' order does not matter, only which one is the reference."""
    models = [M.randomise(M.MLP((12, w, 16, 5)), w).double() for w in (10, 16, 24)]
    data = [torch.randn(200, 12).double()]
    found = [ccamerge.spaces(model, data[0]) for model in models]
    results = []
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        chosen, known = [models[i] for i in order], [found[i] for i in order]
        reference = order.index(1)
        moments = ccamerge.collect(chosen, data, reference=reference, found=known, progress=False)
        merged = ccamerge.merge(chosen, statistics=moments, reference=reference).model
        results.append(merged.state_dict())
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-8, atol=1e-9)


def test_moments_hold_each_models_own_features(tmp_path: Path) -> None:
    models = [Halves(4), Halves(7), Halves(4)]
    data = [torch.randn(50, 12).double() for _ in range(2)]
    models = [M.randomise(m, s).double() for s, m in enumerate(models)]
    collected = ccamerge.collect(models, data, pairs="all", progress=False)
    assert collected.spaces_of(models[0]) is collected.spaces_of(models[2])
    x = torch.cat(data)
    features = [F.relu(m.both(x)).chunk(2, -1) for m in models]
    names = {"both": 0, "both#2": 1}
    for name, half in names.items():
        moments = collected.pooled(collected.spaces_of(models[0])[name])
        assert moments.dims == (4, 7, 4)
        a, b = (features[i][half].detach().numpy() for i in (0, 1))
        expected = (a - a.mean(0)).T @ (b - b.mean(0)) / len(x)
        np.testing.assert_allclose(moments.cov(0, 1), expected, rtol=1e-9, atol=1e-12)
    (own,) = collected.outputs["both#2"].values()
    np.testing.assert_allclose(
        own.mean(1), models[1].both(x).detach().chunk(2, -1)[1].mean(0), rtol=1e-9, atol=1e-12
    )

    collected.save(tmp_path / "moments.safetensors")
    loaded = ccamerge.Statistics.load(tmp_path / "moments.safetensors")
    part, chosen = loaded.subset([1, 2], reference=0), models[1:]
    merged = ccamerge.merge(chosen, statistics=part, progress=False)
    expected = ccamerge.merge(chosen, data, progress=False)
    assert merged.model.both.weight.shape == (14, 12)
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(merged.model.state_dict()[key], value, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"other parameters than those of models\[0\]"):
        ccamerge.merge(chosen[::-1], statistics=part, progress=False)


@pytest.mark.parametrize("reference", [0, 1])
def test_held_out_errors_are_those_of_the_features(reference: int) -> None:
    models = [M.randomise(M.MLP((12, w, 5)), w).double() for w in (6, 15)]
    data = [torch.randn(60, 12).double() for _ in range(2)]
    collected = ccamerge.collect(models, data, reference=reference, progress=False)
    found = collected.spaces_of(models[reference])
    (space,) = found
    errors = held_out_errors(space, collected, reference)
    hidden = [[F.relu(m.layers[0](x)).detach().numpy() for x in data] for m in models]
    for fold in range(2):
        ours, theirs = hidden[reference], hidden[1 - reference]
        x, y = (f[1 - fold] - f[1 - fold].mean(0) for f in (ours, theirs))
        for column in (0, 5):
            solved = ccamerge.cca(
                x.T @ x / len(x), y.T @ y / len(y), x.T @ y / len(x), ridge=GRID[column]
            )
            a, b = (f[fold] - f[fold].mean(0) for f in (ours, theirs))
            expected = ((a - b @ solved.map) ** 2).sum() / (a**2).sum()
            expected += ((b - a @ solved.inverse) ** 2).sum() / (b**2).sum()
            np.testing.assert_allclose(errors[fold, column], expected, rtol=1e-6)
    result = ccamerge.merge(
        models, statistics=collected, reference=reference, ridge="auto", progress=False
    )
    assert result.report.spaces[0].ridge == GRID[int(errors.mean(0).argmin())]


def test_plans_of_different_widths() -> None:
    models = [M.MLP((12, w, 16, 5)) for w in (10, 16, 24)]
    data = [torch.randn(30, 12)]
    every = [ccamerge.spaces(m, data[0]) for m in models]
    for reference in range(3):
        collected = ccamerge.collect(models, data, reference=reference, found=every, progress=False)
        planned = ccamerge.plan(every, reference=reference)
        moments = [m for folds in collected.matched.values() for m in folds]
        moments += [m for taps in collected.outputs.values() for m in taps.values()]
        taken = sum(
            value.nbytes
            for m in moments
            for key, value in m.state_dict().items()
            if key.startswith(("m2", "mean"))
        )
        assert planned.moments_bytes == taken
        assert planned.spaces is every[reference]
    with pytest.raises(ValueError, match="models must be the number of spaces given, 3, got 2"):
        ccamerge.plan(every, 2)
    with pytest.raises(ValueError, match=r"reference must be in 0\.\.2, got 3"):
        ccamerge.plan(every, reference=3)


def test_equal_widths_are_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ccamerge.graph.networks import widths

    calls = []
    derive = widths.spaces_of_call

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return derive(*args, **named)

    monkeypatch.setattr(widths, "spaces_of_call", counted)
    data = [torch.randn(30, 12)]
    same = [M.randomise(M.MLP(), s) for s in range(3)]
    ccamerge.merge(same, data, progress=False)
    assert len(calls) == 1
    ccamerge.merge([*same, M.MLP((12, 8, 16, 5))], data, progress=False)
    assert len(calls) == 3


class Odd(nn.Module):
    """A network of any width with one thing that can be changed."""

    def __init__(self, width: int, inputs: int = 6, classes: int = 3, **changed: Any) -> None:
        super().__init__()
        self.slope, self.times = changed.get("slope", 0.1), changed.get("times", 1)
        self.first = nn.Conv1d(inputs, width, 3, padding=changed.get("padding", 1))
        self.norm = nn.LayerNorm(width) if changed.get("norm") else nn.Identity()
        self.last = nn.Linear(width * changed.get("pooled", 2), classes)
        self.pool = nn.AdaptiveAvgPool1d(changed.get("pooled", 2))
        self.spare = nn.Parameter(torch.zeros(changed.get("spare", 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), self.slope)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for _ in range(self.times - 1):
            x = torch.tanh(x)
        return self.last(self.pool(x).flatten(1))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"inputs": 7}, r"'first\.weight' has size 7 along axis 1, not 6.*keeps its basis"),
        ({}, {"classes": 4}, r"'last\.weight' has size 4 along axis 0, not 3.*network output"),
        ({}, {"spare": 3}, r"'spare' has size 3 along axis 0, not 2.*the network does not use it"),
        ({}, {"times": 2}, r"another architecture: operations differ at 'adaptive"),
        ({}, {"slope": 0.2}, r"'leaky_relu' \(aten\.leaky_relu\) has other arguments"),
        ({}, {"padding": 2}, r"'conv1d' \(aten\.conv1d\) has other arguments"),
        ({}, {"pooled": 3}, r"other arguments there|lies otherwise in its parameters"),
        (
            {"norm": True},
            {"norm": True},
            r"space 'first' has 9 features, not 5, and its parameters can carry no more than any",
        ),
    ],
)
def test_models_that_do_not_correspond(
    first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    models = [M.randomise(Odd(5, **first)), M.randomise(Odd(9, **second), 1)]
    match = rf"models\[1\] cannot be merged with models\[0\]: .*{message}"
    with pytest.raises(ValueError, match=match):
        ccamerge.merge(models, [torch.randn(8, 6, 10)], progress=False)


@pytest.mark.parametrize("method", ["average", "permutation", "weight_matching"])
def test_methods_for_equal_widths_only(method: str) -> None:
    models = [M.randomise(M.MLP((12, w, 16, 5)), w) for w in (6, 9)]
    data = [torch.randn(50, 12)]
    match = (
        rf"space 'layers\.0' has 6, 9 features in the models: method '{method}' needs equal "
        "widths; these methods do not: .*'cca'"
    )
    with pytest.raises(ValueError, match=match):
        ccamerge.merge(models, data, method=method, progress=False)
    chosen = {"layers.0": "cca", "*": method}  # in the other space they have equal widths
    if method == "weight_matching":
        with pytest.raises(
            ValueError, match=r"models\[1\] has 'layers\.1\.weight' in another shape"
        ):
            ccamerge.merge(models, data, method=chosen, progress=False)
        return
    result = ccamerge.merge(models, data, method=chosen, progress=False)
    assert [s.method for s in result.report.spaces] == ["cca", method]


def test_the_universe_is_for_equal_widths() -> None:
    models = [M.randomise(M.MLP((12, w, 16, 5)), w) for w in (6, 9)]
    with pytest.raises(ValueError, match="mode 'universe' needs equal widths"):
        ccamerge.merge(models, [torch.randn(50, 12)], mode="universe", progress=False)


def test_maps_of_other_widths_are_not_used() -> None:
    models = [M.randomise(M.MLP((12, w, 16, 5)), w) for w in (6, 9)]
    data = [torch.randn(50, 12)]
    aligned = ccamerge.merge(models, data, progress=False).aligned
    other = [models[0], M.randomise(M.MLP((12, 8, 16, 5)))]
    with pytest.raises(ValueError, match="aligned is of other spaces"):
        ccamerge.merge(other, data, aligned=aligned, progress=False)


def test_known_spaces_are_each_models_own() -> None:
    models = [M.randomise(M.MLP((12, w, 16, 5)), w) for w in (6, 9)]
    data = [torch.randn(50, 12)]
    found = [ccamerge.spaces(model, data[0]) for model in models]
    collected = ccamerge.collect(models, data, found=found, progress=False)
    assert [collected.spaces_of(model) for model in models] == found
    with pytest.raises(ValueError, match="found must hold each model's spaces"):
        ccamerge.collect(models, data, found=found[0], progress=False)
    with pytest.raises(ValueError, match="found must hold the spaces of 2 models, got 1"):
        ccamerge.collect(models, data, found=found[:1], progress=False)


def test_the_papers_norm_in_another_width() -> None:
    """It maps BatchNorm as it stands, and resets the statistics: all is as in the narrow one."""
    make, shape = NETWORKS["residual"]
    narrow, wide = M.randomise(make(1)).double(), make(2).double().eval()
    x = torch.randn(64, *shape).double()
    ours, theirs = (unfolded_spaces(ccamerge.spaces(m, x[:4])) for m in (narrow, wide))
    generator = torch.Generator().manual_seed(3)
    maps = {space.name: _doubled(space.size, generator) for space in ours}
    state = transform(narrow.state_dict(), ours.spaces, maps, into=theirs.spaces)
    wide.load_state_dict(dict(state))
    assert _change(narrow, wide, x) < 1e-12
    result = ccamerge.merge([narrow, wide], [x], method="ot", norm="paper", progress=False)
    norms = [m.stem[1] for m in (result.model, narrow)]
    with torch.inference_mode():
        y = narrow.stem[0](x)
    torch.testing.assert_close(norms[0].weight, norms[1].weight)
    torch.testing.assert_close(norms[0].running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(norms[0].running_var, y.var((0, 2, 3), correction=0))
