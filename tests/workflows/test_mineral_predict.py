"""`mineral predict`, `view` and `simulate`: files that others read, kills, shards, workers, bad input."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from map_models import write_map_model

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.image import PixelSize
from keras_microseg.io.map_store import CLASSES, MapStore, level_shapes, most_frequent
from keras_microseg.io.micrographs import open_micrograph
from keras_microseg.simulation import Rock, RockSettings
from keras_microseg.workflows.mineral_predict import MapSettings, choose_factor, predict
from keras_microseg.workflows.mineral_simulate import simulate
from keras_microseg.workflows.mineral_view import view

pytestmark = pytest.mark.network
UM = {"size": [0.5, 0.5], "unit": "um"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    histogram = np.zeros(64)
    histogram[2:45] = 1
    return write_map_model(tmp_path_factory.mktemp("model") / "small.keras", pixel_size=UM,
                           grey_histogram=list(histogram))  # fmt: skip


@pytest.fixture(scope="module")
def sem(tmp_path_factory):
    path = tmp_path_factory.mktemp("sem") / "sem.tif"
    rock = Rock(RockSettings(shape=(700, 611), grain_size=40, sem_field=0, disc=0))
    io.write_image(path, rock.sem[...], pixel_size=PixelSize.parse("0.5um"))
    return path


def classes_of(folder):
    return MapStore(folder / "map.ome.zarr").array(CLASSES)[...]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, model, sem):
    out = tmp_path_factory.mktemp("mapped")
    settings = MapSettings((str(sem),), str(model), tile=64, chunk=128, confidence=True, probabilities=True)
    (result,) = predict(settings, out).results
    assert result.complete and not result.failed_blocks and result.facts["blocks"] == 30
    return result


def test_files_that_others_read(mapped):
    classes, facts = classes_of(mapped.folder), mapped.facts
    with tifffile.TiffFile(mapped.folder / "classes.ome.tif") as tif:
        assert tif.is_bigtiff and tif.is_ome and tif.pages[0].is_tiled and tif.pages[0].photometric.name == "PALETTE"
        levels = tif.series[0].levels
        assert [level.shape for level in levels] == level_shapes((700, 611)) == [(700, 611), (350, 306)]
        np.testing.assert_array_equal(levels[0].asarray(), classes)
        np.testing.assert_array_equal(levels[1].asarray()[:350, :305], most_frequent(classes[:, :610]))
        assert 'PhysicalSizeX="0.5"' in tif.ome_metadata and 'PhysicalSizeYUnit="\u00b5m"' in tif.ome_metadata
        assert '<M K="class 2">albite</M>' in tif.ome_metadata
        assert (tif.pages[0].colormap[:, 2] >> 8).tolist() == [0, 255, 255]
    ours = io.open_image(mapped.folder / "classes.ome.tif", raw_palette=True)
    assert ours.pixel_size.to("um").size == pytest.approx((0.5, 0.5))
    np.testing.assert_array_equal(ours.read(), classes)
    group = zarr.open_group(mapped.folder / "map.ome.zarr", mode="r")
    scales = group["labels/classes"].attrs["multiscales"][0]
    assert [axis["unit"] for axis in scales["axes"]] == ["micrometer"] * 2
    second = {step["type"]: step[step["type"]] for step in scales["datasets"][1]["coordinateTransformations"]}
    assert second == {"scale": [1.0, 1.0], "translation": [0.25, 0.25]}
    assert group["labels"].attrs["labels"] == ["classes"]
    assert {"label-value": 3, "rgba": [0, 255, 0, 255]} in group["labels/classes"].attrs["image-label"]["colors"]
    assert [c["label"] for c in group["probabilities"].attrs["omero"]["channels"]] == list(facts["classes"].values())
    np.testing.assert_array_equal(np.argmax(group["probabilities/0"][...], axis=0)[classes == 1], 1)
    confidence = group["confidence/0"][...]
    assert facts["confidence"]["mean"] == pytest.approx(confidence.mean() / 255, abs=1e-6)
    assert facts["seams"]["passed"] and facts["image_to_map"]["scale"] == 1 and facts["grey_values"]["windows"] == 1
    palette = io.palettes.read_palette(mapped.folder / "classes.csv")
    assert [m.name for m in palette.minerals] == ["pore", "quartz", "albite", "clay"]
    assert json.loads((mapped.folder / "map.json").read_text())["complete"]


def test_most_frequent_class():
    values = np.array(
        [[0, 1, 2, 2, 3, 4], [1, 2, 3, 3, 255, 255], [255, 255, 255, 7, 5, 6], [255, 255, 255, 255, 6, 6]]
    )
    np.testing.assert_array_equal(most_frequent(values.astype(np.uint8)), [[1, 2, 3], [255, 7, 6]])


def test_page_of_the_map(mapped):
    page = view(mapped.folder)
    text = page.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "") and '"name": "albite"' in text
    tiles = sorted(path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*.png"))
    assert "classes/0/1_1.png" in tiles and "grey/1/0_0.png" in tiles and len(tiles) == 2 * (4 + 1)
    np.testing.assert_array_equal(
        io.open_image(page.parent / "classes/0/1_1.png").read(), classes_of(mapped.folder)[512:, 512:]
    )
    assert view(mapped.folder, max_pixels=2e5) == page and "one pixel for 2" in page.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="max_pixels"):
        view(mapped.folder, max_pixels=1000)


def test_working_pixel_size(tmp_path, model, sem):
    (result,) = predict(MapSettings((str(sem),), str(model), "1um", tile=64), tmp_path / "a").results
    assert classes_of(result.folder).shape == (350, 306)
    image = io.open_image(sem).read()[:, :610]
    grey = MapStore(result.folder / "map.ome.zarr").array("")[...]
    np.testing.assert_array_equal(grey[:, :305], np.rint(image.reshape(350, 2, 305, 2).mean(axis=(1, 3))))
    assert result.facts["pixel_size"]["size"] == [1.0, 1.0]
    assert result.facts["image_to_map"]["affine"] == [[0.5, 0, -0.25], [0, 0.5, -0.25]]
    opened = open_micrograph(sem, None)
    assert choose_factor(opened, {"pixel_size": UM}, None) == 1.0
    assert choose_factor(opened, {"pixel_size": UM}, "1.25um") == pytest.approx(2.5)
    assert choose_factor(opened, {}, "3px") == 3.0
    assert choose_factor(opened, {"pixel_size": UM}, "native") == 1.0
    with pytest.raises(FileError, match="--pixel-size"):
        choose_factor(open_micrograph(sem, "px"), {}, "1um")


def test_several_images_raw_pixels_and_a_bad_one(tmp_path, model):
    rock = Rock(RockSettings(shape=(90, 100), grain_size=20, sem_field=0, disc=0)).sem[...]
    images = tmp_path / "images"
    images.mkdir()
    io.write_image(images / "a.png", rock)
    (images / "b.tif").write_bytes(b"II*\0no")
    (images / "c.raw").write_bytes(rock.tobytes())
    (images / "c.json").write_text(json.dumps({"shape": [1, 90, 100], "dtype": "uint8"}))
    settings = MapSettings((str(images), str(images / "c.raw")), str(model), pixel_size="0.5um", tiff=False)
    maps = predict(settings, tmp_path / "out")
    assert len(maps.results) == 2 and len(maps.failures) == 1 and "b.tif" in maps.failures[0].message
    np.testing.assert_array_equal(classes_of(tmp_path / "out" / "a"), classes_of(tmp_path / "out" / "c"))
    with pytest.raises(FileError, match="does not tell its pixel size"):
        predict(MapSettings((str(images / "a.png"),), str(model)), tmp_path / "none")
    with pytest.raises(FileError, match="not a .keras file"):
        predict(MapSettings((str(images / "a.png"),), str(images / "c.raw")), tmp_path / "none")


def test_another_run_is_refused_and_shards_join(tmp_path, model, sem, mapped):
    for number in (2, 1, 3):
        settings = MapSettings(
            (str(sem),), str(model), tile=64, chunk=128, confidence=True, probabilities=True, shard=(number, 3)
        )
        (result,) = predict(settings, tmp_path).results
        assert result.complete == (number == 3)
    for path in sorted((mapped.folder / "map.ome.zarr").rglob("*")):
        if path.is_file() and path.name != ".zattrs":
            assert path.read_bytes() == (tmp_path / path.relative_to(mapped.folder)).read_bytes(), path
    assert (tmp_path / "classes.ome.tif").is_file()
    with pytest.raises(FileError, match="--resume"):
        predict(MapSettings((str(sem),), str(model), tile=64), tmp_path)
    with pytest.raises(FileError, match=r"another run \(tile: \[64, 64\] there, \[128, 128\] now"):
        predict(
            MapSettings((str(sem),), str(model), tile=128, confidence=True, probabilities=True), tmp_path, resume=True
        )
    again = predict(
        MapSettings((str(sem),), str(model), tile=64, chunk=128, confidence=True, probabilities=True),
        tmp_path,
        resume=True,
    )
    assert again.results[0].complete
    with pytest.raises(UserError, match="shard"):
        MapSettings((str(sem),), str(model), shard=(4, 3))


def environment():
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def lines_in(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def test_a_killed_run_goes_on(tmp_path, model, sem, mapped):
    out = str(tmp_path / "r")
    words = ["mineral", "predict", str(sem), "-m", str(model), "-o", out, "--tile", "64", "--confidence"]
    slow = (
        "import sys, time; import keras_microseg.inference.ledger as l; f = l.Ledger.append\n"
        "def g(*a, **k):\n    f(*a, **k); time.sleep(0.3)\n"
        "l.Ledger.append = g; from keras_microseg.__main__ import main; sys.argv[0] = 'keras-microseg'; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *words, "--probabilities", "--chunk", "128"],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 240
    while lines_in(tmp_path / "r" / "ledger") < 2 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines_in(tmp_path / "r" / "ledger")
    total = json.loads((mapped.folder / "map.json").read_text())["blocks"]
    assert 2 <= before
    (log,) = (tmp_path / "r" / "ledger").glob("*.jsonl")
    with open(log, "ab") as file:
        file.write(b'{"block": [0, ')
    settings = MapSettings((str(sem),), str(model), tile=64, chunk=128, confidence=True, probabilities=True)
    (result,) = predict(settings, tmp_path / "r", resume=True).results
    assert result.complete and result.facts["timings"]["tiles"] < mapped.facts["timings"]["tiles"] or before >= total
    for path in sorted((mapped.folder / "map.ome.zarr").rglob("*")):
        if path.is_file() and path.name != ".zattrs":
            assert path.read_bytes() == (tmp_path / "r" / path.relative_to(mapped.folder)).read_bytes(), path


@pytest.mark.slow
def test_two_workers_equal_one_process_also_when_one_dies(tmp_path, model, mapped, sem):
    pytest.importorskip("distributed")
    killed = []

    def kill_first(folder):
        limit = time.monotonic() + 200
        while time.monotonic() < limit and not killed:
            for path in folder.glob("*.jsonl"):
                if path.read_bytes().count(b"\n"):
                    killed.append(int(path.name.split("-")[-2]))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.02)

    for name, kill in (("calm", False), ("killed", True)):
        out = tmp_path / name
        if kill:
            thread = threading.Thread(target=kill_first, args=(out / "ledger",), daemon=True)
            thread.start()
        settings = MapSettings(
            (str(sem),), str(model), tile=64, chunk=128, confidence=True, probabilities=True, workers=2
        )
        (result,) = predict(settings, out).results
        assert result.complete
        np.testing.assert_array_equal(classes_of(out), classes_of(mapped.folder))
    assert killed and killed[0] != os.getpid()


def test_simulated_micrograph_on_disk(tmp_path):
    settings = RockSettings(shape=(1040, 210), grain_size=60)
    store = simulate(settings, tmp_path / "rock.zarr", pixel_size="0.3um")
    rock = Rock(settings)
    np.testing.assert_array_equal(store.array("")[...], rock.sem[...])
    np.testing.assert_array_equal(store.array(CLASSES)[...], rock.classes[...])
    image = io.open_image(tmp_path / "rock.zarr")
    assert image.pixel_size.size == (0.3, 0.3) and image.shape == (1040, 210)
    with pytest.raises(FileError, match="--resume"):
        simulate(settings, tmp_path / "rock.zarr")
    assert not (tmp_path / "rock.zarr.ledger").exists()
