"""Cosine, restarts, exponential decay: the published values; the time budget."""

import math
import time

import keras
import numpy as np
import pytest

from keras_microseg.training.schedules import CosineRestarts, OptimizerSettings, TimeBudget

pytestmark = pytest.mark.network


def rates(settings, epochs, steps, at):
    schedule = settings.rate(epochs, steps)
    return [float(schedule(step)) for step in at]


def test_cosine_has_the_published_values():
    settings = OptimizerSettings(learning_rate=5e-4, final_factor=0.2)
    np.testing.assert_allclose(rates(settings, 300, 1, (0, 150, 300)), [5e-4, 3e-4, 1e-4], rtol=1e-5)
    # updated every batch
    np.testing.assert_allclose(rates(settings, 300, 7, (0, 1050, 2100)), [5e-4, 3e-4, 1e-4], rtol=1e-5)
    assert rates(settings, 300, 7, (1049,))[0] > rates(settings, 300, 7, (1050,))[0]


def test_exponential_decay_has_the_published_values():
    settings = OptimizerSettings(learning_rate=5e-3, schedule="exponential", decay_start=10, final_factor=0.0)
    found = rates(settings, 55, 4, [4 * epoch + 3 for epoch in range(13)])
    np.testing.assert_allclose(found[:10], 5e-3, rtol=1e-6)
    np.testing.assert_allclose(found[10:], 5e-3 * 0.904837 ** np.arange(1, 4), rtol=1e-5)
    assert rates(settings, 55, 4, [4 * 54])[0] == pytest.approx(5e-3 * math.exp(-4.5), rel=1e-5)  # 6e-5 at the end


def test_warm_restarts():
    settings = OptimizerSettings(learning_rate=1.0, final_factor=0.1, restart_epochs=2, restart_growth=2)
    steps = 5  # cycles of 10, 20, 40 steps
    found = rates(settings, 14, steps, (0, 5, 9, 10, 20, 29, 30, 50, 69))
    ends = [0.1 + 0.45 * (1 + math.cos(share * math.pi)) for share in (0.9, 0.95, 0.975)]
    expected = [1, 0.55, ends[0], 1, 0.55, ends[1], 1, 0.55, ends[2]]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    even = CosineRestarts(1.0, 10, warmup=4)
    np.testing.assert_allclose([float(even(s)) for s in (0, 2, 4, 9, 14, 19)], [0, 0.5, 1, 0.5, 1, 0.5], atol=1e-5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(even))
    assert copy.get_config() == even.get_config()


def test_a_time_budget_anneals_and_ends():
    budget = TimeBudget(0.05, 1e-3, final_factor=0.1, warmup=0.0)  # 3 s
    budget.set_params({"epochs": 1000, "steps": 4, "optimizer": keras.optimizers.SGD(1.0)})

    class Model:
        stop_training = False

    budget.set_model(Model())
    assert budget.rate(0) == pytest.approx(1e-3) and budget.rate(1) == pytest.approx(1e-4)
    budget.on_train_begin()
    for epoch in range(1000):
        budget.on_epoch_begin(epoch)
        budget.on_train_batch_begin(0)
        time.sleep(0.3)
        budget.on_epoch_end(epoch)
        if budget.model.stop_training:
            break
    assert 4 <= epoch <= 10 and budget.spent < 4
    assert float(budget.params["optimizer"].learning_rate) < 4e-4
    again = TimeBudget(0.05, 1e-3)
    again.set_state(budget.get_state())
    assert again.spent == budget.spent
