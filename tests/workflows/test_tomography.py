"""The path through a volume: train, predict, label, measure; resumed runs, sparse labels, 2.5D, clear errors."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.inference import volumes  # noqa: F401  (needs keras)
from keras_microseg.models.saving import load_model
from keras_microseg.simulation.phantoms import PhantomSettings, make_phantom
from keras_microseg.workflows.tomography import TomographySettings, run
from keras_microseg.workflows.tomography_predict import PredictVolumeSettings, predict
from keras_microseg.workflows.tomography_settings import TrainVolumeSettings
from keras_microseg.workflows.tomography_train import VolumeTraining, train_volume

pytestmark = pytest.mark.network
SMALL = {
    "filters": (2, 3), "pools": ((2, 2, 2),), "patch": (8, 16, 16), "epochs": 2, "steps_per_epoch": 3, "batch_size": 2,
    "gap": 4, "validation": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A phantom volume of 40 x 32 x 32 voxels, its labels, and a mask."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom = make_phantom(PhantomSettings(shape=(40, 32, 32), diameter=10, fraction=0.2, seed=1))
    np.save(folder / "scan.npy", phantom.volume)
    np.save(folder / "labels.npy", phantom.labels.astype(np.int32))
    mask = np.where(phantom.labels > 0, 255, 0).astype(np.uint8)
    io.write_image(folder / "mask.tif", mask, axes="ZYX")
    return folder


def settings(data, labels="labels.npy", **changes):
    return TrainVolumeSettings(str(data / "scan.npy"), str(data / labels), **SMALL | changes)


def test_train_resume_and_predict(data, tmp_path):
    chosen = settings(data, epoch_files=True, deep_supervision=0)
    result = train_volume(chosen, tmp_path / "whole")
    assert result.card["outputs"] == ["foreground", "boundary", "distance"] and result.card["ndim"] == 3
    assert {"loss", "dice", "val_loss", "val_dice"} <= set(result.scores)
    info = json.loads((tmp_path / "whole" / "epoch_info_epoch_2.json").read_text())
    assert set(info) == {
        "epoch", "loss", "dice_coefficient", "val_loss", "val_dice_coefficient", "contains_nan",
    } and info["contains_nan"] is False  # fmt: skip
    report = json.loads((tmp_path / "whole" / "training_report.json").read_text())
    assert report["final_train_dice_coefficient"] == pytest.approx(result.history[-1]["dice"])
    assert report["chunk_size"] == 8 and report["input_mask"].endswith("labels.npy")

    class Stop(Exception):
        pass

    def stop(step, done, total, text):
        if done >= 1:
            raise Stop

    with pytest.raises(Stop):
        train_volume(chosen, tmp_path / "cut", progress=stop)
    again = train_volume(chosen, tmp_path / "cut", resume=True)
    first, second = (load_model(r.model_path)[0].get_weights() for r in (result, again))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(FileError, match="other settings.*seed"):
        train_volume(settings(data, epoch_files=True, seed=5), tmp_path / "cut", resume=True)
    with pytest.raises(FileError, match="already holds a training"):
        train_volume(chosen, tmp_path / "cut")

    model = str(result.model_path)
    paths = predict(PredictVolumeSettings(str(data / "scan.npy"), model, flips=4, spread=True), tmp_path / "maps")
    assert set(paths) == {"foreground", "boundary", "distance", "spread"}
    found = io.open_volume(paths["foreground"])
    assert found.shape == (40, 32, 32) and found.dtype == np.uint8
    assert (tmp_path / "maps" / "report.html").is_file()
    trained = predict(
        PredictVolumeSettings(str(data / "scan.npy"), model, normalization="model", maps=("foreground",), report=False),
        tmp_path / "maps2",
    )
    assert set(trained) == {"foreground"}


def test_masks_sparse_labels_classes_and_deep_supervision(data, tmp_path):
    chosen = settings(
        data, "mask.tif", labels_are="mask", labelled=(3, 12, 30, 36), epochs=1, deep_supervision=1,
        filters=(2, 2, 2), pools=((1, 2, 2), (2, 2, 2)), mixed_precision=True,
    )  # fmt: skip
    result = train_volume(chosen, tmp_path / "sparse")
    model, card = load_model(result.model_path)
    assert card["outputs"] == ["foreground"] and model.output_shape[-1] == 1
    classes = settings(data, "mask.tif", labels_are="classes", num_classes=256, epochs=1, steps_per_epoch=1)
    assert len(train_volume(classes, tmp_path / "classes").card["outputs"]) == 256


def test_25d_predicts_in_three_planes(data, tmp_path):
    chosen = settings(data, architecture="2.5d", num_slices=3, filters=(2, 3), pools=None, epochs=1, patch=(1, 16, 16))
    result = train_volume(chosen, tmp_path / "model")
    assert result.card["num_slices"] == 3 and result.card["multiple_of"] == 2
    options = PredictVolumeSettings(
        str(data / "scan.npy"), str(result.model_path), planes=3, maps=("foreground",), halo=4, report=False
    )
    assert io.open_volume(predict(options, tmp_path / "maps")["foreground"]).shape == (40, 32, 32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"patch": (48, 16, 16)}, UserError, "scan.npy.*has 40 slices"),
        ({"patch": (9, 16, 16)}, UserError, r"multiple of \(2, 2, 2\).*Use \(10, 16, 16\)"),
        ({"validation": 0.4, "gap": 40}, UserError, "smaller gap"),
        ({"labels_are": "voxels"}, UserError, "labels_are"),
        ({"ignore": 0, "outputs": ("foreground", "distance")}, UserError, "Sparse labels"),
        ({"outputs": ("flow_y",)}, UserError, "flow_y"),
    ],
)
def test_settings_that_do_not_fit(data, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train_volume(settings(data, **changes), tmp_path / "model")


def test_a_mask_of_another_shape(data, tmp_path):
    np.save(tmp_path / "other.npy", np.zeros((40, 32, 30), np.uint8))
    with pytest.raises(FileError, match="other.npy.*40, 32, 30.*scan.npy"):
        train_volume(TrainVolumeSettings(str(data / "scan.npy"), str(tmp_path / "other.npy"), **SMALL), tmp_path / "m")
    np.save(tmp_path / "real.npy", np.zeros((40, 32, 32), np.float32))
    with pytest.raises(FileError, match="whole numbers"):
        train_volume(TrainVolumeSettings(str(data / "scan.npy"), str(tmp_path / "real.npy"), **SMALL), tmp_path / "m")


def test_old_option_names():
    old = {"input_image": "a.tif", "input_mask": "b.tif", "CHUNK_SIZE": 10, "BATCH_SIZE": 4, "NUM_Z_SLICES": 50}
    chosen = TrainVolumeSettings.from_legacy(old, seed=3)
    assert (chosen.architecture, chosen.loss, chosen.patch, chosen.slices) == ("vfp_2level", "dice", (10, 256, 256), 50)
    assert (chosen.learning_rate, chosen.batch_size, chosen.epochs, chosen.seed) == (1e-4, 4, 100, 3)
    with pytest.raises(UserError, match="resize_factor=0.5"):
        TrainVolumeSettings.from_legacy(old | {"resize_factor": 0.5})
    with pytest.raises(UserError, match="option"):
        TrainVolumeSettings.from_legacy({"lr": 1})


def test_the_whole_path(data, tmp_path):
    """Automatic mask, training on it, prediction, labels, tables, report; a second call finds everything done."""
    train = {k: v for k, v in SMALL.items() if k != "epochs"} | {"epochs": 1}
    chosen = TomographySettings(
        str(data / "scan.npy"), "train", diameter=10, voxel_size="2 um", train=train, threshold=0.3, max_ram="200MB"
    )
    folder = run(chosen, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"mask", "model", "maps", "labels", "tables", "report.html", "manifest.json"} <= names
    facts = json.loads((tmp_path / "run" / "tables" / "volume.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text()
    assert facts["particles"] >= 0 and "pseudo-labels" in page and "Whole objects per volume (1/um³)" in page
    again = run(chosen, tmp_path / "run", resume=True)
    assert again.manifest["steps"]["train"]["seconds"] == folder.manifest["steps"]["train"]["seconds"]
    with pytest.raises(UserError, match="model='train'"):
        TomographySettings("a.tif", labels="b.tif")


def test_threshold_keeps_the_share_of_the_labels(data, tmp_path):
    """A network that says yes too easily gets a higher threshold."""
    chosen = settings(data, labels_are="mask", epochs=1, steps_per_epoch=1)
    model, card = load_model(train_volume(chosen, tmp_path / "model").model_path)
    task = VolumeTraining(chosen, tmp_path / "other")
    assert card["decode"]["threshold"] == task.find_threshold(model)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias + 1])  # more of everything: the threshold follows
    assert card["decode"]["threshold"] + 0.1 < task.find_threshold(model) <= 0.98


def test_presets():
    paper = TrainVolumeSettings.from_preset("paper", "a.tif", "b.tif", epochs=3)
    assert (paper.architecture, paper.loss, paper.epochs) == ("vfp_2level", "dice", 3)
    assert TrainVolumeSettings.from_preset("fast", "a", "b", architecture="large").filters is None
    assert TrainVolumeSettings.from_preset("standard", "a", "b") == TrainVolumeSettings("a", "b")
    with pytest.raises(UserError, match="setting"):
        TrainVolumeSettings.from_preset("fast", "a", "b", epoch=3)
    with pytest.raises(UserError, match="preset"):
        TomographySettings("a.tif", preset="quick")


def test_validation_by_volume(data, tmp_path):
    """Whole volumes for validation; the others give all their slices to the training."""
    chosen = settings(data, validation=None, held=((str(data / "scan.npy"), str(data / "labels.npy")),))
    task = VolumeTraining(dataclasses.replace(chosen, labelled=(3, 9), outputs=("foreground",)), tmp_path)
    assert [v.slices for v in task.volumes] == [v.slices for v in task.validation] == [((0, 40),)]
    assert len(task.validation[0].labelled) == 40 and task.volumes[0].labelled == (3, 9)
    pair = [str(data / "scan.npy"), str(data / "labels.npy")]
    more = ["--also", "=".join(pair), "--held", "=".join(pair), "--out", str(tmp_path / "model")]
    size = ["--patch", "16", "--epochs", "1", "--steps", "1", "--batch-size", "1"]
    network = ["--set", "filters=(2,2)", "--set", "pools=((2,2,2),)"]
    command = ["volume", "train", *pair, *more, *size, *network]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "model" / "train_settings.json").read_text())
    assert len(written["volume"]) == len(written["labels"]) == 2 and "val_loss" in written["scores"]


def test_no_validation_in_thin_volumes(data, tmp_path, caplog):
    caplog.set_level("WARNING", "keras_microseg")
    thin = settings(data, gap=40, validation=None)
    assert not VolumeTraining(thin, tmp_path).validation and "no" in caplog.text
    with pytest.raises(UserError, match="smaller gap"):
        VolumeTraining(dataclasses.replace(thin, validation=0.2), tmp_path)


def test_command_line(data, tmp_path):
    runner = CliRunner()
    train = ["volume", "train", str(data / "scan.npy"), str(data / "labels.npy"), "--out", str(tmp_path / "model"),
             "--patch", "16", "--epochs", "1", "--steps", "1", "--batch-size", "1", "--validation", "0"]  # fmt: skip
    done = runner.invoke(app, train)
    assert done.exit_code == 0, done.output
    missing = runner.invoke(app, ["volume", "predict", str(data / "none.tif"), "--out", str(tmp_path / "maps")])
    assert missing.exit_code == 1 and "none.tif" in missing.output


def test_start_script_reads_old_and_new_names():
    path = Path(__file__).parents[2] / "notebooks" / "StartTomography.py"
    script = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("start", path))
    spec.loader.exec_module(script)
    options = script.read_options(["input_image=a.tif", "input_mask=b.tif", "chunk_size=16", "EPOCHS=3"])
    assert (options["SOURCE"], options["LABELS"], options["MODEL"]) == ("a.tif", "b.tif", "train")
    assert options["PATCH"] == (16, 64, 64) and options["EPOCHS"] == 3
    with pytest.raises(UserError, match="Unknown option 'RESIZE'"):
        script.read_options(["RESIZE=2"])


def test_a_volume_without_objects_gets_a_report(data, tmp_path):
    np.save(tmp_path / "empty.npy", np.random.default_rng(0).normal(100, 1, (32, 32, 32)).astype(np.float32))
    options = ["--voxel-size", "1um", "--diameter", "16", "--min-size", str(32**3 + 1), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["volume", "run", str(tmp_path / "empty.npy"), *options])
    assert done.exit_code == 0 and "Objects: 0" in done.output, done.output
    assert json.loads((tmp_path / "out" / "tables" / "volume.json").read_text())["particles"] == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Nothing was found" in page and "--diameter" in page
