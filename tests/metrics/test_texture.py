"""Texture statistics: same kind near zero, other kinds far, known answers for the kernel distance."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.metrics.texture import (
    NAMES,
    compare_images,
    compare_textures,
    frechet_distance,
    kernel_distance,
    texture_statistics,
    two_point_curves,
)


def noise(count, sigma, seed, level=0.5):
    rng = np.random.default_rng(seed)
    images = [ndimage.gaussian_filter(rng.standard_normal((48, 48)), sigma, mode="wrap") for _ in range(count)]
    return [level + 0.1 * image / image.std() for image in images]


def test_sets_of_one_kind_are_near_and_others_far():
    real, again = texture_statistics(noise(40, 1.0, 0)), texture_statistics(noise(40, 1.0, 1))
    smoother, brighter = texture_statistics(noise(40, 2.0, 2)), texture_statistics(noise(40, 1.0, 3, level=0.7))
    same = compare_textures(real, again)
    assert abs(same.distance) < 1 and abs(same.reference) < 1
    assert 0.8 < same.variety < 1.25
    for other in (smoother, brighter):
        assert compare_textures(real, other).distance > 5
    assert any(name.startswith("grey") for name in compare_textures(real, brighter).furthest)


def test_a_collapsed_set_has_no_variety():
    real = texture_statistics(noise(30, 1.0, 0))
    one = np.repeat(texture_statistics(noise(1, 1.0, 5)), 10, axis=0)
    assert compare_textures(real, one).variety < 1e-3


def test_kernel_distance_is_the_sum_of_its_definition():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((4, 2)), 0.5 * rng.standard_normal((3, 2)) + 0.2
    centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    a, b = (x - centre) / spread, (y - centre) / spread

    def k(u, v):
        return (u @ v / 2 + 1) ** 3

    expected = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    expected += sum(k(b[i], b[j]) for i in range(3) for j in range(3) if i != j) / 6
    expected -= 2 * sum(k(u, v) for u in a for v in b) / 12
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_frechet_distance_of_known_normal_distributions():
    """Equal covariances: the squared shift; scaled by 2: (2 - 1)^2 per feature, both in standard deviations of real."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 3)) @ np.diag([1.0, 5.0, 0.2])
    spread = x.std(axis=0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 0.5 * spread) == pytest.approx(0.25, rel=0.01)
    assert frechet_distance(x, x * 0.5) == pytest.approx(0.25, rel=0.01)


def test_two_point_curves_of_stripes_and_noise():
    """Stripes of period 8 along x: the mean of cos(2 pi dx / 8) over the lags (dy, dx) that round to a distance."""
    stripes = np.tile(np.cos(2 * np.pi * np.arange(256) / 8), (256, 1))
    dy, dx = np.mgrid[-16:17, -16:17]
    away = np.rint(np.hypot(dy, dx))
    expected = [np.cos(2 * np.pi * dx[away == r] / 8).mean() for r in range(17)]
    np.testing.assert_allclose(two_point_curves([stripes], 16)[0], expected, atol=0.01)
    white = two_point_curves([np.random.default_rng(0).standard_normal((128, 96))], 10)
    assert white[0, 0] == 1 and np.abs(white[0, 1:]).max() < 0.02
    # every pair counts once, also those beside the border
    small = np.random.default_rng(1).random((5, 7))
    centred = small - small.mean()
    right = (centred[:, :-1] * centred[:, 1:]).sum() + (centred[:-1] * centred[1:]).sum()
    diagonal = (centred[:-1, :-1] * centred[1:, 1:]).sum() + (centred[:-1, 1:] * centred[1:, :-1]).sum()
    pairs = 5 * 6 + 4 * 7 + 2 * 4 * 6
    expected = (right + diagonal) / pairs / np.square(centred).mean()
    assert two_point_curves([small], 1)[0, 1] == pytest.approx(expected)


def test_each_measure_sees_its_difference():
    real, again = noise(40, 1.0, 0), noise(40, 1.0, 1)
    same = compare_images(real, again)
    assert abs(same["texture_distance"]) < 1
    for name in ("frechet", "two_point", "grey"):
        # halves are half as large, so that their distance is a little larger
        assert abs(same[f"{name}_distance"]) < 2.5 * abs(same[f"{name}_distance_reference"]) + 1e-3, name
    smoother, brighter = compare_images(real, noise(40, 2.0, 2)), compare_images(real, noise(40, 1.0, 3, level=0.7))
    assert smoother["two_point_distance"] > 10 * same["two_point_distance"]
    assert brighter["grey_distance"] == pytest.approx(0.2, abs=0.01)
    assert brighter["two_point_distance"] < 3 * same["two_point_distance"] + 1e-3
    assert min(smoother["frechet_distance"], brighter["frechet_distance"]) > 5 * same["frechet_distance"]
    with pytest.raises(UserError, match="Four real images"):
        compare_images(real[:3], again)


def test_constant_images_give_finite_numbers():
    assert np.isfinite(texture_statistics([np.zeros((16, 16)), np.ones((9, 30))])).all()
    assert texture_statistics([np.zeros((16, 16))]).shape == (1, len(NAMES))


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="four real images"):
        compare_textures(np.zeros((3, 4)), np.zeros((3, 4)))
    with pytest.raises(UserError, match="8 px"):
        texture_statistics([np.zeros((4, 40))])
