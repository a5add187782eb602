"""From the raw pair to the report with a network, tiny settings."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_microseg import io
from keras_microseg.checks import FileError
from keras_microseg.image import PixelSize
from keras_microseg.workflows import mineral_evaluate, mineral_quantify, mineral_run

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
    scores = pd.read_csv(out / "evaluate" / "scores.csv")["method"].tolist()
    assert scores == ["prediction", "best thresholds", "random forest"]
    fractions = pd.read_csv(out / "tables" / "fractions.csv", comment="#")
    assert fractions["share"].sum() == pytest.approx(1)
    page = (out / "report.html").read_text()
    assert "IoU of random forest" in page and "A network was trained" in page
    # the map of one tile alone
    alone = mineral_evaluate.EvaluateSettings(
        str(out / "evaluate" / "maps" / f"{held[0]['name']}.png"), str(out / "tiles"), block=tiles["tile"],
        baselines=False,
    )  # fmt: skip
    mineral_evaluate.evaluate(alone, tmp_path / "alone")
    one = json.loads((tmp_path / "alone" / "confusion.json").read_text())["regions"]
    assert one == found["regions"][:1]
    # the map of another micrograph, or at other pixels
    sides = {"other.tif": (predicted.read()[:500], "0.5um"), "coarse.tif": (predicted.read(), "1um")}
    for name, (numbers, edge) in sides.items():
        io.write_image(tmp_path / name, numbers, axes="YX", pixel_size=PixelSize.parse(edge, 2))
    for name, message in (("other.tif", "tiles reach to"), ("coarse.tif", "pixels 2 times as large")):
        with pytest.raises(FileError, match=message):
            mineral_evaluate.evaluate(
                mineral_evaluate.EvaluateSettings(str(tmp_path / name), str(out / "tiles")), tmp_path / f"{name}_scores"
            )
    # started again, nothing is done twice
    trained = (out / "model" / "model.keras").stat().st_mtime_ns
    mineral_run.run(settings(tmp_path), tmp_path / "out", resume=True)
    assert (out / "model" / "model.keras").stat().st_mtime_ns == trained
