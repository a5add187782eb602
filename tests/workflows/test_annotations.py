"""`keras-microseg annotations`: check, convert, split."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from keras_microseg.checks import UserError
from keras_microseg.cli import app
from keras_microseg.io import read_labels, write_image, write_labels
from keras_microseg.workflows.annotations import Settings, run


def call(*arguments):
    return CliRunner().invoke(app, ["annotations", *map(str, arguments)])


@pytest.fixture
def via(tmp_path):
    """Two images with a square each, and the VIA project."""
    entries = {}
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images" / name, np.zeros((20, 30), np.uint8), axes="YX")
        shape = {"name": "rect", "x": 2, "y": 3, "width": 5, "height": 4}
        region = {"shape_attributes": shape, "region_attributes": {"type": "grain"}}
        entries[name] = {"filename": name, "regions": [region], "file_attributes": {}}
    path = tmp_path / "via.json"
    path.write_text(json.dumps({"_via_img_metadata": entries}))
    return path


def test_convert_and_back(tmp_path, via):
    done = call("convert", via, "--images", tmp_path / "images", "--to", "labels", "--out", tmp_path / "labels")
    assert done.exit_code == 0, done.output
    labels = read_labels(tmp_path / "labels" / "a.tif").read()
    assert (labels > 0).sum() == 30 and labels[3:8, 2:8].all()  # with the outline, as drawn
    done = call("convert", tmp_path / "labels", "--to", "coco", "--out", tmp_path / "coco.json")
    assert done.exit_code == 0 and "2 images, 2 objects of grain" in done.output
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [entry["area"] for entry in content["annotations"]] == [30, 30]
    done = call("convert", via, "--to", "via3", "--out", tmp_path / "coco.json")
    assert done.exit_code == 1 and "exists" in done.output
    done = call("convert", via, "--to", "coco", "--out", tmp_path / "new.json")
    assert done.exit_code == 1 and "Give the folder of the images" in done.output


def test_check_lists_everything_and_goes_on(tmp_path, via):
    content = json.loads(via.read_text())["_via_img_metadata"]
    shapes = [{"name": "polygon", "all_points_x": [90, 95, 95], "all_points_y": [1, 1, 9]}, {"name": "star"}]
    content["a.png"]["regions"] += [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    content["c"] = {"filename": "c.png", "regions": []}
    via.write_text(json.dumps(content))
    done = call("check", via, "--images", tmp_path / "images", "--report", tmp_path / "problems.csv")
    assert done.exit_code == 1
    table = pd.read_csv(tmp_path / "problems.csv", comment="#")
    assert table.kind.tolist() == ["damaged shape", "absent image", "outside", "no category", "no objects"]
    assert all(kind in done.output for kind in table.kind)
    done = call("convert", via, "--images", tmp_path / "images", "--to", "coco", "--out", tmp_path / "coco.json")
    assert done.exit_code == 1 and "c.png" in done.output  # told, and the rest is written
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == 2
    done = call("check", via, "--images", tmp_path / "images", "--categories", "pore")
    assert "unknown category: 2 errors" in done.output


def test_split_by_block_of_a_volume(tmp_path):
    volume = np.zeros((20, 5, 6), np.int32)
    volume[:, 1:3, 1:4] = 1
    write_labels(tmp_path / "volume.tif", volume)
    options = ("--to", "imagej", "--share", "train=3", "--share", "test=1")
    source = tmp_path / "volume.tif"
    done = call("split", source, *options, "--out", tmp_path / "parts", "--by", "block", "--guard", 2)
    assert done.exit_code == 0, done.output
    assert "train: " in done.output and "(15 images)" in done.output and "(3 images)" in done.output
    done = call("split", source, *options, "--out", tmp_path / "random", "--guard", 2)
    assert done.exit_code == 1 and "leaks between the parts" in done.output
    done = call("split", source, "--to", "imagej", "--out", tmp_path / "x", "--share", "train")
    assert done.exit_code != 0 and "train=0.8" in done.output


def test_settings_are_checked(via):
    for changes in ({"target": "word", "out": "a"}, {"target": "coco"}, {"shares": {"train": 1}}, {"by": "chance"}):
        with pytest.raises(UserError):
            Settings(str(via), **changes)
    with pytest.raises(UserError, match="source itself"):
        run(Settings(str(via), target="via", out=str(via), overwrite=True))
