"""Moments of several models' feature maps, one update, beside the baseline's."""

from __future__ import annotations

import baseline
import cases
import pytest

from ccamerge import Moments

CASES = [
    (2, (128, 64, 8, 8)),
    (4, (128, 16, 32, 32)),
    (4, (128, 128, 16, 16)),
    (4, (128, 512, 4, 4)),
    (8, (128, 64, 8, 8)),
]


def label(case):
    models, shape = case
    return f"N{models}-" + "x".join(map(str, shape))


@pytest.fixture(params=CASES, ids=label, scope="module")
def case(request):
    features = cases.feature_maps(*request.param)
    return label(request.param), features, cases.reference_moments(features)


def test_native(benchmark, case):
    name, features, expected = case
    benchmark.group = f"moments {name}"
    moments = Moments([x.shape[1] for x in features])
    benchmark(moments.update, features, axis=1)
    # However often the same batch was added, its covariance is the same.
    for (i, j), block in expected.items():
        assert cases.relative(moments.cov(i, j), block) < 2e-6


def test_baseline(benchmark, case):
    name, features, expected = case
    benchmark.group = f"moments {name}"
    found = benchmark.pedantic(baseline.collect_maps, ([features],), rounds=5, warmup_rounds=1)
    c = features[0].shape[1]
    for (i, j), block in expected.items():
        part = found[i * c : (i + 1) * c, j * c : (j + 1) * c]
        assert cases.relative(part, block) < 2e-4
