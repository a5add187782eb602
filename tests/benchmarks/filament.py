"""Speed and memory of the delta-net on the active backend, one thread; what the original needs is printed beside it.

    KERAS_BACKEND=torch python tests/benchmarks/filament.py data step predict ensemble memory twin

`data`      memory of all frames and masks of the data set (MICROSEG_DATA), time to make a batch
`step`      CPU s per training pair, full network, 256 x 256 (original: 3.1)
`predict`   CPU s per U-Net image and per pair (original: 0.35 and 0.9)
`ensemble`  all pairs of a 28-frame video: every frame encoded once, against the whole network per pair (28 pairs are
            run and multiplied), and the largest difference of the probabilities; `--size` below 256 is quicker
`memory`    peak of the process during training steps of 16 pairs at 256 x 256 (original: 8.6 GB)
`twin`      training step against the same network written directly in the framework
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_microseg.losses import FocalClassLoss  # noqa: E402
from keras_microseg.models import delta_net as networks  # noqa: E402

WEIGHTS = {"A1": (1.185, 16.888, 16.888, 26.369), "A2": (1.072, 34.236, 34.236, 118.406)}
RATE, DECAY, EPSILON, MOMENTUM = 1e-3, 0.01, 1e-5, 0.9


def clock(call, repetitions=2):
    """Least process CPU time after a first call that compiles."""
    call()
    best = float("inf")
    for _ in range(repetitions):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def say(text):
    print(f"{BACKEND:10s} {text}", flush=True)


def batch(count, size, channels, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((count, size, size, 2 * channels), dtype=np.float32)
    return x, rng.integers(0, 4, (count, size, size, 2)).astype(np.float32)


def training_step(settings, x, y):
    """Our compiled step: call it for one update."""
    model = networks.delta_net(settings)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY, epsilon=1e-8)
    optimizer.build(model.trainable_variables)
    loss, forward = FocalClassLoss(settings.tasks, WEIGHTS), backend.make_forward(model)

    def fn(x, y):
        variables = model.trainable_variables
        value, gradients = backend.value_and_grad(
            lambda: loss(y, forward(x, training=True)), variables, state=model.non_trainable_variables
        )
        backend.apply_gradients(optimizer, gradients, variables)
        return value

    step = backend.compile_step(fn, [*model.variables, *optimizer.variables])
    return lambda: float(step(x, y))


def measure_data(options):
    from keras_microseg.data.augment import FrameAugmentSettings
    from keras_microseg.data.frame_pairs import FramePairs, FrameStore
    from keras_microseg.io.frame_layouts import open_series_set

    root = Path(os.environ.get("MICROSEG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    names = ("102_R1", "102_R2", "302", "103", "301")
    store = FrameStore([s.reaction for s in open_series_set(root / "etem_filaments", names)], ("A1", "A2"))
    pairs = sum(n * n for n in store.lengths)
    say(f"{sum(store.lengths)} labelled frames, {pairs} pairs: {store.nbytes / 1e6:.1f} MB (original: 26 GB for 9463)")
    start = time.process_time()
    shares = store.class_shares()
    say(f"exact class shares of all pairs: {time.process_time() - start:.2f} CPU s; {shares['A1'].round(5)}")
    data = FramePairs(store, 100, 16, 0, augment=FrameAugmentSettings())
    say(f"a batch of 16 augmented pairs: {clock(lambda: data[1]) * 1e3:.0f} CPU ms")


def measure_step(options):
    settings = networks.NetworkSettings()
    x, y = batch(options.batch, options.size, settings.in_channels)
    seconds = clock(training_step(settings, x, y)) / options.batch
    say(
        f"training, {options.size} px, batches of {options.batch}: {seconds:.2f} CPU s per pair (original, 256 px: 3.1)"
    )


def measure_predict(options):
    size = options.size
    settings = networks.NetworkSettings()
    x, _ = batch(1, size, settings.in_channels)
    from keras_microseg.models.folding import fold_batch_norm

    unet = networks.frame_unet(networks.NetworkSettings(tasks=("A1",)))
    image = backend.compile_predict(fold_batch_norm(unet))
    say(f"U-Net, {size} px: {clock(lambda: image(x[..., :3])):.3f} CPU s per image (original, 256 px: 0.35)")
    whole = backend.compile_predict(networks.delta_net(settings))
    cut = networks.PairNetwork(networks.delta_net(settings), settings)

    def pair():
        parts = [cut.project(cut.encode(x[..., i : i + 3])) for i in (0, 3)]
        return cut.compare(*parts)

    say(f"delta-net as a whole, {size} px: {clock(lambda: whole(x)):.3f} CPU s per pair (original, 256 px: 0.9)")
    say(f"delta-net cut in three, {size} px: {clock(pair):.3f} CPU s per pair")


def measure_ensemble(options):
    from keras_microseg.inference.change import ChangePredictor, ModeSettings, predict_series
    from keras_microseg.io.frames import FrameSeries

    count, size = options.frames, options.size
    settings = networks.NetworkSettings()
    model = networks.delta_net(settings)
    rng = np.random.default_rng(0)
    for variable in model.weights:  # so that nothing is trivially 0 or 1
        if "norm" in variable.path:
            values = rng.normal(0, 0.2, variable.shape)
            variable.assign(variable + (np.abs(values) if "variance" in variable.path else values))
    images = rng.integers(0, 255, (count, size, size)).astype(np.uint8)
    numbers = np.arange(count)
    video = FrameSeries("video", images, numbers, numbers.astype(float), tuple(f"{n}.png" for n in numbers))
    card = {"kind": "delta_net", "network": {}, "frame_input": {}}
    predictor = ChangePredictor(model, card)
    soft = ModeSettings("ensemble", "soft", swapped=False, second=False, inside=False, visible=False)
    predict_series(predictor, video.take(slice(0, 3)), soft)  # compiles
    start = time.process_time()
    once = predict_series(predictor, video, soft).probabilities
    ours = time.process_time() - start

    whole = backend.compile_predict(model)
    x = predictor.frame_input.make(images, np.ones(images.shape, bool), (127.5, 127.5))
    sums, number = {task: 0.0 for task in settings.tasks}, 0
    whole(np.concatenate([x[0], x[0]], -1)[None])
    start = time.process_time()
    for partner in range(count):
        logits = whole(np.concatenate([x[number], x[partner]], -1)[None])
        for task, z in logits.items():
            e = np.exp(z[0] - z[0].max(-1, keepdims=True))
            sums[task] = sums[task] + (e[..., 2:].sum(-1) / e.sum(-1)) / count
    pairwise = (time.process_time() - start) * count
    difference = max(float(np.abs(sums[task] - once[task][number]).max()) for task in settings.tasks)
    say(
        f"{count} frames of {size} px, {count**2} pairs: once {ours:.1f} CPU s, pair by pair {pairwise:.1f} CPU s, "
        f"{pairwise / ours:.1f} times; largest difference {difference:.1e}"
    )


def measure_memory(options):
    settings = networks.NetworkSettings()
    x, y = batch(16, 256, settings.in_channels)
    step = training_step(settings, x, y)
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    say(f"16 pairs of 256 px: peak of the process {peak:.2f} GiB (original: 8.6 GB)")


# ------------------------------------------------------------------------ the same network written in each framework


def draw(settings, make):
    """Weights and statistics in the order of use."""
    rng, weights, statistics = np.random.default_rng(0), [], []
    f = settings.features
    widths = [f * 2**level for level in range(settings.levels + 1)]

    def conv(i, o):
        weights.append(make(rng.normal(0, (2 / 9 / i) ** 0.5, (3, 3, i, o)).astype("f")))
        weights.extend((make(np.ones(o, "f")), make(np.zeros(o, "f"))))
        statistics.extend((make(np.zeros(o, "f")), make(np.ones(o, "f"))))

    for i, o in zip([settings.in_channels, *widths], widths, strict=False):
        conv(i, o), conv(o, o)
    for o in reversed(widths[:-1]):
        weights.extend((make(rng.normal(0, 0.1, (2, 2, o, 2 * o)).astype("f")), make(np.zeros(o, "f"))))
        conv(2 * o, o), conv(o, o)
    for _ in settings.tasks:
        sizes = [2 * f, *settings.widths]
        for i, o in zip(sizes, sizes[1:], strict=False):
            conv(i, o)
        weights.extend((make(rng.normal(0, 0.1, (1, 1, sizes[-1], 4)).astype("f")), make(np.zeros(4, "f"))))
    return weights, statistics


def forward(x, weights, statistics, settings, ops):
    """Logits per task and the statistics after both frames have passed."""
    conv, norm, relu, pool, up, concat = ops
    shared = 3 * 2 * (2 * settings.levels + 1) + 2 * settings.levels
    kept = list(statistics)

    def block(x, parts, place, times=2):
        for _ in range(times):
            x = conv(x, next(parts))
            x, kept[place[0]], kept[place[0] + 1] = norm(
                x, next(parts), next(parts), kept[place[0]], kept[place[0] + 1]
            )
            place[0] += 2
            x = relu(x)
        return x

    def branch(x, place):
        parts, skips = iter(weights[:shared]), []
        for _ in range(settings.levels):
            x = block(x, parts, place)
            skips.append(x)
            x = pool(x)
        x = block(x, parts, place)
        for _ in range(settings.levels):
            x = up(x, next(parts)) + next(parts)
            x = block(concat([x, skips.pop()]), parts, place)
        return x

    c, place = settings.in_channels, [0]
    maps = []
    for i in range(2):
        place = [0]
        maps.append(branch(x[..., i * c : (i + 1) * c], place))
    pair, parts, logits = concat(maps), iter(weights[shared:]), []
    for _ in settings.tasks:
        z = block(pair, parts, place, len(settings.widths))
        logits.append(conv(z, next(parts)) + next(parts))
    return logits, kept


def focal(logits, y, lib):
    """The loss in the functions of `lib`: softmax, one_hot, log, sum, mean."""
    total, s = 0.0, 1e-5
    for i, (task, z) in enumerate(zip(WEIGHTS, logits, strict=True)):
        true = lib.one_hot(y[..., i])
        p = lib.sum(true * lib.softmax(z))
        pt = p * (1 - s - s / 3) + s / 3 + s
        total = total + lib.mean(lib.sum(true * lib.constant(WEIGHTS[task])) * (1 - pt) ** 2 * -lib.log(pt))
    return total


class Lib:
    """Five functions of a framework by one name each."""

    def __init__(self, **functions):
        self.__dict__.update(functions)


def torch_twin(settings, x, y):
    import torch
    from torch.nn import functional

    def make(values):
        if values.ndim == 4:  # (h, w, in, out) -> (out, in, h, w); transposed (h, w, out, in) -> (in, out, h, w)
            values = values.transpose(3, 2, 0, 1)
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.to(memory_format=torch.channels_last) if values.ndim == 4 else tensor

    weights, statistics = draw(settings, make)
    for weight in weights:
        weight.requires_grad_(True)

    def norm(x, scale, shift, mean, variance):
        return functional.batch_norm(x, mean, variance, scale, shift, True, 1 - MOMENTUM, EPSILON), mean, variance

    def conv(x, w):
        return functional.conv2d(x, w, padding=w.shape[-1] // 2)

    ops = (
        conv,
        norm,
        functional.relu,
        lambda x: functional.max_pool2d(x, 2),
        lambda x, w: functional.conv_transpose2d(x, w, stride=2),
        lambda parts: torch.cat(parts, 1),
    )
    lib = Lib(
        one_hot=lambda y: functional.one_hot(y.long(), 4).float(),
        softmax=lambda z: torch.softmax(z.permute(0, 2, 3, 1), -1),
        sum=lambda v: v.sum(-1),
        mean=torch.mean,
        log=torch.log,
        constant=torch.tensor,
    )
    for i, weight in enumerate(weights):  # biases of convolutions are added to (n, c, h, w)
        is_bias = (
            weight.ndim == 1
            and i > 0
            and weights[i - 1].ndim == 4
            and (i + 1 == len(weights) or weights[i + 1].ndim == 4)
        )
        if is_bias:
            weights[i] = weight.detach().reshape(-1, 1, 1).requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=DECAY)
    frames, labels = torch.from_numpy(x), torch.from_numpy(y)
    c = settings.in_channels

    class Channels:
        """Slices channels of a channels-first tensor by the channels-last index of `forward`."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __getitem__(self, key):
            return self.tensor[:, key[-1]]

    first = frames.permute(0, 3, 1, 2)
    assert first.shape[1] == 2 * c

    def step():
        optimizer.zero_grad()
        logits, _ = forward(Channels(first), weights, statistics, settings, ops)
        loss = focal(logits, labels, lib)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def jax_twin(settings, x, y):
    import jax
    import jax.numpy as jnp
    from jax import lax

    weights, statistics = draw(settings, jnp.asarray)
    numbers = ("NHWC", "HWIO", "NHWC")

    def norm(x, scale, shift, mean, variance):
        m = x.mean((0, 1, 2))
        v = (x * x).mean((0, 1, 2)) - m * m
        y = (x - m) * (lax.rsqrt(v + EPSILON) * scale) + shift
        return y, MOMENTUM * mean + (1 - MOMENTUM) * m, MOMENTUM * variance + (1 - MOMENTUM) * v

    ops = (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers),
        norm,
        jax.nn.relu,
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=numbers, transpose_kernel=True),
        lambda parts: jnp.concatenate(parts, -1),
    )
    lib = Lib(
        one_hot=lambda y: jax.nn.one_hot(y.astype("int32"), 4),
        softmax=jax.nn.softmax,
        sum=lambda v: v.sum(-1),
        mean=jnp.mean,
        log=jnp.log,
        constant=jnp.asarray,
    )

    def loss_fn(weights, statistics, x, y):
        logits, kept = forward(x, weights, statistics, settings, ops)
        return focal(logits, y, lib), kept

    def update(state, x, y):
        weights, statistics, m, v, t = state
        (loss, statistics), g = jax.value_and_grad(loss_fn, has_aux=True)(weights, statistics, x, y)
        t = t + 1
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        rate = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights = [
            w * (1 - RATE * DECAY) - rate * a / (jnp.sqrt(b) + 1e-8) for w, a, b in zip(weights, m, v, strict=True)
        ]
        return (weights, statistics, m, v, t), loss

    compiled = jax.jit(update, donate_argnums=0)
    state = [(weights, statistics, [w * 0 for w in weights], [w * 0 for w in weights], jnp.zeros(()))]

    def step():
        state[0], loss = compiled(state[0], x, y)
        return float(loss)

    return step


