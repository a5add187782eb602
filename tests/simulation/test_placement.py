import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.simulation import PlacementSettings, draw_shapes, lognormal_diameters, place, rasterize
from keras_microseg.simulation.placement import MODES

KINDS = {"disc": 1, "polygon": 1, "rod": 0.5}


def simulate(seed, mode="random", count=60, shape=(160, 200), median=20.0, **settings_):
    rng = np.random.default_rng(seed)
    settings = PlacementSettings(mode=mode, **settings_)
    layout = place(rng, shape, lognormal_diameters(rng, count, median, 0.2), draw_shapes(rng, count, KINDS), settings)
    return layout, rasterize(layout, shape, max_overlap=settings.max_overlap)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_labelled_particles(mode):
    layout, raster = simulate(0, mode)
    labels = raster.labels
    assert labels.shape == (160, 200) and labels.dtype == np.int32
    assert labels.max() == len(raster.source) - 1 >= 10
    assert set(np.unique(labels)) == set(range(labels.max() + 1)), "labels run without gaps"
    for label in range(1, labels.max() + 1):
        assert ndimage.label(labels == label)[1] == 1, "each label is one 4-connected region"
    assert (raster.edge[labels > 0] < 1).all() and (raster.edge[labels == 0] > 1).all()
    assert raster.source[0] == -1 and raster.source[1:].max() < len(layout)


@given(st.integers(0, 10_000), st.sampled_from(MODES))
@settings(max_examples=25, deadline=None)
def test_same_seed_same_image(seed, mode):
    np.testing.assert_array_equal(simulate(seed, mode, 20)[1].labels, simulate(seed, mode, 20)[1].labels)


def test_overlap_limit_holds():
    _, free = simulate(1, max_overlap=1.0, count=150)
    _, none = simulate(1, max_overlap=0.0, count=150)
    assert free.depth.max() > 1
    assert none.depth.max() == 1


def test_later_particles_lie_on_top():
    from keras_microseg.simulation.particles import discs
    from keras_microseg.simulation.placement import Layout

    rng = np.random.default_rng(0)
    pair = Layout(np.array([20.3, 20.3]), np.array([20.4, 30.4]), np.array([20.0, 20]), np.zeros(2), discs(rng, 2))
    raster = rasterize(pair, (40, 50))
    label_at_second = raster.labels[20, 30]
    assert raster.source[label_at_second] == 1
    # the disc on top keeps its whole area: pi / 4 x 20^2 = 314 pixels, up to the pixel grid
    assert abs((raster.labels == label_at_second).sum() - 314) < 6


def test_noise_threshold_leaves_empty_area():
    layout, _ = simulate(2, "noise", count=400, noise_threshold=0.8, noise_scale=3)
    uniform, _ = simulate(2, "random", count=400)
    cells = [np.histogram2d(x.y, x.x, bins=8, range=[[0, 160], [0, 200]])[0] for x in (layout, uniform)]
    assert (cells[0] == 0).mean() > 0.3 > (cells[1] == 0).mean()


def test_lattice_has_the_asked_spacing():
    layout, _ = simulate(3, "hexagonal", jitter=0.0, spacing=1.2)
    from scipy.spatial import cKDTree

    position = np.column_stack([layout.y, layout.x])
    nearest = cKDTree(position).query(position, k=2)[0][:, 1]
    expected = 1.2 * lognormal_diameters(np.random.default_rng(3), 60, 20.0, 0.2).mean()
    np.testing.assert_allclose(np.median(nearest), expected, rtol=1e-6)


def test_correlated_rotation_is_smooth():
    layout, _ = simulate(4, "hexagonal", rotation="correlated", jitter=0.0)
    from scipy.spatial import cKDTree

    position = np.column_stack([layout.y, layout.x])
    _, index = cKDTree(position).query(position, k=2)
    steps = np.abs(layout.angle[index[:, 1]] - layout.angle)
    assert np.median(steps) < 0.5 * np.std(layout.angle)


def test_no_particles_is_an_empty_image():
    _, raster = simulate(0, count=0)
    assert raster.labels.max() == 0


@pytest.mark.parametrize("bad", [{"mode": "grid"}, {"max_overlap": 1.5}, {"cluster_size": 0}, {"noise_threshold": 1.0}])
def test_settings_are_checked(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        PlacementSettings(**bad)
