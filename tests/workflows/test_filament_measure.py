"""From masks of simulated videos to curves, rate laws, scores and report; every fault gets its message. No keras."""

import json

import numpy as np
import openpyxl
import pandas as pd
import pytest
import tifffile
from PIL import Image as Picture
from typer.testing import CliRunner

from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.io.frame_layouts import open_series, open_series_set
from keras_microseg.io.frames import write_masks, write_members, write_series
from keras_microseg.simulation.filaments import simulate_video
from keras_microseg.workflows.filament_evaluate import evaluate
from keras_microseg.workflows.filament_measure import (
    CurveSettings,
    FilamentMeasureSettings,
    measure,
    measure_series,
    rebuild_report,
)
from keras_microseg.workflows.filament_prepare import PrepareSettings, cut_video, prepare, to_8bit

QUICK = {"overlays": False}


@pytest.fixture(scope="module")
def video():
    return simulate_video(2, num_frames=9, shape=96, k=4.0, n=2.0, mode="cooperative", num_before=1, name="one")


@pytest.fixture(scope="module")
def data(tmp_path_factory, video):
    """A folder of two labelled videos, and one of predictions that are a pixel too wide."""
    root = tmp_path_factory.mktemp("filaments")
    for series in (video.series, simulate_video(4, num_frames=7, shape=96, name="two").series):
        write_series(root / "data" / series.name, series)
        for task in series.tasks:
            masks = series.masks[task]
            wide = masks | np.roll(masks, 1, axis=1)
            write_masks(root / "predictions" / series.name, series, task, wide)
    areas = {task: series_areas(video.series, task) for task in ("A1", "A2")}
    write_members(root / "predictions" / "one" / "members.csv", video.series, areas)
    return root


def series_areas(series, task):
    area = series.masks[task].sum(axis=(1, 2)).astype(float)
    return area[:, None] * np.array([0.98, 1.0, 1.02])


def test_the_law_of_the_simulation_comes_out(video):
    record = measure_series(video.series, CurveSettings())
    fit = record.avrami
    assert fit.parameters["k"] == pytest.approx(4, rel=0.1) and fit.parameters["n"] == pytest.approx(2, rel=0.05)
    assert record.length == pytest.approx(video.facts["L"], rel=0.04) and "frame 88" in record.length_source
    given = measure_series(video.series, CurveSettings(length={"one": video.facts["L"]}))
    np.testing.assert_allclose(given.table["V"], video.truth["V"], rtol=0.03, atol=40)
    assert not record.warnings and record.fits[0].law == "avrami"
    columns = measure_series(video.series, CurveSettings(length_method="columns"))
    assert "columns" in columns.length_source


def test_a_whole_run_with_truth_and_members(tmp_path, data):
    settings = FilamentMeasureSettings((str(data / "data"),), masks=str(data / "predictions"))
    folder = measure(settings, tmp_path / "out")
    assert not folder.failures()
    out = tmp_path / "out"
    for name in ("curves/one.csv", "curves/one.xlsx", "figures/two_curves.svg", "figures/one_conversion.png",
                 "kinetics.csv", "kinetics.xlsx", "report.html", "run.json", "scores/one_area2.csv",
                 "overlays/one/one_r1_000088.png"):  # fmt: skip
        assert (out / name).is_file(), name

    book = openpyxl.load_workbook(out / "curves" / "one.xlsx")
    sheet = book["Sheet1"]
    assert [sheet.cell(2, c).value for c in range(1, 9)] == [
        "Length", "Frame", "Time", "A1", "A2", "V1", "V2", "V=V1-V2",
    ]  # fmt: skip
    assert sheet["A1"].value == "pixel" and sheet["J1"].value == "nm(pixel resolution:0.52nm/pixel)"
    assert sheet["I3"].value is None and sheet["K3"].value == sheet["B3"].value == 1
    row = [sheet.cell(4, c).value for c in range(1, 18)]
    assert row[1] == 88 and row[2] == 0
    assert row[5] == pytest.approx(np.pi * row[3] ** 2 / 4 / row[0]) and row[7] == pytest.approx(row[5] - row[6])
    assert row[16] == pytest.approx(row[7] * 0.52**3) and row[12] == pytest.approx(row[3] * 0.52**2)
    assert {"curves", "fits", "facts"} <= set(book.sheetnames)

    curves = pd.read_csv(out / "curves" / "one.csv", comment="#")
    assert {"frame", "time", "A1", "A2", "D1_nm", "V_nm3", "conversion", "V_low", "V_high"} <= set(curves.columns)
    kinetics = pd.read_csv(out / "kinetics.csv", comment="#")
    assert set(kinetics["video"]) == {"one", "two"} and len(kinetics) == 10
    avrami = kinetics[(kinetics["video"] == "one") & (kinetics["law"] == "avrami")].iloc[0]
    assert avrami["converged"] and avrami["k_ensemble_sd"] >= 0

    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('type="radio"') == 10 + 7 and "Scores" in page and "Avrami" in page and "<svg" in page
    facts = json.loads((out / "run.json").read_text())
    assert facts["videos"]["one"]["scores"]["A1"]["area_bias"] > 0

    # a second run resumes, a report alone is made anew, another setting is refused
    (out / "report.html").unlink()
    assert rebuild_report(out).is_file()
    measure(settings, out, resume=True)
    with pytest.raises(FileError, match="already holds"):
        measure(settings, out)
    with pytest.raises(FileError, match="no run of filament measure"):
        rebuild_report(data)


