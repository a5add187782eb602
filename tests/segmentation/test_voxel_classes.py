"""Classical methods on voxels: known phases come back, in any slabs, with stable numbers."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.metrics import pixel
from keras_microseg.segmentation.depth_maps import GradientEnergy, StructureCoherence, cumulative_depth, depth_labels
from keras_microseg.segmentation.pixel_forest import fit_forest
from keras_microseg.segmentation.voxel_classes import (
    classify_volume,
    fit_halfway,
    fit_kmeans,
    fit_multi_otsu,
    fit_pixel_forest,
    voxel_features,
)


def phases(seed=0, shape=(24, 28, 26), noise=0.1):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    field /= field.std()
    truth = np.digitize(field, [-0.5, 0.6]).astype(np.uint8)
    grey = np.array([0.2, 0.5, 0.9])[truth] + noise * np.random.default_rng(seed + 1).standard_normal(shape)
    return truth, grey.astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_finds_the_phases_and_numbers_them_by_grey_value(seed):
    truth, grey = phases()
    found = fit_kmeans(grey, 3, features=("smooth",), sample=15_000, seed=seed)(grey)
    assert pixel.accuracy(pixel.count(truth, found, num_classes=3)) > 0.9


def test_kmeans_coordinates_and_weights():
    _, grey = phases()
    halves = fit_kmeans(grey, 2, features=("intensity", "z"), weights=(0.01, 10), sample=5_000, rounds=40)(grey)
    assert all(len(np.unique(plane)) == 1 for plane in halves[[0, -1]]) and halves[0, 0, 0] != halves[-1, 0, 0]
    with pytest.raises(UserError, match="one number per feature"):
        fit_kmeans(grey, 2, weights=(1, 2, 3))


@pytest.mark.parametrize("method", ["kmeans", "otsu", "forest", "energy", "coherence"])
def test_slabs_give_the_same(method):
    truth, grey = phases(noise=0.03)
    some = np.full(truth.shape, 255, np.uint8)
    some[10:14] = truth[10:14]
    fitted = {
        "kmeans": lambda: fit_kmeans(grey, 3, features=("intensity", "smooth", "x"), sample=10_000),
        "otsu": lambda: fit_multi_otsu(grey, 3),
        "forest": lambda: fit_pixel_forest(grey, some, num_trees=4, depth=6, features=("intensity", "smooth")),
        "energy": lambda: GradientEnergy(3),
        "coherence": lambda: StructureCoherence(0.5, 0.7),
    }[method]()
    whole = fitted(grey)
    out = np.zeros(grey.shape, whole.dtype)
    per_voxel = 24 + 8 * len(getattr(fitted, "features", ())) + 16
    classify_volume(grey, out, fitted, max_ram=int(per_voxel * 28 * 26 * (2 * fitted.halo + 5)))
    assert np.array_equal(out, whole)
    if method in ("otsu", "forest"):
        assert pixel.accuracy(pixel.count(truth, out, num_classes=3)) > 0.93


def test_forest_separates_rings():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (4000, 3)).astype(np.float32)
    inside = (np.square(points[:, :2]).sum(axis=1) < 0.4).astype(int)
    forest = fit_forest(points[:3000], inside[:3000], 2, num_trees=15, depth=8)
    shares = forest.predict(points[3000:])
    assert (shares.argmax(axis=1) == inside[3000:]).mean() > 0.93 and np.allclose(shares.sum(axis=1), 1, atol=1e-5)


def test_forest_refusals():
    grey = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(UserError, match="shape of the volume"):
        fit_pixel_forest(grey, np.zeros((3, 4, 4)))
    with pytest.raises(UserError, match="two classes"):
        fit_pixel_forest(grey, np.ones((3, 4, 5), np.uint8))


def test_cumulative_map_is_that_of_the_source():
    volume = np.array([0, 2, 6, 6], np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    depth, _ = cumulative_depth(volume)
    assert depth[:, 0, 0].tolist() == [2, 5, 7, 7]  # |gradient| = 2, 3, 2, 0: one-sided at the ends
    labels, again = depth_labels(volume)
    assert again.dtype == np.float64 and labels.dtype == np.int32
    with pytest.raises(UserError, match="two slices"):
        cumulative_depth(volume[:1])


def test_gradient_energy_does_not_drift():
    volume = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    energy, (depth, _) = GradientEnergy(2)(volume), cumulative_depth(volume)
    assert energy[40:55].mean() == pytest.approx(energy[5:20].mean(), rel=0.1)
    assert depth[40:55].mean() > 2.5 * depth[5:20].mean()
    cumulative, _ = depth_labels(volume)
    assert not cumulative[:20].any() and depth_labels(volume, per_slice=True)[0][:20].any()
    step = np.zeros((20, 4, 4), np.float32)
    step[10:] = 1
    assert np.flatnonzero(GradientEnergy(1)(step)[:, 0, 0]).tolist() == [8, 9, 10, 11]


def test_nan_volumes_are_refused_or_skipped():
    _, grey = phases()
    holed = grey.copy()
    holed[3] = np.nan
    assert fit_kmeans(holed, 2, features=("intensity",), sample=5000).num_classes == 2
    with pytest.raises(UserError, match="finite"):
        fit_kmeans(np.full((4, 5, 6), np.nan, np.float32), 2)


def test_unknown_feature():
    with pytest.raises(UserError, match="features"):
        voxel_features(np.zeros((2, 2, 2)), ["colour"])


def test_halfway_finds_the_level_of_the_edge():
    ball = sum((g - 19.5) ** 2 for g in np.meshgrid(*[np.arange(40)] * 3, indexing="ij")) <= 10**2
    grey = ndimage.gaussian_filter(np.where(ball, 0.8, 0.2), 1.5)
    grey += np.random.default_rng(0).normal(0, 0.01, grey.shape)
    level = fit_halfway(grey).values[0]
    assert level == pytest.approx(0.5, abs=0.02)
    assert fit_halfway(grey)(grey).sum() == pytest.approx(ball.sum(), rel=0.08)  # blur shrinks what is convex


def test_coherence_knows_surfaces_fibres_and_noise():
    z, y, x = np.meshgrid(*[np.arange(-20, 21)] * 3, indexing="ij")
    coherence = StructureCoherence(1.0, 2.0)
    plane = coherence(np.where(z + 0.5 * y > 0, 1.0, 0.0))
    assert plane[20, 20, 20] > 0.97
    fibre = coherence(np.exp(-(z**2 + y**2) / 18))
    assert fibre[20, 20, 20] == pytest.approx(np.sqrt(0.5), abs=0.03)  # two equal eigenvalues, one 0
    noise = coherence(np.random.default_rng(0).normal(size=z.shape))
    assert 0 < np.median(noise[10:31, 10:31, 10:31]) < 0.5
    assert not coherence(np.full(z.shape, 7.0)).any()
    quiet = StructureCoherence(1.0, 2.0, noise=0.5)(0.01 * np.random.default_rng(0).normal(size=z.shape))
    assert quiet.max() < 0.01


def test_coherence_by_eigenvalues():
    grey = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(12, 13, 14)), 2)
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(grey.astype(np.float32), 1.0)))
    tensor = np.array([[ndimage.gaussian_filter(a * b, 3.0) for a in gradient] for b in gradient])
    values = np.linalg.eigvalsh(np.moveaxis(tensor, (0, 1), (-2, -1)).astype(float))
    apart = sum((values[..., i] - values[..., j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = np.sqrt(apart / (2 * (values**2).sum(axis=-1)))
    np.testing.assert_allclose(StructureCoherence()(grey), expected, atol=1e-3)
