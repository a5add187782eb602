"""Touching objects apart: known shapes, and block by block the very same labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.metrics import match
from keras_microseg.segmentation.basins import climb, merge_basins, region_table
from keras_microseg.segmentation.separation import SeparationSettings, separate, separate_blocks


def balls(shape, centres, radius, spacing=(1, 1, 1)):
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"))
    away = np.stack([np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))) for centre in centres])
    return np.where(away.min(axis=0) <= radius, away.argmin(axis=0) + 1, 0).astype(np.int32)


def noise_mask(seed, shape, sigma=1.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise > 0.2 * noise.std()


def test_touching_balls_come_apart_and_a_rod_stays_whole():
    truth = balls((24, 24, 44), [(12, 12, 12), (12, 12, 31)], 10)
    assert match(truth, separate(truth > 0)).mean_iou > 0.99
    rod = np.zeros((20, 20, 60), bool)
    rod[5:15, 5:15, 3:57] = True
    assert separate(rod).max() == 1


def test_anisotropic_voxels():
    spacing = (2.0, 1.0, 1.0)
    truth = balls((14, 26, 46), [(13, 12, 12), (13, 12, 32)], 11, spacing)
    found = separate(truth > 0, SeparationSettings(spacing=spacing))
    assert match(truth, found).mean_iou > 0.99


def test_flat_tops_are_one_region():
    plate = np.zeros((30, 40), bool)
    plate[5:9, 3:37] = True
    assert separate(plate, SeparationSettings(sigma=0, merge_ratio=1.0)).max() == 1


def test_small_parts_go_to_their_neighbour_or_vanish():
    mask = balls((24, 24, 44), [(12, 12, 12), (12, 12, 31)], 10) > 0
    mask[0, 0, 0:3] = True
    found = separate(mask, SeparationSettings(min_size=10))
    assert found.max() == 2 and found[0, 0, 0] == 0 and np.array_equal(found > 0, mask & (found > 0))
    assert separate(mask, SeparationSettings(min_size=10**6)).max() == 0


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(12, 14, 17), (15, 9, 18), (40, 33)]),
    st.integers(6, 16),
    st.sampled_from([0.0, 0.8, 1.5]),
    st.booleans(),
)
def test_blocks_give_the_same_labels(seed, shape, block, sigma, keep_heights):
    mask = noise_mask(seed, shape)
    spacing = (1.5, 1.0, 1.0)[-len(shape) :] if seed % 2 else None
    chosen = SeparationSettings(sigma=sigma, merge_ratio=0.85, min_size=seed % 12, spacing=spacing)
    out = np.zeros(shape, np.uint32)
    heights = np.zeros(shape, np.float32) if keep_heights else None
    count = separate_blocks(mask, out, chosen, block=block, halo=16, heights=heights)
    whole = separate(mask, chosen)
    assert np.array_equal(out, whole) and count == whole.max()


def test_a_halo_that_is_too_small_is_named():
    mask = np.zeros((40, 40, 40), bool)
    mask[2:38, 2:38, 2:38] = True
    with pytest.raises(UserError, match="raise `halo`"):
        separate_blocks(mask, np.zeros(mask.shape, np.uint32), block=10, halo=10)
    with pytest.raises(UserError, match="shape of the mask"):
        separate_blocks(mask, np.zeros((40, 40, 39), np.uint32))
    with pytest.raises(UserError, match="cannot hold"):
        separate_blocks(
            noise_mask(0, (150, 150), 0.7), np.zeros((150, 150), np.uint8), SeparationSettings(sigma=0), block=150
        )


def test_climbing_partitions_the_mask():
    mask = noise_mask(5, (18, 20, 22))
    height = ndimage.gaussian_filter(np.random.default_rng(0).random(mask.shape).astype(np.float32), 2)
    labels = climb(height, mask)
    assert np.array_equal(labels > 0, mask)
    for label in range(1, labels.max() + 1):  # every region is connected and its peak has no higher neighbour inside
        assert ndimage.label(labels == label, np.ones((3, 3, 3)))[1] == 1
    peaks = ndimage.maximum_position(height, labels, range(1, labels.max() + 1))
    masked = np.where(mask, height, -1)
    assert all(masked[p] == ndimage.maximum_filter(masked, 3)[p] for p in peaks)


def test_region_table_counts_contacts():
    labels = np.array([[1, 1, 2], [1, 3, 2]])
    table = region_table(labels, np.array([[5, 4, 3], [1, 2, 6.0]]), connectivity=4)
    assert table.area.tolist() == [0, 3, 2, 1] and table.peak.tolist() == [0, 5, 6, 2]
    pairs = list(zip(table.first, table.second, table.saddle, table.contact, strict=True))
    assert pairs == [(1, 2, 3, 1), (1, 3, 2, 2), (2, 3, 2, 1)]
    assert merge_basins(labels, np.array([[5, 4, 3], [1, 2, 6.0]]), 0.9).max() == 2
