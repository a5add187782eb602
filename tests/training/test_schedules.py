"""Learning rates over time by formula; monitors and plateau by known sequences."""

import types

import keras
import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.training.schedules import EarlyStopping, Monitor, OptimizerSettings, ReduceOnPlateau

pytestmark = pytest.mark.network


def rates(settings, epochs, steps, at):
    rate = settings.rate(epochs, steps)
    return [float(rate(step)) if callable(rate) else rate for step in at]


def test_cosine_rises_and_falls():
    settings = OptimizerSettings(learning_rate=1.0, schedule="cosine", warmup_epochs=1, final_factor=0.1)
    np.testing.assert_allclose(
        rates(settings, 5, 10, [0, 5, 10, 30, 50]), [0, 0.5, 1, 0.55, 0.1], atol=1e-6
    )  # halfway down: 0.1 + 0.9 / 2
    assert rates(OptimizerSettings(learning_rate=1.0, schedule="cosine"), 1, 10, [0]) == [1.0]


def test_steps_and_constant():
    settings = OptimizerSettings(learning_rate=1.0, schedule="steps", factor=0.1, decay_epochs=(2, 3))
    np.testing.assert_allclose(rates(settings, 4, 10, [0, 20, 21, 31]), [1, 1, 0.1, 0.01], rtol=1e-6)
    assert rates(OptimizerSettings(schedule="constant", learning_rate=0.3), 4, 10, [5]) == [0.3]


def test_linear_falls_after_a_fraction_of_whole_epochs():
    settings = OptimizerSettings(learning_rate=1.0, schedule="linear", decay_start=0.75, final_factor=0.0)
    expected = [1, 1, 1, 1 - 1 / 2, 1 - 2 / 2]  # epoch floor(0.75 * 5) = 3 of 5: 1 - (e - 3) / (5 - 3)
    np.testing.assert_allclose(rates(settings, 5, 10, [0, 29, 30, 40, 50]), expected, rtol=1e-6)


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match="`schedule` must be one of"):
        OptimizerSettings(schedule="sinus")
    with pytest.raises(UserError, match="`learning_rate` must be a number > 0"):
        OptimizerSettings(learning_rate=0)


def test_weight_decay_leaves_vectors_alone():
    matrix, vector = keras.Variable(np.ones((2, 2))), keras.Variable(np.ones(2))
    settings = OptimizerSettings("adamw", 0.1, schedule="constant", weight_decay=0.5)
    settings.build([matrix, vector], 1, 1).apply([keras.ops.zeros((2, 2)), keras.ops.zeros(2)], [matrix, vector])
    np.testing.assert_allclose(matrix.numpy(), 0.95, rtol=1e-5)
    np.testing.assert_array_equal(vector.numpy(), 1.0)


def test_monitor_knows_the_direction():
    assert Monitor("val_iou").mode == "max" and Monitor("val_loss").mode == "min"
    monitor = Monitor("loss", min_delta=0.1)
    assert [monitor.update(i, {"loss": v}) for i, v in enumerate([1.0, 0.95, 0.8, float("nan")])] == [
        True, False, True, False,
    ]  # fmt: skip
    with pytest.raises(KeyError, match="`monitor` must be a logged value, one of loss"):
        Monitor("iou").update(0, {"loss": 1.0})


def test_plateau_and_early_stopping_by_hand():
    optimizer = types.SimpleNamespace(learning_rate=1.0)
    plateau = ReduceOnPlateau("loss", factor=0.5, patience=2, minimum=0.3)
    plateau.set_params({"optimizer": optimizer})
    seen = []
    for epoch, value in enumerate([1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]):
        plateau.on_epoch_end(epoch, {"loss": value})
        seen.append(optimizer.learning_rate)
    assert seen == [1, 1, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3]
    stopping = EarlyStopping("loss", patience=2)
    stopping.set_model(types.SimpleNamespace(stop_training=False))
    for epoch, value in enumerate([1.0, 0.9, 1.0, 1.0]):
        assert not stopping.model.stop_training
        stopping.on_epoch_end(epoch, {"loss": value})
    assert stopping.model.stop_training
