"""A network that learned simulated rocks, on others: better than methods without one, fractions right."""

import keras  # noqa: F401  (a test of networks)
import numpy as np
import pandas as pd
import pytest

from keras_microseg.simulation import RockSettings
from keras_microseg.simulation.rock_files import write_rock_pairs
from keras_microseg.workflows import mineral_evaluate, mineral_quantify, mineral_train
from keras_microseg.workflows.mineral_train_settings import SAME_GREY

TESTED = (20, 21, 22, 23, 24)


@pytest.mark.slow
def test_rocks_never_seen_are_mapped_and_measured(tmp_path):
    """About 5 CPU minutes: 384 steps of the preset `cpu` on four rocks, a fifth for the errors, five to judge."""
    rocks = {
        part: [RockSettings((1024, 1024), seed, grain_size=90, disc=0, sem_field=512) for seed in seeds]
        for part, seeds in {"train": range(4), "val": (4,), "test": TESTED}.items()
    }
    data = str(write_rock_pairs(tmp_path / "rocks", rocks))
    settings = mineral_train.preset("cpu", data, normalization="fixed", focus=0.0, augment=SAME_GREY, epochs=12)
    model = str(mineral_train.train(settings, tmp_path / "model").model_path)
    for part in ("validation", "test"):
        asked = mineral_evaluate.EvaluateSettings(model, data, part, block=128, baselines=part == "test")
        mineral_evaluate.evaluate(asked, tmp_path / part)

    scores = pd.read_csv(tmp_path / "test" / "scores.csv").set_index("method")
    classes = pd.read_csv(tmp_path / "test" / "classes.csv").set_index(["method", "class"])
    print(scores["mean_iou"].round(3).to_dict())
    print(classes.loc["prediction"][["iou", "error_points"]].round(3))
    own, others = scores["mean_iou"]["prediction"], scores["mean_iou"].drop("prediction")
    assert set(others.index) == {"best thresholds", "random forest"}
    assert scores["mean_iou_low"]["prediction"] > scores["mean_iou_high"].drop("prediction").max()  # not by chance
    assert own > 0.75 and own > others.max() + 0.05

    covered, wrong = [], []
    for seed, rock in zip(TESTED, rocks["test"], strict=True):
        asked = mineral_quantify.QuantifySettings(
            str(tmp_path / "test" / "maps" / f"rock{seed}.png"), f"{data}/classes.csv", grain_windows=0,
            pixel_size="0.5um", confusion=str(tmp_path / "validation" / mineral_evaluate.CONFUSION),
        )  # fmt: skip
        folder = mineral_quantify.quantify(asked, tmp_path / "tables" / str(seed)).path
        table = pd.read_csv(folder / "fractions.csv", comment="#").set_index("class")
        truth = pd.Series(rock.abundances, table.index)
        covered.append((table["low"] <= truth) & (truth <= table["high"]))
        seen = classes_of(tmp_path / "rocks" / "test_annot" / f"rock{seed}.tif")
        wrong.append(100 * (table["raw"]["pore"] - seen[0]))
    print("nominal 0.95:", pd.DataFrame(covered).mean().to_dict(), "porosity, points:", np.round(wrong, 3))
    assert np.abs(wrong).max() < 1
    # 30 intervals, those of one rock not independent: a standard error of about 0.05
    assert pd.DataFrame(covered).to_numpy().mean() > 0.85


def classes_of(path):
    from keras_microseg import io

    numbers = io.open_image(path).read()
    return np.bincount(numbers.ravel(), minlength=6) / numbers.size
