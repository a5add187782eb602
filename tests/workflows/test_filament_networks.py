import json

import numpy as np
import pytest
from PIL import Image

keras = pytest.importorskip("keras")
from typer.testing import CliRunner  # noqa: E402

from keras_microseg.checks import FileError, UserError  # noqa: E402
from keras_microseg.cli import app  # noqa: E402
from keras_microseg.io.frame_layouts import open_series  # noqa: E402
from keras_microseg.io.frames import read_members, write_series  # noqa: E402
from keras_microseg.models.saving import load_model, read_card  # noqa: E402
from keras_microseg.simulation.filaments import simulate_video  # noqa: E402
from keras_microseg.workflows import filament_change, filament_search, filament_train  # noqa: E402

pytestmark = pytest.mark.network
TINY = {
    "train": ("a",),
    "validation": ("b",),
    "network.features": 4,
    "network.levels": 2,
    "network.head_filters": (6,),
    "size": 32,
    "epochs": 2,
    "steps_per_epoch": 3,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("a", "b")):
        write_series(folder / name, simulate_video(seed, num_frames=5, shape=64, num_before=1, name=name).series)
    return folder


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return filament_train.train(data, out, filament_train.preset("cpu", **TINY)).model_path


def test_presets_and_changes():
    paper = filament_train.preset("paper")
    assert paper.steps_per_epoch == 382 and paper.batch_size == 16 and paper.weight_power == 1
    from keras_microseg.training.schedules import OptimizerSettings

    rate = OptimizerSettings(**paper.optimizer).rate(500, 382)
    for epoch in (0, 1, 250, 499):
        for step in (0, 381):
            expected = 9.551981358e-4 * (1 - epoch / 501)
            np.testing.assert_allclose(float(rate(epoch * 382 + step)), expected, rtol=1e-4)
    changed = filament_train.preset("cpu", **{"optimizer.learning_rate": 1e-4})
    assert changed.optimizer["learning_rate"] == 1e-4 and changed.optimizer["schedule"] == "cosine"
    assert filament_train.PRESETS["cpu"]["optimizer"]["learning_rate"] != 1e-4
    with pytest.raises(UserError, match="There is no setting 'learning_rate'"):
        filament_train.preset("cpu", learning_rate=1)
    with pytest.raises(UserError, match="both.*: a"):
        filament_train.preset("cpu", train=("a",), validation=("a",))
    with pytest.raises(UserError, match="preset"):
        filament_train.preset("tpu")


def test_training_leaves_a_model_with_its_card(data, model):
    card = read_card(model)
    assert card["kind"] == "delta_net" and card["training"]["train"] == ["a"]
    history = (model.parent / "log.csv").read_text().splitlines()
    assert len(history) == 3 and "val_f1" in history[0] and "val_A2_b" in history[0]
    with pytest.raises(UserError, match="holds a training already"):
        filament_train.train(data, model.parent, filament_train.preset("cpu", **TINY))


