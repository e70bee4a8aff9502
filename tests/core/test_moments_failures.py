"""What moments refuse, what they say, that they stay as they were, and the files they read."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.backends import Moments, update_many
from tests.core.test_moments import update_and_check

pytestmark = pytest.mark.usefixtures("backend")


def filled(dims=(3, 4), **kwargs):
    rng = np.random.default_rng(0)
    moments = Moments(dims, **kwargs)
    moments.update([rng.standard_normal((10, d)) for d in dims])
    return moments


def unchanged(moments, before):
    after = moments.state_dict()
    assert after.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize(
    ("dims", "kwargs", "message"),
    [
        ([], {}, "at least one model"),
        ([3, 0], {}, "got 0 for model 1"),
        ([3], {"pairs": "some"}, 'got "some"'),
        ([3], {"reference": 1}, "reference must be from 0 to 0, got 1"),
    ],
)
def test_bad_construction(dims, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Moments(dims, **kwargs)


A, B = np.ones((5, 3)), np.ones((5, 4))


LARGE = "pass float64|scale the features down|too large to be squared"  # the last on a device


@pytest.mark.parametrize(
    ("features", "kwargs", "error", "message"),
    [
        ([A], {}, ValueError, "each of 2 models, got 1"),
        ([A, A], {}, ValueError, "model 1 must have 4 features on axis -1, got 3"),
        ([A, B[:4]], {}, ValueError, r"model 1 have sample axes \(4,\), but model 0 has \(5,\)"),
        ([A, B[0]], {}, ValueError, "model 1 must have at least two axes"),
        ([A, B], {"axis": 2}, ValueError, "axis 2 is out of range for model 0"),
        ([A, B], {"axis": ()}, ValueError, "axis must name at least one axis"),
        ([A, B], {"axis": (0, 1)}, ValueError, "model 0 must have at least 3 axes .* got 2"),
        ([A[None], B[None]], {"axis": (2, -1)}, ValueError, "axis -1 is named twice for model 0"),
        ([A[None], B[None]], {"axis": (2, 3)}, ValueError, "axis 3 is out of range for model 0"),
        ([A[None], A[None]], {"axis": (0, 2)}, ValueError, r"4 features on axes \(0, 2\), got 3"),
        ([A, B.tolist()], {}, TypeError, r"model 1 must be an array .* got list"),
        ([A, B.astype(int)], {}, TypeError, r"model 1 must be float16, .* got int64"),
        ([A, B.astype(complex)], {}, TypeError, r"model 1 .* got complex128"),
        ([A, B], {"mask": np.ones(4, bool)}, ValueError, r"mask must have .* got \(4,\)"),
        ([A, B], {"mask": np.ones(5)}, TypeError, "mask must be bool, got float64"),
        ([A, B * np.nan], {}, ValueError, r"model 1 .* sample 0, feature 0"),
        (
            [np.float32(1e25) * A.astype("f4"), B.astype("f4")],
            {},
            ValueError,
            "pass float64|too large to be squared",
        ),
        ([A * 1e200, B], {}, ValueError, LARGE),
    ],
)
def test_bad_update(features, kwargs, error, message):
    moments = filled()
    before = moments.state_dict()
    with pytest.raises(error, match=message):
        update_and_check(moments, features, **kwargs)
    unchanged(moments, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(dtype, value):
    x = torch.ones(6, 5, 4, 4, dtype=dtype)
    x[3, 2, 1, 0] = value
    moments = Moments([5])
    with pytest.raises(
        ValueError, match=r"model 0 are not finite.*: first at sample 52, feature 2"
    ):
        update_and_check(moments, [x], axis=1)
    assert moments.count == 0


def test_not_finite_in_one_of_several_axes():
    x = torch.ones(6, 2, 5, 3)
    x[4, 1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="first at sample 22, feature 1"):
        update_and_check(Moments([6]), [x], axis=(3, 1))


SMALL = "too small: (their squares|squares of feature \\d) underflow"


def refusal_of(moments, features):
    """What an update is refused with; None if it is taken."""
    try:
        update_and_check(moments, features)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("n", [300, 9_216])
@pytest.mark.parametrize("scale", [1.2e16, 1e18, 1e19, 4e37])
def test_refused_near_the_range_of_float32(n, scale):
    """Many samples are several chunks: nothing of those that were fine may stay."""
    rng = np.random.default_rng(1)
    moments = Moments([300], pairs="none")
    moments.update([rng.standard_normal((500, 300), dtype=np.float32)])
    before = moments.state_dict()
    x = np.full((n, 300), scale, np.float32)
    x[n // 2 :] *= -1
    if (message := refusal_of(moments, [x])) is not None:
        assert re.search(LARGE, message)
        unchanged(moments, before)
    else:  # right, if it is taken
        total = np.concatenate([np.zeros(500), x[:, 0].astype(np.float64)])
        np.testing.assert_allclose(moments.cov(0), total.var(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("dims", "n"), [((40, 8), 6), ((40, 8), 20_000), ((900, 700), 5_000)])
@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_a_bad_last_sample_leaves_the_totals_bit_for_bit(dims, n, dtype, value):
    """Found at once, with totals copied, or by looking through all chunks first."""
    if dtype == np.float64 and value > 0:
        value = 1e160
    moments = Moments(dims)
    rng = np.random.default_rng(2)
    moments.update([rng.standard_normal((9, d)) for d in dims])
    before = moments.state_dict()
    features = [rng.standard_normal((n, d)).astype(dtype) for d in dims]
    features[1][-1, -1] = value
    with pytest.raises(ValueError, match=f"model 1 are not finite|{LARGE}"):
        update_and_check(moments, features)
    unchanged(moments, before)


def test_all_parts_of_a_refused_update_are_taken_back(backend):
    """Also those for other moments, where the device does not say only later which it was."""
    first, second = filled(), filled()
    before = first.state_dict()

    def update():
        update_many([(first, [A, B]), (second, [A * 1e200, B])])
        second.check()

    with pytest.raises(ValueError, match=LARGE):
        update()
    unchanged(second, before)
    if backend == "cpu":
        unchanged(first, before)


def test_refused_merges_change_nothing(backend):
    def far(value):
        moments = Moments([2])
        for _ in range(20):
            moments.update([np.full((1, 2), value)])
        return moments

    if backend == "cuda":
        pytest.skip("takes no such features")
    a, b = far(8e152), far(-8e152)
    before, other = a.state_dict(), b.state_dict()
    with pytest.raises(ValueError, match="sum of squares of feature 0 over all samples overflows"):
        a.merge(b)
    unchanged(a, before)
    unchanged(b, other)


@pytest.mark.parametrize("scale", [1e-17, 1e-20, 1e-23, 1e-30, 1e-38, 1e-42])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [20, 3_000])
def test_tiny_features(scale, dtype, n, backend):
    """Their squares are beyond float32: right, by float64, or refused by a device."""
    x = (torch.randn(n, 6, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    x[:, 3] = 0
    y = torch.randn(n, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    moments = Moments([6, 2], pairs="all")
    before = moments.state_dict()
    if (message := refusal_of(moments, [x, y])) is not None:
        assert backend == "cuda"
        assert re.search(SMALL, message)
        unchanged(moments, before)
        return
    left, right = x.double().numpy(), y.double().numpy()
    for i, j, a, b in ((0, 0, left, left), (0, 1, left, right), (1, 1, right, right)):
        tolerance = 1e-5 * np.outer(a.std(0), b.std(0)) + 1e-300
        centred = (a - a.mean(0)).T @ (b - b.mean(0)) / n
        assert np.all(np.abs(moments.cov(i, j) - centred) <= tolerance)


@pytest.mark.parametrize("offset", [0.0, 1e-160])
def test_features_whose_squares_underflow_float64(offset):
    moments = Moments([3])
    x = np.random.default_rng(3).standard_normal((20, 3))
    with pytest.raises(ValueError, match=SMALL):
        update_and_check(moments, [x * 1e-170 + offset])
    assert moments.count == 0


def test_unaligned_memory():
    """Refused or copied by whoever reads it, never read as it lies."""
    raw = np.zeros(5 * 3 * 8 + 1, np.uint8)
    x = raw[1:].view(np.float64).reshape(5, 3)
    x[:] = np.random.default_rng(4).standard_normal((5, 3))
    assert not x.flags.aligned
    moments = Moments([3])
    if (message := refusal_of(moments, [x])) is not None:
        assert "aligned" in message
        moments.update([x.copy()])
    np.testing.assert_allclose(moments.cov(0), np.cov(x.copy().T, bias=True), atol=1e-12)
    state = moments.state_dict()
    for name, value in state.items():
        bytes_ = np.zeros(value.nbytes + 1, np.uint8)
        odd = bytes_[1:].view(value.dtype).reshape(value.shape)
        odd[...] = value
        state[name] = odd
    unchanged(Moments.from_state(state), moments.state_dict())


def test_empty():
    moments = Moments([3, 4])
    with pytest.raises(ValueError, match="no samples yet"):
        moments.mean(0)
    with pytest.raises(ValueError, match="no samples yet"):
        moments.cov(0)
    moments.update([A[:0], B[:0]])
    moments.update([A, B], mask=np.zeros(5, bool))
    assert moments.count == 0
    unchanged(Moments.from_state(moments.state_dict()), moments.state_dict())
    moments.merge(filled())
    moments.merge(Moments([3, 4]))
    unchanged(moments, filled().state_dict())


@pytest.mark.parametrize("index", [2, -1])
def test_index_out_of_range(index):
    message = f"model index must be from 0 to 1, got {index}"
    with pytest.raises(ValueError, match=message):
        filled().cov(0, index)
    with pytest.raises(ValueError, match=message):
        filled().mean(index)
    with pytest.raises(ValueError, match=message):
        filled().subset([0, index])


@pytest.mark.parametrize(
    ("dims", "kwargs"), [([3, 5], {}), ([3, 4], {"pairs": "all"}), ([3, 4], {"reference": 1})]
)
def test_merge_needs_the_same_kind(dims, kwargs):
    with pytest.raises(ValueError, match="same dims, pairs and reference"):
        filled().merge(Moments(dims, **kwargs))


def test_merge_needs_moments():
    with pytest.raises(TypeError, match="other must be Moments, got int 1"):
        filled().merge(1)


def test_save_and_load(tmp_path):
    moments = filled(pairs="all", reference=1)
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    moments.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    loaded = Moments.load(path)
    assert (loaded.dims, loaded.pairs, loaded.reference) == ((3, 4), "all", 1)
    unchanged(loaded, moments.state_dict())


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    filled().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):  # noqa: PT011
        Moments([2]).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_files(tmp_path):
    path = tmp_path / "m.safetensors"
    filled().save(path)
    content = path.read_bytes()
    for damaged in [content[:n] for n in (0, 4, 20, len(content) // 2, len(content) - 1)] + [
        b"\xff" * 200
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            Moments.load(path)
    with pytest.raises(FileNotFoundError):
        Moments.load(tmp_path / "absent")


def meta(version="1"):
    return {"format": "ccamerge.moments", "version": version}


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({}, None, "not written by ccamerge"),
        ({}, meta("2"), "version '2', but this ccamerge reads 1"),
        ({"mean.0": None}, meta(), "entry 'mean.0' is missing"),
        ({"mean.0": np.zeros(2)}, meta(), r"mean\.0 must have shape \(3,\)"),
        ({"m2.0.1": np.zeros((4, 3))}, meta(), r"m2\.0\.1 must have shape \(3, 4\)"),
        ({"m2.0.0": np.full((3, 3), np.nan)}, meta(), r"'m2\.0\.0' is not finite"),
        ({"mean.1": np.zeros(4, "f4")}, meta(), "must be float64"),
        ({"pairs": np.array(7)}, meta(), "pairs must be from 0 to 2, got 7"),
        ({"reference": np.array(7)}, meta(), "reference must be"),
        ({"count": np.array(-1)}, meta(), "count must not be negative"),
        ({"more": np.zeros(1)}, meta(), "unknown entries"),
    ],
)
def test_foreign_files(tmp_path, change, metadata, message):
    path = tmp_path / "m.safetensors"
    filled().save(path)
    state = load_file(path) | change
    save_file({k: v for k, v in state.items() if v is not None}, path, metadata=metadata)
    with pytest.raises(ValueError, match=message) as error:
        Moments.load(path)
    assert str(path) in str(error.value)
