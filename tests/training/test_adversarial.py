"""Adversarial training: equal numbers on all backends, exact resume, schedules that act, pools that keep their word."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import to_numpy
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from small_adversarial_run import Noise, run_small, small_translation

from keras_microseg import io, layers
from keras_microseg.checks import UserError
from keras_microseg.data.device import DeviceTiles
from keras_microseg.models import outline_critic, outline_generator, patchgan_discriminator, resnet_generator
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.models.saving import load_model
from keras_microseg.training.adversarial import CHECKPOINT, ImagePool, Phase, StopTraining, train_adversarial
from keras_microseg.training.cyclegan import CycleGAN
from keras_microseg.training.precision import LossScale
from keras_microseg.training.previews import SamplePictures
from keras_microseg.training.schedules import LinearDecay, OptimizerSettings
from keras_microseg.training.wgan_gp import WGANGP

pytestmark = pytest.mark.network


class Stop(keras.callbacks.Callback):
    """Breaks the training off at the end of a step."""

    def __init__(self, epoch, step):
        super().__init__()
        self.place, self.epoch = (epoch, step), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise KeyboardInterrupt


def without_time(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def checksums(system, start):
    """Per network, of the change of all float variables, statistics included: sum of sizes, and a mixed sum."""
    sums = {}
    for name, network in system.networks.items():
        pairs = zip(network.variables, start.networks[name].variables, strict=True)
        change = np.concatenate(
            [(to_numpy(v.value) - to_numpy(w.value)).ravel() for v, w in pairs if "float" in v.dtype]
        )
        sums[name] = [float(np.abs(change).sum()), float(change @ np.cos(np.arange(len(change))))]
    return sums


def check_numbers(system, start, result, stored):
    row, sums = result.history[0], checksums(system, start)
    for name, value in stored["logs"].items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, row)
    for name, values in stored["weights"].items():
        assert sums[name] == pytest.approx(values, rel=2e-3, abs=1e-6), (name, sums)


def outlines(**options):
    critic = draw_kernels(outline_critic(16, 2), seed=1)
    for layer in critic.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # the streams of dropout differ by backend
    return WGANGP(draw_kernels(outline_generator(16, 3, 2), seed=0), critic, **options)


def translation(**options):
    networks = [resnet_generator((16, 16, 1), 2, 1) for _ in range(2)]
    networks += [patchgan_discriminator((16, 16, 1), 2, 1) for _ in range(2)]
    return CycleGAN(*(draw_kernels(network, seed=i) for i, network in enumerate(networks)), **options)


def test_wgan_steps_agree_across_backends(tmp_path):
    """Two steps of three critic updates and one generator update; the numbers were stored from one backend."""
    system = outlines(mixing="normal")
    pictures = SamplePictures([system.draw_latent(np.random.default_rng(0), 6)], tmp_path / "previews")
    data = Noise(2, (3, 16, 16, 1))
    result = train_adversarial(system, data, epochs=1, seed=7, out_dir=tmp_path, callbacks=[pictures])
    assert io.open_image(tmp_path / "previews" / "epoch_0001.png").data.shape == (2 * 18, 3 * 18)
    check_numbers(system, outlines(), result, WGAN)


def test_cyclegan_steps_agree_across_backends(tmp_path):
    """Two steps; the second shows the discriminators images of the first."""
    system = translation(pool_size=2, label_smoothing=0.1)
    result = train_adversarial(system, Noise(2, (2, 16, 16, 1), (2, 16, 16, 1)), epochs=1, seed=7, out_dir=tmp_path)
    check_numbers(system, translation(), result, CYCLE)
    assert len(system.pools["a"]) == 2


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """One process is killed in the middle of epoch 2; resumed, weights, averages, pools and logs end bit for bit."""
    expected, whole = run_small(tmp_path / "whole", workers=2)
    broken = tmp_path / "broken"
    command = [sys.executable, str(Path(__file__).with_name("small_adversarial_run.py")), str(broken), "1", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    record = json.loads((broken / "run.json").read_text())
    assert record["status"] == "running" and not (broken / "generator_a.keras").exists()
    unfinished = broken / ".checkpoint.01234567.part.npz"  # as a process leaves it that is killed while writing
    unfinished.write_bytes((broken / CHECKPOINT).read_bytes()[:100])
    system, result = run_small(tmp_path / "broken", resume=True)
    assert not unfinished.exists()
    assert without_time(result.history) == without_time(whole.history)
    for name, network in system.networks.items():
        for ours, theirs in zip(network.variables, expected.networks[name].variables, strict=True):
            np.testing.assert_array_equal(to_numpy(ours.value), to_numpy(theirs.value), err_msg=ours.path)
    for name, pool in system.pools.items():
        np.testing.assert_array_equal(pool.get_state(), expected.pools[name].get_state())
    saved, expected_saved = (load_model(r.paths["generator_a"])[0] for r in (result, whole))
    for ours, theirs in zip(saved.variables, expected_saved.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(ours.value), to_numpy(theirs.value))
    kernel = saved.layers[1].kernel
    assert not np.array_equal(to_numpy(kernel), to_numpy(system.networks["generator_a"].layers[1].kernel))
    rows = list(csv.DictReader((tmp_path / "broken" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]

    # The schedule acts on every optimizer: 1e-2 in epoch 1 (decay_start 0.5 of 3 epochs), then down to 0.
    for name in system.networks:
        rates = [row[f"{name}_learning_rate"] for row in result.history]
        assert rates == pytest.approx([1e-2, 1e-2 * (1 - 3 / 8), 1e-2 * (1 - 7 / 8)], rel=1e-5)

    with pytest.raises(UserError, match="resume=True"):
        run_small(tmp_path / "whole")
    with pytest.raises(UserError, match="other settings.*system"):
        run_small(tmp_path / "whole", small_translation(cycle_weight=5), resume=True)


def test_broken_off_is_recorded(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path, epochs=1, callbacks=[Stop(0, 1)])
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "KeyboardInterrupt: ")


def test_a_rate_of_zero_stops_the_weights(tmp_path):
    """After its end the schedule holds the weights still, so it acts on the updates and not only on the log."""
    still = OptimizerSettings("adam", 1e-2, "linear", decay_start=0.0, final_factor=0.0)
    system = small_translation(optimizer=still)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(to_numpy(system.networks["discriminator_b"].layers[-1].kernel).copy())
            for optimizer in self.params["optimizers"].values():
                optimizer.iterations.assign(100)

    run_small(tmp_path, system, epochs=1, callbacks=[Watch()], average=None)
    assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[3])
    schedule = LinearDecay(1.0, 2, 6, 0.5)
    assert [float(schedule(step)) for step in (0, 2, 4, 6, 9)] == [1, 1, 0.75, 0.5, 0.5]


def test_mixed_precision_cross_entropy_and_early_end(tmp_path):
    class EndNow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    def network(activation):
        inputs = keras.Input((4, 4, 1))
        return keras.Model(
            inputs, layers.Conv2D(1, 1, activation=activation)(layers.Conv2D(2, 3, padding="same")(inputs))
        )

    networks = [draw_kernels(network(a), i) for i, a in enumerate(("sigmoid", "tanh", None, None))]
    before = [to_numpy(n.layers[1].kernel).copy() for n in networks]
    system = CycleGAN(*networks, cross_entropy=True, identity_weights=0, pool_size=0)
    with pytest.raises(UserError, match="0..1"):
        run_small(tmp_path / "signed", system)
    pictures = SamplePictures(Noise(1, (2, 4, 4, 1), (2, 4, 4, 1))[0], tmp_path / "previews")
    _, result = run_small(tmp_path / "run", system, low=0.0, mixed_precision=True, callbacks=[EndNow(), pictures])
    assert io.open_image(tmp_path / "previews" / "epoch_0001.png").data.shape == (4 * 6, 3 * 6)
    assert result.stopped_early and len(result.history) == 1 and "identity_a" not in result.history[0]
    for kernel, trained in zip(before, networks, strict=True):
        assert trained.layers[1].compute_dtype == "float32"
        assert not np.array_equal(kernel, to_numpy(trained.layers[1].kernel))
    assert list(system.networks.values()) == networks


def test_scores_choose_the_best_epoch_and_a_reason_ends_the_run(tmp_path):
    """Scorers see averaged weights, and leave the last ones in place; a collapse ends the run with its state saved."""
    system = small_translation()
    images = np.ones((2, 4, 4, 1), "float32")
    seen = []

    def brightness(predict, epoch):
        seen.append(float(np.abs(predict("generator_a", images)).mean()))
        return {"brightness": [3.0, 1.0, 2.0][epoch]} if epoch < 3 else {}

    class Collapse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            np.testing.assert_array_equal(np.abs(self.params["predict"]("generator_a", images)).mean(), seen[-1])
            if logs.get("brightness") == 2.0:
                raise StopTraining("mode collapse: brightness 2")

    options = {"epochs": 6, "monitor": "brightness", "callbacks": [Collapse()], "scorers": [brightness]}
    _, result = run_small(tmp_path, system, average={"generator_a": 0.999}, **options)
    assert result.stopped_early and result.stop_reason == "mode collapse: brightness 2" and len(result.history) == 3
    assert result.best_epoch == 2
    best, last = (load_model(paths["generator_a"])[0] for paths in (result.best_paths, result.paths))
    np.testing.assert_allclose(np.abs(to_numpy(best(images))).mean(), seen[1], rtol=1e-5)
    np.testing.assert_allclose(np.abs(to_numpy(last(images))).mean(), seen[2], rtol=1e-5)
    unaveraged = np.abs(to_numpy(system.networks["generator_a"](images))).mean()
    assert unaveraged != pytest.approx(seen[2], rel=1e-5)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["stop_reason"], record["epochs_done"]) == ("stopped", result.stop_reason, 3)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["brightness"] for row in rows] == ["3.0", "1.0", "2.0"]

    _, again = run_small(tmp_path, small_translation(), average={"generator_a": 0.999}, **options, resume=True)
    assert again.stop_reason == result.stop_reason and len(again.history) == 3 and len(seen) == 3
    with pytest.raises(UserError, match="`monitor` must be a logged value.*brightness"):
        run_small(tmp_path / "b", epochs=1, scorers=[lambda predict, epoch: {"brightness": 1}], monitor="kid")


def test_a_reason_within_an_epoch_ends_it_there(tmp_path):
    class Drift(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise StopTraining("drift")

    _, result = run_small(tmp_path, callbacks=[Drift()])
    record = json.loads((tmp_path / "run.json").read_text())
    assert result.history == [] and result.stopped_early and all(path.exists() for path in result.paths.values())
    assert (record["status"], record["stop_reason"], record["steps_done"]) == ("stopped", "drift", 2)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_follows_float32(tmp_path, monkeypatch, half):
    """Losses are float32 numbers close to those of float32; a checkpoint in float16 holds the loss scales."""
    monkeypatch.setattr(LossScale, "START", 2.0**7)  # means over 32 pixels have large gradients
    options = {"epochs": 1, "average": None, "checkpoint_steps": None}
    _, expected = run_small(tmp_path / "float32", **options)
    system, result = run_small(tmp_path / half, mixed_precision=half, **options)
    names = [name for name in expected.history[0] if name.endswith("_loss")]
    for name in names:
        assert result.history[0][name] == pytest.approx(expected.history[0][name], rel=0.03), name
    assert all(v.dtype == "float32" for network in system.networks.values() for v in network.trainable_variables)
    if half == "float16":
        assert result.history[0]["generators_loss_scale"] == LossScale.START
        _, again = run_small(tmp_path / half, mixed_precision=half, resume=True, **options)
        assert again.history == result.history


def test_overflow_in_float16_is_undone_and_halves_the_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**126)
    system = small_translation()
    before = [to_numpy(v.value).copy() for v in system.networks["discriminator_a"].trainable_variables]
    _, result = run_small(tmp_path, system, epochs=1, average=None, mixed_precision="float16")
    scales = [2.0 ** (126 - i) for i in range(4)]
    assert result.history[0]["discriminators_loss_scale"] == pytest.approx(np.mean(scales))
    for old, variable in zip(before, system.networks["discriminator_a"].trainable_variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(variable.value))


def test_trains_on_tiles_of_the_device(tmp_path):
    rng = np.random.default_rng(0)
    sets = [rng.uniform(-1, 1, (n, 4, 4, 1)).astype("float32") for n in (5, 3)]
    histories = []
    for name in ("a", "b"):
        _, result = run_small(tmp_path / name, data=DeviceTiles(sets, 3, 2, seed=1), epochs=2)
        histories.append(without_time(result.history))
    assert histories[0] == histories[1] and len(histories[0]) == 2


def test_what_cannot_work_is_explained(tmp_path):
    with pytest.raises(UserError, match="`mixing` must be one of"):
        outlines(mixing="cauchy")
    with pytest.raises(UserError, match="list of names"):
        Phase("critic", "critic", lambda x: (x, {}))
    with pytest.raises(UserError, match="`average` must name networks"):
        run_small(tmp_path / "a", average={"writer": 0.9})
    broken = small_translation()
    broken.networks["generator_a"].layers[-1].bias.assign([np.nan])
    with pytest.raises(UserError, match="is nan in epoch 1: lower the learning rate"):
        run_small(tmp_path / "b", broken)
    assert (tmp_path / "b" / CHECKPOINT).exists()


@given(st.integers(0, 5), st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 99))
def test_pool_never_exceeds_its_size_and_returns_only_images_it_was_given(size, counts, seed):
    pool, copy = ImagePool(size), ImagePool(size)
    rng, given_so_far = np.random.default_rng(seed), 0
    for count in counts:
        images = np.arange(given_so_far, given_so_far + count, dtype="float32").reshape(count, 1, 1, 1)
        given_so_far += count
        copy.set_state(pool.get_state())
        state = rng.bit_generator.state
        back = pool(images, rng)
        rng.bit_generator.state = state
        np.testing.assert_array_equal(copy(images, rng), back)  # its state is all there is to it
        assert back.shape == images.shape and len(pool) == min(size, given_so_far)
        assert set(back.ravel()) <= set(range(given_so_far))
        assert size or np.array_equal(back, images)


# Means over two steps, and `checksums` after them; float32 on CPU. The backends agree to 1e-5.
WGAN = {
    "logs": {
        "critic_loss": 9.310913,
        "gradient_norm": 0.03507241,
        "penalty": 0.9311212,
        "wasserstein": -0.0002989902,
        "generator_loss": -0.02985146,
    },
    "weights": {"generator": [2.907649, 0.1933003], "critic": [1.251716, 0.0007942616]},
}
CYCLE = {
    "logs": {
        "adversarial_a": 0.530909,
        "adversarial_b": 0.6094001,
        "cycle_a": 0.6174329,
        "cycle_b": 0.6213526,
        "generator_a_loss": 9.818856,
        "generator_b_loss": 9.970397,
        "generators_loss": 19.78925,
        "identity_a": 0.6227236,
        "identity_b": 0.6294943,
        "discriminator_a_loss": 0.4963627,
        "discriminator_b_loss": 0.5042989,
        "discriminators_loss": 1.000662,
        "fake_a": 0.0882326,
        "fake_b": 0.1709733,
        "real_a": 0.9044927,
        "real_b": 0.8376246,
    },
    "weights": {
        "generator_a": [2.121099, -0.01734331],
        "generator_b": [2.158073, -0.03981138],
        "discriminator_a": [0.02294216, -0.0007360956],
        "discriminator_b": [0.0215467, -0.0009266681],
    },
}