def test_an_interrupted_training_ends_as_one_that_was_not(data, model, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 1 and batch == 1:
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    settings = filament_train.preset("cpu", **TINY)
    with pytest.raises(KeyboardInterrupt):
        filament_train.train(data, tmp_path, settings, callbacks=[Interrupt()])
    again = filament_train.train(data, tmp_path, settings, resume=True)
    for ours, theirs in zip(
        load_model(again.model_path)[0].get_weights(), load_model(model)[0].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_from_the_weights_of_a_unet_and_the_change_criterion(data, tmp_path):
    few = TINY | {"epochs": 1, "steps_per_epoch": 1}
    single = {"kind": "frame_unet", "network.tasks": ("A2",)}
    unet = filament_train.train(data, tmp_path / "unet", filament_train.preset("cpu", **few, **single))
    assert read_card(unet.model_path)["kind"] == "frame_unet"
    start = {"initial": str(unet.model_path), "selection": "change"}
    net = filament_train.train(data, tmp_path / "net", filament_train.preset("cpu", **few, **start))
    assert net.card["layers_from_initial"] == 2 * 2 * 2 * 2 + 4 + 2  # down and up blocks, bottom, transposed
    assert 0 < net.scores["val_f1"] < 1


def test_predict_by_command(data, model, tmp_path):
    out = tmp_path / "masks"
    command = [
        "filament",
        "predict",
        str(data),
        "--name",
        "b",
        "--model",
        str(model),
        "--out",
        str(out),
        "--probabilities",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    series = open_series(data / "b")
    for part in ("area1", "area2"):
        files = sorted(path.name for path in (out / "predictions" / "b" / part).iterdir())
        assert files == sorted(series.files) and len(files) == 6
        pixels = np.asarray(Image.open(out / "predictions" / "b" / part / files[0]))
        assert pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}
    again = open_series(data / "b", masks=out / "predictions" / "b").read_masks("A2")
    stored = np.load(out / "probabilities" / "b.npz")
    assert stored["A1"].shape == series.shape
    assert not (again & ~(stored["A2"] > 0.49)).any()
    assert read_members(out / "predictions" / "b" / "members.csv", series)["A1"].shape[0] == 6
    assert CliRunner().invoke(app, command).exit_code == 1  # the folder is in use
    assert CliRunner().invoke(app, [*command, "--resume"]).exit_code == 0


def test_run_from_images_to_report(data, model, tmp_path):
    settings = filament_change.FilamentSettings((str(data),), ("b",), str(model), mode={"mode": "backward"})
    folder = filament_change.run(settings, tmp_path / "run")
    assert (folder.path / "report.html").is_file() and (folder.path / "predictions/b/area1").is_dir()
    assert folder.manifest["videos"]["b"]["frames"] == 6
    assert not folder.failures()


def test_run_trains_when_there_is_no_model(data, tmp_path, monkeypatch):
    tiny = filament_train.preset("cpu", **(TINY | {"epochs": 1, "steps_per_epoch": 1}))
    monkeypatch.setattr(filament_train, "preset", lambda name: tiny)
    settings = filament_change.FilamentSettings(
        (str(data / "b"),), model=None, data=str(data), mode={"mode": "forward"}
    )
    folder = filament_change.run(settings, tmp_path / "run", measure=False)
    assert (folder.path / "training" / "model.keras").is_file()
    assert filament_change.read_model_facts(folder)["scores"]


def test_search_tries_scores_and_reports(data, tmp_path):
    pytest.importorskip("optuna")
    settings = filament_train.preset("cpu", **(TINY | {"steps_per_epoch": 1}))
    space = {
        "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "network.head_kernel": {"values": (1, 3)},
    }
    result = filament_search.search(data, tmp_path, settings, space=space, num_trials=2, grace=1)
    assert len(result.table) == 2 and result.table.loc[0, "optimizer.learning_rate"] == pytest.approx(2e-3)
    for name in ("trials.csv", "search.html", "search_history.png", "best.json", "trial_0000/model.keras"):
        assert (tmp_path / name).is_file()
    assert json.loads((tmp_path / "best.json").read_text())["score"] == pytest.approx(result.score)
    with pytest.raises(UserError, match="space"):
        filament_search.search(data, tmp_path, settings, space={"epochs": {"low": 1}})


def test_faults_are_named(data, model, tmp_path):
    with pytest.raises(UserError, match="Neither a model nor"):
        filament_change.FilamentSettings(("x",), model=None)
    with pytest.raises(FileError, match="no such model"):
        filament_change.run(filament_change.FilamentSettings((str(data),), model="none.keras"), tmp_path / "a")
    with pytest.raises(UserError, match="in_channels"):
        filament_train.train(data, tmp_path / "b", filament_train.preset("cpu", **TINY, **{"network.in_channels": 1}))
    with pytest.raises(FileError, match="holds no video 'c'"):
        filament_train.train(data, tmp_path / "c", filament_train.preset("cpu", **(TINY | {"train": ("c",)})))
    one = tmp_path / "one"
    write_series(one, open_series(data / "a").take(slice(0, 1)).load())
    with pytest.raises(UserError, match="at least two frames"):
        filament_change.run(filament_change.FilamentSettings((str(one),), model=str(model)), tmp_path / "d")
    runner = CliRunner()
    wrong = runner.invoke(app, ["filament", "train", str(data), "--out", str(tmp_path / "e"), "--set", "epochs"])
    assert wrong.exit_code != 0 and "name=value" in wrong.output


def test_options_of_the_command_line():
    from keras_microseg.cli import filament_networks as commands

    settings = commands._settings(
        "cpu",
        ["x", "y"],
        None,
        None,
        ["epochs=3", "kind=frame_unet", "network.tasks=A2", "optimizer.learning_rate=1e-4"],
    )
    assert settings.train == ("x", "y") and settings.epochs == 3 and settings.kind == "frame_unet"
    assert settings.network["tasks"] == ("A2",) and settings.optimizer["learning_rate"] == 1e-4
    assert commands._range("a", "1e-4:1e-2:log") == {"low": 1e-4, "high": 1e-2, "log": True, "integer": False}
    assert commands._range("a", "4:9")["integer"] and commands._range("a", "4,8,x") == {"values": (4, 8, "x")}
    assert commands._mode("backward", "soft", True, 1, None)["votes"] == "hard"