def tensorflow_twin(settings, x, y):
    import tensorflow as tf

    weights, statistics = draw(settings, tf.Variable)

    def norm(x, scale, shift, mean, variance):
        y, m, v = tf.compat.v1.nn.fused_batch_norm(
            x, scale, shift, mean, variance, EPSILON, is_training=True, exponential_avg_factor=1 - MOMENTUM
        )
        return y, m, v

    def up(x, w):
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
    lib = Lib(
        one_hot=lambda y: tf.one_hot(tf.cast(y, tf.int32), 4),
        softmax=tf.nn.softmax,
        sum=lambda v: tf.reduce_sum(v, -1),
        mean=tf.reduce_mean,
        log=tf.math.log,
        constant=tf.constant,
    )
    first, second = ([tf.Variable(tf.zeros_like(w)) for w in weights] for _ in range(2))
    count = tf.Variable(0.0)

    @tf.function
    def train(x, y):
        with tf.GradientTape() as tape:
            logits, kept = forward(x, weights, statistics, settings, ops)
            loss = focal(logits, y, lib)
        count.assign_add(1.0)
        rate = RATE * tf.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        for w, g, m, v in zip(weights, tape.gradient(loss, weights), first, second, strict=True):
            m.assign(0.9 * m + 0.1 * g)
            v.assign(0.999 * v + 0.001 * g * g)
            w.assign(w * (1 - RATE * DECAY) - rate * m / (tf.sqrt(v) + 1e-8))
        for old, new in zip(statistics, kept, strict=True):
            old.assign(new)
        return loss

    x, y = tf.constant(x), tf.constant(y)
    return lambda: float(train(x, y))


def measure_twin(options):
    settings = networks.NetworkSettings(features=options.features)
    x, y = batch(options.batch, options.size, settings.in_channels)
    twins = {"torch": torch_twin, "jax": jax_twin, "tensorflow": tensorflow_twin}
    calls = training_step(settings, x, y), twins[BACKEND](settings, x, y)
    best = [float("inf")] * 2
    for call in calls * 2:
        call()
    for _ in range(options.repetitions):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            best[i] = min(best[i], time.process_time() - start)
    what = f"f = {options.features}, {options.size} px, {options.batch} pairs"
    say(f"training step ({what}): ours {best[0]:.3f} CPU s, twin {best[1]:.3f}, ratio {best[0] / best[1]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {name.removeprefix("measure_"): f for name, f in globals().items() if name.startswith("measure_")}
    parser.add_argument("what", nargs="+", choices=list(measures))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    say(backend.configure_device(device="cpu", threads=options.threads))
    for name in options.what:
        measures[name](options)


if __name__ == "__main__":
    main()
