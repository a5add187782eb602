"""Detachment, damage and contacts against geometry, and against cathodes whose truth is known."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement.cathode_quantities import CATHODE_QUANTITIES, describe_cathode
from keras_microseg.measurement.cathode_table import CathodeMeasures, measure_cathode
from keras_microseg.measurement.contacts import clusters, contact_edges, neighbourhood, packing_density
from keras_microseg.measurement.damage import measure_damage
from keras_microseg.measurement.detachment import shell_detachment, surface_detachment
from keras_microseg.measurement.particle_crops import PhaseClasses, crops, fill_particle
from keras_microseg.simulation.cathodes import CRACK, CathodeSettings, make_cathode, plan_cathode

VOID, CBD, PARTICLE = 0, 1, 2


def sphere(shape, centre, radius, spacing=(1.0, 1.0, 1.0)):
    grid = np.indices(shape).astype(float)
    return np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True))) < radius


def crop_of(labels, phases, spacing=(1.0, 1.0, 1.0), margin=7.0, label=1, fill_radius=10.0):
    where = np.nonzero(labels == label)
    box = np.array([[*(w.min() for w in where), *(w.max() + 1 for w in where)]])
    found = crops(labels, phases, None, np.array([label]), box, size=spacing, margin=margin, fill_radius=fill_radius)
    return next(iter(found))[1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_sphere_partly_in_void(spacing, share):
    """A cap of a sphere has the area 2 pi r h, and its shell the same share of the volume about."""
    shape = (int(54 / spacing[0]), 54, 54)
    centre = [(n - 1) / 2 for n in shape]
    labels = sphere(shape, centre, 18, spacing).astype(np.int32)
    x = np.arange(54) - centre[2]
    normal = np.cos(np.arccos(1 - 2 * share))
    offset = np.indices(shape).astype(float)
    radius = np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(offset, centre, spacing, strict=True)))
    phases = np.where(x / np.maximum(radius, 1e-9) > normal, VOID, CBD).astype(np.uint8)  # a cone: D for every d
    phases[labels > 0] = PARTICLE
    crop = crop_of(labels, phases, spacing)
    for found in (surface_detachment(crop, (2, 3, 5)), shell_detachment(crop, (2, 3, 5))):
        np.testing.assert_allclose(found.value, share, atol=0.02)  # half a voxel of a radius of 18
        assert (found.error > 0.03).all() and (found.error < 0.12).all()
        np.testing.assert_array_equal(found.contact, 0)
        np.testing.assert_allclose(found.seen, 1)


def test_sphere_on_a_plane_of_another_particle_and_at_the_frame():
    shape = (50, 50, 50)
    labels = sphere(shape, (24.5, 24.5, 24.5), 16).astype(np.int32)
    labels[(np.indices(shape)[0] < 9) & (labels == 0)] = 2  # the sphere touches the top of a block
    phases = np.where(labels > 0, PARTICLE, CBD).astype(np.uint8)
    found = surface_detachment(crop_of(labels, phases), (1.0, 2.0, 4.0))
    np.testing.assert_array_equal(found.value, 0)
    # cap of height h = d + 0.5 + ... over the block: share h / 2 r grows with the distance
    assert (np.diff(found.contact) > 0).all() and abs(found.contact[2] - 4 / (2 * 16)) < 0.05
    phases[phases == CBD] = VOID
    np.testing.assert_array_equal(surface_detachment(crop_of(labels, phases), (2.0,)).value, 1)
    cut = (slice(None), slice(None), slice(25, None))  # half of the sphere is outside
    seen = surface_detachment(crop_of(np.ascontiguousarray(labels[cut]), np.ascontiguousarray(phases[cut])), (2.0,))
    assert seen.value[0] == 1 and seen.seen[0] > 0.9


def test_false_binder_layer_is_skipped():
    labels = sphere((50, 50, 50), (24.5, 24.5, 24.5), 16).astype(np.int32)
    phases = np.where(labels > 0, PARTICLE, VOID).astype(np.uint8)
    layer = sphere((50, 50, 50), (24.5, 24.5, 24.5), 17.2) & (labels == 0)
    phases[layer] = CBD
    crop = crop_of(labels, phases)
    assert surface_detachment(crop, (3.0,)).value[0] == 1
    assert shell_detachment(crop, (3.0,)).value[0] < 0.7
    assert shell_detachment(crop, (3.0,), skip=1.5).value[0] > 0.97


def test_damage_of_a_slab_crack():
    labels = sphere((46, 46, 46), (22.5, 22.5, 22.5), 18).astype(np.int32)
    slab = (np.abs(np.indices(labels.shape)[1] - 22.5) < 2) & sphere(labels.shape, (22.5,) * 3, 14)
    phases = np.where(labels > 0, PARTICLE, CBD).astype(np.uint8)
    phases[slab] = 3
    truth = slab.sum() / (labels > 0).sum()
    whole = measure_damage(crop_of(labels, phases))
    assert whole.damage == pytest.approx(truth)
    fragments = np.where(slab, 0, labels)  # the label leaves the crack out: filling finds it again
    assert measure_damage(crop_of(fragments, None)).damage == pytest.approx(truth, rel=0.02)
    assert measure_damage(crop_of(fragments, phases)).damage == pytest.approx(truth, rel=0.02)
    area = 2 * np.pi * 14**2 + 2 * np.pi * 14 * 4 * 0.5  # two discs and half of a rim that smoothing rounds
    assert whole.inner_surface == pytest.approx(area, rel=0.15)
    assert whole.outer_surface == pytest.approx(4 * np.pi * 18**2, rel=0.02)
    assert whole.profile[:, 0].sum() == slab.sum() and whole.profile[0, 0] == 0  # none at the outline
    assert measure_damage(crop_of(labels, np.where(labels > 0, PARTICLE, CBD).astype(np.uint8))).damage == 0


def test_filling_closes_cracks_but_not_wide_gaps():
    mask = np.zeros((30, 40, 30), bool)
    mask[5:25, 5:17, 5:25] = mask[5:25, 20:33, 5:25] = True
    assert fill_particle(mask, 3.0)[15, 18, 15] and not fill_particle(mask, 0.5)[15, 18, 15]
    shell = sphere((30, 30, 30), (14.5,) * 3, 12) & ~sphere((30, 30, 30), (14.5,) * 3, 6)
    np.testing.assert_array_equal(fill_particle(shell, 0), sphere((30, 30, 30), (14.5,) * 3, 12))


@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 2, 3), (1, 1, 0)])
def test_contact_area_of_two_spheres(direction):
    """Equal spheres of radius r, centres 2 h apart, share a disc of area pi (r^2 - h^2)."""
    unit = np.array(direction) / np.linalg.norm(direction)
    first = np.array([26.0, 26.0, 26.0])
    second = first + 26 * unit
    shape = (76, 76, 76)
    grid = np.indices(shape).astype(float)
    distance = [np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, middle, strict=True))) for middle in (first, second)]
    labels = np.where((distance[0] < 16) & (distance[0] <= distance[1]), 4, np.where(distance[1] < 16, 9, 0))
    edges = contact_edges(labels.astype(np.uint32), np.array([4, 9]), (0.5, 0.5, 0.5))
    assert edges[["label_a", "label_b"]].to_numpy().tolist() == [[4, 9]]
    assert edges["area"][0] == pytest.approx(np.pi * (16**2 - 13**2) * 0.25, rel=0.06)
    np.testing.assert_allclose(edges[["normal_z", "normal_y", "normal_x"]].to_numpy()[0], unit, atol=0.05)
    assert clusters(edges, np.array([4, 7, 9])).tolist() == [1, 2, 1]


def test_neighbourhood_and_packing():
    grid = np.stack(np.meshgrid(*[np.arange(4) * 10.0] * 3, indexing="ij"), -1).reshape(-1, 3)
    axes = np.tile([0.0, 0.0, 1.0], (64, 1))
    found = neighbourhood(grid, axes, {"volume": np.ones(64)})
    inner = ((grid > 5) & (grid < 25)).all(axis=1)
    np.testing.assert_allclose(found["neighbour_distance"][inner], 10)
    np.testing.assert_allclose(found["alignment"], 1)
    np.testing.assert_allclose(found["std_volume"], 0)
    assert np.isnan(neighbourhood(grid[:1], axes[:1], {"volume": np.ones(1)})["std_volume"]).all()
    labels = np.zeros((20, 20, 20), np.int32)
    labels[:10] = 1
    density = packing_density(labels, np.array([[10.0, 10, 10], [4, 10, 10], [18, 10, 10]]), 8.0, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(density, [0.5, 1.0, 0.0])


@pytest.fixture(scope="module")
def cathode():
    settings = CathodeSettings(shape=(72, 84, 84), diameter=24, spread=0.15, seed=2)
    block, table = make_cathode(settings)
    truth = dict(zip(table["label"], plan_cathode(settings).detachment(labels=table["label"])[:, 0], strict=True))
    measured = measure_cathode(
        block.labels, block.phases, block.grey, CathodeMeasures(distance=2.5, collector="z0"),
        voxel_size=PixelSize((0.1, 0.1, 0.1), "um"),
    )  # fmt: skip
    return block, truth, measured


def test_detachment_of_a_cathode_is_recovered(cathode):
    block, truth, measured = cathode
    inner = measured.particles[~measured.particles["is_edge"]]
    assert len(inner) >= 8
    error = inner["detachment"] - inner["label"].map(truth)
    assert abs(error.mean()) < 0.02 and error.abs().max() < 0.05
    cracks = np.bincount(block.labels[block.phases == CRACK], minlength=block.labels.max() + 1)
    sizes = np.bincount(block.labels.ravel(), minlength=len(cracks))
    np.testing.assert_allclose(inner["damage"], cracks[inner["label"]] / sizes[inner["label"]], atol=0.01)
    assert len(measured.particles) == (sizes[1:] >= 100).sum()


def test_table_has_units_and_definitions(cathode):
    _, _, measured = cathode
    table = measured.particles
    assert table.attrs["units"]["outer_surface"] == "um²" and table.attrs["units"]["detachment"] == ""
    missing = set(CATHODE_QUANTITIES) - set(table.columns) - {"group"}
    assert not missing
    assert set(describe_cathode(table, "um")["quantity"]) == set(table.columns) - {"label"}
    inner = table[~table["is_edge"]]
    assert inner["sphericity"].between(0.85, 1.03).all() and (inner["axis_ratio"] >= 1).all()
    np.testing.assert_allclose(inner["collector_depth"], (inner["centroid_z"] + 0.5) * 0.1)
    assert set(table["size_class"]) == {"small", "medium", "large"}
    np.testing.assert_allclose(measured.sweep["distance"].unique(), np.array([1, 2, 2.5, 3, 4, 5]) * 0.1)
    degree = measured.contacts["label_a"].value_counts().add(measured.contacts["label_b"].value_counts(), fill_value=0)
    with_degree = table.set_index("label")["coordination_number"]
    np.testing.assert_array_equal(with_degree.reindex(degree.index), degree)


def test_lazy_slabs_give_the_same_numbers(cathode, tmp_path):
    block, _, measured = cathode
    from keras_microseg import io

    for name, part in zip(("grey", "labels", "phases"), block, strict=True):
        with io.create_volume(tmp_path / f"{name}.zarr", part.shape, part.dtype, chunks=(16, 40, 40)) as writer:
            writer[...] = part
    opened = [io.open_volume(tmp_path / f"{name}.zarr").data for name in ("labels", "phases", "grey")]
    how = CathodeMeasures(distance=2.5, collector="z0", max_ram="2MB")
    again = measure_cathode(*opened, how, voxel_size=PixelSize((0.1, 0.1, 0.1), "um"))
    for name in ("particles", "sweep", "contacts", "crack_profile"):
        ours, theirs = getattr(again, name), getattr(measured, name)
        assert ours.equals(theirs), name


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((np.zeros((4, 4, 4), np.float32),), "whole numbers"), ((np.zeros((4, 4), np.int32),), "D, H, W"),
     ((np.zeros((4, 4, 4), np.int32), np.zeros((4, 4, 5), np.uint8)), "4, 4, 5"),
     ((np.zeros((4, 4, 4), np.int32), np.zeros((4, 4, 4), np.float32)), "thresholds")],
)  # fmt: skip
def test_bad_volumes(arguments, word):
    with pytest.raises(UserError, match=word):
        measure_cathode(*arguments)


def test_bad_settings_and_empty_volumes():
    with pytest.raises(UserError, match="one role"):
        PhaseClasses(void=(0,), cbd=(0, 1))
    with pytest.raises(UserError, match="void and of"):
        PhaseClasses(void=())
    with pytest.raises(UserError, match="skip"):
        CathodeMeasures(distances=(1.0, 2.0), distance=1.0, skip=1.5)
    with pytest.raises(UserError, match="collector"):
        CathodeMeasures(collector="top")
    empty = measure_cathode(np.zeros((5, 6, 7), np.int32), np.zeros((5, 6, 7), np.uint8))
    assert len(empty.particles) == len(empty.sweep) == len(empty.contacts) == 0
