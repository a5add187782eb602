"""Distances between surfaces against geometry, brute force and the convention of the field."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from keras_microseg.checks import UserError
from keras_microseg.metrics.surface import score_surfaces, surface_distances, surface_voxels


def ball(radius, shape=(40, 40, 40)):
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    return sum(a**2 for a in axes) <= radius**2


def test_boxes_one_step_apart():
    one, two = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    one[5:15, 5:15, 5:15] = True
    two[8:18, 5:15, 5:15] = True  # moved by 3 voxels along z
    scores = score_surfaces(one, two, (2.0, 1.0, 1.0))
    assert scores.hausdorff == 6.0 and scores.hausdorff_95 == 6.0 and scores.tolerance == 2.0
    assert 0 < scores.mean_distance < 6 and 0 < scores.surface_dice < 1


def test_concentric_balls():
    scores = score_surfaces(ball(12), ball(15))
    assert scores.mean_distance == pytest.approx(3, abs=0.35)  # surfaces of voxels are within half a voxel diagonal
    assert scores.hausdorff <= 4 and scores.surface_dice == 0
    same = score_surfaces(ball(12), ball(12))
    assert (same.mean_distance, same.hausdorff, same.surface_dice) == (0, 0, 1)


def test_equal_to_brute_force():
    rng = np.random.default_rng(0)
    for shape in ((15, 17), (9, 8, 7)):
        masks = [rng.random(shape) < 0.4 for _ in range(2)]
        size = np.arange(1, len(shape) + 1, dtype=float)
        points = [surface_voxels(mask) * size for mask in masks]
        away = cdist(*points)
        there, back = surface_distances(*masks, tuple(size))
        np.testing.assert_allclose(there, away.min(axis=1))
        np.testing.assert_allclose(back, away.min(axis=0))


def test_empty_masks_and_shapes():
    empty, full = np.zeros((5, 5, 5), bool), np.ones((5, 5, 5), bool)
    assert score_surfaces(empty, empty).mean_distance == 0
    assert np.isnan(score_surfaces(empty, full).hausdorff) and score_surfaces(empty, full).surface_dice == 0
    assert len(surface_voxels(full)) == 5**3 - 3**3
    with pytest.raises(UserError, match="one shape"):
        score_surfaces(empty, np.zeros((5, 5)))
