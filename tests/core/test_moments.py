"""Moments against a float64 reference: accuracy, layouts, dtypes, masks, merging, threads."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccamerge import _core
from tests import backends
from tests.backends import Moments, put, update_many

# Products are summed in float32 over 256 samples, at most a standard deviation off centre: a random
# walk of sqrt(256) roundings of 6e-8 around mean squares of up to twice the variance.
FLOAT32 = 2e-6
FLOAT64 = 1e-12
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def flat(x, axis):
    """Samples by features, float64."""
    x = (
        x.detach().double().cpu().numpy()
        if isinstance(x, torch.Tensor)
        else np.asarray(x, np.float64)
    )
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def update_and_check(moments, features, **options):
    """On a device, only `check` knows what values are."""
    moments.update(features, **options)
    moments.check()


def reference_cov(x, y):
    return (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def check(moments, xs, tolerance):
    """Compare all blocks with xs, (n, d) float64 each, relative to the standard deviations."""
    if moments.device != "cpu" and tolerance >= FLOAT32:
        tolerance *= 2  # matrix units round sums towards zero, not to nearest
    assert moments.count == len(xs[0])
    for i, x in enumerate(xs):
        slack = tolerance * (x.std(0) + np.abs(x.mean(0)))
        assert (np.abs(moments.mean(i) - x.mean(0)) <= slack).all()
    for i, j in itertools.product(range(len(xs)), repeat=2):
        scale = np.sqrt(np.outer(xs[i].var(0), xs[j].var(0)))
        error = np.abs(moments.cov(i, j) - reference_cov(xs[i], xs[j]))
        assert (error <= tolerance * scale).all(), (i, j, (error / scale).max())


@pytest.fixture(
    params=[*(("cpu", name) for name in _core.kernel_names()), ("cuda", "")],
    ids=lambda param: "-".join(filter(None, param)),
)
def kernel(request):
    """Each backend; on the CPU with each of its instruction sets."""
    backend, name = request.param
    before = _core.kernel_in_use()
    with backends.use(backend):
        if name:
            _core.select_kernels(name)
        yield
        _core.select_kernels(before)


def images(rng, dims, dtype=torch.float32, shape=(9, 7, 6)):
    b, h, w = shape
    return [
        torch.from_numpy(
            rng.standard_normal((b, d, h, w)) * (1 + np.arange(d))[:, None, None] ** 0.5 + 0.5
        ).to(dtype)
        for d in dims
    ]


LAYOUTS = {
    "contiguous": lambda x: (x, 1),
    "channels_last": lambda x: (x.to(memory_format=torch.channels_last), 1),
    "rows": lambda x: (x.permute(0, 2, 3, 1).flatten(0, 2).contiguous(), -1),
    "tokens": lambda x: (x.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), 2),
    "columns": lambda x: (x.permute(1, 0, 2, 3).flatten(1).contiguous(), 0),
    "every_other": lambda x: (torch.cat([x, x], 3)[..., ::2], 1),
    "sliced": lambda x: (torch.nn.functional.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1], 1),
    "requires_grad": lambda x: (x.clone().requires_grad_(), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes(kernel, layout, dtype):
    rng = np.random.default_rng(1)
    given = [LAYOUTS[layout](x) for x in put(images(rng, (5, 33, 16), DTYPES[dtype]))]
    moments = Moments([5, 33, 16], pairs="all")
    moments.update([x for x, _ in given], axis=given[0][1])
    tolerance = FLOAT64 if dtype == "float64" else FLOAT32
    check(moments, [flat(x, axis) for x, axis in given], tolerance)


def patches(x, size, stride, dilation):
    """What a square convolution reads: (B, rows, columns, C, size, size), a view."""
    b, c, h, w = x.stride()
    rows, columns = ((n - dilation * (size - 1) - 1) // stride + 1 for n in x.shape[2:])
    return x.as_strided(
        (x.shape[0], rows, columns, x.shape[1], size, size),
        (b, h * stride, w * stride, c, h * dilation, w * dilation),
    )


@pytest.mark.parametrize("axes", [(3, 4, 5), (4, 5, 3), (-1, 3, -2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_over_several_axes(kernel, dtype, layout, stride, axes):
    """Overlapping patches are read in place, in the order in which the axes are listed."""
    rng = np.random.default_rng(2)
    xs = put(images(rng, (3, 16), DTYPES[dtype], (4, 20, 23)))
    xs = [LAYOUTS[layout](x)[0] for x in xs]
    views = [patches(x, 3, stride, 2 if layout == "contiguous" else 1) for x in xs]
    moments = Moments([27, 144])
    moments.update(views, axis=axes)
    order = [0, 1, 2, *(a % 6 for a in axes)]
    expected = [v.double().permute(order).flatten(3).flatten(0, 2).cpu().numpy() for v in views]
    check(moments, expected, FLOAT64 if dtype == "float64" else FLOAT32)


def test_several_axes_with_a_mask_and_other_axis_sizes(backend):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((50, 2, 3, 4)), rng.standard_normal((50, 5, 1, 1))
    chosen = rng.random(50) < 0.5
    x[~chosen] = np.nan
    moments = Moments([24, 5])
    moments.update([x, y], axis=(1, 2, 3), mask=chosen)
    check(moments, [x[chosen].reshape(-1, 24), y[chosen].reshape(-1, 5)], FLOAT64)


def test_mixed_dtypes(kernel):
    xs = images(np.random.default_rng(1), (5, 33, 16, 7))
    xs = [x.to(dtype) for x, dtype in zip(xs, DTYPES.values(), strict=True)]
    moments = Moments([5, 33, 16, 7], pairs="all")
    moments.update(xs, axis=1)
    check(moments, [flat(x, 1) for x in xs], FLOAT64)


@pytest.mark.parametrize("dims", [(130, 257), (1, 300), (128, 64)])
def test_tiles(kernel, dims):
    rng = np.random.default_rng(2)
    xs = [rng.standard_normal((700, d)).astype(np.float32) for d in dims]
    moments = Moments(dims)
    moments.update(xs)
    check(moments, [flat(x, -1) for x in xs], FLOAT32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_strides(backend, dtype):
    x = np.random.default_rng(3).standard_normal((41, 6, 5)).astype(dtype)
    frozen = x.copy()
    frozen.flags.writeable = False
    cases = [
        x[::-1],
        x[:, ::-1, :],
        x[..., ::-1],
        x[::2, :, 1:4],
        np.broadcast_to(x[:, :1], x.shape),
        np.asfortranarray(x),
        frozen,
    ]
    tolerance = FLOAT64 if dtype is np.float64 else FLOAT32
    for case, axis in itertools.product(cases, range(3)):
        moments = Moments([case.shape[axis]])
        moments.update([case], axis=axis)
        check(moments, [flat(case, axis)], tolerance)


def test_half_values_are_converted_exactly(kernel):
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    rows = values[np.isfinite(values)].reshape(-1, 16)[::7]  # each exponent, many fractions
    for row in rows:
        moments = Moments([16], pairs="none")
        moments.update([row[None]])
        np.testing.assert_array_equal(moments.mean(0), row.astype(np.float64))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-9)])
def test_mean_far_from_zero(kernel, ratio, dtype, tolerance):
    rng = np.random.default_rng(4)
    xs = [(rng.standard_normal((4000, d)) + ratio).astype(dtype) for d in (20, 12)]
    moments = Moments([20, 12])
    for part in range(4):
        moments.update([x[part * 1000 : (part + 1) * 1000] for x in xs])
    xs = [flat(x, -1) for x in xs]
    for i in range(2):
        expected = reference_cov(xs[i], xs[i])
        assert np.linalg.norm(moments.cov(i) - expected) <= tolerance * np.linalg.norm(expected)
    expected = reference_cov(xs[0], xs[1])  # near zero: measured beside the unit variances
    assert np.linalg.norm(moments.cov(0, 1) - expected) <= tolerance * np.sqrt(expected.size)


def test_constant_and_drifting_features(backend):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3000, 4)).astype(np.float32)
    x[:, 1] = 0.1
    x[:, 2] = 0.0
    x[:, 3] += np.linspace(-1e4, 1e4, 3000, dtype=np.float32)
    moments = Moments([4])
    for part in np.split(x, 6):
        moments.update([part])
    cov = moments.cov(0)
    assert (cov[1:3] == 0).all()  # constant: exactly no variance
    assert (cov[:, 1:3] == 0).all()
    assert moments.mean(0)[1] == np.float64(np.float32(0.1))
    np.testing.assert_allclose(cov[3, 3], x[:, 3].astype(float).var(), rtol=1e-6)


def test_known_case(backend):
    moments = Moments([2, 1])
    moments.update([np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0], [-1.0]])])
    np.testing.assert_array_equal(moments.mean(0), [2, 4])
    np.testing.assert_array_equal(moments.cov(0), [[1, 2], [2, 4]])
    np.testing.assert_array_equal(moments.cov(0, 1), [[-1], [-2]])
    np.testing.assert_array_equal(moments.cov(1, 0), [[-1, -2]])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 900),
    dims=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    offset=st.sampled_from([0.0, 30.0, 1e5]),
    seed=st.integers(0, 2**16),
    masked=st.booleans(),
)
def test_any_partition_gives_the_same(backend, n, dims, cuts, offset, seed, masked):
    rng = np.random.default_rng(seed)
    xs = [(rng.standard_normal((n, d)) + offset).astype(np.float32) for d in dims]
    mask = rng.random(n) < 0.7 if masked else np.ones(n, bool)
    for x in xs:
        x[~mask] = np.nan
    bounds = [0, *sorted(int(c * n) for c in cuts), n]
    streamed, merged = Moments(dims, pairs="all"), Moments(dims, pairs="all")
    for lo, hi in itertools.pairwise(bounds):
        part, chosen = [x[lo:hi] for x in xs], mask[lo:hi] if masked else None
        streamed.update(part, mask=chosen)
        other = Moments(dims, pairs="all")
        other.update(part, mask=chosen)
        merged.merge(other)
    assert streamed.count == merged.count == mask.sum()
    if not mask.any():
        return
    kept = [x[mask].astype(np.float64) for x in xs]
    for moments in (streamed, merged):
        for i, j in itertools.product(range(len(dims)), repeat=2):
            # Features of unit spread; a shift is at most about a spread off in a short chunk too.
            error = np.abs(moments.cov(i, j) - reference_cov(kept[i], kept[j]))
            assert error.max() <= 5 * FLOAT32


def test_mask_shapes_and_layouts(kernel):
    rng = np.random.default_rng(6)
    xs = images(rng, (17, 4))
    mask = torch.from_numpy(rng.random((9, 7, 6)) < 0.5)
    for x in xs:
        x.permute(0, 2, 3, 1)[~mask] = torch.nan
    expected = [flat(x, 1)[mask.numpy().ravel()] for x in xs]
    for chosen in (mask, mask.numpy(), mask.flatten()):
        for form in (torch.contiguous_format, torch.channels_last):
            moments = Moments([17, 4])
            moments.update([x.to(memory_format=form) for x in xs], axis=1, mask=chosen)
            check(moments, expected, FLOAT32)


def run_together(*calls):
    """Run calls in threads; fails on a deadlock and raises their first error."""
    errors = []

    def guarded(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    if errors:
        raise errors[0]


def test_concurrent_updates_all_count(backend):
    x = np.random.default_rng(8).standard_normal((600, 30))
    moments = Moments([30])

    def work():
        for _ in range(10):
            moments.update([x])
            moments.cov(0)

    run_together(*[work] * 4)
    assert moments.count == 40 * 600
    np.testing.assert_allclose(moments.cov(0), reference_cov(x, x), atol=1e-12)


def test_merges_both_ways_at_once_do_not_deadlock(backend):
    x = np.random.default_rng(9).standard_normal((50, 8))
    a, b = Moments([8]), Moments([8])
    a.update([x])
    b.update([x])
    run_together(
        lambda: [a.merge(b) for _ in range(5)] and None,
        lambda: [b.merge(a) for _ in range(5)] and None,
    )
    for moments in (a, b):
        assert moments.count >= 300
        np.testing.assert_allclose(moments.cov(0), reference_cov(x, x), atol=1e-12)


def test_merge_with_itself_doubles(backend):
    x = np.random.default_rng(10).standard_normal((50, 8))
    moments = Moments([8])
    moments.update([x])
    moments.merge(moments)
    assert moments.count == 100
    np.testing.assert_allclose(moments.cov(0), reference_cov(x, x), atol=1e-13)


def test_inputs_are_not_changed(backend):
    x = np.random.default_rng(11).standard_normal((300, 9)).astype(np.float32)
    before = x.copy()
    Moments([9]).update([x])
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("pairs", "collected"),
    [("none", []), ("reference", [(0, 1), (1, 2)]), ("all", [(0, 1), (0, 2), (1, 2)])],
)
def test_pairs_and_missing_blocks(backend, pairs, collected):
    xs = [np.random.default_rng(i).standard_normal((20, 3)) for i in range(3)]
    moments = Moments([3, 3, 3], pairs=pairs, reference=1)
    moments.update(xs)
    for i, j in itertools.combinations(range(3), 2):
        if (i, j) in collected:
            np.testing.assert_allclose(moments.cov(i, j), reference_cov(xs[i], xs[j]), atol=1e-14)
            np.testing.assert_array_equal(moments.cov(j, i), moments.cov(i, j).T)
        else:
            with pytest.raises(ValueError, match=r'not collected; create.*pairs=.*"all"'):
                moments.cov(i, j)


def test_subset(backend):
    xs = [np.random.default_rng(i).standard_normal((20, 3 + i)) for i in range(4)]
    moments = Moments([3, 4, 5, 6], pairs="all", reference=2)
    moments.update(xs)
    sub = moments.subset([3, 2, 0])
    assert (sub.reference, sub.dims) == (1, (6, 5, 3))
    check(sub, [xs[3], xs[2], xs[0]], FLOAT64)
    star = Moments([3, 4, 5, 6], reference=2)
    star.update(xs)
    np.testing.assert_array_equal(star.subset([2, 3]).cov(0, 1), star.cov(2, 3))
    with pytest.raises(ValueError, match="models 0 and 1 was not collected"):
        star.subset([0, 1])
    with pytest.raises(ValueError, match="must not repeat"):
        moments.subset([1, 1])


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)).to(m.device)]
)
def test_copies_go_on_bit_for_bit(backend, copier):
    x = np.random.default_rng(12).standard_normal((300, 9)).astype(np.float32) + 5
    moments = Moments([9])
    moments.update([x])
    twin = copier(moments)
    moments.update([x[:100]])
    assert twin.count == 300
    twin.update(put([x[:100]]))
    assert_same(twin.state_dict(), moments.state_dict())


def test_update_many_equals_updates(backend):
    rng = np.random.default_rng(13)
    dims = [(4, 6), (16, 16), (40, 3)]
    batches = [[rng.standard_normal((8, d, 3, 3)).astype(np.float32) for d in ds] for ds in dims]
    together = [Moments(ds) for ds in dims]
    update_many(list(zip(together, batches, strict=True)))
    for ds, batch, moments in zip(dims, batches, together, strict=True):
        alone = Moments(ds)
        alone.update(batch, axis=1)
        assert_same(moments.state_dict(), alone.state_dict())
    where = "" if backend == "cpu" else ", device='cuda:0'"
    expected = f"Moments(dims=[4, 6], pairs='reference', reference=0, count=72{where})"
    assert repr(together[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "n"), [((16, 16), 200_000), ((700, 700), 20_000)])
def test_many_chunks(backend, dims, n):
    rng = np.random.default_rng(14)
    if backend != "cpu":
        n //= 8  # still many chunks; the emulation is slow
    xs = [rng.standard_normal((n, d), dtype=np.float32) for d in dims]
    moments = Moments(dims)
    moments.update(xs)
    assert moments.count == n
    expected = reference_cov(*(x.astype(np.float64) for x in xs))
    np.testing.assert_allclose(moments.cov(0, 1), expected, atol=FLOAT32)
    before = moments.state_dict()
    xs[1][-1, 3] = np.inf  # in the last chunk: what earlier ones did must not stay
    with pytest.raises(ValueError, match=f"model 1 .* sample {n - 1}, feature 3"):
        update_and_check(moments, xs)
    assert_same(moments.state_dict(), before)
