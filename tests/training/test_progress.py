"""Progress of trainings: epochs, fractions within them, budgets of time, resumed runs."""

import numpy as np
import pytest

pytestmark = pytest.mark.network


def train(out, told, *, epochs=3, callbacks=(), resume=False, schedule="cosine", **options):
    import keras

    from keras_microseg.training import supervised
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import OptimizerSettings

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(1, 3, padding="same")])

    class Data:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            x = np.random.default_rng(index).normal(size=(2, 4, 4, 1)).astype("float32")
            return x, x

        def set_epoch(self, epoch):
            pass

    reporter = EpochProgress(lambda *call: told.append(call), **options)
    supervised.train(
        model, Data(), loss=keras.losses.MeanSquaredError(), epochs=epochs, out_dir=out, seed=0, resume=resume,
        optimizer=OptimizerSettings(schedule=schedule),
        callbacks=[*callbacks, reporter],
    )  # fmt: skip


def test_epochs_and_fractions_are_told_in_order(tmp_path, monkeypatch):
    from keras_microseg.training import progress

    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    told = []
    train(tmp_path, told)
    steps, done, totals, texts = zip(*told, strict=True)
    assert set(steps) == {"train"} and set(totals) == {3}
    assert list(done) == sorted(done) and done[0] == 0 and done[-1] == 3
    assert done[1:5] == pytest.approx((0.225, 0.45, 0.675, 0.9))  # the first epoch's share of scores is a guess
    assert len(done) == 3 * 6
    assert texts[0] == "epochs" and texts[-1].startswith("epochs, loss ")


def test_resumed_training_begins_where_it_goes_on(tmp_path):
    import keras

    told = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, told, callbacks=[Stop()])
    told.clear()
    train(tmp_path, told, resume=True)
    assert told[0][1] == 1 and told[-1][1] == 3


def test_with_a_budget_the_time_counts(tmp_path):
    from keras_microseg.training.schedules import TimeBudget

    told = []
    budget = TimeBudget(10.0, 1e-3)
    train(tmp_path, told, epochs=2, callbacks=[budget], budget=budget, schedule="constant")
    assert {call[2] for call in told} == {100}
    assert told[0][1] < 5 and told[-1][1] == 100
    assert told[0][3] == "% of the time, epoch 1"
