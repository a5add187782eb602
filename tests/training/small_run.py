"""A small training for the tests; as a script it kills itself: `small_run.py OUT_DIR EPOCH STEP`."""

import os
import signal
import sys

import keras
import numpy as np

from keras_microseg import layers, losses
from keras_microseg.metrics.tracked import ForegroundIoU
from keras_microseg.training.schedules import OptimizerSettings
from keras_microseg.training.supervised import train


class Blobs(keras.utils.PyDataset):
    """Bright squares on noise; every batch a pure function of (seed, epoch, index)."""

    def __init__(self, seed, batches=4, kill_at=None):
        super().__init__()
        self.seed, self.batches, self.kill_at, self.epoch = seed, batches, kill_at, 0

    def __len__(self):
        return self.batches

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if (self.epoch, index) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng([self.seed, self.epoch, index])
        x = rng.normal(0.2, 0.1, (4, 8, 8, 1)).astype("float32")
        y = np.zeros_like(x)
        for i, (row, column) in enumerate(rng.integers(0, 5, (4, 2))):
            y[i, row : row + 3, column : column + 3] = 1
        return x + 0.6 * y, y


def build_model(dropout=0.2):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNorm(momentum=0.8)(layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs))
    x = keras.layers.Dropout(dropout)(keras.layers.ReLU()(x))
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="maps")(x))


def run(out_dir, kill_at=None, **settings):
    model = build_model()
    defaults = {
        "epochs": 3,
        "optimizer": OptimizerSettings("adam", 1e-2, schedule="plateau", plateau_patience=1),
        "validation_data": Blobs(99, 2),
        "metrics": [ForegroundIoU(name="iou")],
        "patience": 10,
        "checkpoint_steps": 1,
        "seed": 3,
    }
    arguments = defaults | settings
    result = train(model, Blobs(1, kill_at=kill_at), loss=losses.SoftDice(), out_dir=out_dir, **arguments)
    return model, result


if __name__ == "__main__":
    run(sys.argv[1], kill_at=(int(sys.argv[2]), int(sys.argv[3])), workers=0)
