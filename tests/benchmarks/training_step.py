"""Training step and inference of a U-Net on the active backend against a twin written directly in that framework.

    KERAS_BACKEND=torch python tests/benchmarks/training_step.py --size 128 --batch 4
    KERAS_BACKEND=torch python tests/benchmarks/training_step.py --size 128 --batch 4 --classes 5

With `--classes` the network is that of `mineral train` (`models.unet`, nearest up-sampling, softmax) and the loss
Dice + focal.

Prints process CPU time (the least of several repetitions, alternating) of our step, of the twin's, and the ratio, which
should be at most 1.25. The twins: torch, an `nn.Module` in channels-last memory; TensorFlow, one `tf.function` with the
fused batch normalization; JAX, a pure function under `jit` with donated state. All use Adam, binary cross-entropy and
"same" convolutions; batch statistics are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_microseg import layers, losses, models  # noqa: E402

MOMENTUM, EPSILON = 0.9, 1e-5


def network(size: int, filters: int, depth: int) -> keras.Model:
    inputs = keras.Input((size, size, 1))

    def block(x, width):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNorm(momentum=MOMENTUM, epsilon=EPSILON)(x)
            x = keras.layers.ReLU()(x)
        return x

    x, skips = inputs, []
    for level in range(depth):
        x = block(x, filters * 2**level)
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = block(x, filters * 2**depth)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2, padding="same")(x)
        x = block(keras.layers.Concatenate()([skips[level], x]), filters * 2**level)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def class_network(size: int, filters: int, depth: int, classes: int) -> keras.Model:
    model = models.unet((size, size, 1), classes, [filters * 2**level for level in range(depth + 1)], "softmax")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.epsilon = MOMENTUM, EPSILON
    return model


def our_step(model, x, y):
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.BinaryCrossentropy() if y.shape[-1] == 1 else losses.DiceFocal()

    def fn(x, y):
        variables = model.trainable_variables
        value, gradients = backend.value_and_grad(
            lambda: loss(y, model(x, training=True)), variables, state=model.non_trainable_variables
        )
        backend.apply_gradients(optimizer, gradients, variables)
        return value

    step = backend.compile_step(fn, [*model.variables, *optimizer.variables])
    return lambda: float(step(x, y))


def dice_focal(p, y, total, mean, log, clip):
    """Dice + focal loss of softmax maps by four functions of a framework; classes last."""
    both, sizes = total(p * y), total(p) + total(y)
    clipped = clip(p)
    return 1 - mean((2 * both + 1e-5) / (sizes + 1e-5)) + mean(-0.25 * y * (1 - clipped) ** 2 * log(clipped))


def torch_twin(filters, depth, x, y):
    import torch
    from torch import nn

    classes = y.shape[-1]

    def block(inputs, outputs):
        parts = []
        for width in (inputs, outputs):
            parts += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*parts)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [filters * 2**level for level in range(depth + 1)]
            self.down = nn.ModuleList(block(a, b) for a, b in zip([1, *widths], widths, strict=False))
            self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
            if classes > 1:
                self.up = nn.ModuleList(nn.Upsample(scale_factor=2) for _ in widths[:-1])
            joined = 2 if classes == 1 else 3
            self.merge = nn.ModuleList(block(joined * w, w) for w in reversed(widths[:-1]))
            self.head = nn.Conv2d(filters, classes, 1)

        def forward(self, x):
            skips = []
            for down in self.down[:-1]:
                x = down(x)
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = self.down[-1](x)
            for up, merge in zip(self.up, self.merge, strict=True):
                x = merge(torch.cat([skips.pop(), up(x)], 1))
            return torch.sigmoid(self.head(x)) if classes == 1 else torch.softmax(self.head(x), 1)

    model = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (x, y))

    def step():
        optimizer.zero_grad()
        p = model.train()(x)
        if classes == 1:
            loss = nn.functional.binary_cross_entropy(p, y)
        else:
            loss = dice_focal(p, y, lambda a: a.sum((0, 2, 3)), torch.mean, torch.log, lambda a: a.clip(1e-7, 1 - 1e-7))
        loss.backward()
        optimizer.step()
        return loss.item()

    def predict():
        with torch.inference_mode():
            return model.eval()(x).permute(0, 2, 3, 1).numpy()

    return step, predict


def parameters(filters, depth, make, classes):
    """Weights and statistics in the order of use: dictionaries of what `make(values)` gives."""
    rng, weights, statistics = np.random.default_rng(0), [], []
    widths = [filters * 2**level for level in range(depth + 1)]

    def block(inputs, outputs):
        for width in (inputs, outputs):
            weights.append(make(rng.normal(0, (2 / 9 / width) ** 0.5, (3, 3, width, outputs)).astype("f")))
            weights.extend((make(np.ones(outputs, "f")), make(np.zeros(outputs, "f"))))
            statistics.extend((make(np.zeros(outputs, "f")), make(np.ones(outputs, "f"))))

    for a, b in zip([1, *widths], widths, strict=False):
        block(a, b)
    for w in reversed(widths[:-1]):
        if classes == 1:
            weights.append(make(rng.normal(0, 0.1, (2, 2, w, 2 * w)).astype("f")))
            weights.append(make(np.zeros(w, "f")))
        block(2 * w if classes == 1 else 3 * w, w)
    weights.append(make(rng.normal(0, 0.1, (1, 1, filters, classes)).astype("f")))
    weights.append(make(np.zeros(classes, "f")))
    return weights, statistics


def forward(x, weights, statistics, depth, training, ops, classes):
    """The network by six functions of a framework; returns probabilities and new statistics."""
    conv, norm, relu, pool, up, concat = ops
    weights, statistics, kept = iter(weights), iter(statistics), []

    def block(x):
        for _ in range(2):
            x = conv(x, next(weights))
            x, mean, variance = norm(x, next(weights), next(weights), next(statistics), next(statistics), training)
            kept.extend((mean, variance))
            x = relu(x)
        return x

    skips = []
    for _ in range(depth):
        x = block(x)
        skips.append(x)
        x = pool(x)
    x = block(x)
    for _ in range(depth):
        x = up(x) if classes > 1 else up(x, next(weights)) + next(weights)
        x = block(concat([skips.pop(), x]))
    return conv(x, next(weights)) + next(weights), kept


def jax_twin(filters, depth, x, y):
    import jax
    import jax.numpy as jnp
    from jax import lax

    classes = y.shape[-1]
    weights, statistics = parameters(filters, depth, jnp.asarray, classes)
    numbers = ("NHWC", "HWIO", "NHWC")

    def norm(x, scale, shift, mean, variance, training):
        if training:
            m = x.mean((0, 1, 2))
            v = (x * x).mean((0, 1, 2)) - m * m
            kept = MOMENTUM * mean + (1 - MOMENTUM) * m, MOMENTUM * variance + (1 - MOMENTUM) * v
        else:
            m, v, kept = mean, variance, (mean, variance)
        return (x - m) * (lax.rsqrt(v + EPSILON) * scale) + shift, *kept

    ops = (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers),
        norm,
        jax.nn.relu,
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x, w=None: (
            jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            if w is None
            else lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=numbers, transpose_kernel=True)
        ),
        lambda parts: jnp.concatenate(parts, -1),
    )

    def loss_fn(weights, statistics, x, y):
        z, kept = forward(x, weights, statistics, depth, True, ops, classes)
        if classes > 1:
            sums = lambda a: a.sum((0, 1, 2))  # noqa: E731
            loss = dice_focal(jax.nn.softmax(z), y, sums, jnp.mean, jnp.log, lambda a: jnp.clip(a, 1e-7, 1 - 1e-7))
            return loss, kept
        return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))), kept

    def update(state, x, y):
        weights, statistics, m, v, t = state
        (loss, statistics), g = jax.value_and_grad(loss_fn, has_aux=True)(weights, statistics, x, y)
        t = t + 1
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        rate = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights = [w - rate * a / (jnp.sqrt(b) + 1e-7) for w, a, b in zip(weights, m, v, strict=True)]
        return (weights, statistics, m, v, t), loss

    compiled = jax.jit(update, donate_argnums=0)
    last = jax.nn.sigmoid if classes == 1 else jax.nn.softmax
    infer = jax.jit(lambda w, s, x: last(forward(x, w, s, depth, False, ops, classes)[0]))
    frozen = jax.tree.map(jnp.copy, (weights, statistics))
    state = [(weights, statistics, [w * 0 for w in weights], [w * 0 for w in weights], jnp.zeros(()))]

    def step():
        state[0], loss = compiled(state[0], x, y)
        return float(loss)

    return step, lambda: np.asarray(infer(*frozen, x))


def tensorflow_twin(filters, depth, x, y):
    import tensorflow as tf

    classes = y.shape[-1]
    weights, statistics = parameters(filters, depth, tf.Variable, classes)

    def norm(x, scale, shift, mean, variance, training):
        y, m, v = tf.compat.v1.nn.fused_batch_norm(
            x, scale, shift, mean, variance, EPSILON, is_training=training, exponential_avg_factor=1.0
        )
        return y, m, v

    def up(x, w=None):
        if w is None:
            return tf.repeat(tf.repeat(x, 2, 1), 2, 2)
        shape = tf.shape(x)
        return tf.nn.conv2d_transpose(x, w, (shape[0], 2 * shape[1], 2 * shape[2], w.shape[2]), 2, "SAME")

    ops = (
        lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"),
        norm,
        tf.nn.relu,
        lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
        up,
        lambda parts: tf.concat(parts, -1),
    )
    first, second = ([tf.Variable(tf.zeros_like(w)) for w in weights] for _ in range(2))
    count = tf.Variable(0.0)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            z, kept = forward(x, weights, statistics, depth, True, ops, classes)
            if classes == 1:
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, z))
            else:
                sums = lambda a: tf.reduce_sum(a, (0, 1, 2))  # noqa: E731
                clip = lambda a: tf.clip_by_value(a, 1e-7, 1 - 1e-7)  # noqa: E731
                loss = dice_focal(tf.nn.softmax(z), y, sums, tf.reduce_mean, tf.math.log, clip)
        count.assign_add(1.0)
        rate = 1e-3 * tf.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        for w, g, m, v in zip(weights, tape.gradient(loss, weights), first, second, strict=True):
            m.assign(0.9 * m + 0.1 * g)
            v.assign(0.999 * v + 0.001 * g * g)
            w.assign_sub(rate * m / (tf.sqrt(v) + 1e-7))
        for old, new in zip(statistics, kept, strict=True):
            old.assign(MOMENTUM * old + (1 - MOMENTUM) * new)
        return loss

    @tf.function
    def infer(x):
        z = forward(x, weights, statistics, depth, False, ops, classes)[0]
        return tf.sigmoid(z) if classes == 1 else tf.nn.softmax(z)

    x, y = tf.constant(x), tf.constant(y)
    return lambda: float(train(x, y)), lambda: infer(x).numpy()


def compare(name, ours, twin, repetitions):
    """Least process CPU time of each, run alternately after two warm-up calls."""
    best = [float("inf")] * 2
    for _ in range(2):
        ours(), twin()
    for _ in range(repetitions):
        for i, call in enumerate((ours, twin)):
            start = time.process_time()
            call()
            best[i] = min(best[i], time.process_time() - start)
    print(
        f"{BACKEND:10s} {name:14s} ours {best[0]:.3f} s  twin {best[1]:.3f} s  ratio {best[0] / best[1]:.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--classes", type=int, default=1, help="of a class map; 1 = a mask")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(backend.configure_device(device="cpu", threads=options.threads))
    rng = np.random.default_rng(0)
    x = rng.random((options.batch, options.size, options.size, 1), dtype=np.float32)
    y = (x > 0.5).astype(np.float32)
    if options.classes > 1:
        y = (np.minimum(x * options.classes, options.classes - 1).astype(int) == np.arange(options.classes)).astype("f")
    twins = {"torch": torch_twin, "jax": jax_twin, "tensorflow": tensorflow_twin}
    step, predict = twins[BACKEND](options.filters, options.depth, x, y)
    if options.classes > 1:
        model = class_network(options.size, options.filters, options.depth, options.classes)
    else:
        model = network(options.size, options.filters, options.depth)
    compare("training step", our_step(model, x, y), step, options.repetitions)
    compiled = backend.compile_predict(model)
    compare("inference", lambda: compiled(x), predict, options.repetitions)


if __name__ == "__main__":
    main()
