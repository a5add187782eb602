import json

import numpy as np
import pandas as pd
import pytest

import keras_microseg as km
from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.io.pairing import match_names
from keras_microseg.workflows import demo, doctor


def squares(side: int = 10) -> np.ndarray:
    labels = np.zeros((60, 80), np.int32)
    labels[10 : 10 + side, 10 : 10 + side] = 3
    labels[30 : 30 + side, 40 : 40 + side] = 9
    return labels


def test_measure_arrays_in_real_units():
    results = km.measure([squares(), squares(20)], pixel_size="2 nm")
    assert results.table["area"].tolist() == [400, 400, 1600, 1600]
    assert results.table["label"].tolist() == [3, 9, 3, 9]


def test_measure_folder_with_micrographs(tmp_path):
    for name in ("a", "b"):
        io.write_labels(tmp_path / "labels" / f"{name}_labels.tif", squares())
        io.write_image(tmp_path / "images" / f"{name}.tif", squares().astype(np.uint16) * 7, axes="YX")
    io.write_image(tmp_path / "labels" / "c.png", (squares() > 0).astype(np.uint8) * 255, axes="YX")
    results = km.measure(tmp_path / "labels", tmp_path / "out", images=tmp_path / "images", pixel_size="1.5nm")
    assert len(results.table) == 4 and results.table["intensity_mean"].tolist() == [21, 63, 21, 63]
    (failure,) = results.failures
    assert "c.png" in failure.message and "no micrograph" in failure.message
    plain = km.measure(tmp_path / "labels" / "c.png")
    assert len(plain.table) == 2 and plain.unit == "px"


def test_measure_refuses_what_is_no_label_image(tmp_path):
    io.write_image(tmp_path / "float.tif", np.random.default_rng(0).random((9, 9)).astype(np.float32), axes="YX")
    results = km.measure(tmp_path / "float.tif")
    assert "float.tif" in results.failures[0].message
    with pytest.raises(UserError, match="whole numbers"):
        km.measure(np.zeros((4, 4)))


def test_measure_doubts_a_micrograph_given_as_labels(tmp_path):
    grey = np.random.default_rng(0).integers(90, 110, (64, 64)).astype(np.uint8)
    io.write_image(tmp_path / "grey.tif", grey, axes="YX")
    labels = np.zeros((64, 64), np.int32)
    labels[4:9, 4:9], labels[30:50, 30:50] = 3, 900
    io.write_image(tmp_path / "labels.tif", labels.astype(np.uint16), axes="YX")
    warnings = km.measure([tmp_path / "grey.tif", tmp_path / "labels.tif"]).warnings
    assert any("grey.tif" in text and "micrograph" in text for text in warnings)
    assert not any("labels.tif: Most" in text for text in warnings)


def test_simulate_is_repeatable_and_measurable(tmp_path):
    first = km.simulate(2, tmp_path / "one", seed=5, size=(96, 128), preset="tem", diameter=(10, 20))
    second = km.simulate(2, tmp_path / "two", seed=5, size=(96, 128), preset="tem", diameter=(10, 20))
    for name in ("images/sim_0001.tif", "labels/sim_0001.tif"):
        left, right = (io.open_image(path / name, raw_palette=True).read() for path in (first, second))
        np.testing.assert_array_equal(left, right)
    assert io.open_image(first / "images/sim_0000.tif").pixel_size.unit == "nm"
    facts = pd.read_csv(first / "facts.csv", comment="#")
    table = km.measure(first / "labels").table
    assert len(table) == facts["particles"].sum()
    with pytest.raises(UserError, match="preset"):
        km.simulate(1, tmp_path / "three", preset="laser")


def test_evaluate_known_scores(tmp_path):
    truth = np.zeros((50, 50), np.int32)
    truth[5:15, 5:15], truth[30:40, 30:40] = 1, 2
    predicted = np.zeros_like(truth)
    predicted[5:15, 5:15], predicted[5:9, 40:44] = 5, 6  # one found, one missed, one of 16 pixels invented
    scores = km.evaluate(predicted, truth, tmp_path / "scores.json", resamples=20)
    assert scores["f1"] == 0.5 and scores["precision"] == 0.5 and scores["recall"] == 0.5
    assert scores["pq"] == 0.5 and scores["ap50"] == pytest.approx(1 / 3) and scores["ap50_95"] == pytest.approx(1 / 3)
    assert scores["iou"] == pytest.approx(100 / 216)
    assert scores["youden"] == pytest.approx(100 / 200 + 2284 / 2300 - 1)
    assert km.evaluate(predicted, truth, min_area=20, resamples=5)["precision"] == 1
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["scores"][0]["value"] == 0.5


def test_evaluate_perfect_and_intervals():
    labels = [squares(), squares(15)]
    scores = km.evaluate(labels, labels, resamples=20)
    assert all(row.value == row.low == row.high == 1 for row in scores.rows)
    mixed = km.evaluate([squares(), np.zeros_like(squares())], [squares(), squares()], resamples=200)
    row = next(row for row in mixed.rows if row.name == "recall")
    assert (row.value, row.low, row.high) == (0.5, 0, 1)


def test_evaluate_as_published():
    corner = np.zeros((12, 12), np.int32)
    corner[1:6, 1:6], corner[6:11, 6:11] = 1, 2
    scores = km.evaluate([corner, squares()], [corner, squares()], published=True, resamples=5)
    # Perfect labels: the truth joins the two squares at their corner, one pixel of which the prediction has cleared.
    assert scores["published_image_iou"] == pytest.approx((49 / 50 + 1) / 2)
    assert scores["published_instance_iou"] == pytest.approx((49 / 100 + 1) / 2)
    assert scores["published_youden"] == pytest.approx((49 / 50 + 1) / 2) and scores["f1"] == 1


