"""The port gives the same numbers on every backend, through compiled steps with several optimizers."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_microseg import backend
from keras_microseg.layers import BatchNorm, Conv2D

pytestmark = pytest.mark.network

# Losses of `play` below, float32 on CPU; the three backends agree to 1e-5. Stored from the JAX run.
CRITIC_LOSSES = [1.158429, 1.235974, 0.909112, 1.273904, -0.494711, -0.440003]
GENERATOR_LOSSES = [-0.032080, 0.142002, 0.098497, 0.327014, -0.232428, -0.131196]


def fixed_weights(model, rng):
    for variable in model.weights:
        if variable.path.endswith("kernel"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def networks():
    rng = np.random.default_rng(0)
    z = keras.Input((8, 8, 2))
    x = keras.layers.LeakyReLU(0.2)(BatchNorm(momentum=0.9)(Conv2D(4, 3, padding="same")(z)))
    generator = keras.Model(z, Conv2D(1, 3, padding="same", activation="tanh")(x))
    image = keras.Input((8, 8, 1))
    x = keras.layers.LeakyReLU(0.2)(Conv2D(4, 3, strides=2, padding="same")(image))
    critic = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
    return fixed_weights(generator, rng), fixed_weights(critic, rng)


def play(steps=6):
    """WGAN-GP on noise: a critic with gradient penalty and a generator with BatchNorm, each with its own Adam."""
    generator, critic = networks()
    optimizers = [keras.optimizers.Adam(1e-2, beta_1=0.5), keras.optimizers.Adam(5e-3, beta_1=0.5)]
    for optimizer, model in zip(optimizers, (critic, generator), strict=True):
        optimizer.build(model.trainable_variables)

    def critic_step(real, z, mix):
        fake = ops.stop_gradient(generator(z, training=True))

        def loss_fn():
            between = real + mix * (fake - real)
            slope = backend.input_gradient(lambda x: critic(x, training=True), between)
            penalty = ops.mean((ops.sqrt(ops.sum(slope**2, axis=(1, 2, 3)) + 1e-12) - 1) ** 2)
            wasserstein = ops.mean(critic(fake, training=True)) - ops.mean(critic(real, training=True))
            return wasserstein + 10 * penalty, {"penalty": penalty}

        (loss, logs), gradients = backend.value_and_grad(loss_fn, critic.trainable_variables)
        backend.apply_gradients(optimizers[0], gradients, critic.trainable_variables)
        return loss, logs

    def generator_step(z):
        def loss_fn():
            return -ops.mean(critic(generator(z, training=True), training=True))

        loss, gradients = backend.value_and_grad(
            loss_fn, generator.trainable_variables, state=generator.non_trainable_variables
        )
        backend.apply_gradients(optimizers[1], gradients, generator.trainable_variables)
        return loss

    everything = generator.variables + critic.variables
    train_critic = backend.compile_step(critic_step, everything + optimizers[0].variables)
    train_generator = backend.compile_step(generator_step, everything + optimizers[1].variables)
    rng = np.random.default_rng(1)
    noise = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    critic_losses, generator_losses = [], []
    for _ in range(steps):
        loss, logs = train_critic(noise(4, 8, 8, 1) + 1, noise(4, 8, 8, 2), np.abs(noise(4, 1, 1, 1)))
        assert float(logs["penalty"]) >= 0
        critic_losses.append(float(loss))
        generator_losses.append(float(train_generator(noise(4, 8, 8, 2))))
    return critic_losses, generator_losses


def test_two_optimizers_and_gradient_penalty_agree_across_backends():
    critic_losses, generator_losses = play()
    np.testing.assert_allclose(critic_losses, CRITIC_LOSSES, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(generator_losses, GENERATOR_LOSSES, rtol=2e-4, atol=2e-5)


def test_gradients_equal_the_formula_and_missing_ones_are_zero():
    a, b = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    value, (da, db) = backend.value_and_grad(lambda: ops.sum(a * a), [a, b])
    assert float(value) == 5.0
    np.testing.assert_array_equal(ops.convert_to_numpy(da), [2.0, 4.0])
    np.testing.assert_array_equal(ops.convert_to_numpy(db), [0.0])


def test_input_gradient_equals_the_formula():
    x = np.array([[1.0, 2.0]], "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(backend.input_gradient(lambda t: t**3, x)), 3 * x**2, rtol=1e-6)


def test_compiled_step_updates_statistics_seeds_and_metrics():
    layer, dropout, metric = BatchNorm(momentum=0.5), keras.layers.Dropout(0.5, seed=1), keras.metrics.Mean()
    layer.build((None, 2))

    def fn(x):
        metric.update_state(ops.mean(x))
        return dropout(layer(x, training=True), training=True)

    step = backend.compile_step(fn, layer.variables + dropout.variables + metric.variables)
    x = np.array([[1.0, 0.0], [3.0, 4.0]], "float32")
    outputs = [ops.convert_to_numpy(step(x)) for _ in range(8)]
    assert any(not np.array_equal(outputs[0], other) for other in outputs[1:])  # the seed moves on
    np.testing.assert_allclose(layer.moving_mean.numpy(), np.array([2, 2]) * (1 - 0.5**8), rtol=1e-5)
    assert float(metric.result()) == 2.0


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only JAX must list its variables")
def test_jax_names_the_variable_that_was_not_listed():
    hidden = keras.Variable(1.0, name="hidden")
    with pytest.raises(ValueError, match="hidden.*not in its list"):
        backend.compile_step(lambda x: x * hidden.value, [])(np.ones(2, "float32"))
    with pytest.raises(ValueError, match="changes the variable.*hidden"):
        backend.compile_step(lambda x: hidden.assign(x), [])(np.float32(2))


def test_compiled_prediction_uses_current_weights_and_any_shape():
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, BatchNorm()(Conv2D(3, 3, padding="same")(inputs)))
    predict = backend.compile_predict(model)
    for shape in ((2, 8, 8, 1), (1, 7, 9, 1)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        for shift in (0.0, 1.0):
            model.layers[1].bias.assign([shift] * 3)
            y = predict(x)
            assert isinstance(y, np.ndarray) and y.dtype == np.float32
            np.testing.assert_allclose(y, ops.convert_to_numpy(model(x, training=False)), atol=1e-5)


def test_unknown_backend_and_device_are_explained():
    code = "from keras_microseg import backend; backend.select()"
    environment = os.environ | {"KERAS_BACKEND": "theano"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "`KERAS_BACKEND` must be one of 'jax', 'torch', 'tensorflow'" in result.stderr
    with pytest.raises(ValueError, match="`device` must be one of"):
        backend.configure_device(device="quantum")


def test_selecting_prefers_jax_and_loads_nothing():
    code = (
        "import sys; from keras_microseg import backend; print(backend.select(), backend.installed()[0]);"
        "print([m for m in ('keras', 'jax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    chosen, first = result.stdout.splitlines()[0].split()
    assert chosen == first
    assert result.stdout.splitlines()[1] == "[]"


def test_seeding_leaves_other_frameworks_out():
    """As `keras.utils.set_random_seed`, but TensorFlow is loaded only where it computes."""
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import random, sys; from keras_microseg import backend; backend.select(); import keras, numpy as np\n"
        "def draw(): return random.random(), float(np.random.rand()), float(keras.random.uniform(()))\n"
        "backend.seed_everything(3); mine = draw(); loaded = 'tensorflow' in sys.modules\n"
        "assert loaded == (keras.config.backend() == 'tensorflow'), loaded\n"
        "keras.utils.set_random_seed(3); assert mine == draw(), mine\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, encoding="utf-8", timeout=300
    )
    assert run.returncode == 0, run.stderr
