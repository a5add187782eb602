import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.simulation import Particles
from keras_microseg.simulation.outlines import OutlineSet
from keras_microseg.training.outlines import (
    PRESETS,
    OutlineSettings,
    StopOnCollapse,
    generate_outlines,
    outline_settings,
)
from keras_microseg.workflows.outlines import train_outlines

TINY = OutlineSettings(
    epochs=24, batch_size=8, filters=4, latent_size=4, critic_updates=2, samples=64, check_every=12, average=0.5,
    learning_rate=2e-3,
)  # fmt: skip


def outlines(count=8, size=16):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    rng = np.random.default_rng(0)
    masks = np.array([np.hypot(y / rng.uniform(0.7, 1), x) < rng.uniform(3, 6) for _ in range(count)])
    return OutlineSet(masks, tuple(map(str, range(count))), {"bad.tif": "touches the frame."})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training killed after 13 of 24 epochs and resumed."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 12:
                raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("outlines")
    with pytest.raises(KeyboardInterrupt):
        train_outlines(outlines(), folder, TINY, callbacks=(Kill(),))
    return train_outlines(outlines(), folder, TINY, resume=True, callbacks=(keras.callbacks.Callback(),))


def test_files_and_quality(run):
    assert {path.name for path in run.out_dir.iterdir()} == {
        "training",
        "particles.npz",
        "quality.json",
        "outlines.html",
    }
    assert (run.out_dir / "training" / "generator.keras").exists()
    assert len(list((run.out_dir / "training" / "pictures").glob("*.png"))) == 2
    assert len(Particles.load(run.out_dir / "particles.npz")) == len(run.particles) >= 2
    quality = json.loads((run.out_dir / "quality.json").read_text())
    assert quality["generated"] == len(run.particles) and 0 <= quality["copies"] <= 1 and run.collapsed is None
    page = (run.out_dir / "outlines.html").read_text()
    assert "bad.tif: touches the frame." in page and "Generated outlines" in page and "<svg" in page


def test_generating_is_seeded(run):
    path = run.out_dir / "training" / "generator.keras"
    one, two, other = (generate_outlines(path, 40, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.masks, two.masks)
    assert one.names != other.names or not np.array_equal(one.masks, other.masks)
    assert len(one) + len(one.problems) == 40


def test_other_settings_are_refused(run):
    with pytest.raises(UserError, match="batch_size|steps_per_epoch"):
        train_outlines(outlines(), run.out_dir, dataclasses.replace(TINY, batch_size=16), resume=True)


def test_collapse_ends_the_training():
    settings = dataclasses.replace(TINY, epochs=6, check_every=1, min_diversity=1.0, warm_up=0.0, patience=2)

    watch = StopOnCollapse(settings)
    watch.on_epoch_end(0, {"diversity": 0.1})
    watch.on_epoch_end(1, {"diversity": 1.1})
    watch.on_epoch_end(2, {"diversity": 0.1})
    with pytest.raises(Exception, match="mode collapse: .* 0.10 times"):
        watch.on_epoch_end(3, {"diversity": 0.1})
    again = StopOnCollapse(settings)
    again.set_state(json.loads(json.dumps(watch.get_state())))
    assert again.get_state() == watch.get_state()


def test_too_few_outlines():
    with pytest.raises(UserError, match="3 outlines are too few"):
        train_outlines(outlines(3), "unused", TINY)


def test_presets():
    assert set(PRESETS) == {"paper", "fast", "gpu"}
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.batch_size, paper.latent_size, paper.critic_updates) == (1000, 64, 128, 3)
    assert outline_settings("fast", epochs=3).epochs == 3
    with pytest.raises(UserError, match="preset"):
        outline_settings("slow")
    with pytest.raises(UserError, match="size"):
        OutlineSettings(size=20)
