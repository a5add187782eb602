"""A small adversarial training for the tests; as a script it kills itself: arguments OUT_DIR EPOCH STEP."""

import os
import signal
import sys

import keras
import numpy as np

from keras_microseg import layers
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.training.adversarial import train_adversarial
from keras_microseg.training.cyclegan import CycleGAN
from keras_microseg.training.schedules import OptimizerSettings

LINEAR = OptimizerSettings("adam", 1e-2, "linear", decay_start=0.5, final_factor=0.0, options={"beta_1": 0.5})


class Noise:
    """Batches of random images in `low`..1, each a pure function of (epoch, index); kills its process at `kill_at`."""

    def __init__(self, count, *shapes, low=-1.0, kill_at=None):
        self.count, self.shapes, self.low, self.kill_at, self.epoch = count, shapes, low, kill_at, 0

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if (self.epoch, index) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng([5, self.epoch, index])
        arrays = tuple(rng.uniform(self.low, 1, shape).astype("float32") for shape in self.shapes)
        return arrays if len(arrays) > 1 else arrays[0]


def small_translation(**options):
    """Single convolutions, with a layer that owns random numbers."""

    def network(name, noise):
        inputs = keras.Input((4, 4, 1))
        x = keras.layers.GaussianNoise(noise)(inputs) if noise else inputs
        x = layers.BatchNorm(momentum=0.8)(layers.Conv2D(2, 3, padding="same")(x))
        return keras.Model(inputs, layers.Conv2D(1, 1, name="out")(x), name=name)

    networks = [network(f"n{i}", noise) for i, noise in enumerate((0, 0, 0.1, 0.1))]
    options = {"pool_size": 3, "optimizer": LINEAR, "identity_weights": (0, 0.5)} | options
    return CycleGAN(*(draw_kernels(network, seed=i) for i, network in enumerate(networks)), **options)


def run_small(out_dir, system=None, low=-1.0, kill_at=None, data=None, **options):
    system = system or small_translation()
    data = data or Noise(4, (2, 4, 4, 1), (2, 4, 4, 1), low=low, kill_at=kill_at)
    arguments = {"epochs": 3, "seed": 4, "checkpoint_steps": 1, "average": {"generator_a": 0.9}} | options
    return system, train_adversarial(system, data, out_dir=out_dir, **arguments)


if __name__ == "__main__":
    run_small(sys.argv[1], kill_at=(int(sys.argv[2]), int(sys.argv[3])), workers=0)
