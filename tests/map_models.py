"""A small network of class maps with definite weights, for tests."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from harness import randomize

from keras_microseg.models import saving
from keras_microseg.simulation import Rock, RockSettings

CARD = {
    "name": "small", "outputs": ["pore", "quartz", "albite", "clay"], "multiple_of": 4, "halo": 16,
    "normalization": {"mode": "fixed", "low": 0.0, "high": 255.0},
    "classes": [
        {"id": 0, "name": "pore", "colour": [255, 255, 255]}, {"id": 1, "name": "quartz", "colour": [255, 192, 192]},
        {"id": 2, "name": "albite", "colour": [0, 255, 255]}, {"id": 3, "name": "clay", "colour": [0, 255, 0]},
    ],
}  # fmt: skip


def write_map_model(path: Path, **card) -> Path:
    """A U-Net of two levels, receptive field 32 px, random weights; `card` changes its card."""
    layers = keras.layers
    grey = keras.Input((None, None, 1))
    fine = layers.Conv2D(4, 3, padding="same")(grey)
    middle = layers.Conv2D(4, 3, padding="same")(layers.MaxPooling2D(2)(fine))
    coarse = layers.Conv2D(4, 3, padding="same")(layers.MaxPooling2D(2)(middle))
    joined = layers.Concatenate()([layers.UpSampling2D(2)(coarse), middle])
    joined = layers.Concatenate()([layers.UpSampling2D(2)(joined), fine])
    joined = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(joined))
    model = keras.Model(grey, layers.Conv2D(4, 1, activation="softmax")(joined))
    randomize(model, seed=5)
    # answers that are decided, and of all classes
    rock = Rock(RockSettings(shape=(256, 256), grain_size=30, sem_field=0)).sem[...] / np.float32(255)
    features = keras.Model(grey, model.layers[-1].input).predict(rock[None, :, :, None], verbose=0)[0].reshape(-1, 6)
    direction = np.array([1, -1, 1, -1, 1, -1]) / (features.std(axis=0) + 1e-6)
    value = features @ direction
    centres = np.linspace(*np.percentile(value, [2, 98]), 4)  # the class is that of the nearest
    sharpness = 4 / np.diff(centres).mean() ** 2
    model.layers[-1].kernel.assign((sharpness * 2 * direction[:, None] * (centres - centres[0]))[None, None])
    model.layers[-1].bias.assign(-sharpness * (centres**2 - centres[0] ** 2))
    return saving.save_model(model, path, {**CARD, **card})
