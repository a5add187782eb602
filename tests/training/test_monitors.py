"""Scores of translations and the stop on drift, with generators whose results are known."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.training.adversarial import StopTraining
from keras_microseg.training.monitors import StopOnDrift, TranslationScores


def tiles(count, seed):
    rng = np.random.default_rng(seed)
    masks = np.stack([ndimage.gaussian_filter(rng.standard_normal((48, 48)), 4) for _ in range(count)])
    masks = np.where(masks > 0.03, 1, -1).astype(np.float32)[..., None]
    return paint(masks, seed), masks


def paint(masks, seed=0):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.2, 0.5, (len(masks), 1, 1, 1))
    return (level * masks + 0.1 * rng.standard_normal(masks.shape)).astype(np.float32)


def test_a_perfect_generator_scores_as_real_images_do():
    real, masks = tiles(24, 0)
    scores = TranslationScores(real, masks)
    good = scores(lambda name, x: paint(x, 3), 0)
    assert good["texture_distance"] < 3 and good["variety"] > 0.5 and good["contrast"] > 1
    assert TranslationScores(real, masks, every=2)(lambda name, x: x, 0) == {}


def test_collapse_and_drift_end_the_training():
    real, masks = tiles(24, 1)
    scores = TranslationScores(real, masks)
    same = real[:1]
    collapsed = scores(lambda name, x: np.repeat(same, len(x), axis=0), 0)
    drifted = scores(lambda name, x: paint(-x), 0)
    assert collapsed["variety"] < 0.05 and drifted["contrast"] < 0
    for logs, word in ((collapsed, "collapse"), (drifted, "drift")):
        stop = StopOnDrift(patience=2, start=1)
        stop.on_epoch_end(0, logs)
        stop.on_epoch_end(1, logs)
        resumed = StopOnDrift(patience=2, start=1)
        resumed.set_state(stop.get_state())
        with pytest.raises(StopTraining, match=word):
            resumed.on_epoch_end(2, logs)


def test_dark_particles_have_positive_contrast_too():
    real, masks = tiles(24, 2)
    assert TranslationScores(-real, masks, polarity="dark")(lambda name, x: paint(-x), 0)["contrast"] > 1