def test_evaluate_folders_and_missing_partner(tmp_path):
    for name in ("a", "b"):
        io.write_labels(tmp_path / "truth" / f"{name}.tif", squares())
    io.write_labels(tmp_path / "run" / "labels" / "a.tif", squares())
    scores = km.evaluate(tmp_path / "run", tmp_path / "truth", resamples=5)
    assert scores.num_images == 1 and "b.tif" in scores.failures[0].message
    io.write_labels(tmp_path / "other" / "z.tif", squares())
    io.write_labels(tmp_path / "other" / "y.tif", squares())
    with pytest.raises(UserError, match="No pair"):
        km.evaluate(tmp_path / "other", tmp_path / "truth")
    io.write_labels(tmp_path / "small" / "a.tif", squares()[:20])
    with pytest.raises(UserError, match="same image"):
        km.evaluate(tmp_path / "small", tmp_path / "run")


def test_pairs_by_name(tmp_path):
    paths = {name: tmp_path / name for name in ("a.tif", "b_mask.png", "B.tif", "c.tif", "c_labels.tif", "c_mask.tif")}
    found = match_names([paths["a.tif"], paths["B.tif"]], [paths["b_mask.png"], tmp_path / "x" / "A.png"])
    assert list(found.values()) == [tmp_path / "x" / "A.png", paths["b_mask.png"]]
    with pytest.raises(UserError, match="more than one"):
        match_names([paths["c.tif"]], [paths["c_labels.tif"], paths["c_mask.tif"]])


def test_demo_finds_what_was_drawn(tmp_path):
    for _ in range(2):  # a second demo replaces the first
        found = demo.run_demo(tmp_path, method="classical", count=1)
    assert found.segmentation.report_path.is_file() and found.f1 > 0.3
    assert found.segmentation.unit == "nm" and len(found.table) > 20
    assert demo.choose_method("classical") == "classical"


def test_doctor_reports_packages_and_disk():
    checks = {check.title: check for check in [doctor._python(), *doctor._packages(), doctor._disk()]}
    assert checks["Packages"].status == "ok" and "GB free" in checks["Disk"].text
    missing = doctor._choice([])
    assert missing.status == "missing" and "pip install" in missing.remedy and not doctor.is_usable([missing])
    assert doctor._choice(["jax"]).status in ("ok", "missing")  # depends on KERAS_BACKEND


def test_doctor_names_a_broken_backend(monkeypatch):
    monkeypatch.setattr(doctor, "_TRIAL", "raise RuntimeError('no such device')")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    check = doctor._backend("jax", 60)
    assert check.status == "note" and "no such device" in check.text and "pip install" in check.remedy


def test_train_settings_are_checked(tmp_path):
    from keras_microseg.workflows.train_segmentation import TrainSettings, split_pairs, working_scale

    with pytest.raises(UserError, match="multiple of 16"):
        TrainSettings("d", tile=250)
    with pytest.raises(UserError, match="Unknown settings"):
        km.train(tmp_path, tmp_path / "out", epoch=3)
    training, held = split_pairs(list(range(10)), 0.2, 0)
    assert len(held) == 2 and sorted(training + held) == list(range(10))
    assert split_pairs([1], 0.2, 0) == ([1], [])
    scale, sizes = working_scale(300.0)
    assert scale == pytest.approx(0.1) and sizes["minimum"] < sizes["typical"] < sizes["maximum"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "train_settings.json").write_text("{}")
    with pytest.raises(FileError, match="--resume"):
        km.train(tmp_path, tmp_path / "used")


@pytest.mark.network
def test_train_on_wrong_data_leaves_the_folder_as_it_was(tmp_path):
    for folder, name in (("images", "x"), ("labels", "y")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        io.write_image(tmp_path / "data" / folder / f"{name}.tif", np.ones((64, 64), np.uint8), axes="YX")
    with pytest.raises(UserError, match="same name"):
        km.train(tmp_path / "data", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "train_settings.json").write_text("{}")
    (tmp_path / "old" / "model.keras").write_text("earlier")
    with pytest.raises(UserError, match="same name"):
        km.train(tmp_path / "data", tmp_path / "old", overwrite=True)
    assert (tmp_path / "old" / "model.keras").read_text() == "earlier"


@pytest.mark.network
def test_train_then_segment(tmp_path):
    data = km.simulate(3, tmp_path / "data", seed=1, size=(96, 128), preset="stem", diameter=(12, 16))
    options = {"epochs": 2, "batch_size": 2, "tile": 64, "filters": 4, "steps_per_epoch": 3, "seed": 3}
    trained = km.train(data, tmp_path / "model", **options)
    assert trained.model_path.is_file() and np.isfinite(list(trained.scores.values())).all()
    assert len(trained.history) == 2 and trained.card["outputs"][0] == "foreground"
    assert list((tmp_path / "model" / "previews").glob("*.png"))
    again = km.train(data, tmp_path / "model", resume=True, **options)
    assert again.history == trained.history
    with pytest.raises(FileError, match="other settings"):
        km.train(data, tmp_path / "model", resume=True, **{**options, "seed": 4})
    results = km.segment(data / "images", tmp_path / "out", model=trained.model_path)
    assert len(results.images) == 3 and not results.failures
    assert results.facts["model"]["path"] == "model.keras" and len(results.facts["model"]["sha256"]) == 64
    assert trained.model_path.name in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
