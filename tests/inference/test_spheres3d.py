"""The volume model that ships with the package."""

import numpy as np
import pytest

from keras_microseg import io
from keras_microseg.image import Image
from keras_microseg.inference.volumes import DEFAULT_MODEL, open_volume_predictor, predict_volume
from keras_microseg.models.saving import read_card
from keras_microseg.segmentation.separation import separate
from keras_microseg.simulation.phantoms import PhantomSettings, make_phantom

pytestmark = pytest.mark.network


def test_card_and_size():
    card = read_card(DEFAULT_MODEL)
    assert card["ndim"] == 3 and card["outputs"] == ["foreground", "boundary", "distance"]
    assert card["multiple_of"] == [8, 8, 8] and card["halo"] == [24, 24, 24]
    assert DEFAULT_MODEL.stat().st_size < 3e6 and DEFAULT_MODEL.with_suffix(".md").is_file()


def test_spheres_whose_rims_alone_show_come_out_filled(tmp_path):
    look = PhantomSettings(shape=(48, 48, 48), diameter=15, fraction=0.2, contrast=0.01, fringe=0.25, seed=5)
    phantom = make_phantom(look)
    truth = phantom.labels > 0
    result = predict_volume(
        open_volume_predictor(), Image(phantom.volume, "ZYX"), tmp_path, maps=["foreground"], halo=8, suffix=".npy"
    )
    mask = np.asarray(io.open_volume(result.paths["foreground"]).data[...]) > 127
    dice = 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))
    assert dice > 0.93
    inner = (slice(16, 32),) * 3  # away from spheres cut by the border
    found, wanted = (len(np.unique(labels[inner])) for labels in (separate(mask), phantom.labels))
    assert abs(found - wanted) <= 1
