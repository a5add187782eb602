"""Steps of WGAN-GP and CycleGAN on the active backend against twins written directly in that framework.

    KERAS_BACKEND=torch python tests/benchmarks/adversarial_step.py wgan --filters 16 --batch 16
    KERAS_BACKEND=jax python tests/benchmarks/adversarial_step.py cyclegan --size 96 --filters 16 --blocks 3

Prints process CPU time (the least of several repetitions, alternating in one run) of our step, of the twin's, and the
ratio, which should be at most 1.25. `--full` takes the published sizes. Ours is a step of `train_adversarial` with its
callbacks and pools. The twins have the same networks, weights, losses, Adam, and an image pool: torch, functions on
tensors in whichever memory layout is faster; TensorFlow, one `tf.function` per phase; JAX, pure functions under `jit`
with donated state. Mean losses of both sides are printed; those of CycleGAN are equal, those of WGAN-GP differ by the
random numbers of dropout.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_microseg.models import (  # noqa: E402
    outline_critic,
    outline_generator,
    patchgan_discriminator,
    resnet_generator,
)
from keras_microseg.models.initialization import draw_kernels  # noqa: E402
from keras_microseg.training.adversarial import train_adversarial  # noqa: E402
from keras_microseg.training.cyclegan import CycleGAN  # noqa: E402
from keras_microseg.training.wgan_gp import WGANGP  # noqa: E402

DROPOUT, POOL, KEEP = (0.0, 0.3, 0.3, 0.0), 50, 0.99


# Networks by the functions `f` of a framework, reading weights in order.


def generate(f, weights, z, size, statistics):
    w = iter(weights)
    s = iter(statistics)
    x = f.leaky(f.batch_norm(f.dense(z, next(w)), next(w), next(w), next(s), next(s)))
    x = f.to_map(x, size // 8)
    for i in range(3):
        x = f.batch_norm(f.conv(f.up(x), next(w), 1, "SAME"), next(w), next(w), next(s), next(s))
        x = f.leaky(x) if i < 2 else f.tanh(x)
    return x


def criticize(f, weights, x):
    w = iter(weights)
    for rate in DROPOUT:
        x = f.leaky(f.add(f.conv(x, next(w), 2, "SAME"), next(w)))
        x = f.dropout(x, rate) if rate else x
    return f.dense(f.dropout(f.flatten(x), 0.2), next(w)) + next(w)


def translate(f, weights, x, blocks):
    w = iter(weights)

    def norm(x, relu=True):
        x = f.instance_norm(x, next(w), next(w))
        return f.relu(x) if relu else x

    x = norm(f.conv(f.reflect(x, 3), next(w), 1, "VALID"))
    for _ in range(3):
        x = norm(f.conv(x, next(w), 2, "SAME"))
    for _ in range(blocks):
        y = norm(f.conv(f.reflect(x, 1), next(w), 1, "VALID"))
        x = x + norm(f.conv(f.reflect(y, 1), next(w), 1, "VALID"), relu=False)
    for _ in range(3):
        x = norm(f.conv_transpose(x, next(w)))
    return f.tanh(f.add(f.conv(f.reflect(x, 3), next(w), 1, "VALID"), next(w)))


def judge(f, weights, x):
    w = iter(weights)
    x = f.leaky(f.add(f.conv(x, next(w), 2, "VALID"), next(w)))
    for _ in range(2):
        x = f.leaky(f.instance_norm(f.conv(x, next(w), 2, "VALID"), next(w), next(w)))
    return f.add(f.conv(x, next(w), 1, "VALID"), next(w))


def critic_loss(f, weights, fake, real, mix):
    slope = f.slope(lambda x: criticize(f, weights, x), real + mix * (fake - real))
    penalty = f.mean((f.norm(slope) - 1) ** 2)
    return f.mean(criticize(f, weights, fake)) - f.mean(criticize(f, weights, real)) + 10 * penalty


def generators_loss(f, to_b, to_a, judge_a, judge_b, a, b, blocks):
    fake_b, fake_a = translate(f, to_b, a, blocks), translate(f, to_a, b, blocks)
    loss = f.mean((judge(f, judge_b, fake_b) - 1) ** 2) + f.mean((judge(f, judge_a, fake_a) - 1) ** 2)
    for real, made in (
        (b, translate(f, to_b, fake_a, blocks)),
        (a, translate(f, to_a, fake_b, blocks)),
    ):
        loss = loss + 10 * f.mean(f.abs(real - made))
    for real, network in ((b, to_b), (a, to_a)):
        loss = loss + 5 * f.mean(f.abs(real - translate(f, network, real, blocks)))
    return loss, (fake_a, fake_b)


def discriminators_loss(f, judge_a, judge_b, a, b, fake_a, fake_b):
    return sum(
        0.5 * (f.mean((judge(f, weights, real) - 1) ** 2) + f.mean(judge(f, weights, fake) ** 2))
        for weights, real, fake in ((judge_a, a, fake_a), (judge_b, b, fake_b))
    )


class Pool:
    """Past images as tensors of the framework."""

    def __init__(self):
        self.images, self.rng = [], np.random.default_rng(0)

    def __call__(self, image):
        if len(self.images) < POOL:
            self.images.append(image)
        elif self.rng.random() < 0.5:
            place = self.rng.integers(POOL)
            image, self.images[place] = self.images[place], image
        return image


class Twin:
    """Steps out of a framework's `update(name of a loss)`; subclasses say how to differentiate and update."""

    def noise(self, count, latent=128):
        return self.rng.standard_normal((count, latent), dtype="f"), self.rng.random((count, 1, 1, 1), dtype="f")

    def __init__(self, networks, size, blocks, rates):
        self.size, self.blocks, self.rates, self.rng = size, blocks, rates, np.random.default_rng(0)
        self.pools = {"a": Pool(), "b": Pool()}
        self.prepare(networks)

    def wgan(self, real):
        for _ in range(3):
            z, mix = self.noise(len(real))
            loss, _ = self.run("critic", real, z, mix)
        self.run("generator", self.noise(len(real))[0])
        return float(loss)

    def cyclegan(self, a, b):
        loss, fakes = self.run("generators", a, b)
        self.run("discriminators", a, b, *(self.pools[n](x) for n, x in zip("ab", fakes, strict=True)))
        return float(loss)

    def loss(self, name, p, *arrays):
        """`(loss, extra)` of a phase; `p` holds weights by network, "statistics" among them."""
        f = self
        if name == "critic":
            real, z, mix = arrays
            fake = f.stop(generate(f, p["generator"], z, self.size, p["statistics"]))
            return critic_loss(f, p["critic"], fake, real, mix), ()
        if name == "generator":
            fake = generate(f, p["generator"], arrays[0], self.size, p["statistics"])
            return -f.mean(criticize(f, p["critic"], fake)), ()
        gs, ds = ("generator_a", "generator_b"), ("discriminator_a", "discriminator_b")
        if name == "generators":
            return generators_loss(f, *(p[n] for n in gs + ds), *arrays, self.blocks)
        return discriminators_loss(f, *(p[n] for n in ds), *arrays), ()

    updated = {
        "critic": ["critic"],
        "generator": ["generator"],
        "generators": ["generator_a", "generator_b"],
        "discriminators": ["discriminator_a", "discriminator_b"],
    }