def test_scores_of_masks(tmp_path, data, video):
    scores = evaluate(data, data / "data", tmp_path / "scores.json", change=True)
    rows = scores.table.set_index(["video", "task"])
    assert set(rows.index) == {(v, t) for v in ("one", "two", "all") for t in ("A1", "A2")}
    one = rows.loc[("one", "A1")]
    assert one["frames"] == 9 and one["recall"] == 1 and 0.9 < one["foreground_f1"] < 1 and one["area_bias"] > 0
    assert one["hd95"] == pytest.approx(0.52)  # one pixel too wide
    assert 0 < scores.volumes["one"] < 0.2 and (scores.frames["frame"] >= 88).all()
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scores"][0]["published_f1"] == pytest.approx(rows.iloc[0]["published_f1"])
    assert (tmp_path / "scores.csv").is_file() and (tmp_path / "scores_frames.csv").is_file()
    perfect = evaluate(data / "data", data / "data", names=["two"])
    assert (perfect.table["foreground_f1"] == 1).all() and perfect.volumes == {"two": 0.0}
    with pytest.raises(UserError, match="Nothing to compare"):
        evaluate(tmp_path, data / "data")
    (data / "predictions" / "one" / "area1" / "one_r1_000088.png").rename(tmp_path / "x.png")
    with pytest.raises(FileError, match="no masks of frames 88"):
        evaluate(data, data / "data")
    (tmp_path / "x.png").rename(data / "predictions" / "one" / "area1" / "one_r1_000088.png")


def test_prepared_input_from_raw_frames(tmp_path, video):
    raw = np.stack([np.random.default_rng(i).integers(0, 60000, (80, 100)).astype(np.uint16) for i in range(4)])
    tifffile.imwrite(tmp_path / "raw.tif", raw, photometric="minisblack", metadata={"axes": "TYX"})
    (tmp_path / "w.csv").write_text("frame,y,x,left,right\n0,5,10,20,60\n3,8,16,26,60\n")
    settings = PrepareSettings((str(tmp_path / "raw.tif"),), windows=str(tmp_path / "w.csv"), size=(48, 64),
                               video={"frame_rate": 2.0, "pixel_size": "1 nm"})  # fmt: skip
    folder = prepare(settings, tmp_path / "out")
    assert not folder.failures()
    series = open_series(tmp_path / "out" / "raw")
    assert series.shape == (4, 48, 64) and series.images.dtype == np.uint8 and str(series.pixel_size) == "1 nm"
    assert series.files[2] == "raw_r1_000002.png" and series.times.tolist() == [0, 0.5, 1, 1.5]
    valid = series.read_valid()
    assert valid[0].sum() == 41 * 48 and series.read_images()[valid].std() > 40
    labelled = cut_video(video.series, PrepareSettings(("x",), size=(64, 96)))  # follows the masks
    np.testing.assert_array_equal(labelled.read_masks("A1").sum((1, 2)), video.series.masks["A1"].sum((1, 2)))
    assert to_8bit(labelled) is labelled
    (tmp_path / "few.csv").write_text("frame,y,x\n0,5,10\n1,5,10\n")
    few = PrepareSettings((str(tmp_path / "raw.tif"),), windows=str(tmp_path / "few.csv"), size=(48, 64))
    assert "no window is given for frame 2" in prepare(few, tmp_path / "few").failures()[0].message


