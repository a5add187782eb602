"""Statistics of phases against formulas."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement import measure_particles
from keras_microseg.measurement.phases import (
    local_thickness,
    number_density,
    phase_connectivity,
    phase_fraction,
    radial_distribution,
    representative_volume,
    specific_surface,
    two_point_function,
)


def ball(shape=(40, 40, 40), radius=12.0):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - (np.array(shape) - 1) / 2
    return (grid**2).sum(-1) <= radius**2


def test_fraction_profile_and_interval():
    rng = np.random.default_rng(1)
    mask = rng.random((32, 30, 28)) < 0.3
    found = phase_fraction(mask)
    assert found.value == mask.mean() and found.low < 0.3 < found.high and found.high - found.low < 0.02
    assert np.allclose(found.profile, mask.mean(axis=(1, 2))) and len(found.block_values) == 64
    hits = [abs(phase_fraction(rng.random((16, 16, 16)) < 0.3).value - 0.3) for _ in range(3)]
    assert max(hits) < 0.05


def test_specific_surface_of_a_ball_and_of_a_plane():
    mask = ball()
    density = specific_surface(mask, pixel_size=PixelSize((2.0,), "um"))
    inner = np.prod([40 / 39] * 3)  # cells between voxel centres stand for the whole
    assert density.area == pytest.approx(4 * np.pi * 24**2 * inner, rel=0.02)
    assert density.per_volume == pytest.approx(density.area / 80**3)
    assert 1.05 < density.area_marching_cubes / density.area < 1.11
    half = np.zeros((20, 20, 20), bool)
    half[:10] = True  # one face, none at the frame
    assert specific_surface(half).area_marching_cubes == pytest.approx(400 * 20 / 19, rel=1e-6)


def test_connectivity():
    mask = np.zeros((10, 8, 8), bool)
    mask[:, 1:3, 1:3] = True
    mask[4:6, 5:7, 5:7] = True
    found = phase_connectivity(mask)
    assert found.num_parts == 2 and found.percolates == (True, False, False)
    assert found.connected_share == found.largest_share == pytest.approx(40 / 48)
    assert phase_connectivity(np.zeros((3, 3, 3))).num_parts == 0


def test_two_point_function_of_noise_and_its_slope():
    mask = np.random.default_rng(0).random((32, 30, 28)) < 0.4
    table = two_point_function(mask, pixel_size=PixelSize((1.5,), "um"))
    assert table.probability[0] == pytest.approx(mask.mean(), abs=1e-6)
    assert table.probability[2:].to_numpy() == pytest.approx(0.16, abs=0.01)
    assert table.along_z[1] == pytest.approx((mask[1:] & mask[:-1]).mean(), abs=1e-6)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((48, 48, 48)), 3)
    solid = two_point_function(noise > 0)
    slope = np.mean([solid[f"along_{axis}"][1] - solid.probability[0] for axis in "zyx"])
    assert -4 * slope == pytest.approx(specific_surface(noise > 0).per_volume, rel=0.1)  # Debye


def test_representative_volume():
    mask = np.random.default_rng(0).random((40, 40, 40)) < 0.3
    table = representative_volume(mask, sizes=[2, 5, 10, 20])
    assert table.num_cubes.tolist() == [8000, 512, 64, 8]
    assert table["std"].to_numpy()[:3] == pytest.approx(np.sqrt(0.21 / table.edge[:3] ** 3), rel=0.3)
    assert len(representative_volume(mask)) >= 5


def test_local_thickness_of_a_ball_a_plate_and_voxels_that_are_not_cubes():
    plate = np.zeros((20, 24, 24), bool)
    plate[6:13] = True
    assert np.median(local_thickness(plate)[plate]) == pytest.approx(7)
    assert local_thickness(ball())[ball()].max() == pytest.approx(24, abs=3)
    thick = local_thickness(plate, pixel_size=PixelSize((2, 3, 3), "um"))
    assert np.median(thick[plate]) == pytest.approx(14)
    with pytest.raises(UserError, match="no thickness"):
        local_thickness(np.ones((3, 3, 3)))


def test_density_and_radial_distribution_of_random_points():
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 60, 60), np.int32)
    places = np.unique(rng.integers(0, 60, (3000, 3)), axis=0)
    labels[tuple(places.T)] = np.arange(1, len(places) + 1)
    table = measure_particles(labels, pixel_size=PixelSize((0.5,), "um"))
    density = number_density(table)
    assert density.count == (~table.touches_border).sum() and density.low < density.value < density.high
    assert density.value == pytest.approx(len(places) / 30**3, rel=0.03)  # places of one-voxel particles off the frame
    g = radial_distribution(table, num_bins=8)
    assert g.g.to_numpy()[2:] == pytest.approx(1, abs=0.15)
    empty = radial_distribution(table.iloc[:0].copy().pipe(_with_attrs, table))
    assert empty.g.isna().all()


def _with_attrs(table: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    table.attrs = source.attrs
    return table


def test_lazy_volumes(tmp_path):
    mask = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((20, 22, 24)), 2) > 0
    np.save(tmp_path / "mask.npy", mask)
    lazy = np.load(tmp_path / "mask.npy", mmap_mode="r")
    assert phase_fraction(lazy).value == mask.mean()
    assert specific_surface(lazy) == specific_surface(mask)
    assert phase_connectivity(lazy) == phase_connectivity(mask)


def test_refusals():
    with pytest.raises(UserError, match="D, H, W"):
        phase_fraction(np.ones((3, 3)))
    with pytest.raises(UserError, match="sizes"):
        representative_volume(np.ones((4, 4, 4)), sizes=[9])
