"""Classification from files to report, without a network; the network is in `test_classify_pixels.py`."""

import json

import numpy as np
import pandas as pd
import pytest
from classify_scenes import CLASSES, scene, write_data
from typer.testing import CliRunner

import keras_microseg as km
from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.workflows.classify_particles import classify
from keras_microseg.workflows.classify_train import train_classifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("classify"))
    (folder / "classes.txt").write_text("disc, #00ff00\nbar, red\n")
    found = train_classifier(folder, folder / "model", class_list=str(folder / "classes.txt"), held_out=("s3",))
    return folder, found


def test_training_and_evaluation(trained):
    folder, found = trained
    np.testing.assert_array_equal(found.confusion, [[6, 0], [0, 6]])
    assert found.balanced_accuracy == 1 and found.held_out == ("s3",)
    np.testing.assert_array_equal(found.examples, [18, 18])
    assert np.trace(found.cross_validation) == 36
    record = json.loads((folder / "model/evaluation.json").read_text())
    assert record["classes"] == ["disc", "bar"] and record["balanced_accuracy"] == 1
    assert pd.read_csv(folder / "model/confusion.csv", comment="#")["called bar"].tolist() == [0, 6]


def test_from_a_run_to_a_report_by_class(trained, tmp_path):
    folder, found = trained
    km.segment(folder / "images", tmp_path / "run", method="classical")
    results = classify(tmp_path / "run", tmp_path / "out", model=found.model_path, combine={"disc": 1.0, "bar": 0.0})
    assert len(results.table) == 48 and not results.failures
    shape = results.table.groupby("class")["aspect_ratio"].mean()
    assert shape["disc"] > 0.75 and shape["bar"] < 0.6
    count = int((results.table["class"] == "disc").sum())
    assert 24 <= count <= 32  # thin bars, grown by the smoothing of the classical method, are taken for discs
    assert ((results.table["keep_score"] >= 0.5) == (results.table["class"] == "disc")).all()
    np.testing.assert_allclose(results.table["p_disc"] + results.table["p_bar"], 1)
    rows = results.classes.set_index("class")
    assert rows.loc["disc", "particles"] == rows.loc["kept (score from 0.5 on)", "particles"] == count
    discs = results.table[results.table["class"] == "disc"]
    assert rows.loc["disc", "D50"] == pytest.approx(discs["equivalent_diameter"].median(), rel=0.05)
    assert any(line.startswith(f"Class disc: {count} particles (") for line in results.highlights())
    assert '<h2 id="classes">' in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "classes" in pd.ExcelFile(tmp_path / "out/particles.xlsx").sheet_names
    painted = io.open_image(tmp_path / "out/classes/s0.png").read()
    assert tuple(painted[20, 20]) == (0, 255, 0) and tuple(painted[20, 60]) == (255, 0, 0)
    again = classify(
        tmp_path / "run", tmp_path / "out", model=found.model_path, combine={"disc": 1.0, "bar": 0.0}, resume=True
    )
    pd.testing.assert_frame_equal(again.table, results.table)


def test_label_images_with_micrographs(trained, tmp_path):
    folder, found = trained
    results = classify(folder / "labels", tmp_path / "a", model=folder / "model", images=folder / "images")
    truth = [1 + (k + seed) % 2 for seed in range(4) for k in range(12)]
    assert results.table["class"].tolist() == [CLASSES.names[kind - 1] for kind in truth]
    with pytest.raises(UserError, match="Pass --images"):
        classify(folder / "labels", tmp_path / "b", model=found.model_path)
    with pytest.raises(UserError, match="weights from 0 to 1"):
        classify(folder / "labels", tmp_path / "b", model=found.model_path, images=folder / "images", combine={"x": 1})
    with pytest.raises(FileError, match="cannot be read"):
        classify(folder / "labels", tmp_path / "b", model=tmp_path / "no.json", images=folder / "images")


def test_one_class_and_the_unmarked_rest(tmp_path):
    for seed in range(3):
        grey, labels, class_map = scene(seed)
        io.write_image(tmp_path / f"images/s{seed}.png", grey, axes="YX")
        io.write_image(tmp_path / f"masks/s{seed}_m.png", ((labels > 0) * 255).astype(np.uint8), axes="YX")
        io.write_image(tmp_path / f"classes/s{seed}_cm.png", ((class_map == 1) * 255).astype(np.uint8), axes="YX")
    found = train_classifier(tmp_path, tmp_path / "model", validation=0)
    assert found.classes.names == ("white", "other") and found.held_out == ()
    assert np.isnan(found.balanced_accuracy) and np.trace(found.cross_validation) == 36


def test_the_command_line(trained, tmp_path):
    folder, _ = trained
    run = CliRunner().invoke(
        app, ["classify", "train", str(folder), "--out", str(tmp_path / "m"), "--held-out", "s0,s1"]
    )
    assert run.exit_code == 0, run.output
    assert "Balanced accuracy on 24 particles: 1.000" in run.output and "called green" in run.output
    options = ["--images", str(folder / "images"), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "c")]
    run = CliRunner().invoke(app, ["classify", "apply", str(folder / "labels"), *options, "--combine", "green=1"])
    assert run.exit_code == 0, run.output
    assert "Class green: 24 particles" in run.output and "Class kept" in run.output
    run = CliRunner().invoke(app, ["classify", "train", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")])
    assert run.exit_code == 1 and "Folders are missing" in run.output


def test_bad_input_is_named_all_at_once(tmp_path):
    data = write_data(tmp_path / "data", 5)
    grey, labels, class_map = scene(0)
    io.write_image(data / "classes/s0_cm.png", CLASSES.paint(class_map)[:, :-3], axes="YXC")
    odd = CLASSES.paint(class_map)
    odd[0, :4] = (1, 2, 3)
    io.write_image(data / "classes/s1_cm.png", odd, axes="YXC")
    io.write_labels(data / "labels/s2.tif", np.zeros_like(labels))
    io.write_image(data / "classes/s3_cm.png", np.zeros((*labels.shape, 3), np.uint8), axes="YXC")
    (data / "c.txt").write_text("disc, lime\nbar, red\n")
    with pytest.raises(UserError) as caught:
        train_classifier(data, tmp_path / "model", class_list=str(data / "c.txt"))
    text = str(caught.value)
    assert "s0_cm.png: has 120 x 157 pixels" in text and "#010203 in 4 pixels" in text
    assert "s2.tif: holds no particle" in text and "s3_cm.png: marks no particle" in text
    assert not (tmp_path / "model/classifier.json").exists()


def test_missing_partners_and_classes(tmp_path):
    data = write_data(tmp_path / "data", 3)
    (data / "labels/s1.tif").unlink()
    with pytest.raises(UserError, match=r"1 files that belong .* were not found: s1_cm\.png \(in .*labels\)"):
        train_classifier(data, tmp_path / "model")
    data = write_data(tmp_path / "again", 3)
    (data / "c.txt").write_text("disc, lime\nbar, red\nrod, blue\n")
    with pytest.raises(UserError, match="No particle of class rod among the 24 examples"):
        train_classifier(data, tmp_path / "model2", class_list=str(data / "c.txt"))
    with pytest.raises(UserError, match="No image to hold out is called s9"):
        train_classifier(data, tmp_path / "model3", held_out=("s9",))
    train_classifier(data, tmp_path / "model4")
    with pytest.raises(FileError, match="already holds a training"):
        train_classifier(data, tmp_path / "model4")
    with pytest.raises(UserError, match="Unknown settings"):
        train_classifier(data, tmp_path / "model5", colour=3)
