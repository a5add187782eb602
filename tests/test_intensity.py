import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.intensity import invert, percentile_limits, stretch, to_grey


class Lazy:
    """An array that only answers windows without steps, and remembers the largest one."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.largest = data, data.shape, data.dtype, 0

    def __getitem__(self, key):
        assert all(part.step in (None, 1) for part in key)
        self.largest = max(self.largest, self.data[key].nbytes)
        return self.data[key]


def test_percentiles_of_known_values():
    values = np.random.default_rng(0).permutation(1001).reshape(7, 143)
    assert percentile_limits(values, 10, 90) == (100.0, 900.0)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64, np.float16, np.float64])
def test_extremes_of_every_type_become_0_and_1(dtype):
    kind = np.dtype(dtype).kind
    ends = (False, True) if kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max) if kind in "ui" else None
    ends = ends or (np.finfo(dtype).min, np.finfo(dtype).max)
    array = np.array([ends] * 20, dtype)
    out = stretch(array, percentile_limits(array))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[0, 1]] * 20, atol=1e-6)


def test_non_finite_pixels_do_not_count_and_become_zero():
    array = np.linspace(0, 100, 1000).reshape(20, 50)
    spoilt = array.copy()
    spoilt[0, :3] = np.nan, np.inf, -np.inf
    low, high = percentile_limits(spoilt)
    assert np.allclose((low, high), percentile_limits(array.ravel()[3:]))
    out = stretch(spoilt, (low, high))
    assert np.isfinite(out).all() and (out[0, :3] == 0).all() and out.max() == 1


@pytest.mark.parametrize("array", [np.full((5, 5), 7), np.full((3, 3), np.nan), np.zeros((0, 4)), np.float32(3)])
def test_without_contrast_all_is_zero(array):
    out = stretch(array, percentile_limits(array))
    assert out.shape == np.shape(array) and not out.any()


def test_few_bright_pixels_on_flat_ground_keep_their_contrast():
    array = np.zeros((100, 100), np.uint8)
    array[3, 4] = 9
    assert percentile_limits(array) == (0.0, 9.0)


def test_small_contrast_on_a_large_offset_survives():
    array = 2**31 + np.arange(100, dtype=np.uint32).reshape(10, 10)
    np.testing.assert_allclose(stretch(array, percentile_limits(array, 0, 100)), np.arange(100).reshape(10, 10) / 99)


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(20, 500), st.integers(0, 99))
def test_lazy_arrays_give_the_same_limits(shape, sample_pixels, seed):
    array = np.random.default_rng(seed).integers(0, 1000, shape)
    limits = percentile_limits(array, sample_pixels=sample_pixels)
    assert percentile_limits(Lazy(array), sample_pixels=sample_pixels) == limits


def test_lazy_arrays_are_read_in_bands():
    lazy = Lazy(np.broadcast_to(np.arange(5000, dtype=np.float32), (6000, 5000)))
    low, high = percentile_limits(lazy, 0, 100)
    assert lazy.largest <= 2**25 and low == 0 and high > 4990


def test_grey_is_the_mean_of_the_colours():
    rgba = np.random.default_rng(0).integers(0, 255, (4, 5, 4)).astype(np.uint8)
    expected = rgba[..., :3].mean(-1)
    for image, axis in [(rgba, -1), (rgba[..., :3], 2), (np.moveaxis(rgba, -1, 0), 0)]:
        np.testing.assert_allclose(to_grey(image, axis), expected, rtol=1e-6)
    np.testing.assert_array_equal(to_grey(rgba[..., :2], -1), rgba[..., 0])
    np.testing.assert_array_equal(to_grey(rgba[..., 0]), rgba[..., 0])
    with pytest.raises(UserError, match="1 to 4 channels"):
        to_grey(np.zeros((3, 3, 7)), -1)


def test_invert_twice_is_identity():
    array = np.float32([[0, 0.25, 1]])
    np.testing.assert_array_equal(invert(array), [[1, 0.75, 0]])
    np.testing.assert_array_equal(invert(invert(array, (2, 9)), (2, 9)), array)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="lower"):
        percentile_limits(np.zeros(3), 60, 40)
    with pytest.raises(UserError, match="real numbers"):
        percentile_limits(np.zeros(3, complex))
