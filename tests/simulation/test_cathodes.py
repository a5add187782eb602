"""Synthetic cathodes: exact truth, the same in blocks, and what the settings ask for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.segmentation.labeling import label_components
from keras_microseg.simulation.cathodes import (
    CBD,
    CRACK,
    PARTICLE,
    VOID,
    CathodeSettings,
    make_cathode,
    plan_cathode,
)
from keras_microseg.workflows.simulate_cathodes import CathodeRun, draw_slice, simulate_cathodes

SMALL = CathodeSettings(shape=(60, 76, 80), diameter=20, seed=3)


@pytest.fixture(scope="module")
def cathode():
    return make_cathode(SMALL)


def test_blocks_equal_the_whole_and_seeds_decide(cathode):
    block, _ = cathode
    box = (slice(11, 30), slice(5, 60), slice(40, 80))
    for part, whole in zip(plan_cathode(SMALL).read(box), block, strict=True):
        np.testing.assert_array_equal(part, whole[box])
    other = plan_cathode(dataclasses.replace(SMALL, seed=4)).read(box)
    assert not np.array_equal(other.labels, block.labels[box])


def test_phases_and_labels_agree(cathode):
    block, table = cathode
    inside = np.isin(block.phases, (PARTICLE, CRACK))
    np.testing.assert_array_equal(inside, block.labels > 0)
    assert set(np.unique(block.phases)) == {VOID, CBD, PARTICLE, CRACK}
    assert set(np.unique(block.labels[block.labels > 0])) <= set(table["label"])
    assert abs(inside.mean() - SMALL.fraction) < 0.08  # a small volume: a few particles more or less
    assert block.grey.dtype == np.uint16
    means = [block.grey[block.phases == phase].mean() / 65535 for phase in (VOID, CBD, PARTICLE)]
    assert means[0] < means[1] - 0.08 < means[2] - 0.2


def test_states_differ_in_cracks(cathode):
    block, table = cathode
    whole = table[table["whole"]]
    cracks = np.bincount(block.labels[block.phases == CRACK], minlength=table["label"].max() + 1)
    sizes = np.bincount(block.labels.ravel(), minlength=len(cracks))
    damage = dict(zip(whole["label"], cracks[whole["label"]] / sizes[whole["label"]], strict=True))
    by_state = whole.assign(damage=whole["label"].map(damage)).groupby("state")["damage"]
    assert by_state.max()["intact"] == 0 and by_state.min()["cracked"] > 0 and by_state.min()["shattered"] > 0.05
    label = int(whole[whole["state"] == "shattered"]["label"].iloc[0])  # a threshold falls for its fragments
    fragments = np.bincount(label_components((block.labels == label) & (block.phases == PARTICLE), 4).ravel())[1:]
    assert (fragments > 50).sum() >= 3
    assert label_components(block.labels == label, 4).max() == 1


def test_void_shells_cover_what_was_asked():
    alone = CathodeSettings(shape=(44, 44, 44), diameter=24, fraction=0.08, pores=0, cracked=0, shattered=0,
                            touching=0, detachment=(0.35, 0.35), seed=5)  # fmt: skip
    plan = plan_cathode(alone)
    one = {name: getattr(plan, name)[:1] for name in ("centres", "radii", "lobes", "heights", "states", "patches",
                                                      "fractions", "levels", "damages")}  # fmt: skip
    truth = dataclasses.replace(plan, **one).detachment((1.0, 4.0), samples=4000)
    np.testing.assert_allclose(truth, 0.35, atol=0.01)  # sampling of 4000 points
    everywhere = plan_cathode(CathodeSettings(shape=(44, 44, 44), diameter=24, detachment=(1, 1), pores=0, seed=5))
    nowhere = plan_cathode(CathodeSettings(shape=(44, 44, 44), diameter=24, detachment=(0, 0), pores=0, seed=5))
    assert np.nanmin(everywhere.detachment()) == 1 and np.nanmax(nowhere.detachment()) == 0
    assert not (nowhere.read_truth((slice(0, 44),) * 3)[1] == VOID).any()


def test_area_weights_and_normals_of_the_surface():
    plan = plan_cathode(SMALL)
    points, normals, areas = plan.surface(0, 3000)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
    # divergence theorem: volume and closed surface
    volume = (np.einsum("ij,ij->i", points, normals) * areas).sum() / 3
    assert abs(volume / (4 / 3 * np.pi * plan.radii[0] ** 3) - 1) < 0.05
    np.testing.assert_allclose((normals * areas[:, None]).sum(axis=0) / areas.sum(), 0, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"cracked": 0.8, "shattered": 0.3}, "shattered=0.3"), ({"detachment": (0.5, 0.2)}, "least, greatest"),
     ({"fraction": 0.9}, "fraction"), ({"crack_width": 20}, "crack_width"), ({"dtype": "int8"}, "dtype")],
)  # fmt: skip
def test_bad_settings(change, word):
    with pytest.raises(UserError, match=word):
        CathodeSettings(**change)


def test_distances_beyond_the_shell_are_refused():
    with pytest.raises(UserError, match="shell of 5"):
        plan_cathode(SMALL).detachment((6.0,))


def test_slices_on_disk(tmp_path):
    run = CathodeRun(2, CathodeSettings(shape=(1, 64, 72), diameter=20, seed=7))
    out = simulate_cathodes(run, tmp_path / "data")
    table = pd.read_csv(out / "objects.csv", comment="#")
    for name in ("cathode_0000", "cathode_0001"):
        labels = np.asarray(io.read_labels(out / "labels" / f"{name}.tif").data)
        rows = table[table["image"] == name]
        ids, areas = np.unique(labels[labels > 0], return_counts=True)
        assert rows["label"].tolist() == ids.tolist() and rows["area"].tolist() == areas.tolist()
        assert io.open_image(out / "images" / f"{name}.tif").pixel_size.size == (70.0, 70.0)
        assert (out / "phases" / f"{name}.tif").is_file()
    again, _ = draw_slice(run.cathode, 1)
    np.testing.assert_array_equal(again.labels, labels)
    assert simulate_cathodes(run, tmp_path / "data", resume=True) == out


def test_volume_on_disk_equals_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_microseg.workflows.simulate_cathodes._SLAB", 17)
    out = simulate_cathodes(CathodeRun(None, SMALL, "0.1 um", "npy"), tmp_path / "volume")
    block, _ = make_cathode(SMALL)
    for name, part in zip(("grey", "labels", "phases"), block, strict=True):
        np.testing.assert_array_equal(np.asarray(io.open_volume(out / f"{name}.npy").data[...]), part)
    table = pd.read_csv(out / "particles.csv", comment="#")
    assert table["volume"].sum() == (block.labels > 0).sum()
    assert round((table["damage"] * table["volume"]).sum()) == (block.phases == CRACK).sum()
