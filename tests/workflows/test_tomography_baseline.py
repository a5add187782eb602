"""Classical classes of volumes from the command line: every method, their scores, their refusals."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.cli import app
from keras_microseg.metrics import pixel
from keras_microseg.simulation.phantoms import PhantomSettings, make_phantom
from keras_microseg.workflows.tomography_baseline import BaselineRun, baseline


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    phantom = make_phantom(
        PhantomSettings(shape=(36, 40, 44), diameter=12, fraction=0.2, contrast=0.4, fringe=0, noise=0.03, rings=0)
    )
    np.save(folder / "scan.npy", phantom.volume)
    np.save(folder / "labels.npy", (phantom.labels > 0).astype(np.uint8))
    return folder


def run(scan, out, *options):
    return CliRunner().invoke(app, ["volume", "baseline", str(scan / "scan.npy"), "--out", str(out), *options])


@pytest.mark.parametrize("method", ["kmeans", "otsu", "halfway", "forest"])
def test_methods_by_grey_value_find_the_spheres(scan, tmp_path, method):
    labels = ["--labels", str(scan / "labels.npy"), "--labelled", "10,20"] if method == "forest" else []
    done = run(
        scan, tmp_path / "out", "--method", method, *labels, "--max-ram", "20MB", "--voxel-size", "2um", "--no-report"
    )
    assert done.exit_code == 0, done.output
    classes, truth = io.open_volume(tmp_path / "out" / "classes.zarr"), np.load(scan / "labels.npy")
    assert classes.pixel_size.size == (2.0,) * 3
    assert pixel.dice(pixel.count(truth, classes.read())) > 0.9
    facts = json.loads((tmp_path / "out" / "baseline.json").read_text())
    assert facts["shares"][1] == pytest.approx(truth.mean(), abs=0.03)


@pytest.mark.parametrize("method", ["gradient", "coherence", "depth"])
def test_maps(scan, tmp_path, method):
    changes = {"gradient": ["--set", "half_width=1", "--set", "isotropic=True"], "coherence": ["--set", "window=1.5"]}
    done = run(scan, tmp_path / "out", "--method", method, *changes.get(method, []))
    assert done.exit_code == 0, done.output
    values = io.open_volume(tmp_path / "out" / "map.zarr").read()
    classes = io.open_volume(tmp_path / "out" / "classes.zarr").read()
    level = json.loads((tmp_path / "out" / "baseline.json").read_text())["thresholds"][0]
    np.testing.assert_array_equal(classes, values > level)
    assert "Map from" in (tmp_path / "out" / "report.html").read_text()
    if method == "depth":
        assert classes.mean() == pytest.approx(0.25, abs=0.01)


def test_refusals(scan, tmp_path):
    path = str(scan / "scan.npy")
    with pytest.raises(UserError, match="learns from"):
        BaselineRun(path, "forest")
    with pytest.raises(UserError, match="two classes"):
        BaselineRun(path, "gradient", classes=3)
    with pytest.raises(UserError, match="max-ram"):
        baseline(BaselineRun(path, "depth", max_ram="1MB"), tmp_path / "a")
    far = run(scan, tmp_path / "b", "--method", "forest", "--labels", str(scan / "labels.npy"), "--labelled", "99")
    assert far.exit_code == 1 and "0 to 35" in far.output
    np.save(tmp_path / "other.npy", np.zeros((5, 6, 7), np.uint8))
    shape = run(scan, tmp_path / "c", "--method", "forest", "--labels", str(tmp_path / "other.npy"))
    assert shape.exit_code == 1 and "other.npy" in shape.output
    holed = np.load(scan / "scan.npy").astype(np.float32)
    holed[4] = np.nan
    np.save(tmp_path / "holed.npy", holed)
    with pytest.raises(UserError, match="4"):
        baseline(BaselineRun(str(tmp_path / "holed.npy")), tmp_path / "d")
