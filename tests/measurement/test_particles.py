"""The particle table: geometry with known answers, skimage where definitions coincide, invariances, odd input."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import regionprops_table
from tifffile import imread

from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.measurement import (
    QUANTITIES,
    combine_tables,
    convert_table,
    describe_quantities,
    measure_particles,
    size_distribution,
)
from keras_microseg.measurement.particles import FORMULAS

LENGTHS = [name for name, q in QUANTITIES.items() if q.kind == "length"]
AREAS = [name for name, q in QUANTITIES.items() if q.kind == "area"]
ALL = list(QUANTITIES)
SHAPE_ONLY = [name for name, q in QUANTITIES.items() if q.kind != "grey"]


def ellipse_mask(a, b, degrees=0.0, shape=(120, 140), centre=(60.3, 70.6)):
    """Pixels whose centre lies in the ellipse of half axes a, b; angle counter-clockwise on the screen."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    y, x = -(y - centre[0]), x - centre[1]
    turn = math.radians(degrees)
    u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def rectangle_mask(length, width, degrees, shape=(120, 140), centre=(60.3, 70.6)):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    y, x = -(y - centre[0]), x - centre[1]
    turn = math.radians(degrees)
    u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    return (abs(u) <= length / 2) & (abs(v) <= width / 2)


def one(mask, **arguments):
    return measure_particles(np.asarray(mask).astype(np.int32), **arguments).iloc[0]


def angle_difference(a, b):
    difference = (a - b) % 180
    return min(difference, 180 - difference)


def random_labels(seed, shape=(150, 170), count=40):
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        centre = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        labels[ellipse_mask(*rng.uniform(1, 14, 2), rng.uniform(0, 180), shape, centre)] = label
    return labels


# Known answers. A mask holds the pixels whose centre lies inside the shape, and a particle is the union of their
# squares: it reaches at most half a diagonal (0.71 px) beyond the true outline on either side and falls short of it by
# at most that, so a width may be off by up to 1.42 px; areas are right on average.


@pytest.mark.parametrize("radius", [5, 12.5, 30, 50])
def test_disc(radius):
    row = one(ellipse_mask(radius, radius))
    assert row.area == pytest.approx(np.pi * radius**2, rel=0.02)
    assert row.equivalent_diameter == pytest.approx(2 * radius, rel=0.01)
    assert row.perimeter == pytest.approx(2 * np.pi * radius, rel=0.03)
    for name in ("feret_min", "feret_max", "feret_90", "rectangle_width", "rectangle_length"):
        assert abs(row[name] - 2 * radius) <= 1.42, name
    assert row.ellipse_major == pytest.approx(2 * radius, abs=0.5)
    assert row.circularity > 0.95 and row.completeness > 0.98 and row.solidity > 0.88 and row.convexity > 0.99
    assert (row.centroid_y, row.centroid_x) == pytest.approx((60.3, 70.6), abs=0.2)


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 135, 165])
def test_ellipse(degrees):
    a, b = 45, 20
    row = one(ellipse_mask(a, b, degrees))
    assert row.ellipse_major == pytest.approx(2 * a, rel=0.01)
    assert row.ellipse_minor == pytest.approx(2 * b, rel=0.01)
    assert angle_difference(row.ellipse_angle, degrees) < 0.5
    assert angle_difference(row.feret_angle, degrees) < 5  # the ends of a digital ellipse are flat
    assert abs(row.feret_min - 2 * b) <= 1.42 and abs(row.feret_max - 2 * a) <= 1.42
    assert row.completeness == pytest.approx(1, abs=0.002)
    h = ((a - b) / (a + b)) ** 2
    assert row.perimeter == pytest.approx(np.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h))), rel=0.03)


@pytest.mark.parametrize("degrees", [0, 15, 30, 45, 80, 90, 100, 150])
def test_rectangle(degrees):
    row = one(rectangle_mask(80, 30, degrees))
    assert row.area == pytest.approx(80 * 30, rel=0.04)
    assert abs(row.rectangle_length - 80) <= 1.42 and abs(row.rectangle_width - 30) <= 1.42
    assert abs(row.feret_min - 30) <= 1.42 and abs(row.feret_90 - 80) <= 1.5
    assert abs(row.feret_max - math.hypot(80, 30)) <= 1.42
    assert angle_difference(row.rectangle_angle, degrees) < 1.5
    # A rectangle l x w has moments l^2/12, w^2/12: axes 2 l / sqrt(3), 2 w / sqrt(3), completeness 3 / pi.
    assert row.ellipse_major == pytest.approx(2 * 80 / math.sqrt(3), rel=0.02)
    assert row.completeness == pytest.approx(3 / np.pi, abs=0.01)


