import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.data.targets import instance_maps
from keras_microseg.metrics.instance import match, pool
from keras_microseg.segmentation.decode import DecodeSettings, labels_from_maps
from keras_microseg.simulation import simulate_micrograph

OUTPUTS = ("foreground", "boundary", "distance")


def test_true_maps_give_back_the_particles():
    settings = DecodeSettings(min_area=1, min_seed_area=1, fill=False)
    matches = []
    for seed in range(12):
        labels = simulate_micrograph(np.random.default_rng(seed), (128, 160), diameter=(14, 40)).labels
        found = labels_from_maps(instance_maps(labels, OUTPUTS), OUTPUTS, settings)
        np.testing.assert_array_equal(found > 0, labels > 0)
        matches.append(match(labels, found))
    assert pool(matches).f1 > 0.95, "only particles with two hearts (dumbbells) may be split"


def test_labels_run_without_gaps_and_small_particles_go():
    labels = np.zeros((40, 60), np.int32)
    labels[5:20, 5:20], labels[25:27, 30:32], labels[5:25, 35:55] = 1, 2, 3
    found = labels_from_maps(instance_maps(labels, OUTPUTS), OUTPUTS, DecodeSettings(min_area=5))
    assert set(np.unique(found)) == {0, 1, 2}
    assert found.dtype == np.int32 and found[25, 30] == 0


def test_holes_are_filled_on_demand():
    labels = np.zeros((30, 30), np.int32)
    labels[5:25, 5:25] = 1
    maps = instance_maps(labels, ("foreground", "distance"))
    maps[14:16, 14:16, 0] = 0
    for fill in (True, False):
        found = labels_from_maps(maps, ("foreground", "distance"), DecodeSettings(fill=fill))
        assert (found[14, 14] > 0) == fill


def test_foreground_alone_gives_components():
    maps = np.zeros((20, 40, 1), np.float32)
    maps[5:15, 5:15], maps[5:15, 20:30] = 0.9, 0.8
    assert labels_from_maps(maps, ("foreground",)).max() == 2


def test_channels_must_be_named():
    with pytest.raises(UserError, match="foreground"):
        labels_from_maps(np.zeros((4, 4, 1)), ("distance",))
