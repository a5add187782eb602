"""`mineral train`: layouts of data, a tiny training that learns, resuming, what the file holds, bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.data.map_pairs import class_weights, find_classes, find_map_pairs, read_pair, split_pairs
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.models.saving import load_model
from keras_microseg.workflows import mineral_train
from keras_microseg.workflows.mineral_train import preset

pytestmark = pytest.mark.network
COLOURS = np.array([(10, 10, 10), (0, 0, 255), (255, 0, 0)], np.uint8)
PALETTE = "id,name,colour,takes_others\n0,matrix,#808080,yes\n1,grains,#0000ff,\n2,pores,#ff0000,\n"
SMALL = {"filters": (8, 16), "tile": 32, "batch_size": 4, "steps_per_epoch": 6}


def scene(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Grey image and its classes: bright discs (1) and dark ones (2) on grey (0)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    classes = np.zeros((size, size), np.uint8)
    for k in (1, 1, 1, 2, 2):
        cy, cx, r = rng.uniform(0, size, 2).tolist() + [rng.uniform(6, 10)]
        classes[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = k
    grey = np.array([120, 190, 40])[classes] + rng.normal(0, 8, classes.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), classes


def write_painted(folder, count=4):
    """Layout of the superalloy set: the classes painted over the grey image, an alpha channel in the mask."""
    for number in range(count):
        part = "val" if number == count - 1 else "train"
        grey, classes = scene(number)
        for name in (part, f"{part}_annot"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        io.write_image(folder / part / f"s{number}.tif", np.repeat(grey[..., None], 3, -1))
        painted = np.where(classes[..., None] > 0, COLOURS[classes], grey[..., None])
        painted = np.concatenate([painted, np.full_like(painted[..., :1], 255)], axis=-1).astype(np.uint8)
        io.write_image(folder / f"{part}_annot" / f"s{number}_mask.tif", painted)
    (folder / "palette.csv").write_text(PALETTE)
    return folder


def write_numbered(folder, count=3):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(count):
        grey, classes = scene(number)
        classes[:4] = 255  # not known
        io.write_image(folder / "images" / f"s{number}.png", grey)
        io.write_image(folder / "masks" / f"s{number}.png", classes)
    return folder


def test_painted_masks_are_read_with_a_rule_for_everything_else(tmp_path):
    pairs = find_map_pairs(write_painted(tmp_path))
    assert [pair.part for pair in pairs] == ["train"] * 3 + ["validation"]
    table = find_classes(tmp_path, pairs)
    assert table.names == ["matrix", "grains", "pores"]
    for number, pair in enumerate(pairs):
        found = read_pair(pair, table)
        grey, classes = scene(number)
        np.testing.assert_array_equal(found.classes, classes)
        np.testing.assert_array_equal(found.image, grey)
    merged = find_classes(tmp_path, pairs, groups={"solid": ["matrix", 1], "pores": [2]})
    np.testing.assert_array_equal(read_pair(pairs[0], merged).classes, scene(0)[1] == 2)


def test_numbered_masks_and_splits(tmp_path):
    pairs = find_map_pairs(write_numbered(tmp_path / "data"))
    table = find_classes(tmp_path / "data", pairs, names=("matrix", "grains", "pores"))
    assert (read_pair(pairs[0], table).classes[:4] == 255).all()
    held = [p.name for p in split_pairs(pairs, "leave-one-out", hold="s1") if p.part == "validation"]
    assert held == ["s1"] == [p.name for p in split_pairs(pairs, "leave-one-out", hold="1") if p.part == "validation"]
    blocks = split_pairs(pairs, "block", validation=0.25, guard=8)
    rows = [(p.part, p.window[0].start, p.window[0].stop) for p in blocks if p.name == "s0"]
    assert rows == [("train", 0, 42), ("validation", 50, 64)]
    assert read_pair(blocks[1], table).image.shape == (14, 64)
    parts = {p.part for p in split_pairs(pairs, "image", validation=0.3)}
    assert parts == {"train", "validation"}
    with pytest.raises(UserError, match="hold"):
        split_pairs(pairs, "leave-one-out", hold="s9")
    with pytest.raises(UserError, match="3 names|names were given"):
        find_classes(tmp_path / "data", pairs, names=("a", "b"))


def test_bad_data_gets_a_message(tmp_path):
    data = write_numbered(tmp_path / "data")
    pairs = find_map_pairs(data)
    io.write_image(data / "masks" / "s0.png", np.zeros((60, 64), np.uint8))
    with pytest.raises(FileError, match="60 x 64 pixels, its image 64 x 64"):
        read_pair(pairs[0], find_classes(data, pairs[1:]))
    io.write_image(data / "masks" / "s0.png", COLOURS[scene(0)[1]])
    with pytest.raises(UserError, match="--palette"):
        find_classes(data, pairs)
    (tmp_path / "two.csv").write_text("id,name,colour\n0,a,#000000\n1,b,#000000\n")
    with pytest.raises(FileError, match="more than once"):
        find_classes(data, pairs, palette=tmp_path / "two.csv")
    (tmp_path / "none.csv").write_text("id,name,colour\n0,a,\n")
    with pytest.raises(FileError, match="no colour"):
        find_classes(data, pairs, palette=tmp_path / "none.csv")
    for path in (data / "masks").iterdir():
        io.write_image(path, np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match="without a training pixel"):
        mineral_train.train(preset("cpu", str(data), classes=("a", "b"), **SMALL), tmp_path / "out")


def test_class_weights_are_those_of_the_published_abundances():
    # pores 12.3, quartz 42.1, albite 25.7, clay 19.9 %
    found = class_weights([123, 421, 257, 199], "inverse")
    np.testing.assert_allclose(found, [1.67, 0.49, 0.80, 1.03], atol=0.006)
    np.testing.assert_allclose(class_weights([123, 421, 257, 199], "median"), found)
    for kind in ("none", "sqrt", "effective"):
        weights = class_weights([10_000, 0, 1_000_000], kind)
        assert weights[1] == 0 and np.isclose(weights[[0, 2]].mean(), 1) and weights[0] >= weights[2]


def test_a_training_learns_and_resumes_exactly(tmp_path):
    data = write_painted(tmp_path / "data")
    settings = preset("cpu", str(data), epochs=10, seed=3, **SMALL | {"steps_per_epoch": 12})
    done = mineral_train.train(settings, tmp_path / "whole")
    assert done.scores["val_mean_iou"] > 0.6
    model, card = load_model(done.model_path)
    assert card["outputs"] == ["matrix", "grains", "pores"] and card["task"] == "mineral map"
    assert card["classes"][1]["colour"] == [0, 0, 255] and card["multiple_of"] == 2
    assert card["normalization"] == {"mode": "percentile", "lower": 0.1, "upper": 99.9}
    grey, classes = scene(3)
    maps = np.asarray(model.predict(stretch(grey, percentile_limits(grey, 0.1, 99.9))[None, ..., None], verbose=0))
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
    assert (maps[0].argmax(-1) == classes).mean() > 0.85

    class Stopped(Exception):
        pass

    def stop(step, epoch, total, text):
        if epoch == 4:
            raise Stopped

    with pytest.raises(Stopped):
        mineral_train.train(settings, tmp_path / "parts", progress=stop)
    with pytest.raises(FileError, match="already holds"):
        mineral_train.train(settings, tmp_path / "parts")
    again = mineral_train.train(settings, tmp_path / "parts", resume=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in done.history]
    with pytest.raises(FileError, match="other settings"):
        mineral_train.train(preset("cpu", str(data), epochs=10, seed=4), tmp_path / "parts", resume=True)


def test_command(tmp_path):
    data = write_painted(tmp_path / "data")
    options = ["--set", "filters=(8,16)", "--set", "tile=32", "--set", "steps_per_epoch=2", "--minutes", "0.0001"]
    result = CliRunner().invoke(app, ["mineral", "train", str(data), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    assert "val_mean_iou" in result.output and (tmp_path / "out" / "model.keras").is_file()
    assert io.open_image(tmp_path / "out" / "training.png").read().std() > 10
    facts = json.loads((tmp_path / "out" / "train_settings.json").read_text())
    assert facts["epochs_done"] == 1  # the time is over after the first epoch
    shutil.rmtree(data / "train_annot")
    shutil.rmtree(data / "val_annot")
    result = CliRunner().invoke(app, ["mineral", "train", str(data), "-o", str(tmp_path / "none")])
    assert result.exit_code == 1 and "images/ and labels/" in result.output


def test_evaluate_a_network_and_maps(tmp_path):
    data = write_painted(tmp_path / "data")
    settings = preset("cpu", str(data), epochs=1, **SMALL)
    model = mineral_train.train(settings, tmp_path / "model").model_path
    result = CliRunner().invoke(app, ["mineral", "evaluate", str(model), str(data), "-o", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(tmp_path / "a" / "scores.csv").set_index("method")
    assert list(scores.index) == ["prediction", "multi-Otsu", "best thresholds", "random forest"]
    assert scores.loc["random forest", "mean_iou"] > 0.8  # grey values tell these classes apart
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Confusion" in page and "random forest" in page
    found = io.open_image(tmp_path / "a" / "maps" / "s3.png").read()

    # the maps that were written, judged as maps: the same scores; and the truth itself: 1
    maps = tmp_path / "maps"
    shutil.copytree(tmp_path / "a" / "maps", maps)
    result = CliRunner().invoke(app, ["mineral", "evaluate", str(maps), str(data), "-o", str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    again = pd.read_csv(tmp_path / "b" / "scores.csv").set_index("method")
    pd.testing.assert_series_equal(again.loc["prediction"], scores.loc["prediction"])
    io.write_image(maps / "s3.png", scene(3)[1])
    evaluated = ["mineral", "evaluate", str(maps / "s3.png"), str(data / "val_annot"), "--no-baselines"]
    options = ["--palette", str(data / "palette.csv"), "-o", str(tmp_path / "c")]
    result = CliRunner().invoke(app, [*evaluated, *options])
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "c" / "scores.csv").loc[0, "mean_iou"] == 1

    io.write_image(maps / "s3.png", found[:50])
    result = CliRunner().invoke(app, ["mineral", "evaluate", str(maps), str(data), "-o", str(tmp_path / "d")])
    assert result.exit_code == 1 and "50 x 64 pixels" in result.output


@pytest.mark.slow
def test_two_stages_and_frozen_encoder(tmp_path):
    from keras_microseg.models.encoder_decoder import backbone_unet

    data = write_painted(tmp_path / "data")
    weights = tmp_path / "resnet18.weights.h5"
    from keras_microseg.models.backbones import backbone

    encoder = backbone("resnet18", 3).model
    encoder.save_weights(weights)
    options = {"backbone": "resnet18", "filters": None, "tile": 32, "batch_size": 2, "steps_per_epoch": 1}
    options |= {"encoder_weights": str(weights), "epochs": 1, "warm_epochs": 1}
    trained = {}
    for regime in ("frozen", "two-stage"):
        done = mineral_train.train(preset("cpu", str(data), regime=regime, **options), tmp_path / regime)
        trained[regime] = load_model(done.model_path)[0].get_layer("stage3_unit1_conv1").get_weights()[0]
    start = encoder.get_layer("stage3_unit1_conv1").get_weights()[0]
    np.testing.assert_array_equal(trained["frozen"], start)
    assert np.abs(trained["two-stage"] - start).max() > 0
    with pytest.raises(UserError, match="starts from a pretrained encoder"):
        preset("cpu", str(data), regime="frozen")
    assert backbone_unet("resnet18").name == "unet_resnet18"


@pytest.mark.slow
def test_every_sample_is_held_out_once(tmp_path):
    data = write_numbered(tmp_path / "data")
    command = ["mineral", "train", str(data), "-o", str(tmp_path / "out"), "--hold", "all", "--epochs", "1"]
    options = ["--set", "filters=(8,16)", "--set", "tile=32", "--set", "steps_per_epoch=2"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert list(dict.fromkeys(table["sample"])) == ["s0", "s1", "s2", "mean of the samples"]
    forest = table[table["method"] == "random forest"].set_index("sample")["mean_iou"]
    assert forest["mean of the samples"] == pytest.approx(forest[["s0", "s1", "s2"]].mean(), rel=1e-4)
    for sample in ("s0", "s1", "s2"):
        facts = json.loads((tmp_path / "out" / sample / "model" / "train_settings.json").read_text())
        assert facts["hold"] == sample and facts["card"]["training"]["images"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"deep_supervision": 1, "label_grid": 4, "filters": (4, 8, 8)},
        pytest.param({"architecture": "two_branch", "filters": (4, 8, 8), "tile": 64}, marks=pytest.mark.slow),
    ],
)
def test_multi_scale_options_end_in_a_plain_network(tmp_path, changes):
    data = write_painted(tmp_path / "data")
    settings = preset("cpu", str(data), epochs=2, **SMALL | changes)
    done = mineral_train.train(settings, tmp_path / "out")
    model, card = load_model(done.model_path)
    assert model.output_shape[-1] == 3 and card["outputs"] == ["matrix", "grains", "pores"]
    assert card["halo"] >= 4 * card["multiple_of"]
    # the scores of the training are those of the saved network
    scores = mineral_train.MapScores(
        card, *judged(settings, card), monitor=()
    )(model, 0)  # fmt: skip
    assert scores["val_mean_iou"] == pytest.approx(done.scores["val_mean_iou"], abs=1e-6)
    with pytest.raises(UserError, match="multiple of `label_grid`"):
        preset("cpu", str(data), tile=32, label_grid=5)


def judged(settings, card):
    _, held, _ = mineral_train.read_data(settings)
    return held, mineral_train.normalize(settings, held, card["normalization"])[1]


def test_classes_without_a_pixel_are_named():
    from types import SimpleNamespace

    minerals = [
        SimpleNamespace(name=name, colour=colour, takes_others=name == "matrix")
        for name, colour in (("matrix", (0, 0, 0)), ("grains", (0, 0, 255)), ("pores", (255, 0, 0)))
    ]
    palette = SimpleNamespace(minerals=minerals)
    assert mineral_train._absent_classes(palette, np.array([3, 4, 5])) == ()
    (text,) = mineral_train._absent_classes(palette, np.array([3, 0, 5]))
    assert "grains (#0000ff)" in text and "pores" not in text and "count as matrix" in text
