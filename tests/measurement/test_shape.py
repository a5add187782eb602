"""Hulls and calipers against brute force and against known geometry."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from tifffile import imread

from keras_microseg.checks import UserError
from keras_microseg.measurement.shape import (
    Polygons,
    feret_diameters,
    hull_of_points,
    measure_calipers,
    pixel_hulls,
    polygon_areas,
    polygon_perimeters,
)
from keras_microseg.segmentation.runs import find_runs


def brute_force(points):
    """Feret diameters and least rectangle of (y, x) points from every hull edge and every pair."""
    hull = points[ConvexHull(points).vertices]
    edges = np.roll(hull, -1, axis=0) - hull
    along = edges / np.hypot(*edges.T)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    length, height = np.ptp(hull @ along.T, axis=0), np.ptp(hull @ across.T, axis=0)
    ties = height <= height.min() * (1 + 1e-9)
    return {
        "feret_min": height.min(),
        "feret_max": pdist(hull).max(),
        "feret_90": length[ties].max(),
        "rectangle_area": (length * height).min(),
        "area": ConvexHull(points).volume,
        "perimeter": ConvexHull(points).area,
    }


def corners(mask):
    y, x = np.nonzero(mask)
    return np.concatenate([np.stack([y + dy, x + dx], axis=1) for dy in (0, 1) for dx in (0, 1)]).astype(float)


def assert_equals_brute_force(labels, size=(1.0, 1.0)):
    hulls = pixel_hulls(find_runs(labels)).scaled(size)
    calipers = measure_calipers(hulls)
    areas, perimeters = polygon_areas(hulls), polygon_perimeters(hulls)
    for i, label in enumerate(np.unique(labels[labels > 0])):
        expected = brute_force(corners(labels == label) * size)
        assert calipers.feret_min[i] == pytest.approx(expected["feret_min"], rel=1e-12)
        assert calipers.feret_max[i] == pytest.approx(expected["feret_max"], rel=1e-12)
        assert calipers.feret_90[i] == pytest.approx(expected["feret_90"], rel=1e-12)
        product = calipers.rectangle_width[i] * calipers.rectangle_length[i]
        assert product == pytest.approx(expected["rectangle_area"], rel=1e-12)
        assert areas[i] == pytest.approx(expected["area"], rel=1e-12)
        assert perimeters[i] == pytest.approx(expected["perimeter"], rel=1e-12)


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 4)))
def test_scattered_labels_equal_brute_force(labels):
    assert_equals_brute_force(labels)


@given(st.integers(0, 2**32), st.floats(0.1, 10), st.floats(0.1, 10))
def test_blobs_equal_brute_force_also_with_oblong_pixels(seed, size_y, size_x):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :60]
    labels = np.zeros((60, 60), int)
    for label in range(1, 5):
        cy, cx = rng.uniform(0, 60, 2)
        angle = np.arctan2(y - cy, x - cx)
        wave = sum(rng.normal(0, 2) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 6))
        labels[np.hypot(y - cy, x - cx) < rng.uniform(4, 15) + wave] = label
    if labels.any():
        assert_equals_brute_force(labels, (size_y, size_x))


def test_slowly_settling_hull():
    """A quarter circle with a far foot: the hull of its left side gives way point by point."""
    y, x = np.mgrid[:400, :900]
    labels = ((y - 399.0) ** 2 + (x - 899) ** 2 < 398**2).astype(int)
    labels[398:, :] = 1
    assert_equals_brute_force(labels)


def test_real_outlines_equal_brute_force(real_data):
    paths = sorted((real_data / "bam_tio2" / "masks_manual").glob("*.tif"))
    if not paths:
        pytest.skip("the masks of bam_tio2 are not there")
    assert_equals_brute_force(ndimage.label(imread(paths[0])[:704] > 0)[0], (7.344, 7.344))


def test_hull_has_no_needless_vertices():
    hulls = pixel_hulls(find_runs(np.ones((5, 9), int)))
    assert sorted(map(tuple, hulls.vertices.tolist())) == [(0, 0), (0, 9), (5, 0), (5, 9)]


@pytest.mark.parametrize("degrees", [0, 10, 33.3, 45, 77, 120, 179])
def test_exact_rectangle_outline(degrees):
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    # (y, x) with y downwards: a rotation by +turn on the screen
    contour = (np.array([[-1, -3], [-1, 3], [1, 3], [1, -3]], float)) @ rotation.T[::-1, ::-1].T + 1e3
    least, greatest = feret_diameters(contour)
    assert least == pytest.approx(2) and greatest == pytest.approx(math.hypot(2, 6))
    calipers = measure_calipers(hull_of_points(contour))
    assert calipers.rectangle_width[0] == pytest.approx(2)
    assert calipers.rectangle_length[0] == pytest.approx(6)
    difference = (calipers.rectangle_angle[0] - degrees) % 180
    assert min(difference, 180 - difference) < 1e-6


def test_exact_regular_polygons():
    for sides in (3, 5, 6, 12):
        angle = np.arange(sides) * 2 * np.pi / sides + 0.3
        contour = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        least, greatest = feret_diameters(contour)
        odd = sides % 2
        assert least == pytest.approx(1 + math.cos(np.pi / sides) if odd else 2 * math.cos(np.pi / sides))
        assert greatest == pytest.approx(2 * math.cos(np.pi / 2 / sides) if odd else 2)
        polygon = hull_of_points(contour)
        assert polygon_areas(polygon)[0] == pytest.approx(sides / 2 * math.sin(2 * np.pi / sides))
        assert polygon_perimeters(polygon)[0] == pytest.approx(2 * sides * math.sin(np.pi / sides))


def test_many_polygons_do_not_mix():
    rng = np.random.default_rng(5)
    points = [rng.normal(size=(rng.integers(3, 40), 2)) * rng.uniform(0.1, 100) for _ in range(200)]
    parts = [hull_of_points(p) for p in points]
    packed = Polygons(np.concatenate([p.vertices for p in parts]), np.cumsum([0] + [len(p.vertices) for p in parts]))
    together = measure_calipers(packed)
    for i, part in enumerate(parts):
        for field, value in zip(together._fields, measure_calipers(part), strict=True):
            assert getattr(together, field)[i] == pytest.approx(value[0], rel=1e-9), field
        assert together.feret_min[i] == pytest.approx(brute_force(points[i])["feret_min"], rel=1e-9)


@pytest.mark.parametrize("contour", [np.zeros((5, 2)), [[0, 0], [1, 1]], [[0, 0], [1, np.nan], [2, 0]], np.zeros(4)])
def test_refuses_what_is_no_outline(contour):
    with pytest.raises(UserError, match="contour"):
        feret_diameters(contour)
