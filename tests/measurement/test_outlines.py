import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.measurement.outlines import compare_outlines, measure_outlines, orientations, overlap
from keras_microseg.simulation.outlines import OutlineSet


def ellipses(seed, count, ratio=(0.6, 1.0), size=48):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    masks = []
    for _ in range(count):
        a, angle = rng.uniform(8, 16), rng.uniform(0, np.pi)
        b = a * rng.uniform(*ratio)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        masks.append((u / a) ** 2 + (v / b) ** 2 < 1)
    return OutlineSet(np.array(masks), tuple(map(str, range(count))))


def test_quantities_of_a_disc_and_an_ellipse():
    y, x = np.mgrid[:64, :64] - 31.5
    masks = np.stack([np.hypot(y, x) < 20, (x / 24) ** 2 + (y / 12) ** 2 < 1])
    table = measure_outlines(OutlineSet(masks, ("disc", "ellipse")))
    assert abs(table.loc["disc", "equivalent_diameter"] - 40) < 0.3
    assert abs(table.loc["ellipse", "aspect_ratio"] - 0.5) < 0.03
    assert table.loc["disc", "fourier_2"] < 0.01
    # r = ab / sqrt(b^2 cos^2 + a^2 sin^2), its second harmonic over its mean for a = 2 b, by numerical integration
    theta = np.arange(3600) * 2 * np.pi / 3600
    radius = 1 / np.sqrt(np.cos(theta) ** 2 + 4 * np.sin(theta) ** 2)
    expected = 2 * abs(np.mean(radius * np.exp(-2j * theta))) / radius.mean()
    assert abs(table.loc["ellipse", "fourier_2"] - expected) < 0.02


def test_like_sets_are_near_and_unlike_ones_far():
    real = ellipses(0, 40)
    like, slender = compare_outlines(real, ellipses(1, 60)), compare_outlines(real, ellipses(2, 60, (0.3, 0.4)))
    assert like.distance < 3 * like.reference + 2 < slender.distance
    ks = slender.table.set_index("quantity")["ks"]
    assert ks["aspect_ratio"] == 1.0 and like.table.set_index("quantity")["p"]["aspect_ratio"] > 0.01
    assert 0.8 < like.diversity < 1.2 and like.copies < 0.4


def test_copies_and_collapse_are_seen():
    real = ellipses(0, 20)
    copied = compare_outlines(real, OutlineSet(orientations(real.masks)[:70], tuple(map(str, range(70)))))
    assert copied.copies == 1.0 and (copied.nearest == 1).all()
    same = compare_outlines(real, real.take([3] * 10))
    assert same.diversity == 0 and 0.9 < compare_outlines(real, ellipses(1, 30)).facts()["diversity"] < 1.2


def test_overlap_matrix():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    np.testing.assert_allclose(overlap(masks, masks), [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])


def test_two_outlines_are_the_least():
    with pytest.raises(UserError, match="At least two"):
        compare_outlines(ellipses(0, 1), ellipses(0, 3))