def test_upright_rectangle_is_exact():
    labels = np.zeros((20, 30), np.uint8)
    labels[4:7, 10:22] = 9  # 3 x 12 pixels
    row = one(labels)
    assert (row.area, row.hull_area, row.hull_perimeter) == (36, 36, 30)
    assert (row.feret_min, row.feret_90, row.rectangle_width, row.rectangle_length) == (3, 12, 3, 12)
    assert row.feret_max == pytest.approx(math.hypot(3, 12), rel=1e-15)
    assert row.rectangle_angle == 0 and row.ellipse_angle == 0
    assert (row.ellipse_major, row.ellipse_minor) == pytest.approx((24 / math.sqrt(3), 6 / math.sqrt(3)), rel=1e-14)
    assert row.solidity == row.convexity == 1 and row.extent == pytest.approx(36 / (3 * math.hypot(3, 12)))
    assert (row.centroid_y, row.centroid_x) == (5, 15.5)
    assert tuple(row[["bbox_y0", "bbox_x0", "bbox_y1", "bbox_x1"]]) == (4, 10, 7, 22)
    # Crofton: 3 rows and 12 columns are crossed twice each, 14 diagonals of either direction likewise, 1/sqrt(2) apart.
    assert row.perimeter == pytest.approx(np.pi / 8 * (6 + 24 + 56 / math.sqrt(2)), rel=1e-14)


def test_single_pixel():
    row = one([[0, 0, 0], [0, 5, 0], [0, 0, 0]])
    assert row.area == row.feret_min == row.feret_90 == row.rectangle_width == row.solidity == row.convexity == 1
    assert row.feret_max == pytest.approx(math.sqrt(2)) and row.circularity == 1
    assert row.ellipse_major == pytest.approx(2 / math.sqrt(3)) and math.isnan(row.ellipse_angle)
    assert math.isnan(row.nearest_distance) and not row.touches_border


def test_lines():
    labels = np.zeros((12, 12), int)
    labels[0, :] = 1
    labels[2:, 0] = 2
    labels[np.arange(3, 12), np.arange(3, 12)] = 3
    table = measure_particles(labels)
    assert table.area.tolist() == [12, 10, 9]
    assert table.feret_min.tolist() == pytest.approx([1, 1, math.sqrt(2)])
    assert table.feret_90.tolist() == pytest.approx([12, 10, 9 * math.sqrt(2)])
    assert table.rectangle_angle.tolist() == pytest.approx([0, 90, 135])  # down to the right on the screen
    assert table.ellipse_angle.tolist() == pytest.approx([0, 90, 135])
    assert table.touches_border.tolist() == [True, True, True]
    assert (table.convexity <= 1).all()


def test_ring_has_a_hole_in_area_and_perimeter():
    ring = ellipse_mask(40, 40) & ~ellipse_mask(20, 20)
    row = one(ring)
    assert row.area == pytest.approx(np.pi * (40**2 - 20**2), rel=0.01)
    assert row.perimeter == pytest.approx(2 * np.pi * 60, rel=0.02)
    assert row.solidity == pytest.approx(0.75, abs=0.03) and row.convexity == pytest.approx(2 / 3, abs=0.02)


def test_thin_fibre_by_geodesic_length():
    labels = np.zeros((20, 220), int)
    labels[8:12, 10:210] = 1
    row = one(labels, quantities=["geodesic_length", "geodesic_thickness", "elongation"])
    assert row.geodesic_length == pytest.approx(200, rel=0.07)  # Crofton from four directions is 5 % short on lines
    assert row.geodesic_thickness == pytest.approx(4, rel=0.1)
    assert math.isnan(one(ellipse_mask(20, 20), quantities="elongation").elongation)


