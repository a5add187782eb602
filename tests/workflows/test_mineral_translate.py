"""pix2pix between micrographs and class maps: both directions end to end, held-out scores, enlarged training sets."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from test_mineral_train import scene

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.cli import app
from keras_microseg.data.map_pairs import find_map_pairs
from keras_microseg.models.saving import load_model
from keras_microseg.workflows import mineral_train, mineral_translate, mineral_translate_apply

pytestmark = pytest.mark.network
SMALL = {
    "tile": 32, "filters": 8, "num_levels": 3, "batch_size": 4, "steps_per_epoch": 8, "epochs": 2, "average": 0.0,
    "classes": ("matrix", "grains", "pores"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four training scenes, one that validates and one for the test; a strip of each is not known."""
    folder = tmp_path_factory.mktemp("pairs")
    for number, part in enumerate(("train",) * 4 + ("val", "test")):
        grey, classes = scene(number)
        classes[:4] = 255
        io.write_image(folder / part / f"s{number}.png", grey)
        io.write_image(folder / f"{part}_annot" / f"s{number}.png", classes)
    return folder


def test_micrographs_to_classes(data, tmp_path):
    settings = mineral_translate.preset("labels", str(data), **{**SMALL, "epochs": 6, "learning_rate": 2e-3})
    scores = mineral_translate.train(settings, tmp_path / "run")
    assert scores["part"] == "test" and scores["tiles"] == 4
    assert scores["mean_iou"] > 0.4, scores  # all matrix: 0.25
    table = pd.read_csv(tmp_path / "run" / "confusion.csv", comment="#").iloc[:, 1:].to_numpy()
    held = np.asarray(io.open_image(data / "test_annot" / "s5.png").data)
    assert table.sum() == (held != 255).sum()  # that tile, each known pixel once, and no other
    model, card = load_model(tmp_path / "run" / "generator.keras")
    assert card["outputs"] == ["matrix", "grains", "pores"] and card["direction"] == "labels"
    assert len(list((tmp_path / "run" / "training" / "previews").glob("*.png"))) == 6
    again = mineral_translate.train(settings, tmp_path / "run", resume=True)
    assert again == scores
    with pytest.raises(UserError, match="other settings"):
        mineral_translate.train(dataclasses.replace(settings, epochs=7), tmp_path / "run", resume=True)

    folder = mineral_translate_apply.translate(data / "test", tmp_path / "maps", model=tmp_path / "run")
    found = np.asarray(io.open_image(tmp_path / "maps" / "masks" / "s5.png").data)
    assert not folder.failures() and found.shape == (64, 64) and found.max() <= 2
    assert (found == held)[held != 255].mean() > 0.6


def test_classes_to_micrographs_enlarge_a_training_set(data, tmp_path):
    settings = mineral_translate.preset(
        "images", str(data), **{**SMALL, "tile": 16, "epochs": 4, "learning_rate": 2e-3}
    )
    scores = mineral_translate.train(settings, tmp_path / "run")
    assert scores["part"] == "test" and scores["grey_error"] < 0.15  # grey values of the classes lie 0.27 apart
    result = CliRunner().invoke(
        app,
        ["mineral", "translate-apply", str(data / "train_annot"), "--model", str(tmp_path / "run"), "--out",
         str(tmp_path / "more"), "--real", str(data)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    pairs = find_map_pairs(tmp_path / "more")
    parts = {part: sorted(p.name for p in pairs if p.part == part) for part in ("train", "validation", "test")}
    assert parts["train"] == [f"made_s{i}" for i in range(4)] + [f"real_s{i}" for i in range(4)]
    assert parts["validation"] == ["real_s4"] and parts["test"] == ["real_s5"]
    likeness = json.loads((tmp_path / "more" / "likeness.json").read_text())
    assert (likeness["tile"], likeness["real"], likeness["made"]) == (16, 64, 64)
    assert likeness["grey_distance"] < 0.15 and 0 <= likeness["two_point_distance"] < 0.5
    assert "two point distance" in result.output
    made = np.asarray(io.open_image(tmp_path / "more" / "train" / "made_s0.tif").data).astype(float)
    classes = np.asarray(io.open_image(tmp_path / "more" / "train_annot" / "made_s0.png").data)
    means = [made[classes == k].mean() for k in (2, 0, 1)]
    assert made.dtype and means[0] < means[1] < means[2], means  # pores, matrix, grains
    small = {"filters": (8,), "tile": 32, "batch_size": 2, "steps_per_epoch": 1, "epochs": 1}
    trained = mineral_train.train(mineral_train.preset("cpu", str(tmp_path / "more"), **small), tmp_path / "network")
    assert trained.card["outputs"] == ["matrix", "grains", "pores"]


@pytest.mark.parametrize("name", ["source-labels", "source-categorical", "source-images"])
def test_presets_of_the_source_build_the_published_networks(name, data):
    settings = mineral_translate.preset(name, str(data))
    system = mineral_translate.build(settings, 5)
    sizes = [network.count_params() for network in system.networks.values()]
    expected = {
        "source-labels": [10_469_701, 697_569],
        "source-categorical": [10_469_701, 713_957],
        "source-images": [10_465_601, 695_521],
    }
    assert sizes == expected[name]
    assert (settings.tile, settings.batch_size, settings.average) == (768, 1, 0.0)


def test_bad_input_is_explained(data, tmp_path):
    with pytest.raises(UserError, match=r"2\^num_levels = 128"):
        mineral_translate.preset("source-labels", "data", tile=64)
    with pytest.raises(UserError, match="no setting 'epoch'"):
        mineral_translate.preset("labels", "data", epoch=1)
    (tmp_path / "one").mkdir()
    for folder in ("images", "masks"):
        (tmp_path / "one" / folder).mkdir()
    grey, classes = scene(0)
    io.write_image(tmp_path / "one" / "images" / "a.png", grey)
    io.write_image(tmp_path / "one" / "masks" / "a.png", classes)
    with pytest.raises(UserError, match="Nothing is held out"):
        mineral_translate.train(
            mineral_translate.preset("labels", str(tmp_path / "one"), split="none", **SMALL), tmp_path / "a"
        )
    with pytest.raises(UserError, match="four held-out tiles"):
        mineral_translate.train(mineral_translate.preset("images", str(data), **{**SMALL, "tile": 64}), tmp_path / "b")
    with pytest.raises(UserError, match="holds the number 200, but the model knows 3 classes"):
        io.write_image(tmp_path / "wrong.png", np.full((8, 8), 200, np.uint8))
        mineral_translate_apply.read_mask(tmp_path / "wrong.png", 3)
