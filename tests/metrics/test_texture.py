"""Texture statistics: same kind near zero, other kinds far, known answers for the kernel distance."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.metrics.texture import NAMES, compare_textures, kernel_distance, texture_statistics


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


def test_constant_images_give_finite_numbers():
    assert np.isfinite(texture_statistics([np.zeros((16, 16)), np.ones((9, 30))])).all()
    assert texture_statistics([np.zeros((16, 16))]).shape == (1, len(NAMES))


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="four real images"):
        compare_textures(np.zeros((3, 4)), np.zeros((3, 4)))
    with pytest.raises(UserError, match="8 px"):
        texture_statistics([np.zeros((4, 40))])
