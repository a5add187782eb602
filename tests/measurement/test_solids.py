"""Particles of volumes: known answers, the same values as scikit-image, lazy input, voxel sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.measurement import (
    convert_table,
    describe_quantities,
    label_particles,
    measure_particles,
    size_distribution,
)
from keras_microseg.measurement.quantities import SOLID_QUANTITIES
from keras_microseg.measurement.solids import SOLID_FORMULAS
from keras_microseg.segmentation.labeling import label_components


def ellipsoid(radii, shape=None, centre=None, spacing=(1, 1, 1)):
    """Voxels whose centres lie inside; radii, centre and spacing in real units."""
    shape = tuple(int(2 * r / s) + 5 for r, s in zip(radii, spacing, strict=True)) if shape is None else shape
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    middle = [(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)] if centre is None else centre
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, middle, radii, strict=True)) <= 1


def blobs(seed=0, shape=(24, 30, 28), sigma=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise > 0.6 * noise.std()


def test_every_quantity_has_a_formula_and_a_description():
    assert list(SOLID_FORMULAS) == list(SOLID_QUANTITIES)
    assert len(describe_quantities(ndim=3)) == len(SOLID_QUANTITIES)


def test_box():
    labels = np.zeros((12, 14, 16), np.uint32)
    labels[2:6, 3:9, 4:12] = 7
    row = measure_particles(labels, quantities=SOLID_QUANTITIES.keys() - {f"intensity_{n}" for n in
                            ("mean", "median", "min", "max", "std")}).iloc[0]  # fmt: skip
    assert row.label == 7 and row.volume == 4 * 6 * 8
    assert (row.bbox_z0, row.bbox_y0, row.bbox_x0, row.bbox_z1, row.bbox_y1, row.bbox_x1) == (2, 3, 4, 6, 9, 12)
    assert (row.centroid_z, row.centroid_y, row.centroid_x) == (3.5, 5.5, 7.5)
    # the ellipsoid of equal second moments of a box of edge a has the axis a sqrt(5 / 3)
    assert row.ellipsoid_major == pytest.approx(8 * np.sqrt(5 / 3)) and row.ellipsoid_minor == pytest.approx(
        4 * np.sqrt(5 / 3)
    )
    assert (row.axis_z, row.axis_y, row.axis_x) == (0, 0, 1)
    assert row.euler_number == 1 and not row.touches_border and row.coordination_number == 0
    assert row.feret_min == pytest.approx(4) and row.feret_max == pytest.approx(np.sqrt(16 + 36 + 64), rel=0.005)
    # mesh between voxel centres: faces 3 x 5, ... and bevelled edges and corners
    flat = 2 * (3 * 5 + 3 * 7 + 5 * 7) + 4 * (3 + 5 + 7) * np.sqrt(0.5) + 8 * np.sqrt(3) / 8
    corners = row.surface_area - (flat - 8 * np.sqrt(3) / 8)
    assert corners == pytest.approx(8 * np.sqrt(3) / 8, abs=0.8)  # an octant's triangle, whichever way it is cut
    assert row.edge_weight == pytest.approx(12 * 14 * 16 / ((12 - 5) * (14 - 7) * (16 - 9)))


@pytest.mark.parametrize("radius", [6.0, 10.3, 15.0])
def test_sphere(radius):
    table = measure_particles(ellipsoid((radius,) * 3).astype(int))
    row = table.iloc[0]
    assert row.equivalent_diameter == pytest.approx(2 * radius, rel=0.01)
    assert row.sphere_diameter == pytest.approx(2 * radius, abs=0.2) and row.sphere_residual < 0.4
    assert row.sphere_z == pytest.approx(row.centroid_z, abs=1e-6)
    area = 4 * np.pi * radius**2
    assert row.surface_area_crofton == pytest.approx(area, rel=0.02)
    assert 1.05 < row.surface_area / area < 1.11  # the stated bias of marching cubes on a binary volume
    assert row.sphericity == pytest.approx(0.92, abs=0.03) and row.sphericity_crofton == pytest.approx(1, abs=0.02)
    assert row.elongation == pytest.approx(1, abs=1e-6) and row.flatness == pytest.approx(1, abs=1e-6)


def test_anisotropic_voxels():
    size = PixelSize((3.0, 1.0, 1.5), "um")
    table = measure_particles(ellipsoid((18, 18, 18), spacing=size.size).astype(int), pixel_size=size)
    row = table.iloc[0]
    assert row.equivalent_diameter == pytest.approx(36, rel=0.01)
    assert row.sphere_diameter == pytest.approx(36, rel=0.015)
    assert row.surface_area_crofton == pytest.approx(4 * np.pi * 18**2, rel=0.03)
    assert row.ellipsoid_major == pytest.approx(36, rel=0.01) and row.ellipsoid_minor == pytest.approx(36, rel=0.01)
    assert table.attrs["units"]["volume"] == "um³" and table.attrs["units"]["sphere_z"] == "px"
    small = convert_table(table, "mm").iloc[0]
    assert small.volume == pytest.approx(row.volume * 1e-9) and small.surface_area == pytest.approx(
        row.surface_area * 1e-6
    )


def test_ellipsoid_axes_and_direction():
    mask = ellipsoid((6, 9, 14))
    row = measure_particles(np.swapaxes(mask, 0, 2).astype(int)).iloc[0]
    assert [row.ellipsoid_major, row.ellipsoid_middle, row.ellipsoid_minor] == pytest.approx([28, 18, 12], rel=0.01)
    assert abs(row.axis_z) == pytest.approx(1)
    assert row.elongation == pytest.approx(18 / 28, rel=0.02) and row.flatness == pytest.approx(12 / 18, rel=0.02)


def test_euler_number_counts_handles_and_cavities():
    ring = np.zeros((5, 9, 9), int)
    ring[1:4, 1:8, 1:8] = 1
    shell = ring.copy()
    ring[:, 3:6, 3:6] = 0
    shell[2, 4, 4] = 0
    assert measure_particles(ring).euler_number[0] == 0 and measure_particles(shell).euler_number[0] == 2


def test_same_values_as_skimage_on_random_solids():
    labels = label_components(blobs(), 8)
    grey = np.random.default_rng(1).random(labels.shape).astype(np.float32)
    ours = measure_particles(labels, intensity=grey)
    names = ("label", "area", "bbox", "centroid", "equivalent_diameter_area", "axis_major_length", "euler_number",
             "intensity_mean", "intensity_max", "intensity_std")  # fmt: skip
    theirs = measure.regionprops_table(labels, grey, properties=names)
    same = {"label": "label", "volume": "area", "equivalent_diameter": "equivalent_diameter_area",
            "bbox_z0": "bbox-0", "bbox_x1": "bbox-5", "centroid_z": "centroid-0", "centroid_x": "centroid-2",
            "intensity_mean": "intensity_mean", "intensity_max": "intensity_max", "intensity_std": "intensity_std",
            "euler_number": "euler_number"}  # fmt: skip
    for mine, other in same.items():
        np.testing.assert_allclose(ours[mine], theirs[other], rtol=1e-6, atol=1e-9, err_msg=mine)
    np.testing.assert_allclose(ours.ellipsoid_major**2, theirs["axis_major_length"] ** 2 + 20 / 12, rtol=1e-9)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        solid = np.pad(labels[box] == label, 1).astype(np.float32)
        vertices, faces, _, _ = measure.marching_cubes(solid, 0.5)
        assert ours.surface_area[label - 1] == pytest.approx(measure.mesh_surface_area(vertices, faces), rel=1e-5)


def test_contacts_and_coordination():
    labels = np.zeros((6, 6, 9), int)
    labels[1:4, 1:4, 1:4], labels[1:4, 1:4, 4:7], labels[4, 4, 7] = 1, 2, 3
    table = measure_particles(labels, pixel_size=PixelSize((2, 1, 1), "um"))
    assert table.coordination_number.tolist() == [1, 2, 1]  # 2 and 3 share a corner
    assert table.contact_area.tolist() == [18, 18, 0]
    assert table.nearest_distance[0] == 3


def test_border_and_best_fit_of_a_cut_sphere():
    mask = ellipsoid((12, 12, 12), shape=(14, 32, 32), centre=(4.0, 15.5, 15.5))
    row = measure_particles(mask.astype(int)).iloc[0]
    assert row.touches_border and row.edge_weight == 0
    assert row.sphere_diameter == pytest.approx(24, rel=0.02)  # faces at the frame are no surface
    assert row.sphere_z == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("slab", [1, 500, 1 << 30])
def test_slabs_and_lazy_volumes_give_the_same(monkeypatch, tmp_path, slab):
    labels = label_components(blobs(3), 4)
    grey = np.random.default_rng(1).random(labels.shape)
    whole = measure_particles(labels, intensity=grey)
    monkeypatch.setattr("keras_microseg.measurement.surfaces._SLAB_VOXELS", slab)
    monkeypatch.setattr("keras_microseg.segmentation.runs._STRIP_PIXELS", slab)
    np.save(tmp_path / "labels.npy", labels)
    found = measure_particles(np.load(tmp_path / "labels.npy", mmap_mode="r"), intensity=grey)
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-9, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.tuples(*[st.integers(1, 6)] * 3))
def test_sums_over_all_particles_hold_for_any_labels(seed, shape):
    labels = np.random.default_rng(seed).integers(0, 4, shape)
    table = measure_particles(labels)
    assert table.volume.sum() == np.count_nonzero(labels)
    touching = sum(
        np.count_nonzero((a != b) & (a != 0) & (b != 0))
        for axis in range(3)
        for a, b in [(np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:])]
    )
    assert table.contact_area.sum() == 2 * touching
    sparse = np.where(labels > 0, labels.astype(np.int64) * 10**15, 0)
    again = measure_particles(sparse)
    np.testing.assert_allclose(again.surface_area, table.surface_area)


def test_empty_and_single_voxel():
    empty = measure_particles(np.zeros((4, 5, 6), int))
    assert len(empty) == 0 and "surface_area" in empty
    one = np.zeros((3, 3, 3), int)
    one[1, 1, 1] = 1
    row = measure_particles(one).iloc[0]
    assert row.volume == 1 and row.surface_area == pytest.approx(np.sqrt(3)) and np.isnan(row.nearest_distance)


def test_size_distribution_weighs_by_volume():
    labels = np.zeros((9, 9, 20), int)
    labels[1:3, 1:3, 1:3], labels[1:7, 1:7, 8:14] = 1, 2
    spread = size_distribution(measure_particles(labels), weight="volume", border="include")
    assert spread.weights.tolist() == pytest.approx([8 / 224, 216 / 224])


def test_refusals():
    solid = np.ones((3, 3, 3), int)
    with pytest.raises(UserError, match="z, y, x"):
        measure_particles(solid, pixel_size=PixelSize((1, 1), "um"))
    with pytest.raises(UserError, match="distance of the slices"):
        measure_particles(Image(solid, "ZYX", metadata={"pixel_size_yx": {"size": (1, 1), "unit": "um"}}))
    with pytest.raises(UserError, match="Unknown quantities"):
        measure_particles(solid, quantities=["circularity"])


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", [(24, 30, 28), (40, 50)])
def test_labelling_and_measuring_in_one_go(connectivity, shape):
    mask = blobs(1, shape, 1.0)
    grey = np.random.default_rng(0).random(shape)
    labels, table = label_particles(mask, connectivity=connectivity, intensity=grey)
    assert np.array_equal(labels, label_components(mask, connectivity))
    assert table.equals(measure_particles(labels, intensity=grey))
