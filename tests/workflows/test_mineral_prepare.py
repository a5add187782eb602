"""From a raw pair of micrograph and mineral map to a report, step by step and as a whole, and its bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.io.palettes import IGNORE, read_palette
from keras_microseg.registration import Transform
from keras_microseg.workflows import mineral_clean, mineral_register, mineral_run, mineral_tiles
from keras_microseg.workflows.mineral_clean import CleanSettings, clean
from keras_microseg.workflows.mineral_quantify import QuantifySettings, quantify
from keras_microseg.workflows.mineral_register import MaskSettings, RegisterSettings, masks, register
from keras_microseg.workflows.mineral_tiles import TileSettings, tiles

sys.path.insert(0, str(Path(__file__).parents[1]))
from mineral_pair import write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, write_pair(folder)


@pytest.fixture(scope="module")
def prepared(pair):
    folder, rock = pair
    settings = CleanSettings(str(folder / "sem.tif"), str(folder / "map.png"), str(folder / "palette.csv"))
    clean(settings, folder / "clean")
    register(RegisterSettings(str(folder / "clean")), folder / "register")
    masks(MaskSettings(str(folder / "clean"), str(folder / "register")), folder / "masks")
    return folder, rock


def test_the_pair_is_cleaned(prepared):
    folder, rock = prepared
    facts = json.loads((folder / "clean" / "clean.json").read_text())
    assert facts["map"]["mosaic"]["pitch"] == [90, 90]
    assert facts["map"]["mosaic"]["overlap"] == [3, 5]
    assert facts["factor"] == 1 and facts["correction"]["black"] == 16
    classes = io.open_image(folder / "clean" / "classes.tif").read()
    truth = rock.mineral_map[...]
    np.testing.assert_array_equal(classes, np.where(truth == 0, mineral_clean.OUTSIDE, truth - 1))
    legend = read_palette(folder / "clean" / "classes.csv")
    assert [m.name for m in legend.minerals] == ["pore", "quartz", "albite", "clay", "feldspar", "accessory"]
    assert legend.minerals[1].density == 2.65
    sem = io.open_image(folder / "clean" / "sem.tif")
    assert sem.pixel_size.size == (0.5, 0.5) and np.median(sem.read()[:40, :40]) == 0


def test_the_map_lies_on_the_micrograph(prepared):
    folder, rock = prepared
    stored = json.loads((folder / "register" / "transform.json").read_text())
    transform = Transform.from_dict(stored["transform"])
    points = np.stack(np.meshgrid(np.arange(40, 200, 20), np.arange(40, 200, 20), indexing="ij"), -1)
    error = np.hypot(*np.moveaxis(transform(points) - rock.map_to_sem(points), -1, 0)) / 4
    assert error.mean() < 0.5 and np.percentile(error, 95) < 1
    windows = pd.read_csv(folder / "register" / "windows.csv", comment="#")
    assert windows["used"].mean() > 0.8
    assert {p.name for p in (folder / "register").glob("*.png")} == {"checkerboard.png", "edges.png", "residuals.png"}
    mask, truth = io.open_image(folder / "masks" / "mask.tif").read(), rock.classes[...].astype(int) - 1
    known = mask != IGNORE
    assert not known[truth < 0].any() and known[truth >= 0].mean() > 0.95
    assert (mask == truth)[known].mean() > 0.9  # one spectrum per 4 x 4 pixels, 1 % wrong names, 10 % in clay


def test_tiles_keep_validation_apart(prepared):
    folder, _ = prepared
    tiles(TileSettings((str(folder / "masks"),), tile=96, reduce=2, guard=20, soft=True), folder / "tiles")
    found = json.loads((folder / "tiles" / "tiles.json").read_text())
    parts = {part: [t for t in found["tiles"] if t["part"] == part] for part in ("train", "validation")}
    assert len(parts["train"]) >= 6 and len(parts["validation"]) >= 3 and found["left_out_for_guard"] > 0
    lowest = max(t["origin"][0] for t in parts["train"]) + 96
    assert lowest + 20 <= min(t["origin"][0] for t in parts["validation"])
    mask, sem = (io.open_image(folder / name).read() for name in ("masks/mask.tif", "clean/sem.tif"))
    for tile in found["tiles"][:3]:
        y, x = (2 * o for o in tile["origin"])
        image = io.open_image(folder / "tiles" / tile["image"])
        assert image.shape == (96, 96) and image.pixel_size.size == (1.0, 1.0)
        block = sem[y : y + 192, x : x + 192].reshape(96, 2, 96, 2).mean(axis=(1, 3))
        np.testing.assert_array_equal(image.read(), np.rint(block).astype(np.uint8))
        labels = io.open_image(folder / "tiles" / tile["mask"]).read()
        shares = np.load(folder / "tiles" / tile["soft"])
        known = labels != IGNORE
        np.testing.assert_array_equal(shares.argmax(axis=-1)[known], labels[known])
        np.testing.assert_allclose(shares.sum(axis=-1)[known], 255, atol=2)
        assert tile["pixels"] == np.bincount(labels.ravel(), minlength=256)[:6].tolist()
        same = mask[y : y + 192 : 2, x : x + 192 : 2] == labels
        assert same[known].mean() > 0.9
    totals = np.sum([t["pixels"] for t in parts["train"]], axis=0)
    assert list(found["statistics"]["train"]["pixels"].values()) == totals.tolist()


def test_from_the_pair_to_the_report_without_training(pair, tmp_path):
    folder, rock = pair
    (tmp_path / "lab.csv").write_text("class,fraction,method\nporosity,0.1,helium\nquartz,0.9,XRD\n")
    arguments = ["mineral", "run", str(folder / "sem.tif"), str(folder / "map.png"), "--out", str(tmp_path / "out")]
    arguments += ["--method", "thresholds", "--palette", str(folder / "palette.csv")]
    arguments += ["--reference", str(tmp_path / "lab.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Porosity" in result.output
    fractions = pd.read_csv(tmp_path / "out" / "tables" / "fractions.csv", comment="#").set_index("class")
    truth = rock.fractions()
    assert abs(fractions["share"]["pore"] - truth["pore"]) < 0.015
    inside = [fractions["low"][n] <= truth[n] <= fractions["high"][n] for n in fractions.index]
    assert np.mean(inside) >= 4 / 6
    # thresholds cannot tell albite from quartz; what the validation tiles say about that mends the shares
    off = {kind: sum(abs(fractions[kind][n] - truth[n]) for n in fractions.index) for kind in ("raw", "share")}
    assert off["share"] < 0.6 * off["raw"]
    compared = pd.read_csv(tmp_path / "out" / "tables" / "comparison.csv", comment="#").set_index("class")
    assert compared["method"].to_dict() == {"porosity": "helium", "quartz": "XRD"} and not compared["inside"]["quartz"]
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("Fractions", "Representative area", "Grains", "Registration", "Errors of classification", "helium"):
        assert part in page
    # thresholds find hardly any albite: the page warns of its contacts and sizes
    assert "only a part (recall): albite" in page and "mean little" in page
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0 and "Porosity" in again.output
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1 and "--resume" in refused.output


def test_pores_and_ground_of_one_colour_come_apart(tmp_path):
    """As in the source's maps: white is both; the disc of the micrograph tells the sample from the ground."""
    rock = write_pair(tmp_path)
    picture = io.open_image(tmp_path / "map.png").read()
    picture[(picture == 0).all(axis=-1)] = 255
    io.write_image(tmp_path / "map.png", picture)
    settings = mineral_run.MineralRunSettings(
        str(tmp_path / "sem.tif"), str(tmp_path / "map.png"), "thresholds", quantify={"grain_windows": 0}
    )
    folder = mineral_run.run(settings, tmp_path / "out")
    fractions = pd.read_csv(folder.path / "tables" / "fractions.csv", comment="#").set_index("class")
    assert list(fractions.index) == ["pores", "clay and accessory", "albite", "quartz"]
    assert abs(fractions["share"]["pores"] - rock.fractions()["pore"]) < 0.015
    facts = json.loads((folder.path / "tables" / "quantities.json").read_text())
    assert "mass" not in fractions and any("no density for clay and accessory" in note for note in facts["notes"])
    assert "No mass shares" in (folder.path / "report.html").read_text()


