"""Grains of class maps: discs of known size, moments worked out by hand, spheres and their sections."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement.grains import folk_ward, grain_summary, measure_grains, pore_sizes, unfold_spheres


def discs(shape, centres, radius):
    y, x = np.indices(shape)
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx in centres], axis=0)


def test_grains_that_touch_are_cut_apart_and_those_at_the_ground_are_cut():
    classes = np.zeros((160, 220), np.uint8)
    classes[discs(classes.shape, [(50, 50), (50, 88), (110, 130)], 20)] = 1  # two touch
    classes[:, 200:] = 255  # no sample there
    classes[discs(classes.shape, [(110, 190)], 20) & (classes != 255)] = 1  # cut by the ground
    table = measure_grains(classes, ("matrix", "quartz"), pixel_size=PixelSize((2.0, 2.0), "um"), leave_out=("matrix",))
    assert len(table) == 4 and set(table["class"]) == {"quartz"}
    whole = table[~table["touches_border"]]
    assert len(whole) == 3 and (whole["edge_weight"] > 1).all()
    np.testing.assert_allclose(whole["equivalent_diameter"], 80, rtol=0.05)
    summary = grain_summary(table)
    assert summary["grains"].tolist() == [3]
    assert summary["D50"][0] == pytest.approx(80, rel=0.05)
    assert summary["phi_mean"][0] == pytest.approx(-np.log2(0.08), abs=0.1)
    assert summary["size"][0] == "very fine sand" and summary["sorted"][0] == "very well sorted"


def test_a_map_without_grains_has_none():
    table = measure_grains(np.zeros((50, 60), np.uint8), ("pore", "quartz"), leave_out=("pore",))
    assert len(table) == 0 and {"class", "area", "edge_weight"} <= set(table.columns)
    assert len(grain_summary(table)) == 0


def test_windows_of_a_map_count_every_size_as_often_as_the_whole():
    rng = np.random.default_rng(0)
    classes = np.zeros((1500, 1500), np.uint8)
    y, x = np.mgrid[:80, :80] - 40
    for i, j in np.ndindex(15, 15):
        radius = rng.choice([10, 38])
        classes[i * 100 : i * 100 + 80, j * 100 : j * 100 + 80][y**2 + x**2 <= radius**2] = 1
    table = measure_grains(classes, "ab", window=230, max_windows=49, leave_out="a")
    large = table["equivalent_diameter"] > 40
    share = table["edge_weight"][large].sum() / table["edge_weight"].sum()
    inside = (table["edge_weight"] > 0) & large
    assert share == pytest.approx(0.5, abs=0.12) and inside.sum() / (table["edge_weight"] > 0).sum() < share


def test_folk_and_ward_by_hand():
    phi = np.linspace(1, 3, 2001)  # evenly spread: percentiles are 1 + 2 q
    found = folk_ward(2.0**-phi * 1000, np.ones_like(phi), "um")
    assert found.mean == pytest.approx(2, abs=1e-3)
    assert found.sorting == pytest.approx(1.36 / 4 + 1.8 / 6.6, abs=2e-3)
    assert found.skewness == pytest.approx(0, abs=1e-3)
    assert found.kurtosis == pytest.approx(1.8 / 2.44, abs=2e-3)
    assert (found.size, found.sorted) == ("medium sand", "moderately well sorted")
    with pytest.raises(UserError, match="real lengths"):
        folk_ward(phi, phi, "px")


def test_spheres_come_back_from_their_sections():
    rng = np.random.default_rng(0)
    radius = np.where(rng.random(400_000) < 0.7, 5.0, 10.0)  # 70 % small ones
    height = rng.uniform(-10, 10, len(radius))
    cut = np.abs(height) < radius  # the plane meets large ones more often
    sections = 2 * np.sqrt(radius[cut] ** 2 - height[cut] ** 2)
    table = unfold_spheres(sections, num_bins=10)
    share = table["density"] / table["density"].sum()
    small = np.abs(table["diameter"] - 10) <= 2
    large = np.abs(table["diameter"] - 20) <= 0.1
    assert share[small].sum() == pytest.approx(0.7, abs=0.03)
    assert share[large].sum() == pytest.approx(0.3, abs=0.03)


def test_pores_of_one_size():
    classes = np.ones((300, 300), np.uint8)
    classes[discs(classes.shape, [(60, 60), (60, 200), (200, 130)], 15)] = 0
    table = pore_sizes(classes, [0], pixel_size=PixelSize((3.0, 3.0), "um"))
    assert table["share"].sum() == pytest.approx(1)
    assert table["diameter"][table["share"].argmax()] == pytest.approx(90, rel=0.15)
    assert pore_sizes(classes[:20], [0]).empty
