"""Supervised training: it learns, resumes exactly after SIGKILL, and refuses what cannot work."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import check_dataset

sys.path.insert(0, str(Path(__file__).parent))
from small_run import Blobs, build_model, run

from keras_microseg import losses
from keras_microseg.checks import FileError, UserError
from keras_microseg.training.batches import batches
from keras_microseg.training.previews import PreviewPictures
from keras_microseg.training.schedules import OptimizerSettings
from keras_microseg.training.supervised import CHECKPOINT, train

pytestmark = pytest.mark.network


def same_weights(a, b):
    for ours, theirs in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def without_time(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """One process is killed in the middle of epoch 2; resumed, it ends bit for bit where an unbroken one does."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, str(Path(__file__).with_name("small_run.py")), str(killed), "1", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    assert (killed / CHECKPOINT).exists() and not (killed / "last.keras").exists()
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    with pytest.raises(UserError, match="resume=True"):
        run(killed)

    model, result = run(killed, resume=True)
    expected_model, expected = run(whole, workers=3)
    same_weights(model, expected_model)
    assert without_time(result.history) == without_time(expected.history)
    assert result.best_epoch == expected.best_epoch
    rows = [list(csv.DictReader((folder / "log.csv").open())) for folder in (killed, whole)]
    assert [row["val_loss"] for row in rows[0]] == [row["val_loss"] for row in rows[1]]

    again, same = run(whole, resume=True)  # nothing left to do
    same_weights(again, expected_model)
    assert same.history == expected.history
    with pytest.raises(UserError, match="other settings.*seed"):
        run(whole, resume=True, seed=4)


def test_learns_and_leaves_models_log_record_previews_and_events(tmp_path):
    previews = PreviewPictures(Blobs(99)[0], tmp_path / "previews", every=2, count=2)
    model = build_model(dropout=0.0)
    result = train(
        model,
        Blobs(1, 8),
        loss=losses.SoftDice(),
        epochs=4,
        out_dir=tmp_path,
        optimizer=OptimizerSettings(
            "adamw", 5e-2, schedule="cosine", warmup_epochs=1, weight_decay=1e-4, clip_norm=1.0
        ),
        callbacks=[previews],
        tensorboard=True,
        card={"outputs": ["foreground"]},
    )
    losses_seen = [row["loss"] for row in result.history]
    assert losses_seen[-1] < 0.5 * losses_seen[0]
    assert result.history[-1]["learning_rate"] == pytest.approx(5e-4, rel=1e-3)
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["epoch_0002.png", "epoch_0004.png"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished" and record["settings"]["optimizer"]["clip_norm"] == 1.0
    assert record["versions"]["backend"] == keras.config.backend() and len(record["data"]["training"]) == 64
    assert record["model"]["start"] != record["end"]
    loaded = keras.saving.load_model(result.last_path, safe_mode=True)
    x = Blobs(5)[0][0]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loaded(x)), keras.ops.convert_to_numpy(model(x)), atol=1e-6)
    assert not loaded.compiled  # the file holds the network alone
    (events,) = (tmp_path / "tensorboard").iterdir()
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        read = list(tf.compat.v1.train.summary_iterator(str(events)))
        values = {value.tag: value.simple_value for value in read[-1].summary.value}
        assert read[-1].step == 4 and values["training/loss"] == pytest.approx(losses_seen[-1])


def test_mixed_precision_trains_the_float32_model(tmp_path):
    model = build_model(dropout=0.0)
    before = [np.array(value) for value in model.get_weights()]
    result = train(
        model,
        Blobs(1, 2),
        loss=losses.SoftDice(),
        epochs=1,
        out_dir=tmp_path,
        mixed_precision=True,
    )
    assert np.isfinite(result.history[0]["loss"])
    assert all(variable.dtype == "float32" for variable in model.weights)
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.layers[1].compute_dtype == "float32"


def test_early_stopping_and_not_finite_loss(tmp_path):
    still = OptimizerSettings("sgd", 1e-30, schedule="constant")
    result = train(
        build_model(dropout=0.0),
        [Blobs(0)[0]],
        loss=losses.SoftDice(),
        epochs=5,
        out_dir=tmp_path / "still",
        optimizer=still,
        patience=1,
    )
    assert result.stopped_early and len(result.history) == 2 and result.best_epoch == 1

    class Broken(Blobs):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x * np.nan, y

    with pytest.raises(UserError, match="The loss is nan in epoch 1"):
        train(build_model(), Broken(0), loss=losses.SoftDice(), epochs=1, out_dir=tmp_path / "broken")
    record = json.loads((tmp_path / "broken" / "run.json").read_text())
    assert record["status"] == "interrupted"
    (tmp_path / "broken" / CHECKPOINT).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(FileError, match="damaged"):
        train(build_model(), Blobs(0), loss=losses.SoftDice(), epochs=1, out_dir=tmp_path / "broken", resume=True)


def test_batches_do_not_depend_on_start_or_workers():
    class Plain:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return np.array([i]), np.array([i])

    def order(start, stop, workers):
        return [(n, int(x[0])) for n, (x, _) in batches(Plain(), start, stop, 5, workers)]

    whole = order(0, 11, 0)
    assert [n for n, _ in whole] == list(range(11))
    assert {x for _, x in whole[:3]} == {x for _, x in whole[3:6]} == {0, 1, 2}  # each pass sees every batch once
    for start in range(11):
        assert order(start, 11, 2) == whole[start:]
    check_dataset(Blobs(1), (4, 8, 8, 1), (4, 8, 8, 1))
    data = Blobs(1)
    passes = [x for _, (x, _) in batches(data, 2, 6, 0, 2)]
    np.testing.assert_array_equal(passes[2], Blobs(1)[0][0] * 0 + (data.set_epoch(1) or data[0][0]))