def test_counts_are_those_of_the_map(prepared, tmp_path):
    """What is measured in the exact classes is what is in them."""
    folder, rock = prepared
    truth = rock.classes[...]
    io.write_image(tmp_path / "exact.png", truth)
    settings = QuantifySettings(
        str(tmp_path / "exact.png"), str(folder / "palette.csv"), pixel_size="0.5um", window=600, grain_windows=4
    )
    quantify(settings, tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables" / "fractions.csv", comment="#").set_index("class")
    assert "background" not in table.index
    for name, share in rock.fractions().items():
        assert table["raw"][name] == pytest.approx(share, abs=1e-9)
    facts = json.loads((tmp_path / "tables" / "quantities.json").read_text())
    assert facts["porosity"] == pytest.approx(rock.fractions()["pore"])
    assert facts["sample_area"] == pytest.approx((truth > 0).sum() * 0.25)
    sizes = pd.read_csv(tmp_path / "tables" / "grain_sizes.csv", comment="#").set_index("class")
    assert 12 < sizes["D50"]["quartz"] < 48  # cells of 24 um, neighbours of one mineral grown together and cut apart


def test_bad_input(prepared, tmp_path):
    folder, _ = prepared
    sem, mineral_map, palette = (str(folder / name) for name in ("sem.tif", "map.png", "palette.csv"))
    lines = (folder / "palette.csv").read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines[:-1], lines[-1].replace("#800000", "#ffffff")]))
    (tmp_path / "missing.csv").write_text("\n".join([*lines[:-1], lines[-1].replace("#800000", "")]))
    for name, message in (("twice.csv", "more than once"), ("missing.csv", "has no colour")):
        with pytest.raises(FileError, match=message):
            clean(CleanSettings(sem, mineral_map, str(tmp_path / name)), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    (tmp_path / "other.csv").write_text("id,name,colour\n0,pore,#123456\n1,quartz,#654321\n")
    with pytest.raises(FileError, match="Pass the palette"):
        clean(CleanSettings(sem, mineral_map, str(tmp_path / "other.csv")), tmp_path / "wrong")
    grey = io.open_image(sem).read()
    io.write_image(tmp_path / "bare.tif", grey)
    with pytest.raises(FileError, match="pixel size"):
        clean(CleanSettings(str(tmp_path / "bare.tif"), mineral_map, palette), tmp_path / "no")
    with pytest.raises(FileError, match="mineral clean"):
        register(RegisterSettings(str(tmp_path)), tmp_path / "no")
    with pytest.raises(UserError, match="extent"):
        RegisterSettings(str(folder), start="guess")
    with pytest.raises(UserError, match="must not exceed the image"):
        tiles(TileSettings((str(folder / "masks"),), tile=2000), tmp_path / "no")
    with pytest.raises(UserError, match="leave_one|two samples"):
        tiles(TileSettings((str(folder / "masks"),), tile=128, split="leave-one-out"), tmp_path / "no")
    with pytest.raises(UserError, match="Unknown settings of tiles: tiel"):
        mineral_run.MineralRunSettings(sem, mineral_map, tiles={"tiel": 3})
    with pytest.raises(UserError, match="clean="):
        mineral_run.MineralRunSettings(sem, mineral_map, tiles={"reduce": 2})
    (tmp_path / "run.json").write_text('{"metod": "thresholds"}')
    with pytest.raises(FileError, match="metod"):
        mineral_run.read_config(tmp_path / "run.json")


def altered(folder, tmp_path, classes):
    """A folder of `mineral masks` with another mask."""
    out = tmp_path / "altered"
    out.mkdir(exist_ok=True)
    io.write_image(out / "mask.tif", classes)
    (out / "classes.csv").write_text((folder / "masks" / "classes.csv").read_text())
    facts = {"image": str(folder / "clean" / "sem.tif"), "mask": "mask.tif"}
    (out / "mask.json").write_text(json.dumps(facts))
    return str(out)


def test_masks_that_do_not_fit(prepared, tmp_path):
    folder, _ = prepared
    mask = io.open_image(folder / "masks" / "mask.tif").read()
    with pytest.raises(UserError, match="999 x 960 pixels, its image sem.tif 1000 x 960"):
        tiles(TileSettings((altered(folder, tmp_path, mask[1:]),)), tmp_path / "a")
    gone = altered(folder, tmp_path, np.where(mask == 5, 4, mask))
    with pytest.raises(UserError, match="no training tile: accessory"):
        tiles(TileSettings((gone,), tile=128), tmp_path / "b")
    tiles(TileSettings((gone,), tile=128, absent="allow"), tmp_path / "c")
    assert json.loads((tmp_path / "c" / mineral_tiles.TILES).read_text())["absent_from_training"] == ["accessory"]


def test_maps_that_do_not_fit_their_classes(prepared, tmp_path):
    folder, _ = prepared
    classes = str(folder / "masks" / "classes.csv")
    io.write_image(tmp_path / "odd.png", np.full((300, 300), 77, np.uint8))
    with pytest.raises(FileError, match="class numbers 77"):
        quantify(QuantifySettings(str(tmp_path / "odd.png"), classes, pixel_size="1um"), tmp_path / "a")
    with pytest.raises(FileError, match="1000 x 960"):
        quantify(
            QuantifySettings(str(tmp_path / "odd.png"), classes, str(folder / "clean"), pixel_size="1um"),
            tmp_path / "b",
        )
    (tmp_path / "lab.csv").write_text("class,fraction\nquartz,46\n")
    good = str(folder / "masks" / "mask.tif")
    with pytest.raises(FileError, match="outside 0 to 1"):
        quantify(QuantifySettings(good, classes, references=(str(tmp_path / "lab.csv"),)), tmp_path / "c")


def test_a_micrograph_that_fills_the_image_starts_from_its_extent(tmp_path):
    rock = write_pair(tmp_path, disc=0, jitter=0.3, rotation=0.1)
    settings = CleanSettings(str(tmp_path / "sem.tif"), str(tmp_path / "map.png"), str(tmp_path / "palette.csv"))
    clean(settings, tmp_path / "clean")
    with pytest.raises(UserError, match="no start"):
        register(RegisterSettings(str(tmp_path / "clean")), tmp_path / "disc")
    register(RegisterSettings(str(tmp_path / "clean"), start="extent"), tmp_path / "register")
    stored = json.loads((tmp_path / "register" / mineral_register.TRANSFORM).read_text())
    points = np.stack(np.meshgrid(np.arange(40, 200, 20), np.arange(40, 200, 20), indexing="ij"), -1)
    error = np.hypot(*np.moveaxis(Transform.from_dict(stored["transform"])(points) - rock.map_to_sem(points), -1, 0))
    assert error.mean() / 4 < 0.5
