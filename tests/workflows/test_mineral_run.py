"""From the raw pair to the report with a network, tiny settings."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_microseg import io
from keras_microseg.workflows import mineral_quantify, mineral_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from mineral_pair import write_pair

pytestmark = pytest.mark.network
TINY = {"epochs": 2, "filters": (4, 8, 8), "steps_per_epoch": 4, "tile": 64}


def settings(folder, **changes):
    options = {"palette": str(folder / "palette.csv"), "train": TINY, "quantify": {"grain_windows": 0}}
    return mineral_run.MineralRunSettings(str(folder / "sem.tif"), str(folder / "map.png"), **{**options, **changes})


def test_from_the_pair_to_the_report_with_a_network(tmp_path):
    pytest.importorskip("keras")
    write_pair(tmp_path)
    folder = mineral_run.run(settings(tmp_path), tmp_path / "out")
    out = folder.path
    predicted = mineral_quantify.open_numbers(mineral_run.map_path(out))
    assert predicted.shape == (1000, 960) and predicted.pixel_size.size == (0.5, 0.5)
    assert predicted.read().max() < 6
    # what evaluation counted is what the map holds where the tiles were held out
    found = json.loads((out / "evaluate" / "confusion.json").read_text())
    tiles = json.loads((out / "tiles" / "tiles.json").read_text())
    held = [t for t in tiles["tiles"] if t["part"] == "validation"]
    assert len(found["regions"]) == len(held)
    y, x = held[0]["origin"]
    window = predicted.read()[y : y + tiles["tile"], x : x + tiles["tile"]]
    known = io.open_image(out / "tiles" / held[0]["mask"]).read() != 255
    counts = np.sum(found["regions"][0], axis=0)
    np.testing.assert_array_equal(counts, np.bincount(window[known], minlength=6))
    assert (out / "evaluate" / "baseline.json").is_file()
    fractions = pd.read_csv(out / "tables" / "fractions.csv", comment="#")
    assert fractions["share"].sum() == pytest.approx(1)
    page = (out / "report.html").read_text()
    assert "IoU of thresholds" in page and "A network was trained" in page
    # started again, nothing is done twice
    trained = (out / "model" / "model.keras").stat().st_mtime_ns
    mineral_run.run(settings(tmp_path), tmp_path / "out", resume=True)
    assert (out / "model" / "model.keras").stat().st_mtime_ns == trained
