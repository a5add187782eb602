import numpy as np
import tifffile
from typer.testing import CliRunner

from keras_microseg.cli import app
from keras_microseg.simulation import Particles


def call(*arguments):
    return CliRunner().invoke(app, ["sem", *map(str, arguments)])


def test_masks_and_filter(tmp_path):
    Particles.analytic(count=20, median=12).save(tmp_path / "stock.npz")
    out = tmp_path / "masks"
    done = call("masks", "--particles", tmp_path / "stock.npz", "--out", out, "--count", 2, "--set", "size=(64, 80)",
                "--set", "coverage=(0.2,)")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["00000.tif", "00001.tif"]
    (tmp_path / "images").mkdir()
    for path in (out / "masks").iterdir():
        tifffile.imwrite(tmp_path / "images" / path.name, tifffile.imread(path) // 2 + 20)
    done = call("filter", tmp_path / "images", out / "labels", "--out", tmp_path / "kept", "--threshold", "20")
    assert done.exit_code == 0, done.output
    for path in (out / "labels").iterdir():
        before, after = tifffile.imread(path), tifffile.imread(tmp_path / "kept" / "labels" / path.name)
        assert np.array_equal(before, after)
    assert call("filter", tmp_path / "images", out / "labels", "--out", tmp_path / "x", "--threshold", "high").exit_code
