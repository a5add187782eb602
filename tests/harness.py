"""What every layer, model, loss and dataset must do, checked on the active backend.

from harness import check_layer, check_model, check_loss, check_dataset
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_microseg import backend


def randomize(model: keras.Layer, seed: int = 0) -> None:
    """Give all float weights definite random values, positive ones to variances."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "float" in variable.dtype:
            values = rng.normal(0, 0.2, variable.shape)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)


def sample(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Uniform numbers in 0..1, float32."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def to_numpy(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def check_layer(
    cls: type[keras.Layer],
    arguments: dict[str, Any],
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    *,
    same_as: type[keras.Layer] | None = None,
    mixed_precision: bool = True,
) -> keras.Layer:
    """Shapes (symbolic and eager), config round trip, a training step, mixed precision; equality with a stock layer.

    Args:
        cls: a registered layer.
        arguments: its constructor's arguments.
        input_shape: with the batch axis.
        output_shape: expected.
        same_as: stock class that must give the same outputs, gradients and weights for the same arguments.
        mixed_precision: check `dtype="mixed_bfloat16"` too.
    """
    x = sample(input_shape)
    layer = cls(**arguments)
    symbolic = layer(keras.Input(batch_shape=(None, *input_shape[1:])))
    assert symbolic.shape[1:] == tuple(output_shape[1:])
    randomize(layer)
    y = to_numpy(layer(x))
    assert y.shape == tuple(output_shape) and y.dtype == np.float32 and np.isfinite(y).all()

    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is cls and copy.get_config() == layer.get_config()
    copy.set_weights(layer.get_weights())
    np.testing.assert_allclose(to_numpy(copy(x)), y, atol=1e-6)

    trained = training_step(layer, x)
    if same_as is not None:
        stock = same_as(**arguments)
        stock.build((None, *input_shape[1:]))
        stock.set_weights(copy.get_weights())
        np.testing.assert_allclose(y, to_numpy(stock(x)), atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(trained, training_step(stock, x), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(layer.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    if mixed_precision:
        half = cls(**arguments, dtype="mixed_bfloat16")
        half.build((None, *input_shape[1:]))
        half.set_weights(copy.get_weights())
        z = half(keras.ops.cast(x, "bfloat16"))
        assert keras.backend.standardize_dtype(z.dtype) == "bfloat16"
        assert all(variable.dtype == "float32" for variable in half.weights)
        np.testing.assert_allclose(to_numpy(keras.ops.cast(z, "float32")), y, atol=0.1, rtol=0.1)
    return layer


def training_step(layer: keras.Layer, x: np.ndarray) -> list[np.ndarray]:
    """One compiled call in training mode: output, loss of a fixed target, finite gradients of every weight."""

    def step(x: Any) -> Any:
        def loss_fn() -> tuple[Any, Any]:
            y = layer(x, training=True) if layer._call_has_training_arg else layer(x)
            ramp = keras.ops.reshape(keras.ops.arange(np.prod(y.shape), dtype="float32"), y.shape)
            return keras.ops.mean(keras.ops.square(y - keras.ops.sin(ramp))), y

        (loss, y), gradients = backend.value_and_grad(
            loss_fn, layer.trainable_variables, state=layer.non_trainable_variables
        )
        return [y, loss, *gradients]

    if not layer.trainable_variables:  # nothing to differentiate by
        return [to_numpy(layer(x))]
    results = [to_numpy(value) for value in backend.compile_step(step, layer.variables)(x)]
    assert all(np.isfinite(value).all() for value in results)
    return results


def check_model(
    build: Callable[..., keras.Model],
    arguments: dict[str, Any],
    shapes: dict[tuple[int, ...], tuple[int, ...]],
    *,
    parameters: int | None = None,
    atol: float = 1e-5,
) -> keras.Model:
    """Shapes, equal output after saving and loading, compiled prediction, a fit step with finite changed weights.

    Args:
        build: function that returns a functional model.
        arguments: of `build`.
        shapes: input shape -> expected output shape, batch axis included; add odd sizes.
        parameters: expected number of weights.
        atol: tolerance between the eager and the compiled and reloaded model.
    """
    model = build(**arguments)
    assert type(model).__name__ == "Functional"
    if parameters is not None:
        assert model.count_params() == parameters
    randomize(model)
    predict = backend.compile_predict(model)
    for shape, expected in shapes.items():
        x = sample(shape)
        y = predict(x)
        assert y.shape == tuple(expected) and y.dtype == np.float32 and np.isfinite(y).all()
        np.testing.assert_allclose(y, to_numpy(model(x, training=False)), atol=atol)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        copy = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(to_numpy(copy(x, training=False)), y, atol=atol)
    before = [np.array(value) for value in copy.get_weights()]
    copy.compile("sgd", "mse")
    history = copy.fit(x, np.zeros_like(y), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    after = copy.get_weights()
    assert all(np.isfinite(value).all() for value in after)
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    return model


def check_loss(
    loss: keras.losses.Loss, y_true: np.ndarray, y_pred: np.ndarray, expected: float | None = None, rtol: float = 1e-5
) -> float:
    """Known value, config round trip, per-sample weights, finite gradients also at 0 and 1."""
    value = float(loss(y_true, y_pred))
    if expected is not None:
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss) and copy.get_config() == loss.get_config()
    np.testing.assert_allclose(float(copy(y_true, y_pred)), value, rtol=1e-6)
    rank = len(loss.call(keras.ops.convert_to_tensor(y_true), keras.ops.convert_to_tensor(y_pred)).shape)
    double = np.full((len(y_true), *(1,) * (rank - 1)), 2, np.float32)
    np.testing.assert_allclose(float(loss(y_true, y_pred, sample_weight=double)), 2 * value, rtol=1e-5)
    for extreme in (y_pred, np.zeros_like(y_pred), np.ones_like(y_pred)):
        variable = keras.Variable(extreme)
        result, gradients = backend.value_and_grad(lambda v=variable: loss(y_true, v.value), [variable])
        assert np.isfinite(float(result)) and np.isfinite(to_numpy(gradients[0])).all()
    return value


def check_dataset(data: Any, x_shape: Sequence[int], y_shape: Sequence[int]) -> None:
    """Shapes, dtypes, finite values; every batch a pure function of (epoch, index), whatever was asked before."""
    assert len(data) >= 1
    batches = {}
    for epoch in (0, 1):
        data.set_epoch(epoch)
        batches[epoch] = [data[i] for i in range(min(len(data), 2))]
        for x, y, *weights in batches[epoch]:
            assert x.shape == tuple(x_shape) and y.shape == tuple(y_shape)
            assert x.dtype == y.dtype == np.float32
            assert all(np.isfinite(array).all() for array in (x, y, *weights))
    for epoch in (1, 0):
        data.set_epoch(epoch)
        for i in reversed(range(len(batches[epoch]))):
            for again, first in zip(data[i], batches[epoch][i], strict=True):
                np.testing.assert_array_equal(again, first)
