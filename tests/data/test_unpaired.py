"""Unpaired tiles: repeatable, matched in coverage, found where particles are; readable from files of any kind."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.data.unpaired import Micrograph, UnpairedTiles, read_micrograph


def discs(shape, share, seed):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return field > np.quantile(field, 1 - share)


@pytest.fixture
def material():
    micrographs = []
    for i, share in enumerate((0.05, 0.2, 0.4)):
        inside = discs((96, 128), share, i)
        grey = np.where(inside, 200, 50).astype(np.uint8)
        micrographs.append(Micrograph(f"{i}.tif", grey, (50, 200), inside))
    return micrographs, [discs((100, 100), share, 10 + i) for i, share in enumerate(np.linspace(0.02, 0.5, 12))]


def test_batches_are_a_function_of_seed_epoch_and_index(material):
    one, two = (UnpairedTiles(*material, 4, 2, 5, size=(48, 64)) for _ in range(2))
    one.set_epoch(3)
    two.set_epoch(3)
    for a, b in zip(one[2], two[2], strict=True):
        assert a.shape == (2, 48, 64, 1) and a.dtype == np.float32
        assert set(np.unique(a)) <= {-1.0, 1.0}
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[2][0], one[1][0])


def test_mask_tiles_cover_as_much_as_their_micrograph_tiles(material):
    def error(**options):
        data = UnpairedTiles(*material, 1, 40, 0, size=(48, 48), **options)
        return np.mean([abs((a > 0).mean() - (b > 0).mean()) for a, b in zip(*data[0], strict=True)])

    assert error() < 0.5 * error(match_coverage=False)


def test_tiles_hold_particles_where_there_are_some(material):
    data = UnpairedTiles(*material, 1, 40, 0, size=(48, 48), min_foreground=0.1)
    assert np.mean([(a > 0).mean() >= 0.1 for a in data[0][0]]) > 0.9


def test_masks_for_cross_entropy_lie_in_0_to_1(material):
    data = UnpairedTiles(*material, 1, 2, 0, size=(48, 48), low=0.0)
    assert set(np.unique(data[0][1])) == {0.0, 1.0}


def test_files_of_other_depth_and_scale_are_read(tmp_path):
    inside = discs((64, 80), 0.2, 0)
    io.write_image(tmp_path / "a.tif", np.where(inside, 40000, 1000).astype(np.uint16), axes="YX")
    found = read_micrograph(tmp_path / "a.tif", info_bar=None, scale=0.5)
    assert found.grey.shape == (32, 40) == found.foreground.shape
    assert found.tile((slice(0, 32), slice(0, 40))).max() <= 1
    assert abs(found.foreground.mean() - 0.2) < 0.06
    dark = read_micrograph(tmp_path / "a.tif", info_bar=None, polarity="dark")
    assert abs(dark.foreground.mean() - 0.8) < 0.06


def test_what_cannot_work_is_explained(material, tmp_path):
    with pytest.raises(UserError, match="smaller tile"):
        UnpairedTiles(*material, 1, 1, 0, size=(200, 200))
    with pytest.raises(UserError, match="larger masks"):
        UnpairedTiles(material[0], [np.ones((30, 30), bool)], 1, 1, 0, size=(48, 48))
    io.write_image(tmp_path / "flat.png", np.full((40, 40), 7, np.uint8), axes="YX")
    with pytest.raises(UserError, match="one grey value"):
        read_micrograph(tmp_path / "flat.png")