def test_equals_skimage_where_definitions_coincide():
    labels = random_labels(3) * 7
    rng = np.random.default_rng(0)
    grey = rng.normal(100, 20, labels.shape).astype(np.float32)
    ours = measure_particles(labels, intensity=grey)
    names = ("label", "area", "bbox", "centroid", "equivalent_diameter_area", "perimeter_crofton", "axis_major_length")
    names += ("axis_minor_length", "orientation", "intensity_mean", "intensity_min", "intensity_max", "intensity_std")
    theirs = regionprops_table(
        labels, grey, properties=names, extra_properties=[lambda mask, image: np.median(image[mask])]
    )
    pairs = {
        "label": "label", "area": "area", "bbox_y0": "bbox-0", "bbox_x0": "bbox-1", "bbox_y1": "bbox-2",
        "bbox_x1": "bbox-3", "centroid_y": "centroid-0", "centroid_x": "centroid-1", "perimeter": "perimeter_crofton",
        "equivalent_diameter": "equivalent_diameter_area", "intensity_mean": "intensity_mean",
        "intensity_min": "intensity_min", "intensity_max": "intensity_max", "intensity_std": "intensity_std",
        "intensity_median": "<lambda>",
    }  # fmt: skip
    for mine, other in pairs.items():
        np.testing.assert_allclose(ours[mine], theirs[other], rtol=2e-5 if "intensity" in mine else 1e-12, err_msg=mine)
    # skimage takes moments of pixel centres; a pixel square adds 1/12 to each, that is 16/12 to a squared axis.
    for mine, other in (("ellipse_major", "axis_major_length"), ("ellipse_minor", "axis_minor_length")):
        # its eigenvalues of thin objects come out of a cancellation, hence the absolute tolerance
        np.testing.assert_allclose(ours[mine] ** 2, theirs[other] ** 2 + 4 / 3, rtol=1e-9, atol=1e-9)
    clear = ours.ellipse_ratio.to_numpy() < 0.99
    angles = (np.degrees(theirs["orientation"]) + 90) % 180  # skimage: from the row axis
    difference = (ours.ellipse_angle.to_numpy() - angles)[clear] % 180
    assert np.minimum(difference, 180 - difference).max() < 1e-6


def test_equals_skimage_with_oblong_pixels():
    labels = random_labels(8)
    ours = measure_particles(labels, pixel_size=PixelSize((2.0, 0.5), "nm"))
    theirs = regionprops_table(labels, properties=("area", "axis_major_length"), spacing=(2.0, 0.5))
    np.testing.assert_allclose(ours.area, theirs["area"], rtol=1e-12)
    large = ours.area > 100
    np.testing.assert_allclose(ours.ellipse_major[large], theirs["axis_major_length"][large], rtol=0.03)
    assert ours.attrs["pixel_size"] == [2.0, 0.5] and ours.attrs["unit"] == "nm"


def test_oblong_pixels_show_the_same_disc():
    """One disc of 60 nm sampled with pixels of 1 x 1 and of 1 x 0.4 nm: sizes agree within a pixel's diagonal."""
    y, x = np.mgrid[:100, :250]
    square = one(ellipse_mask(30, 30, 0, (100, 100), (50, 50)), pixel_size=PixelSize((1, 1), "nm"))
    oblong = one((y - 50.0) ** 2 + (0.4 * (x - 125.0)) ** 2 <= 900, pixel_size=PixelSize((1, 0.4), "nm"))
    for name in ("equivalent_diameter", "feret_min", "feret_max", "ellipse_major", "ellipse_minor"):
        assert abs(square[name] - oblong[name]) <= 1.42, name
    assert oblong.perimeter == pytest.approx(60 * np.pi, rel=0.03)
    assert oblong.circularity > 0.93 and oblong.convexity > 0.98


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_sizes_scale_with_the_pixel_size(seed, scale):
    labels = random_labels(seed, (60, 70), 8)
    plain = measure_particles(labels, quantities=SHAPE_ONLY)
    scaled = measure_particles(labels, quantities=SHAPE_ONLY, pixel_size=PixelSize((scale, scale), "um"))
    for name in SHAPE_ONLY:
        factor = scale if name in LENGTHS else scale**2 if name in AREAS else 1.0
        if not name.endswith("_angle"):
            np.testing.assert_allclose(scaled[name], plain[name] * factor, rtol=1e-9, err_msg=name)


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 6)))
def test_bounds_hold_for_any_labels(labels):
    table = measure_particles(labels, quantities=SHAPE_ONLY)
    tiny = 1 + 1e-9
    assert table.label.tolist() == np.unique(labels[labels > 0]).tolist()
    assert table.area.sum() == np.count_nonzero(labels)
    assert (table.feret_min <= table.feret_90 * tiny).all()
    assert (table.feret_90 <= table.feret_max * tiny).all()
    assert (table.feret_min <= table.rectangle_width * tiny).all()
    assert (table.rectangle_width <= table.rectangle_length).all()
    assert (table.hull_perimeter >= 2 * table.feret_max / tiny).all()
    for name in ("aspect_ratio", "ellipse_ratio", "circularity", "roundness", "extent", "convexity", "solidity"):
        assert ((table[name] > 0) & (table[name] <= tiny)).all(), name
    # Of all shapes of one area the disc, of all with given moments the ellipse is the tightest.
    assert ((table.completeness > 0) & (table.completeness <= tiny)).all()
    assert ((table.compactness > 0) & (table.compactness <= tiny)).all()
    for name in ("feret_angle", "rectangle_angle"):
        assert ((table[name] >= 0) & (table[name] < 180)).all()


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbering_does_not_matter(seed, renumbering):
    labels = random_labels(seed, (60, 70), 8)
    rng = np.random.default_rng(renumbering)
    new = np.concatenate([[0], rng.choice(10**12, size=8, replace=False) + 1])
    renamed = measure_particles(new[labels], quantities=SHAPE_ONLY).set_index("label")
    table = measure_particles(labels, quantities=SHAPE_ONLY)
    expected = table.assign(label=new[table.label]).set_index("label").sort_index()
    assert renamed.equals(expected)


