"""Streaming statistics against NumPy and scikit-image; normalization."""

import numpy as np
import pytest
from skimage import filters

from keras_microseg.checks import UserError
from keras_microseg.image import LazyArray
from keras_microseg.intensity import Normalizer, volume_statistics


class Lazy(LazyArray):
    """Remembers the largest block it was asked for."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def read_block(self, block):
        part = self.array[block]
        self.largest = max(self.largest, part.nbytes)
        return part


RNG = np.random.default_rng(0)
TWO = np.where(RNG.random((20, 30, 40)) < 0.3, RNG.normal(900, 60, (20, 30, 40)), RNG.normal(400, 50, (20, 30, 40)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, bool])
def test_small_integers_are_exact(dtype):
    volume = (TWO / 8).astype(dtype) if dtype is not bool else TWO > 600
    lazy = Lazy(volume)
    found = volume_statistics(lazy, max_ram=200_000)
    flat = volume.astype(float)
    assert lazy.largest < 200_000 and found.is_exact and found.count == volume.size
    assert np.isclose(found.mean, flat.mean()) and np.isclose(found.std, flat.std())
    assert (found.minimum, found.maximum) == (flat.min(), flat.max())
    for percent in (0, 0.1, 1, 33.3, 50, 99.9, 100):
        assert np.isclose(found.percentile(percent), np.percentile(flat, percent))
    if dtype is not bool:
        assert found.otsu() == filters.threshold_otsu(volume)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint32])
def test_other_types_are_bounded_by_the_bin_width(dtype):
    volume = (TWO * 1000 if dtype is np.int32 else TWO).astype(dtype)
    found = volume_statistics(Lazy(volume), max_ram=300_000)
    assert np.isclose(found.mean, volume.mean(dtype=float), rtol=1e-12)
    assert np.isclose(found.std, volume.std(dtype=float), rtol=1e-9)
    width = 0 if dtype is np.uint32 else (float(volume.max()) - float(volume.min())) / 65536
    assert found.bin_width == pytest.approx(width)
    for percent in (0.1, 1, 50, 99.9):
        assert abs(found.percentile(percent) - np.percentile(volume, percent)) <= max(found.bin_width / 2, 1e-9)
    if volume.dtype.kind == "f":
        assert found.otsu(256) == pytest.approx(filters.threshold_otsu(volume), abs=found.bin_width)
        wanted = filters.threshold_multiotsu(volume, 3)
        np.testing.assert_allclose(found.multi_otsu(3), wanted, atol=2 * 256 * found.bin_width)


def test_nan_slices_and_constant_volumes():
    volume = TWO.astype(np.float32)
    volume[3] = np.nan
    volume[4, 0, 0] = np.inf
    found = volume_statistics(volume)
    kept = volume[np.isfinite(volume)]
    assert found.num_nonfinite == 1201 and np.isclose(found.mean, kept.mean(dtype=float))
    assert Normalizer.fit(found)(volume)[3].max() == 0
    empty = volume_statistics(np.full((2, 3, 4), np.nan))
    assert empty.count == 0 and np.isnan(empty.percentile(50))
    with pytest.raises(UserError, match="no finite voxel"):
        Normalizer.fit(empty)
    flat = volume_statistics(np.full((2, 3, 4), 7, np.uint8))
    assert flat.otsu() == 7 and flat.std == 0 and (Normalizer.fit(flat, "zscore")(np.full(3, 7)) == 0).all()


def test_region_selects_columns():
    region = np.zeros((30, 40), bool)
    region[5:9, 6:30] = True
    found = volume_statistics(TWO.astype(np.uint16), region=region)
    assert found.count == 20 * 4 * 24 and found.mean == pytest.approx(TWO.astype(np.uint16)[:, 5:9, 6:30].mean())


def test_normalizers():
    volume = TWO.astype(np.uint16)
    assert Normalizer.fit(volume, "minmax")(volume).min() == 0 and Normalizer.fit(volume, "minmax")(volume).max() == 1
    scored = Normalizer.fit(volume, "zscore")(volume)
    assert scored.dtype == np.float32 and abs(scored.mean()) < 1e-5 and abs(scored.std() - 1) < 1e-5
    part = Normalizer.fit(volume)
    assert part.low == pytest.approx(np.percentile(volume, 0.1)) and part(volume).max() == 1
    assert Normalizer.from_dict(part.to_dict()) == part
    fixed = Normalizer.fit(None, "fixed", limits=(400, 800))
    np.testing.assert_allclose(fixed(np.array([0.0, 600.0, 900.0, np.nan])), [0, 0.5, 1, 0])
    with pytest.raises(UserError, match="limits"):
        Normalizer.fit(None, "fixed")
    with pytest.raises(UserError, match="mode"):
        Normalizer("max", 0, 1)
