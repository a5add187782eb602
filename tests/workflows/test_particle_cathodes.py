"""`particles simulate`, `link` and `measure` from files to files: counts and detachment come out; bad input is told."""

import json

import numpy as np
import openpyxl
import pandas as pd
import pytest
from cathode_scenes import large, renumber
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.cli import app
from keras_microseg.metrics import match
from keras_microseg.segmentation.linking import LinkSettings
from keras_microseg.simulation.cathodes import CathodeSettings
from keras_microseg.workflows.particle_link import LinkRun, link
from keras_microseg.workflows.simulate_cathodes import CathodeRun, simulate_cathodes

runner = CliRunner()


def call(*words, code=0):
    result = runner.invoke(app, ["particles", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output.replace("\n", " ")


@pytest.fixture(scope="module")
def cathode(tmp_path_factory):
    """A small cathode on disk, and its labels numbered anew in every slice as single files."""
    folder = tmp_path_factory.mktemp("cathode")
    settings = CathodeSettings(shape=(60, 72, 76), diameter=20, spread=0.15, seed=9)
    data = simulate_cathodes(CathodeRun(None, settings, "0.1um", "tif"), folder / "data")
    labels = np.asarray(io.open_volume(data / "labels.tif").data[...])
    for z, plane in enumerate(renumber(labels.astype(np.int32))):
        io.write_labels(folder / "slices" / "labels" / f"slice_{z:03d}.tif", plane)
    return folder, data, labels


def test_slices_to_particles_to_detachment(cathode, tmp_path):
    folder, data, labels = cathode
    text = call("link", folder / "slices", "--out", tmp_path / "linked", "-p", "0.1um")
    linked = np.asarray(io.open_volume(tmp_path / "linked" / "labels.zarr").data[...]).astype(np.int64)
    truth = large(labels)
    found = match(truth, large(linked))
    assert found.fn == 0 and found.fp == 0 and found.mean_iou > 0.99
    assert f"{linked.max()} particles" in text
    objects = pd.read_csv(tmp_path / "linked" / "objects.csv", comment="#")
    assert objects["voxels"].sum() == (linked > 0).sum() and objects["slices"].min() >= 3

    out = tmp_path / "result"
    text = call("measure", tmp_path / "linked" / "labels.zarr", "--phases", data / "phases.tif", "--grey",
                data / "grey.tif", "--distance", 2.5, "--collector", "z1", "--out", out)  # fmt: skip
    assert "mean detachment" in text
    table = pd.read_csv(out / "particles.csv", comment="#")
    known = pd.read_csv(data / "particles.csv", comment="#").set_index("label")
    inner = table[~table["is_edge"]]
    owner = [np.bincount(labels[linked == label]).argmax() for label in inner["label"]]
    error = inner["detachment"].to_numpy() - known.loc[owner, "detachment"].to_numpy()
    assert len(inner) >= 5 and abs(error.mean()) < 0.02 and np.abs(error).max() < 0.05
    np.testing.assert_allclose(inner["damage"], known.loc[owner, "damage"], atol=0.02)
    assert "`um³`" not in text and "um³" in (out / "particles.csv").read_text().split("label,")[0]

    book = openpyxl.load_workbook(out / "particles.xlsx", read_only=True)
    assert {"table", "sweep", "groups", "correlations", "definitions", "units", "facts"} <= set(book.sheetnames)
    page = (out / "report.html").read_text()
    for word in ("Degree of detachment against volume", "turning-particles", "Crack fraction", "Contact graph"):
        assert word in page
    assert {p.name for p in (out / "figures").iterdir()} >= {"sweep.png", "contacts.png", "detachment_depth.png"}
    record = json.loads((out / "run.json").read_text())
    assert record["particles"] == len(table) and record["settings"]["measures"]["distance"] == 2.5
    contacts = pd.read_csv(out / "linked" / "contacts.csv", comment="#")
    assert (contacts["area"] <= contacts["faces"] + 1e-9).all() and (contacts["label_a"] < contacts["label_b"]).all()


def test_several_volumes_with_groups_go_on_after_a_bad_one(cathode, tmp_path):
    _, data, labels = cathode
    np.save(tmp_path / "second.npy", labels[:, ::-1].copy())
    np.save(tmp_path / "grey.npy", np.asarray(io.open_volume(data / "grey.tif").data[...])[:, ::-1].copy())
    np.save(tmp_path / "short.npy", labels[:40].copy())
    call("measure", data / "labels.tif", tmp_path / "second.npy", tmp_path / "short.npy", "--phases", "otsu",
         *("--grey", data / "grey.tif"), *("--grey", tmp_path / "grey.npy"), *("--grey", data / "grey.tif"),
         *("--group", 5), *("--group", 50), *("--group", 100), "--voxel-size", "100nm", "--skip", 1.5,
         "--out", tmp_path / "out", code=1)  # fmt: skip
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(record["volumes"]) == 2 and len(record["failures"]) == 1
    assert "(60, 72, 76)" in record["failures"][0] and "(40, 72, 76)" in record["failures"][0]
    table = pd.read_csv(tmp_path / "out" / "particles.csv", comment="#")
    assert set(table["group"]) == {5, 50}
    by = pd.read_csv(tmp_path / "out" / "groups.csv", comment="#")
    assert {"size_class", "group", "sample"} == set(by["by"])
    differences = pd.read_csv(tmp_path / "out" / "differences.csv", comment="#")
    same = differences[(differences["by"] == "group") & (differences["quantity"] == "detachment")]
    assert abs(same["difference"].iloc[0]) < 0.02 and same["p"].iloc[0] > 0.5  # a mirrored volume is the same
    assert (tmp_path / "out" / "figures" / "detachment_group.png").is_file()


def test_three_views(cathode, tmp_path):
    folder, _, labels = cathode
    for axis in "zyx":
        np.save(tmp_path / f"labels_{axis}.npy", labels.astype(np.int32))
    target = link(LinkRun(str(tmp_path), links=LinkSettings(min_slices=2), kind="npy"), tmp_path / "out")
    fused = np.asarray(io.open_volume(target).data[...])
    found = match(large(labels), large(fused.astype(np.int64)))
    assert found.fn == found.fp == 0 and found.mean_iou > 0.98
    assert not list((tmp_path / "out").glob("*.dat"))


def test_images_along_another_axis(cathode, tmp_path):
    _, _, labels = cathode
    part = labels[:, :40].astype(np.int32)
    for axis, name in ((0, "z"), (1, "y")):
        for number, plane in enumerate(renumber(np.ascontiguousarray(np.moveaxis(part, axis, 0)))):
            io.write_labels(tmp_path / "views" / name / "labels" / f"{name}{number:02d}.tif", plane)
    how = LinkSettings(min_slices=1)
    along = link(LinkRun(str(tmp_path / "views" / "y"), "y", links=how, kind="npy"), tmp_path / "y")
    found = match(large(part), large(np.asarray(io.open_volume(along).data[...]).astype(np.int64)))
    assert found.fn == found.fp == 0 and found.mean_iou > 0.99
    fused = link(LinkRun(str(tmp_path / "views"), links=how, kind="npy"), tmp_path / "both")
    assert io.open_volume(fused).shape == part.shape


def test_scores_leave_labels_out(cathode, tmp_path):
    folder, _, labels = cathode
    rows = [{"image": f"slice_{z:03d}", "label": 1, "score": 0.2 if z < 30 else 0.9} for z in range(60)]
    pd.DataFrame(rows).to_csv(folder / "slices" / "detections.csv", index=False)
    low = LinkRun(str(folder / "slices"), min_score=0.5, links=LinkSettings(min_slices=1, max_gap=0, min_inside=1.0))
    linked = np.asarray(io.open_volume(link(low, tmp_path / "out")).data[...])
    kept = (linked > 0).sum(axis=(1, 2)) < (labels > 0).sum(axis=(1, 2))
    assert kept[:30].sum() > 20 and not kept[30:].any()
    (folder / "slices" / "detections.csv").unlink()
    with pytest.raises(Exception, match="holds no scores"):
        link(low, tmp_path / "again")


def test_bad_input_is_told(cathode, tmp_path):
    folder, data, labels = cathode
    assert "grey values, no labels" in call("link", data / "grey.tif", "--out", tmp_path / "a", code=1)
    assert "does not exist" in call("link", tmp_path / "none", "--out", tmp_path / "b", code=1)
    io.write_labels(tmp_path / "mixed" / "a.tif", np.ones((8, 9), np.int32))
    io.write_labels(tmp_path / "mixed" / "b.tif", np.ones((8, 8), np.int32))
    assert "one size" in call("link", tmp_path / "mixed", "--out", tmp_path / "c", code=1)
    phases = ("measure", data / "labels.tif", "--phases")
    assert "holds float32" in _float_phases(phases, labels.shape, tmp_path)
    text = call(*phases, data / "phases.tif", "--void", 7, "--cbd", 8, "--out", tmp_path / "e", code=1)
    assert "neither void (7,) nor CBD (8,)" in text
    text = call(*phases, data / "phases.tif", "--crack", "none", "--out", tmp_path / "f", code=1)
    assert "without a role: [3]" in text
    text = call(*phases, data / "phases.tif", "--classes", "void,cbd,particle", "--out", tmp_path / "k", code=1)
    assert "without a role: [3]" in text
    assert "use the names" in call(*phases, data / "phases.tif", "--classes", "a,b", "--out", tmp_path / "l", code=2)
    assert "need the grey volume" in call(*phases, "otsu", "--out", tmp_path / "g", code=1)
    assert "one entry per label volume" in call(*phases, "x.tif", "--group", 1, "--group", 2, "--out", tmp_path / "h",
                                                code=1)  # fmt: skip
    text = call("measure", data / "labels.tif", "--thresholds", "5,2", "--grey", data / "grey.tif", "--out",
                tmp_path / "i", code=1)  # fmt: skip
    assert "two rising grey values" in text


def _float_phases(words, shape, tmp_path):
    np.save(tmp_path / "float.npy", np.zeros(shape, np.float32))
    return call(*words, tmp_path / "float.npy", "--out", tmp_path / "d", code=1)