@given(st.integers(0, 10**6))
def test_quarter_turn_changes_nothing_but_angles(seed):
    labels = random_labels(seed, (60, 70), 8)
    before = measure_particles(labels, quantities=SHAPE_ONLY)
    after = measure_particles(np.rot90(labels), quantities=SHAPE_ONLY)
    for name in SHAPE_ONLY:
        if QUANTITIES[name].kind not in ("angle", "pixel"):
            np.testing.assert_allclose(
                after[name].astype(float), before[name].astype(float), rtol=1e-9, atol=1e-9, err_msg=name
            )
    clear = before.ellipse_ratio < 0.98
    difference = (after.ellipse_angle - before.ellipse_angle - 90)[clear] % 180
    assert np.minimum(difference, 180 - difference).max() < 1e-6 if clear.any() else True


@given(hnp.arrays(np.int32, (9, 11), elements=st.integers(0, 5)))
def test_neighbours_equal_a_search_over_pixels(labels):
    padded = np.pad(labels, 1)
    touching = {label: set() for label in np.unique(labels) if label}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            other = np.roll(padded, (dy, dx), (0, 1))
            for a, b in zip(padded.ravel(), other.ravel(), strict=True):
                if a and b and a != b:
                    touching[a].add(b)
    table = measure_particles(labels, quantities=["touching_neighbours"])
    assert table.touching_neighbours.tolist() == [len(touching[label]) for label in table.label]


def test_nearest_distance_and_border():
    labels = np.zeros((40, 60), int)
    labels[10:13, 10:13], labels[10:13, 20:23], labels[38:, 50:53] = 1, 2, 3
    table = measure_particles(labels, pixel_size=PixelSize((2, 3), "nm"))
    assert table.nearest_distance.tolist() == pytest.approx([30, 30, math.hypot(2 * 27.5, 3 * 30)])
    assert table.touches_border.tolist() == [False, False, True]
    assert table.edge_weight.tolist() == pytest.approx([40 * 60 / (36 * 56)] * 2 + [0])


def test_concentric_particles_have_distance_zero():
    labels = ellipse_mask(30, 30).astype(int)
    labels[ellipse_mask(10, 10)] = 2
    assert measure_particles(labels).nearest_distance.max() < 0.2


def test_positions_start_at_the_origin():
    labels = np.zeros((10, 10), int)
    labels[2:4, 5:8] = 1
    row = one(labels, origin=(100, 2000))
    assert (row.centroid_y, row.centroid_x) == (102.5, 2006)
    assert (row.bbox_y0, row.bbox_x0, row.bbox_y1, row.bbox_x1) == (102, 2005, 104, 2008)


def test_image_brings_its_pixel_size_and_origin():
    labels = np.zeros((10, 10), np.int32)
    labels[2:4, 5:8] = 1
    size = PixelSize((1.2, 1.2), "nm", "tag")
    table = measure_particles(Image(labels, "YX", size, origin=(7, 9)), intensity=Image(labels * 3.0, "YX"))
    assert table.area[0] == pytest.approx(6 * 1.44) and table.bbox_y0[0] == 9 and table.intensity_mean[0] == 3
    assert table.attrs["unit"] == "nm" and table.attrs["pixel_size_source"] == "tag"
    assert table.attrs["units"]["area"] == "nm²" and table.attrs["frame_shape"] == [10, 10]