def test_commands(tmp_path, data):
    runner = CliRunner()
    made = runner.invoke(app, ["filament", "simulate", "--out", str(tmp_path / "sim"), "--count", "2", "--frames", "6",
                               "--size", "64x64", "--seed", "3"])  # fmt: skip
    assert made.exit_code == 0, made.output
    assert [series.name for series in open_series_set(tmp_path / "sim")] == ["sim003", "sim004"]
    truth = json.loads((tmp_path / "sim" / "sim003" / "truth.json").read_text())
    assert truth["k"] > 0 and len(truth["frames"]["A1"]) == 7
    run = ["filament", "measure", str(tmp_path / "sim"), "--out", str(tmp_path / "out"), "--name", "sim003"]
    done = runner.invoke(app, [*run, "--length", "sim003=40"])
    assert done.exit_code == 0, done.output
    assert "sim003: 7 frames, t50" in done.output and "Report:" in done.output
    again = runner.invoke(app, ["filament", "report", str(tmp_path / "out")])
    assert again.exit_code == 0, again.output
    scored = runner.invoke(app, ["filament", "evaluate", str(data), str(data / "data")])
    assert scored.exit_code == 0 and "Macro F1" in scored.output and "wall volume" in scored.output
    cut = runner.invoke(
        app, ["filament", "prepare", str(tmp_path / "sim"), "--size", "64x64", "--out", str(tmp_path / "p")]
    )
    assert cut.exit_code == 0 and "sim004: 7 frames of 64 x 64 pixels" in cut.output
    bad = runner.invoke(app, [*run, "--length", "long", "--overwrite"])
    assert bad.exit_code == 2 and "number of pixels" in bad.output


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_video_with_one_frame(tmp_path, video):
    record = measure_series(video.series.take([1]), CurveSettings())
    assert record.table["A1"][0] > 0 and not any(fit.converged for fit in record.fits)
    assert any("one frame" in text for text in record.warnings) and "No rate law" in record.warnings[-1]
    write_series(tmp_path / "data" / "one", video.series.take([1]))
    folder = measure(FilamentMeasureSettings((str(tmp_path / "data" / "one"),), measure=QUICK), tmp_path / "out")
    assert not folder.failures() and "No fit of" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_all_frames_empty(tmp_path, video):
    nothing = {task: np.zeros(video.series.shape, bool) for task in ("A1", "A2")}
    write_series(tmp_path / "data" / "one", video.series.with_masks(nothing))
    folder = measure(FilamentMeasureSettings((str(tmp_path / "data"),), measure=QUICK), tmp_path / "out")
    assert not folder.failures()
    text = " ".join(folder.facts("measure")["one"]["warnings"])
    assert "All masks are empty" in text and "No rate law could be fitted" in text
    table = pd.read_csv(tmp_path / "out" / "curves" / "one.csv", comment="#")
    assert (table["A1"] == 0).all() and table["conversion"].isna().all()


def test_a_fit_that_cannot_converge_leaves_the_curve(tmp_path, video):
    keep = np.ones(len(video.series), bool)
    steps = video.series.masks["A1"].copy()
    steps[:5], steps[5:] = steps[1], False
    series = video.series.with_masks({"A1": steps}).take(keep)
    record = measure_series(series, CurveSettings())
    assert not record.avrami.converged and "is a step" in record.avrami.reason
    assert any("is a step" in text and "in the tables" in text for text in record.warnings)
    assert record.table["conversion"].tolist()[1:] == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_masks_missing_or_inverted(tmp_path, data, video):
    bare = video.series.with_masks({})
    write_series(tmp_path / "bare", bare)
    with pytest.raises(UserError, match="no masks of the filament.*--masks"):
        measure_series(bare, CurveSettings())
    failed = measure(FilamentMeasureSettings((str(tmp_path / "bare"),), measure=QUICK), tmp_path / "a").failures()
    assert "area1/" in failed[0].message
    for path in (tmp_path / "bare").rglob("*.png"):
        turned = tmp_path / "masks" / "area1" / path.name
        turned.parent.mkdir(parents=True, exist_ok=True)
        mask = np.asarray(Picture.open(data / "data" / "one" / "area1" / path.name))
        Picture.fromarray(255 - mask).save(turned)
    settings = FilamentMeasureSettings((str(tmp_path / "bare"),), masks=str(tmp_path / "masks"), measure=QUICK)
    assert "look inverted" in measure(settings, tmp_path / "b").failures()[0].message


def test_unknown_sizes_and_rates_are_said(video):
    import dataclasses

    series = dataclasses.replace(video.series, pixel_size=None, time_unit="frame")
    record = measure_series(series, CurveSettings())
    assert any("pixel size is unknown" in text for text in record.warnings)
    assert any("frame rate is unknown" in text for text in record.warnings)
    assert "V_nm3" not in record.table and record.column("V") == "V"


def test_the_monotone_prior_on_areas(video):
    masks = {task: video.series.masks[task].copy() for task in ("A1", "A2")}
    masks["A1"][4] |= np.roll(masks["A1"][4], 3, axis=0)  # a frame painted too wide
    series = video.series.with_masks(masks)
    plain, prior = (measure_series(series, CurveSettings(monotone=value)).table["A1"] for value in (False, True))
    assert (np.diff(plain) > 0).any() and (np.diff(prior) <= 1e-9).all()
    truth = video.truth["A1"]
    assert np.abs(prior - truth).mean() < np.abs(plain - truth).mean()


def test_settings_are_checked():
    for wrong in ({"length": -1}, {"length_method": "ruler"}, {"normalization": "x"}, {"laws": ("magic",)}):
        with pytest.raises(UserError):
            CurveSettings(**wrong)
    assert CurveSettings(laws=("first_order",)).laws == ("avrami", "first_order")
    with pytest.raises(UserError, match="videos"):
        FilamentMeasureSettings(())