def values(network, trainable=True):
    """Weights of a Keras network, or its running statistics, in order of use."""
    variables = network.trainable_variables if trainable else network.non_trainable_variables
    return [keras.ops.convert_to_numpy(v.value) for v in variables if "float" in v.dtype]


def torch_twin():
    import torch
    from torch.nn import functional as F  # noqa: N812

    class TorchTwin(Twin):
        layout = torch.channels_last

        def prepare(self, networks):
            self.p = {name: [self.weight(v) for v in values(network)] for name, network in networks.items()}
            generator = networks.get("generator")
            statistics = [] if generator is None else values(generator, False)
            everything = {"statistics": [torch.from_numpy(v.copy()) for v in statistics]}
            self.optimizers = {
                name: torch.optim.Adam(weights, 2e-4, self.rates, eps=1e-7) for name, weights in self.p.items()
            }
            self.p |= everything

        def weight(self, v):
            tensor = torch.from_numpy(v.copy())
            if v.ndim == 4:
                tensor = tensor.permute(3, 2, 0, 1).contiguous(memory_format=self.layout)
            return tensor.requires_grad_()

        def run(self, name, *arrays):
            tensors = [self.image(a) if isinstance(a, np.ndarray) else a for a in arrays]
            loss, extra = self.loss(name, self.p, *tensors)
            groups = [self.p[n] for n in self.updated[name]]
            gradients = iter(torch.autograd.grad(loss, [w for group in groups for w in group]))
            for n, group in zip(self.updated[name], groups, strict=True):
                for w in group:
                    w.grad = next(gradients)
                self.optimizers[n].step()
            return loss.detach(), [x.detach() for x in extra]

        def image(self, a):
            x = torch.from_numpy(a)
            return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if a.ndim == 4 else x

        def conv(self, x, w, stride, padding):
            if padding == "SAME":
                pads = []
                for n, k in zip(x.shape[:1:-1], w.shape[:1:-1], strict=True):
                    total = max((-(-n // stride) - 1) * stride + k - n, 0)
                    pads += [total // 2, total - total // 2]
                if len(set(pads)) == 1:
                    return F.conv2d(x, w, stride=stride, padding=pads[0])
                x = F.pad(x, pads)
            return F.conv2d(x, w, stride=stride)

        def conv_transpose(self, x, w):
            # Keras' "same" of kernel 3, stride 2: the full result without its first line.
            return F.conv_transpose2d(x, w, stride=2, padding=0)[..., :-1, :-1]

        def batch_norm(self, x, g, b, mean, variance):
            return F.batch_norm(x, mean, variance, g, b, True, 1 - KEEP, 1e-3)

        def instance_norm(self, x, g, b):
            if len(x) == 1:  # the same, by a kernel that knows both layouts
                return F.batch_norm(x, None, None, g, b, True, 0.0, 1e-5)
            return F.instance_norm(x.contiguous(), weight=g, bias=b, eps=1e-5)

        def to_map(self, x, side):
            return x.view(len(x), side, side, -1).permute(0, 3, 1, 2)

        dense = staticmethod(torch.matmul)
        add = staticmethod(lambda x, b: x + b[:, None, None])
        leaky = staticmethod(lambda x: F.leaky_relu(x, 0.2))
        relu, tanh, abs, mean = (staticmethod(g) for g in (F.relu, torch.tanh, torch.abs, torch.mean))
        up = staticmethod(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"))
        reflect = staticmethod(lambda x, n: F.pad(x, (n, n, n, n), mode="reflect"))
        dropout = staticmethod(F.dropout)
        flatten = staticmethod(lambda x: x.permute(0, 2, 3, 1).flatten(1))
        stop = staticmethod(lambda x: x.detach())
        norm = staticmethod(lambda x: x.square().sum((1, 2, 3)).add(1e-12).sqrt())

        def slope(self, function, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]

    class ContiguousTwin(TorchTwin):
        layout = torch.contiguous_format

    return [TorchTwin, ContiguousTwin]


def adam(weights, gradients, state, rates, sqrt):
    """New weights and state `(m, v, t)` of Adam with a rate of 2e-4."""
    (b1, b2), (m, v, t) = rates, state
    t = t + 1
    m = [b1 * x + (1 - b1) * g for x, g in zip(m, gradients, strict=True)]
    v = [b2 * x + (1 - b2) * g * g for x, g in zip(v, gradients, strict=True)]
    rate = 2e-4 * sqrt(1 - b2**t) / (1 - b1**t)
    weights = [w - rate * x / (sqrt(y) + 1e-7) for w, x, y in zip(weights, m, v, strict=True)]
    return weights, (m, v, t)


def jax_twin():
    import jax
    import jax.numpy as jnp
    from jax import lax

    numbers = ("NHWC", "HWIO", "NHWC")

    class JaxTwin(Twin):
        def prepare(self, networks):
            self.p = {n: [jnp.array(v) for v in values(network)] for n, network in networks.items()}
            self.state = {n: ([w * 0 for w in p], [w * 0 for w in p], jnp.zeros(())) for n, p in self.p.items()}
            generator = networks.get("generator")
            self.p["statistics"] = [] if generator is None else [jnp.array(v) for v in values(generator, False)]
            self.compiled = {name: jax.jit(self.update(name), donate_argnums=(0, 1)) for name in self.updated}
            self.count = 0

        def update(self, name):
            names = self.updated[name]

            def step(p, state, key, *arrays):
                def loss_fn(trained):
                    self.keys, self.kept = key, []
                    return self.with_kept(name, p | trained, arrays)

                (loss, (extra, kept)), gradients = jax.value_and_grad(loss_fn, has_aux=True)({n: p[n] for n in names})
                for n in names:
                    new, made = adam(p[n], gradients[n], state[n], self.rates, jnp.sqrt)
                    p, state = p | {n: new}, state | {n: made}
                return p | {"statistics": kept or p["statistics"]}, state, loss, extra

            return step

        def with_kept(self, name, p, arrays):
            loss, extra = self.loss(name, p, *arrays)
            return loss, (extra, self.kept)

        def run(self, name, *arrays):
            self.count += 1
            key = jax.random.key(self.count)
            self.p, self.state, loss, extra = self.compiled[name](self.p, self.state, key, *arrays)
            return loss, extra

        def batch_norm(self, x, g, b, mean, variance):
            axes = tuple(range(x.ndim - 1))
            m = x.mean(axes)
            v = (x * x).mean(axes) - m * m
            self.kept += [KEEP * mean + (1 - KEEP) * m, KEEP * variance + (1 - KEEP) * v]
            return (x - m) * (lax.rsqrt(v + 1e-3) * g) + b

        def instance_norm(self, x, g, b):
            m = x.mean((1, 2), keepdims=True)
            v = ((x - m) ** 2).mean((1, 2), keepdims=True)
            return (x - m) * (lax.rsqrt(v + 1e-5) * g) + b

        def dropout(self, x, rate):
            self.keys, key = jax.random.split(self.keys)
            return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

        def conv(self, x, w, stride, padding):
            return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=numbers)

        def conv_transpose(self, x, w):
            return lax.conv_transpose(x, w, (2, 2), ((2, 1),) * 2, dimension_numbers=numbers, transpose_kernel=True)

        def to_map(self, x, side):
            return x.reshape(len(x), side, side, -1)

        dense = staticmethod(jnp.matmul)
        add = staticmethod(jnp.add)
        leaky = staticmethod(lambda x: jax.nn.leaky_relu(x, 0.2))
        relu, tanh, abs, mean = (staticmethod(g) for g in (jax.nn.relu, jnp.tanh, jnp.abs, jnp.mean))
        up = staticmethod(lambda x: x.repeat(2, 1).repeat(2, 2))
        reflect = staticmethod(lambda x, n: jnp.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode="reflect"))
        flatten = staticmethod(lambda x: x.reshape(len(x), -1))
        stop = staticmethod(lax.stop_gradient)
        norm = staticmethod(lambda x: jnp.sqrt((x * x).sum((1, 2, 3)) + 1e-12))
        slope = staticmethod(lambda function, x: jax.grad(lambda x: function(x).sum())(x))

    return [JaxTwin]


def tensorflow_twin():
    import tensorflow as tf

    tf.random.set_seed(0)  # dropout, where `train_adversarial` asks for repeatable kernels

    class TensorFlowTwin(Twin):
        def prepare(self, networks):
            self.p = {n: [tf.Variable(v) for v in values(network)] for n, network in networks.items()}
            self.state = {
                n: ([tf.Variable(v * 0) for v in p], [tf.Variable(v * 0) for v in p], tf.Variable(0.0))
                for n, p in self.p.items()
            }
            generator = networks.get("generator")
            self.p["statistics"] = [] if generator is None else [tf.Variable(v) for v in values(generator, False)]
            self.compiled = {name: tf.function(self.update(name)) for name in self.updated}

        def update(self, name):
            def step(*arrays):
                groups = [self.p[n] for n in self.updated[name]]
                with tf.GradientTape() as tape:
                    loss, extra = self.loss(name, self.p, *arrays)
                gradients = iter(tape.gradient(loss, [w for group in groups for w in group]))
                for n, group in zip(self.updated[name], groups, strict=True):
                    first, second, count = self.state[n]
                    count.assign_add(1.0)
                    (b1, b2) = self.rates
                    rate = 2e-4 * tf.sqrt(1 - b2**count) / (1 - b1**count)
                    for w, m, v in zip(group, first, second, strict=True):
                        g = next(gradients)
                        m.assign(b1 * m + (1 - b1) * g)
                        v.assign(b2 * v + (1 - b2) * g * g)
                        w.assign_sub(rate * m / (tf.sqrt(v) + 1e-7))
                return loss, extra

            return step

        def run(self, name, *arrays):
            return self.compiled[name](*(tf.convert_to_tensor(a) for a in arrays))

        def batch_norm(self, x, g, b, mean, variance):
            flat = x.shape.rank == 2
            x = x[:, None, None] if flat else x
            y, m, v = tf.compat.v1.nn.fused_batch_norm(x, g, b, epsilon=1e-3, is_training=True)
            mean.assign(KEEP * mean + (1 - KEEP) * m)
            variance.assign(KEEP * variance + (1 - KEEP) * v)
            return y[:, 0, 0] if flat else y

        def instance_norm(self, x, g, b):
            m, v = tf.nn.moments(x, (1, 2), keepdims=True)
            return tf.nn.batch_normalization(x, m, v, b, g, 1e-5)

        def conv_transpose(self, x, w):
            n, height, width, _ = x.shape
            return tf.nn.conv2d_transpose(x, w, (n, 2 * height, 2 * width, w.shape[2]), 2, "SAME")

        def slope(self, function, x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                y = function(x)
            return tape.gradient(y, x)

        def to_map(self, x, side):
            return tf.reshape(x, (len(x), side, side, -1))

        dense = staticmethod(tf.matmul)
        conv = staticmethod(lambda x, w, stride, padding: tf.nn.conv2d(x, w, stride, padding))
        add = staticmethod(tf.nn.bias_add)
        leaky = staticmethod(lambda x: tf.nn.leaky_relu(x, 0.2))
        relu, tanh, abs, mean = (staticmethod(g) for g in (tf.nn.relu, tf.tanh, tf.abs, tf.reduce_mean))
        up = staticmethod(lambda x: tf.repeat(tf.repeat(x, 2, 1), 2, 2))
        reflect = staticmethod(lambda x, n: tf.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode="REFLECT"))
        dropout = staticmethod(tf.nn.dropout)
        flatten = staticmethod(lambda x: tf.reshape(x, (len(x), -1)))
        stop = staticmethod(tf.stop_gradient)
        norm = staticmethod(lambda x: tf.sqrt(tf.reduce_sum(x * x, (1, 2, 3)) + 1e-12))

    return [TensorFlowTwin]


class Alternate(keras.callbacks.Callback):
    """After each of our steps, one of the twins'; keeps the least process time of each."""

    def __init__(self, twins, data):
        super().__init__()
        self.twins, self.data = twins, data
        self.best = [float("inf")] * (1 + len(twins))
        self.losses = [[] for _ in twins]

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        for network in self.params["system"].networks.values():  # wait for asynchronous devices
            keras.ops.convert_to_numpy(network.trainable_variables[0].value)
        times = [time.process_time() - self.start]
        for i, twin in enumerate(self.twins, start=1):
            start = time.process_time()
            loss = twin()
            times.append(time.process_time() - start)
            self.losses[i - 1].append(loss)
        print(f"  step {batch}: " + ", ".join(f"{t:.2f}" for t in times) + " s", flush=True)
        if batch:  # the first step compiles
            self.best = [min(pair) for pair in zip(self.best, times, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=("wgan", "cyclegan"))
    parser.add_argument("--full", action="store_true", help="the published sizes")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--filters", type=int)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    published = {"wgan": (64, 64, 64, 0), "cyclegan": (384, 1, 64, 9)}[options.system]
    reduced = {"wgan": (64, 16, 32, 0), "cyclegan": (96, 1, 16, 3)}[options.system]
    defaults = published if options.full else reduced
    given = (options.size, options.batch, options.filters, options.blocks)
    size, batch, filters, blocks = (d if g is None else g for g, d in zip(given, defaults, strict=True))
    print(backend.configure_device(device="cpu", threads=options.threads))
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (batch, size, size, 1)).astype("f") for _ in range(2))
    if options.system == "wgan":
        networks = [outline_generator(size, filters=filters), outline_critic(size, filters=filters)]
        system, data, rates = WGANGP(*(draw_kernels(n, i) for i, n in enumerate(networks))), (a,), (0.5, 0.9)
    else:
        networks = [resnet_generator((size, size, 1), filters, blocks) for _ in range(2)]
        networks += [patchgan_discriminator((size, size, 1), 2 * filters) for _ in range(2)]
        system, data, rates = CycleGAN(*(draw_kernels(n, i) for i, n in enumerate(networks))), (a, b), (0.5, 0.999)
    made = {"torch": torch_twin, "jax": jax_twin, "tensorflow": tensorflow_twin}[BACKEND]()
    twins = [cls(system.networks, size, blocks, rates) for cls in made]
    calls = [lambda twin=twin: getattr(twin, options.system)(*data) for twin in twins]
    timer = Alternate(calls, data)
    steps = options.repetitions + 1
    with tempfile.TemporaryDirectory() as folder:
        result = train_adversarial(
            system, [data], epochs=1, steps_per_epoch=steps, out_dir=folder, callbacks=[timer], workers=0
        )
    ours, twin = timer.best[0], min(timer.best[1:])
    name = "critic_loss" if options.system == "wgan" else "generators_loss"
    means = ", ".join(f"{np.mean(losses):.4f}" for losses in timer.losses)
    print(f"mean loss of ours {result.history[0][name]:.4f}, of the twins {means}")
    print(
        f"{BACKEND:10s} {options.system:8s} size {size} batch {batch} filters {filters} blocks {blocks}: "
        f"ours {ours:.3f} s  twin {twin:.3f} s  ratio {ours / twin:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