def test_unknown_pixel_size_is_said():
    table = measure_particles(np.ones((3, 3), int))
    assert table.attrs["unit"] == "px" and table.attrs["pixel_size"] is None
    assert table.attrs["units"]["feret_min"] == "px" and table.attrs["units"]["area"] == "px²"


def test_tables_of_several_images_keep_their_unit():
    labels = random_labels(1)
    nm = measure_particles(labels, pixel_size=PixelSize((1.5, 1.5), "nm"))
    um = measure_particles(labels[:80], pixel_size=PixelSize((0.0015, 0.0015), "um"))
    empty = measure_particles(np.zeros((4, 4), int), pixel_size=PixelSize((1, 1), "nm"))
    table = combine_tables({"a.tif": nm, "b.tif": um, "c.tif": empty})
    assert table.columns[0] == "image" and table.image.value_counts().to_dict() == {"a.tif": len(nm), "b.tif": len(um)}
    assert table.attrs["unit"] == "nm" and table.attrs["units"]["area"] == "nm²" and table.attrs["frame_shape"] is None
    shared = measure_particles(labels[:80], pixel_size=PixelSize((1.5, 1.5), "nm"))
    part = table[table.image == "b.tif"].reset_index(drop=True)
    np.testing.assert_allclose(part[["area", "feret_min"]], shared[["area", "feret_min"]], rtol=1e-9)
    assert part.touching_neighbours.dtype == part.label.dtype == np.int64 and part.touches_border.dtype == bool
    assert size_distribution(table, num_bootstrap=0).unit == "nm"
    assert convert_table(nm, "um").attrs["pixel_size"] == pytest.approx([0.0015] * 2)
    assert len(combine_tables({"c.tif": empty})) == 0
    with pytest.raises(UserError, match="d.tif"):
        combine_tables({"a.tif": nm, "d.tif": measure_particles(labels)})
    with pytest.raises(UserError, match="unknown"):
        convert_table(measure_particles(labels), "nm")
    with pytest.raises(UserError, match="no table"):
        combine_tables({})


# Odd input


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (4, 6), (1, 1)])
def test_no_particle(shape):
    table = measure_particles(np.zeros(shape, np.int32), intensity=np.zeros(shape), quantities=ALL)
    assert len(table) == 0 and list(table.columns) == ["label", *ALL]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 3000)])
def test_one_particle_fills_the_image(shape):
    row = one(np.ones(shape, np.uint16), intensity=np.ones(shape, np.uint8), quantities=ALL)
    assert row.area == shape[0] * shape[1] and row.feret_min == min(shape) and row.touches_border
    assert row.edge_weight == 0 and row.intensity_std == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">u2"])
def test_label_types_gaps_and_huge_numbers(dtype):
    labels = np.zeros((8, 8), dtype)
    top = int(np.iinfo(dtype).max)
    labels[1:3, 1:3], labels[5, 5] = 3, top
    table = measure_particles(labels)
    assert [int(label) for label in table.label] == [3, top] and table.area.tolist() == [4, 1]


def test_particle_in_pieces_is_one_row():
    labels = np.zeros((20, 20), int)
    labels[2, 3], labels[10:12, 3], labels[15, 18] = 4, 4, 4
    row = one(labels)
    assert row.area == 4 and row.feret_max == pytest.approx(math.hypot(14, 16))


def test_missing_grey_values_are_left_out():
    labels = np.array([[1, 1, 1, 0], [2, 2, 0, 3]])
    grey = np.array([[1.0, np.nan, 4.0, 9.0], [np.nan, np.inf, 5.0, -2.0]])
    table = measure_particles(labels, intensity=grey)
    assert table.intensity_mean[0] == 2.5 and table.intensity_median[0] == 2.5 and table.intensity_std[0] == 1.5
    assert table.filter(like="intensity").iloc[1].isna().all()
    assert table.intensity_min[2] == table.intensity_max[2] == table.intensity_median[2] == -2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64, bool])
