"""The delta-net that ships with the package."""

from pathlib import Path

import numpy as np
import pytest

import keras_microseg
from keras_microseg.inference.change import ChangePredictor, ModeSettings, predict_series
from keras_microseg.models.saving import load_model
from keras_microseg.simulation.filaments import simulate_video

pytestmark = pytest.mark.network
MODEL = Path(keras_microseg.__file__).parent / "models" / "weights" / "filament.keras"


def test_finds_simulated_filaments_that_it_was_never_trained_on():
    assert MODEL.stat().st_size < 12e6
    predictor = ChangePredictor(*load_model(MODEL))
    video = simulate_video(3, num_frames=2, shape=256).series
    masks = predict_series(predictor, video, ModeSettings("backward")).masks
    for task, least in (("A1", 0.8), ("A2", 0.5)):
        truth = video.read_masks(task)
        assert (masks[task] & truth).sum() / (masks[task] | truth).sum() > least
    assert not (masks["A2"] & ~masks["A1"]).any() and masks["A1"].dtype == np.bool_
