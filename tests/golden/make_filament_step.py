"""Writes `filament_step.npz`: two training steps of a tiny delta-net and what it then predicts, by stored numbers.

KERAS_BACKEND=torch python tests/golden/make_filament_step.py
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("filament_step.npz")


def make_video(count=4, size=32):
    """A bar that shrinks, with a core, in noise; (images, valid, masks) from integers only."""
    from keras_microseg.io.frames import FrameSeries

    rng = np.random.default_rng(5)
    images = rng.integers(150, 200, (count, size, size)).astype(np.uint8)
    a1, a2 = np.zeros((2, *images.shape), bool)
    for i in range(count):
        a1[i, 8:24, 4 : 28 - 4 * i] = True
        a2[i, 12:20, 4 : 26 - 5 * i] = True
    images[a1] -= 70
    images[a2] += 30
    images[:, :, :3] = 178
    valid = np.ones(images.shape, bool)
    valid[:, :, :3] = False
    numbers = np.arange(count) * 10
    files = tuple(f"{n}.png" for n in numbers)
    masks = {"A1": a1, "A2": a2}
    return FrameSeries("golden", images, numbers, numbers / 2, files, masks=masks, fill=178, valid=valid)


def compute():
    """Losses of two AdamW steps on fixed pairs, sums of the weights after them, probabilities of the ensemble."""
    import keras

    from keras_microseg import backend
    from keras_microseg.data.frame_pairs import FrameInput, FramePairs, FrameStore, class_weights
    from keras_microseg.inference.change import ChangePredictor, predict_series
    from keras_microseg.losses import FocalClassLoss
    from keras_microseg.models.delta_net import NetworkSettings, delta_net
    from keras_microseg.models.initialization import draw_kernels
    from keras_microseg.training.schedules import OptimizerSettings

    video = make_video()
    store = FrameStore([video], ("A1", "A2"))
    data = FramePairs(store, 2, 4, 3, frame_input=FrameInput(1))
    model = draw_kernels(delta_net(NetworkSettings(features=4, levels=2, in_channels=1)), 1)
    loss = FocalClassLoss(("A1", "A2"), class_weights(store.class_shares()))
    optimizer = OptimizerSettings(
        learning_rate=1e-3, schedule="constant", weight_decay=0.01, decay_all=True, options={"epsilon": 1e-8}
    ).build(model.trainable_variables, 1, 2)

    def fn(x, y):
        variables = model.trainable_variables
        value, gradients = backend.value_and_grad(
            lambda: loss(y, model(x, training=True)), variables, state=model.non_trainable_variables
        )
        backend.apply_gradients(optimizer, gradients, variables)
        return value

    step = backend.compile_step(fn, [*model.variables, *optimizer.variables])
    losses = [float(step(*data[i])) for i in range(2)]
    weights = {w.path: keras.ops.convert_to_numpy(w.value).astype(float) for w in model.weights}
    card = {
        "kind": "delta_net",
        "network": {"features": 4, "levels": 2, "in_channels": 1},
        "frame_input": {"channels": 1},
    }
    found = predict_series(ChangePredictor(model, card), video)
    return {
        "losses": np.array(losses),
        "sums": np.array([[w.sum(), np.abs(w).sum()] for w in weights.values()]),
        "A1": found.probabilities["A1"],
        "A2": found.probabilities["A2"],
    }


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from keras_microseg import backend

    backend.select()
    np.savez_compressed(PATH, **compute())