def test_grey_statistics_of_all_types(dtype, monkeypatch):
    monkeypatch.setattr("keras_microseg.measurement.objects._CHUNK_PIXELS", 500)  # several chunks
    labels = random_labels(11)
    grey = np.random.default_rng(1).integers(0, 250, labels.shape).astype(dtype)
    table = measure_particles(labels, intensity=grey).set_index("label")
    for label in table.index:
        values = grey[labels == label].astype(np.float64)
        expected = [values.mean(), np.median(values), values.min(), values.max(), values.std()]
        found = table.loc[
            label, ["intensity_mean", "intensity_median", "intensity_min", "intensity_max", "intensity_std"]
        ]
        assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_strips_and_lazy_arrays_give_the_same(monkeypatch, tmp_path):
    labels = random_labels(4)
    grey = np.random.default_rng(1).random(labels.shape)
    whole = measure_particles(labels, intensity=grey)
    monkeypatch.setattr("keras_microseg.segmentation.runs._STRIP_PIXELS", 400)
    monkeypatch.setattr("keras_microseg.segmentation.runs._RUNS_AT_ONCE", 30)
    monkeypatch.setattr("keras_microseg.measurement.shape._CHUNK", 30)
    np.save(tmp_path / "labels.npy", labels)
    assert measure_particles(np.load(tmp_path / "labels.npy", mmap_mode="r"), intensity=grey).equals(whole)


def test_only_what_is_asked_for():
    labels = random_labels(2)
    table = measure_particles(labels, quantities=["feret_max", "label", "area"])
    assert list(table.columns) == ["label", "feret_max", "area"]
    full = measure_particles(labels)
    assert table.equals(full[["label", "feret_max", "area"]])
    assert "elongation" not in full and "intensity_mean" not in full


@pytest.mark.parametrize(
    ("labels", "arguments", "words"),
    [
        (np.ones(3, int), {}, "2-D"),
        (np.ones((3, 3), bool), {}, "label_components"),
        (np.ones((3, 3)), {}, "whole numbers"),
        (np.full((3, 3), -1), {}, "negative"),
        (np.ones((3, 3), int), {"intensity": np.ones((3, 4))}, r"\(3, 4\)"),
        (np.ones((3, 3), int), {"intensity": np.ones((3, 3), complex)}, "real"),
        (np.ones((3, 3), int), {"quantities": ["area", "colour"]}, "colour"),
        (np.ones((3, 3), int), {"quantities": ["intensity_mean"]}, "intensity"),
        (np.ones((3, 3), int), {"pixel_size": 1.2}, "PixelSize"),
        (np.ones((3, 3), int), {"pixel_size": PixelSize((1, 1, 1), "nm")}, "2-D"),
    ],
)
def test_refusals_say_what_to_do(labels, arguments, words):
    with pytest.raises(UserError, match=words):
        measure_particles(labels, **arguments)


def test_every_quantity_is_defined_computed_and_documented():
    assert set(FORMULAS) == set(QUANTITIES)
    for name, quantity in QUANTITIES.items():
        assert f"\n        {name}: " in measure_particles.__doc__
        assert quantity.meaning and quantity.reference
        assert quantity.kind in ("area", "length", "ratio", "angle", "pixel", "count", "flag", "weight", "grey")
    sheet = describe_quantities(unit="nm")
    assert sheet.quantity.tolist() == list(QUANTITIES)
    assert sheet.set_index("quantity").unit[["area", "feret_min", "circularity"]].tolist() == ["nm²", "nm", ""]
    assert describe_quantities(["label", "feret_max"]).quantity.tolist() == ["feret_max"]


def test_measuring_needs_no_keras():
    code = "import sys, keras_microseg.measurement; sys.exit(any(m in sys.modules for m in ('keras', 'jax', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_true_sizes_of_the_published_masks(real_data):
    """All 40 manual masks, rows above the data bar, 4-connected, >= 10 px, frame excluded; 7.344 nm per pixel.

    The expected numbers (mean, median, standard deviation in nm) were computed independently, with other code.
    """
    paths = sorted((real_data / "bam_tio2" / "masks_manual").glob("*.tif"))
    if len(paths) != 40:
        pytest.skip(f"needs all 40 masks of bam_tio2, found {len(paths)}")
    tables = []
    for path in paths:
        labels, _ = ndimage.label(imread(path)[:704] > 0)
        tables.append(measure_particles(labels, pixel_size=PixelSize((7.344, 7.344), "nm")))
    table = pd.concat(tables)
    table = table[(table.area >= 9.5 * 7.344**2) & ~table.touches_border]
    assert len(table) == 5643
    for name, expected in (
        ("feret_min", (159.5, 155.8, 73.6)),
        ("feret_max", (233.8, 228.1, 92.0)),
        ("equivalent_diameter", (176.2, 173.0, 78.3)),
    ):
        found = table[name].mean(), table[name].median(), table[name].std()
        assert found == pytest.approx(expected, abs=0.06), name
