"""`volume label | measure | evaluate` on small phantoms, from files to tables."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.image import PixelSize
from keras_microseg.metrics import match
from keras_microseg.segmentation.labeling import label_components
from keras_microseg.segmentation.separation import separate
from keras_microseg.workflows import tomography_measure as work


@pytest.fixture(scope="module")
def balls():
    """Touching balls with their grey volume, voxels of 2 x 1 x 1 um."""
    shape = (24, 44, 64)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * (2, 1, 1)
    truth = np.zeros(shape, np.uint32)
    for number, centre in enumerate([(24, 14, 13), (24, 14, 33), (22, 32, 22), (24, 30, 48)], start=1):
        inside = ((grid - centre) ** 2).sum(-1) <= 100
        truth[inside & (truth == 0)] = number
    rng = np.random.default_rng(0)
    grey = (np.where(truth > 0, 180, 60) + rng.normal(0, 10, shape)).clip(0, 255).astype(np.uint8)
    return truth, grey


def write(path, array):
    with io.create_volume(path, array.shape, array.dtype, voxel_size=PixelSize((2, 1, 1), "um")) as out:
        out[:] = array
    return str(path)


def read(path):
    return np.asarray(io.open_volume(path).data[...])


@pytest.mark.parametrize("threshold", ["otsu", "kmeans", 120.0])
def test_label_measure_and_evaluate(tmp_path, balls, threshold):
    truth, grey = balls
    source = write(tmp_path / "grey.zarr", grey)
    path = work.label(work.LabelRun(source, threshold=threshold, min_size=50, halo=30), tmp_path / "labels")
    found = io.open_volume(path)
    assert found.dtype == np.uint32 and found.pixel_size.size == (2, 1, 1)
    scores = work.evaluate(str(path), truth, tmp_path / "scores.json")
    assert scores.objects["f1"] == 1 and scores.voxels["dice"] > 0.98 and scores.found_objects == 4
    facts = work.measure(work.MeasureRun(str(path), source, structure=True), tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables" / "particles.csv", comment="#")
    assert table.equivalent_diameter.to_numpy() == pytest.approx(20, rel=0.05) and len(table) == 4
    assert table.intensity_mean.to_numpy() == pytest.approx(180, abs=5)
    assert facts["fraction"]["value"] == pytest.approx((truth > 0).mean(), rel=0.03) and facts["unit"] == "um"
    names = {"sizes.csv", "profile.csv", "representative_volume.csv", "two_point.csv", "radial_distribution.csv"}
    assert names <= {path.name for path in (tmp_path / "tables").iterdir()}
    assert json.loads((tmp_path / "scores.json").read_text())["objects"]["tp"] == 4


def test_blocks_do_not_show(tmp_path, balls):
    truth, _ = balls
    source = write(tmp_path / "mask.npy", (truth > 0).astype(np.uint8))
    settings = work.LabelRun(source, halo=20, max_ram="16MB", voxel_size="2 x 1 x 1 um", kind="npy")
    path = work.label(settings, tmp_path / "labels")
    spacing = work.SeparationSettings(spacing=(2, 1, 1))
    assert np.array_equal(read(path), separate(truth > 0, spacing))
    parts = work.label(work.LabelRun(source, "components", max_ram="1MB", min_size=50), tmp_path / "parts")
    assert read(parts).max() == label_components(truth > 0, 8).max()
    with pytest.raises(UserError, match="--max-ram"):
        work.label(work.LabelRun(source, halo=64, max_ram="16MB"), tmp_path / "small")


def test_maps_of_a_network_and_linked_slices(tmp_path, balls):
    truth, _ = balls
    foreground = (255 * (truth > 0)).astype(np.uint8)
    distance = np.zeros(truth.shape, np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, truth.shape), indexing="ij"), -1) * (2, 1, 1)
    for number in range(1, 5):
        inside = truth == number
        away = np.sqrt(((grid[inside] - grid[inside].mean(axis=0)) ** 2).sum(-1))
        distance[inside] = (255 * (1 - away / 12)).clip(1, 255)
    maps = [write(tmp_path / f"{name}.zarr", a) for name, a in (("foreground", foreground), ("distance", distance))]
    path = work.label(work.LabelRun(maps[0], "maps", maps[1], halo=16), tmp_path / "maps")
    assert match(truth.astype(int), read(path).astype(int)).mean_iou > 0.97
    planes = write(tmp_path / "planes.zarr", np.stack([np.where(p > 0, (p * 7) % 5, 0) for p in truth]))
    linked = work.label(work.LabelRun(planes, "slices"), tmp_path / "slices")
    assert match(truth.astype(int), read(linked).astype(int)).mean_iou == 1


def test_the_neck_between_two_solids_cuts_or_not(tmp_path):
    z, y, x = np.mgrid[:40, :24, :24]
    radius = np.where(z < 20, 9 - np.abs(z - 10) * 0.55, 9 - np.abs(z - 29) * 0.55)
    planes = ((y - 12) ** 2 + (x - 12) ** 2 <= radius**2).astype(np.uint8)
    np.save(tmp_path / "planes.npy", planes)
    for words, count in (((), 2), (("--neck", "0"), 1)):
        out = tmp_path / f"labels{count}"
        call = ["volume", "label", str(tmp_path / "planes.npy"), "--method", "slices", "--out", str(out), *words]
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output
        assert np.asarray(io.open_volume(out / "labels.zarr").data[...]).max() == count


def test_bad_input(tmp_path, balls):
    truth, grey = balls
    holed = grey.astype(np.float32)
    holed[5] = np.nan
    source = write(tmp_path / "nan.zarr", holed)
    with pytest.raises(UserError, match="(?i)nan|finite"):
        work.label(work.LabelRun(source, threshold=100.0), tmp_path / "out")
    labels = write(tmp_path / "labels.zarr", truth)
    other = write(tmp_path / "other.zarr", grey[:, :, :-1])
    with pytest.raises(FileError, match="shape"):
        work.measure(work.MeasureRun(labels, other), tmp_path / "out2")
    with pytest.raises(UserError, match="shapes"):
        work.evaluate(grey[:, :, :-1].astype(int), truth)
    with pytest.raises(FileError, match="no whole numbers"):
        work.measure(work.MeasureRun(source), tmp_path / "out3")
    with pytest.raises(UserError, match="max-ram"):
        work.measure(work.MeasureRun(labels, structure=True, max_ram="1MB"), tmp_path / "out4")
    with pytest.raises(UserError, match="distance"):
        work.LabelRun(labels, "maps")
    with pytest.raises(FileError, match="shape"):
        work.label(work.LabelRun(labels, "maps", other), tmp_path / "out5")


def test_command_line(tmp_path, balls):
    from keras_microseg.cli import app

    truth, _ = balls
    source, true = write(tmp_path / "mask.zarr", (truth > 0).astype(np.uint8)), write(tmp_path / "truth.zarr", truth)
    run = CliRunner().invoke
    made = run(app, ["volume", "label", source, "--out", str(tmp_path / "l"), "--halo", "24"])
    assert made.exit_code == 0, made.output
    labels = str(tmp_path / "l" / "labels.zarr")
    shown = run(app, ["volume", "measure", labels, "--out", str(tmp_path / "t")])
    assert shown.exit_code == 0 and "4 particles" in shown.output, shown.output
    scored = run(app, ["volume", "evaluate", labels, true])
    assert scored.exit_code == 0 and "precision: 1" in scored.output, scored.output
