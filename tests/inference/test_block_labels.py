import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.inference.block_labels import decode_large
from keras_microseg.inference.views import quantize
from keras_microseg.segmentation.decode import DecodeSettings, labels_from_maps

OUTPUTS = ["foreground", "boundary", "distance"]


def smooth_maps(shape, seed, grain):
    """Random blobs that touch, with holes and with particles of several peaks."""
    rng = np.random.default_rng(seed)
    maps = [ndimage.gaussian_filter(rng.normal(size=shape), sigma) for sigma in (grain, grain / 2, grain)]
    maps = [(m - m.min()) / (m.max() - m.min()) for m in maps]
    maps[2] = (maps[0] + maps[2]) / 2
    return np.stack(maps, axis=-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("block", "halo"), [(64, 64), (100, 48)])
def test_the_same_labels_as_in_memory(tmp_path, seed, block, halo):
    maps = smooth_maps((230, 310), seed, grain=4)
    settings = DecodeSettings(threshold=0.55, seed_threshold=0.35, min_seed_area=5, min_area=30)
    expected = labels_from_maps(maps, OUTPUTS, settings)
    labels, areas = decode_large(maps, OUTPUTS, settings, tmp_path, block=block, halo=halo)
    assert expected.max() > 50
    np.testing.assert_array_equal(labels[...], expected)
    np.testing.assert_array_equal(areas[1:], np.bincount(expected.ravel())[1:])
    assert [p.name for p in tmp_path.iterdir()] == ["small.dat"]


def test_maps_in_bytes_differ_by_ties_only(tmp_path):
    # Steps of 1/255 leave equal heights; which of two seeds takes such a pixel is up to the order of the queue.
    maps = quantize(smooth_maps((230, 310), 0, grain=4), OUTPUTS)
    settings = DecodeSettings(threshold=0.55, seed_threshold=0.35, min_seed_area=5, min_area=30)
    expected = labels_from_maps(maps / np.float32(255), OUTPUTS, settings)
    labels, _ = decode_large(maps, OUTPUTS, settings, tmp_path, block=100, halo=48)
    assert labels[...].max() == expected.max()
    assert np.mean(labels[...] != expected) < 1e-4


def test_particles_and_holes_larger_than_block_and_halo(tmp_path):
    maps = np.zeros((200, 200, 1), np.float32)
    maps[10:190, 10:190] = 1
    maps[50:150, 50:150] = 0  # a hole over several blocks
    maps[80:90, 80:90] = 1  # with an island: the hole has two neighbours and stays
    maps[20:25, 20:25] = 0  # a plain hole
    maps[195:, 0:40] = 1
    for fill in (True, False):
        settings = DecodeSettings(seed_threshold=0.5, min_area=5, fill=fill)
        labels, areas = decode_large(maps, ["foreground"], settings, tmp_path, block=32, halo=8)
        np.testing.assert_array_equal(labels[...], labels_from_maps(maps, ["foreground"], settings))
        assert len(areas) == 4


def test_shared_particles_larger_than_the_halo_are_filled(tmp_path):
    maps = np.zeros((60, 400, 2), np.float32)
    maps[10:50, 5:395, 0] = 1
    maps[10:50, 5:20, 1] = maps[10:50, 380:395, 1] = 0.9  # two seeds far apart in one component
    settings = DecodeSettings()
    labels, areas = decode_large(maps, ["foreground", "distance"], settings, tmp_path, block=40, halo=10)
    labels = labels[...]
    assert len(areas) == 3 and ((labels > 0) == (maps[..., 0] > 0)).all()
    assert labels[30, 10] == 1 and labels[30, 390] == 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (65, 64)])
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_maps(tmp_path, shape, value):
    maps = np.full((*shape, 1), value, np.float32)
    settings = DecodeSettings(min_area=0, min_seed_area=1)
    labels, areas = decode_large(maps, ["foreground"], settings, tmp_path, block=64, halo=8)
    assert (labels[...] == value).all() and len(areas) == 1 + value


@pytest.mark.parametrize("block", [13, 40])
def test_volumes_block_by_block(tmp_path, block):
    rng = np.random.default_rng(3)
    shape = (26, 30, 34)
    near = ndimage.gaussian_filter(rng.standard_normal(shape), 2.0)
    foreground = np.clip(0.5 + near / near.std() * 0.5, 0, 1).astype(np.float32)
    distance = np.clip(near / near.max(), 0, 1).astype(np.float32)
    foreground[12:15, 14:17, 14:17] = 0  # a hole somewhere
    maps = np.stack([foreground, distance], axis=-1)
    chosen = DecodeSettings(min_area=20, seed_threshold=0.4)
    whole = labels_from_maps(maps, ["foreground", "distance"], chosen)
    labels, areas = decode_large(maps, ["foreground", "distance"], chosen, tmp_path, block=block, halo=20)
    assert np.array_equal(labels[...] > 0, whole > 0) and len(areas) - 1 == whole.max()
    assert (labels[...] == whole).mean() > 0.999  # voxels of equal height between two seeds may go either way
