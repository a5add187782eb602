"""A small training on one or two devices: `parallel_run.py DEVICES OUT [NORM]`."""

import os
import sys

DEVICES, OUT = int(sys.argv[1]), sys.argv[2]
NORM = sys.argv[3] if len(sys.argv) > 3 else "group"


class Task:
    """A network on the batches of `small_run.Blobs`."""

    def build(self):
        import keras
        from small_run import Blobs

        from keras_microseg import layers, losses
        from keras_microseg.metrics.tracked import ForegroundIoU
        from keras_microseg.training.schedules import OptimizerSettings

        keras.utils.set_random_seed(7)
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
        x = keras.layers.GroupNormalization(2)(x) if NORM == "group" else layers.BatchNorm(momentum=0.8)(x)
        model = keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(keras.layers.ReLU()(x)))
        return {
            "model": model, "train_data": Blobs(1), "validation_data": Blobs(99, 2), "loss": losses.SoftDice(),
            "epochs": 2, "metrics": [ForegroundIoU(name="iou")], "workers": 0,
            "optimizer": OptimizerSettings("adam", 1e-2, clip_norm=0.5),
        }  # fmt: skip


if __name__ == "__main__":
    if os.environ["KERAS_BACKEND"] == "tensorflow" and DEVICES > 1:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)

    from keras_microseg.training.parallel import train_on_devices

    train_on_devices(Task(), DEVICES, OUT)
