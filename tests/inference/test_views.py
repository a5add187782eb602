from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import Image
from keras_microseg.inference import views
from keras_microseg.inference.views import DiskArray, GreyView, ScaledView, StretchedView


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.floats(0.05, 4),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_any_window_equals_that_of_the_whole(shape, scale, corners):
    array = np.random.default_rng(0).random(shape)
    view = ScaledView(array, scale)
    whole = view[:, :]
    assert whole.shape == view.shape
    starts = [int(corner * (n - 1)) for corner, n in zip(corners, view.shape * 2, strict=True)]
    window = tuple(slice(min(a, b), max(a, b) + 1) for a, b in zip(starts[:2], starts[2:], strict=True))
    np.testing.assert_allclose(view[window], whole[window], atol=1e-6)
    assert array.min() - 1e-6 <= whole.min() and whole.max() <= array.max() + 1e-6


def test_a_ramp_keeps_its_place_at_any_scale():
    ramp = np.add.outer(np.arange(100) + 0.5, np.zeros(20))
    for scale in (0.3, 0.5, 1, 1.7, 3):
        scaled = ScaledView(ramp, scale)[:, :]
        expected = (np.arange(len(scaled)) + 0.5) * 100 / len(scaled)
        inner = slice(int(4 * max(1, scale)), -int(4 * max(1, scale)))
        np.testing.assert_allclose(scaled[inner, 3], expected[inner], atol=0.02)  # a triangle's ripple


def test_scale_one_is_identity():
    array = np.random.default_rng(0).random((13, 17)).astype("float32")
    np.testing.assert_allclose(ScaledView(array, 1.0)[:, :], array, atol=1e-7)


def test_much_reduced_images_are_read_in_pieces(monkeypatch):
    array = np.random.default_rng(0).random((300, 200)).astype("float32")
    whole = ScaledView(array, 0.1)[:, :]
    monkeypatch.setattr(views, "_SOURCE_PIXELS", 10_000)
    largest = []

    class Lazy:
        shape = array.shape

        def __getitem__(self, key):
            largest.append(array[key].size)
            return array[key]

    np.testing.assert_allclose(ScaledView(Lazy(), 0.1)[:, :], whole, atol=1e-6)
    assert max(largest) <= 10_000 and len(largest) > 5


def test_grey_views_leave_out_bar_colour_and_nan():
    rgb = np.random.default_rng(0).integers(0, 255, (20, 9, 3)).astype(np.uint8)
    view = GreyView(Image(rgb, "YXC"), rows=15)
    assert view.shape == (15, 9)
    np.testing.assert_allclose(view[3:7, :], rgb[3:7].mean(-1), rtol=1e-6)
    spoilt = rgb[..., 0].astype(float)
    spoilt[2, 3] = np.nan
    assert np.isfinite(GreyView(Image(spoilt, "YX"))[:, :]).all()
    with pytest.raises(UserError, match="one 2D image"):
        GreyView(Image(np.zeros((3, 4, 5)), "ZYX"))
    assert GreyView(Image(np.zeros((1, 4, 5)), "ZYX"))[:, :].shape == (4, 5)


def test_stretched_views_invert():
    array = np.float32([[0, 5, 10]])
    np.testing.assert_allclose(StretchedView(array, (0, 10))[:, :], [[0, 0.5, 1]])
    np.testing.assert_allclose(StretchedView(array, (0, 10), inverted=True)[:, 1:], [[0.5, 0]])


def test_disk_arrays_hold_what_was_written(tmp_path):
    disk = DiskArray(tmp_path / "a.dat", (30, 20, 2), np.int32)
    memory = np.zeros((30, 20, 2), np.int32)
    disk[3:9, 4:7] = memory[3:9, 4:7] = 7
    disk[-1, :, 1] = memory[-1, :, 1] = 5
    np.testing.assert_array_equal(disk[...], memory)
    np.testing.assert_array_equal(np.asarray(disk), memory)
    np.testing.assert_array_equal(DiskArray(tmp_path / "a.dat", (30, 20, 2), np.int32, keep=True)[...], memory)
    assert not DiskArray(tmp_path / "a.dat", (30, 20, 2), np.int32)[...].any()


def test_a_full_disk_is_an_error_at_once(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(views.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(FileError, match="disk is full.*output folder"):
        DiskArray(tmp_path / "a.dat", (100, 100), np.uint8)
