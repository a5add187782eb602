"""Stack, mask, phantom and info: from files to files, interrupted, with bad input, from the command line."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.cli import app
from keras_microseg.io import volume_writer
from keras_microseg.segmentation.pseudo_labels import MaskSettings, clahe_otsu
from keras_microseg.simulation.phantoms import PhantomSettings, make_phantom
from keras_microseg.workflows import tomography_prepare as prepare
from keras_microseg.workflows.steps import InterruptedRun

VOLUME = make_phantom(PhantomSettings(shape=(24, 32, 40), diameter=10)).volume


def run(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


def slices(folder, volume=VOLUME, first=7):
    folder.mkdir()
    for number, plane in enumerate(volume, start=first):
        tifffile.imwrite(folder / f"rec_{number}.tiff", plane)
    return folder


@pytest.mark.parametrize("kind", ["zarr", "tif", "npy"])
def test_stack_from_the_command_line(tmp_path, kind):
    source = slices(tmp_path / "slices")
    arguments = ["volume", "stack", source, "--out", tmp_path / "out", "--start", 2, "--stop", 999, "--kind", kind]
    result = run(*arguments, "-p", "2 x 0.5 x 0.5 um", "--max-ram", "20kB")
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / f"tomographic_image_2-24.{'tiff' if kind == 'tif' else kind}"
    assert str(path) in result.output and (tmp_path / "out" / "report.html").stat().st_size > 10_000
    image = io.open_volume(path)
    np.testing.assert_array_equal(image.read(), VOLUME[2:])
    assert image.dtype == np.uint16 and np.allclose(image.pixel_size.size, (2, 0.5, 0.5))
    assert image.pixel_size.source == "user" and io.slice_numbers(image).tolist() == list(range(9, 31))
    again = run(*arguments, "-p", "2 x 0.5 x 0.5 um", "--max-ram", "20kB")
    assert again.exit_code == 1 and "--overwrite" in again.output
    assert run(*arguments, "-p", "2 x 0.5 x 0.5 um", "--overwrite", "--no-report").exit_code == 0


def test_interrupted_stack_goes_on(tmp_path):
    source = slices(tmp_path / "slices")
    settings = prepare.StackSettings(str(source), kind="npy", max_ram="40kB", report=False)

    def stop(step, done, total, item):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRun, match="Go on with --resume"):
        prepare.stack(settings, tmp_path / "out", progress=stop)
    seen = []
    path = prepare.stack(settings, tmp_path / "out", resume=True, progress=lambda *told: seen.append(told[1]))
    assert min(seen) > 9  # what was there was not copied again
    np.testing.assert_array_equal(io.open_volume(path).read(), VOLUME)


def test_stack_refuses_bad_input(tmp_path, monkeypatch):
    source = slices(tmp_path / "slices", VOLUME.astype(np.float32))
    bad = VOLUME[3].astype(np.float32)
    bad[0, 0] = np.nan
    tifffile.imwrite(source / "rec_10.tiff", bad)
    with pytest.raises(UserError, match="1 of 24 slices hold NaN or infinite voxels: 10"):
        prepare.stack(prepare.StackSettings(str(source)), tmp_path / "a")
    path = prepare.stack(prepare.StackSettings(str(source), nan="zero", report=False), tmp_path / "b")
    assert io.open_volume(path).read()[3, 0, 0] == 0
    (source / "rec_12.tiff").unlink()
    result = run("volume", "stack", source, "--out", tmp_path / "c", "--nan", "zero")
    assert result.exit_code == 1 and "slice numbers are missing: 12" in result.output
    assert "--allow-gaps" in result.output and not (tmp_path / "c").exists()
    assert run("volume", "stack", source, "--out", tmp_path / "c", "--nan", "zero", "--allow-gaps").exit_code == 0
    assert "numbers are missing: 12" in (tmp_path / "c" / "report.html").read_text()
    with pytest.raises(UserError, match="No slice is left"):
        prepare.stack(prepare.StackSettings(str(source), 5, 3, gaps="report"), tmp_path / "d")
    monkeypatch.setattr(volume_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**5))
    settings = prepare.StackSettings(str(source), nan="zero", gaps="report")
    with pytest.raises(FileError, match="the stack of 23 slices takes 118 kB, the disk has 100 kB left"):
        prepare.stack(settings, tmp_path / "e")


def test_mask_keeps_its_provenance(tmp_path):
    path = tmp_path / "volume.npy"
    np.save(path, VOLUME)
    result = run("volume", "mask", path, "--out", tmp_path / "out", "--centre-square", 20, "-p", "0.65um")
    assert result.exit_code == 0, result.output
    image = io.open_volume(tmp_path / "out" / "mask.zarr")
    np.testing.assert_array_equal(image.read(), clahe_otsu(VOLUME, centre_square=20))
    assert image.metadata["provenance"]["kind"] == "pseudo-labels" and image.pixel_size.size == (0.65,) * 3
    assert image.metadata["provenance"]["settings"]["clip_limit"] == 0.01
    record = json.loads((tmp_path / "out" / "mask.json").read_text())
    assert len(record["white_share"]) == 24 and 0 < record["thresholds"][0] < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not ground truth" in page and "turning-volume" in page
    options = ("--no-clahe", "--threshold", 30000, "--classes", 3, "--keep-classes", "1,2", "--region", 0.9)
    assert (
        run("volume", "mask", path, "--out", tmp_path / "b", *options, "--fill", "z,3d", "--no-report").exit_code == 0
    )
    result = run("volume", "mask", path, "--out", tmp_path / "c", "--fill", "w")
    assert result.exit_code == 1 and "`fill` must be one of" in result.output
    physics = ("--no-clahe", "--phase-from", "27.4,0.06,50", "--no-report", "--out", tmp_path / "p")
    result = run("volume", "mask", path, *physics)
    assert result.exit_code == 1 and "needs cubic voxels of known size" in result.output
    result = run("volume", "mask", path, *physics, "-p", "0.65um", "--region", "2,2 2,30 30,2")
    assert result.exit_code == 0, result.output
    note = io.open_volume(tmp_path / "p" / "mask.zarr").metadata["provenance"]["settings"]
    assert note["phase_filter"] == pytest.approx(25.57, rel=1e-3) and len(note["region"]) == 3
    settings = prepare.MaskRun(str(path), MaskSettings(), max_ram="1kB")
    with pytest.raises(UserError, match="max_ram"):
        prepare.mask(settings, tmp_path / "d")


def test_phantom_in_blocks_equals_the_one_in_memory(tmp_path):
    arguments = ("--size", "24x32x40", "--diameter", 10, "--look", "near", "-p", "0.65um", "--max-ram", "300kB")
    result = run("volume", "phantom", "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    wanted = make_phantom(prepare.phantom_settings("near", shape=(24, 32, 40), diameter=10, fraction=0.2))
    for kind in ("zarr", "tif"):
        if kind == "tif":
            assert (
                run("volume", "phantom", "--out", tmp_path / "t", *arguments, "--kind", kind, "--no-report").exit_code
                == 0
            )
        folder = tmp_path / ("out" if kind == "zarr" else "t")
        np.testing.assert_array_equal(io.open_volume(folder / f"volume.{kind}").read(), wanted.volume)
        labels = io.open_volume(folder / f"labels.{kind}")
        np.testing.assert_array_equal(labels.read(), wanted.labels)
        assert labels.dtype == np.uint32
    table = pd.read_csv(tmp_path / "out" / "objects.csv", comment="#")
    assert len(table) == len(wanted.table)


def test_info(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    np.save(tmp_path / "mask.npy", (VOLUME > 30000).astype(np.uint8))
    page = tmp_path / "a.html"
    result = run(
        "volume", "info", tmp_path / "a.npy", "--statistics", "--page", page, "--labels", tmp_path / "mask.npy"
    )
    assert result.exit_code == 0 and "24 × 32 × 40" in result.output and "Otsu threshold" in result.output
    assert "Turn</button>" in page.read_text()
    result = run("volume", "info", slices(tmp_path / "s"))
    assert "Slices:              7 to 30" in result.output and "unknown" in result.output
    np.save(tmp_path / "other.npy", np.zeros((3, 4, 5), np.uint8))
    result = run("volume", "info", tmp_path / "a.npy", "--page", page, "--labels", tmp_path / "other.npy")
    assert result.exit_code == 1 and "need the shape of the volume" in " ".join(result.output.split())


def test_view(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    np.save(tmp_path / "b.npy", (VOLUME > 30000).astype(np.uint8))
    with io.create_volume(tmp_path / "m.zarr", VOLUME.shape, np.uint8, facts={"map": "foreground"}) as out:
        out[...] = VOLUME // 256
    results = ("--result", f"truth={tmp_path / 'b.npy'}", "--result", f"map={tmp_path / 'm.zarr'}")
    options = ("--truth", "truth", "--slices", "3,20", "--out", tmp_path / "f.png")
    result = run("volume", "view", tmp_path / "a.npy", *results, *options, "-p", "1um")
    assert result.exit_code == 0, result.output
    picture = io.open_image(tmp_path / "f.png").read()
    assert ((picture == (235, 70, 60)).all(axis=2) | (picture == (70, 140, 255)).all(axis=2)).any()
    result = run("volume", "view", tmp_path / "a.npy", *results, "--truth", "other", "--out", tmp_path / "f.png")
    assert result.exit_code == 1 and "`truth` must be one of" in result.output
