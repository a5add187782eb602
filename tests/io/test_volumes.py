"""Volumes: every storage gives the same voxels; sizes, slice numbers and bad input."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Picture

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.image import PixelSize
from keras_microseg.io import volume_writer

VOLUME = np.random.default_rng(0).integers(0, 60000, (5, 6, 7)).astype(np.uint16)
BOX = (slice(1, 4), slice(2, 6), slice(0, 3))
DATA = Path(os.environ.get("MICROSEG_DATA", Path(__file__).parents[2] / "../shared/data")) / "xct_volumes"


def write_slices(folder, volume=VOLUME, numbers=None, suffix=".tif", name="scan_90deg_{}"):
    folder.mkdir(exist_ok=True)
    for number, plane in zip(numbers or range(8, 8 + len(volume)), volume, strict=True):
        path = folder / (name.format(number) + suffix)
        if suffix == ".tif":
            tifffile.imwrite(path, plane)
        else:
            Picture.fromarray(plane).save(path)
    return folder


def store(tmp_path, kind):
    """VOLUME in one kind of storage."""
    path = tmp_path / f"v{kind}"
    if kind == "folder":
        return write_slices(path)
    if kind == "png folder":
        return write_slices(path, suffix=".png")
    if kind == ".tif":
        tifffile.imwrite(path, VOLUME, photometric="minisblack")
    elif kind == "big.tif":
        tifffile.imwrite(path, VOLUME, bigtiff=True, compression="zlib", tile=(16, 16), photometric="minisblack")
    elif kind == ".ome.tif":
        tifffile.imwrite(path, VOLUME, photometric="minisblack", metadata={"axes": "ZYX"})
    elif kind == "exchange.h5":
        with h5py.File(path, "w") as file:
            file["exchange/data"] = VOLUME
            file["exchange/data_white"] = VOLUME[:2]
    elif kind == "nexus.nxs":
        with h5py.File(path, "w") as file:
            file.attrs["default"] = "entry1"
            entry = file.create_group("entry1")
            entry.attrs["default"] = "tomo"
            group = entry.create_group("tomo")
            group.attrs.update(signal="values", axes=["depth", "y", "x"])
            group["values"], group["error"] = VOLUME, VOLUME * 0
            for axis, count, step in (("depth", 5, 2.0), ("y", 6, 0.5), ("x", 7, 0.5)):
                group[axis] = np.arange(count) * step
                group[axis].attrs["units"] = "um"
    elif kind == ".zarr":
        zarr.save_array(path, VOLUME)
    elif kind == ".npy":
        np.save(path, VOLUME)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(VOLUME))
    elif kind == ".raw":
        VOLUME.astype(">u2").tofile(path)
        note = {"shape": [5, 6, 7], "dtype": "uint16", "byte_order": "big", "voxel_size": [2, 0.5, 0.5], "unit": "um"}
        Path(f"{path}.json").write_text(json.dumps(note))
    elif kind == ".mhd":
        path.write_text("NDims = 3\nDimSize = 7 6 5\nElementType = MET_USHORT\nElementSpacing = 5e-4 5e-4 2e-3\n"
                        "ElementDataFile = voxels.raw\n")  # fmt: skip
        VOLUME.tofile(tmp_path / "voxels.raw")
    elif kind == ".nhdr":
        path.write_text(
            "NRRD0004\ntype: ushort\ndimension: 3\nsizes: 7 6 5\nspacings: .5 .5 2\n"
            'space units: "um" "um" "um"\nencoding: raw\nendian: little\ndata file: voxels.raw\n'
        )
        VOLUME.tofile(tmp_path / "voxels.raw")
    elif kind == "_7x6x5_uint16.raw":
        VOLUME.tofile(path)
    elif kind == "tif.zip":
        tifffile.imwrite(tmp_path / "v.tif", VOLUME, photometric="minisblack")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "v.tif", "deep/v.tif")
            archive.writestr("README.txt", "words")
    elif kind == "slices.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in write_slices(tmp_path / "s").iterdir():
                archive.write(file, file.name)
    return path


KINDS = (
    "folder", "png folder", ".tif", "big.tif", ".ome.tif", "exchange.h5", "nexus.nxs", ".zarr", ".npy", "fortran.npy",
    ".raw", ".mhd", ".nhdr", "_7x6x5_uint16.raw", "tif.zip", "slices.zip",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_gives_the_same_voxels(tmp_path, kind):
    image = io.open_volume(store(tmp_path, kind))
    assert image.axes == "ZYX" and image.shape == VOLUME.shape and image.dtype == np.uint16
    np.testing.assert_array_equal(image.read(), VOLUME)
    np.testing.assert_array_equal(image.read(BOX), VOLUME[BOX])
    if "zip" not in kind:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).read(BOX), VOLUME[BOX])
    if kind in ("nexus.nxs", ".raw", ".mhd", ".nhdr"):
        assert np.allclose(image.pixel_size.to("um").size, (2, 0.5, 0.5))
    else:
        assert image.pixel_size is None


def test_voxel_size_of_the_user_wins(tmp_path):
    image = io.open_volume(store(tmp_path, ".raw"), voxel_size="3 x 1 x 1 um")
    assert image.pixel_size.size == (3, 1, 1) and image.pixel_size.source == "user"
    assert io.open_volume(store(tmp_path, ".tif"), voxel_size="0.65um").pixel_size.size == (0.65,) * 3


def test_slices_keep_their_numbers_in_natural_order(tmp_path):
    image = io.open_volume(write_slices(tmp_path / "s"))  # 8, 9, 10, 11, 12: lexicographic order would begin with 10
    assert io.slice_numbers(image).tolist() == [8, 9, 10, 11, 12]
    part = image.crop((slice(2, 4), slice(None), slice(None)))
    assert io.slice_numbers(part).tolist() == [10, 11]
    np.testing.assert_array_equal(part.read(), VOLUME[2:4])
    stack = io.open_volume(store(tmp_path, ".npy"))
    assert io.slice_numbers(stack.crop((slice(3, 5), slice(None), slice(None)))).tolist() == [3, 4]


def test_gaps_in_the_numbering(tmp_path):
    folder = write_slices(tmp_path / "s", numbers=[1, 2, 5, 6, 9])
    with pytest.raises(FileError, match=r"slice numbers are missing: 3-4, 7-8 \(found 1 to 9\)"):
        io.open_volume(folder)
    image = io.open_volume(folder, gaps="report")
    assert "3-4, 7-8" in image.metadata["warnings"][0] and io.slice_numbers(image).tolist() == [1, 2, 5, 6, 9]
    every_second = io.open_volume(write_slices(tmp_path / "t", numbers=[0, 2, 4, 6, 8]))
    assert "steps of 2" in every_second.metadata["warnings"][0]


def test_slices_of_another_size_type_or_kind(tmp_path):
    folder = write_slices(tmp_path / "s")
    tifffile.imwrite(folder / "scan_90deg_13.tif", np.zeros((6, 8), np.uint16))
    with pytest.raises(FileError, match=r"scan_90deg_13.tif: is 6 x 8 uint16, the slices before it .* 6 x 7 uint16"):
        io.open_volume(folder)
    tifffile.imwrite(folder / "scan_90deg_13.tif", np.zeros((6, 7), np.float32))
    with pytest.raises(FileError, match="6 x 7 float32"):
        io.open_volume(folder)
    assert io.open_volume(folder / "scan_90deg_?.tif").shape == (2, 6, 7)
    Picture.fromarray(np.zeros((6, 7), np.uint8)).save(folder / "preview.png")
    with pytest.raises(FileError, match=r"several kinds \(.png, .tif\)"):
        io.open_volume(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no image in this folder"):
        io.open_volume(tmp_path / "empty")


def test_half_known_voxel_size_is_an_error_where_it_matters(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VOLUME, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "unit": "um"})
    image = io.open_volume(path)
    assert image.pixel_size is None
    with pytest.raises(FileError, match=r'no distance between slices.*"0.5 x 0.5 x 0.5 um" for cubes'):
        io.check_voxel_size(image)
    given = io.open_volume(path, voxel_size="2 x 0.5 x 0.5 um")
    assert io.check_voxel_size(given).size == (2, 0.5, 0.5) and not given.metadata["warnings"]
    assert io.check_voxel_size(io.open_volume(store(tmp_path, ".npy"))) is None


def test_one_slice_is_a_volume_and_colours_are_not(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME[0])
    image = io.open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.read((slice(0, 1), slice(1, 3), slice(0, 7))), VOLUME[:1, 1:3])
    np.save(tmp_path / "thin.npy", VOLUME[:, :, :3])
    assert io.open_volume(tmp_path / "thin.npy").shape == (5, 6, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 6, 7, 3), np.uint8), photometric="rgb")
    with pytest.raises(FileError, match="colours or channels"):
        io.open_volume(tmp_path / "rgb.tif")


def test_values_stored_with_zero_as_white_stay(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="miniswhite")
    image = io.open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.read(), VOLUME)
    assert image.metadata["inverted"].startswith("no")


def test_raw_headers_that_do_not_fit(tmp_path):
    path = store(tmp_path, "_7x6x5_uint16.raw")
    with pytest.raises(FileError, match=r"has 420 bytes; 5 x 6 x 8 voxels of uint16 .* need 480"):
        io.open_volume(path, shape=(5, 6, 8), dtype="uint16")
    path.rename(tmp_path / "plain.raw")
    with pytest.raises(FileError, match="need their shape and type"):
        io.open_volume(tmp_path / "plain.raw")
    (tmp_path / "plain.raw.json").write_text('{"shape": [5, 6]}')
    with pytest.raises(FileError, match="not a usable header"):
        io.open_volume(tmp_path / "plain.raw")


def test_hdf5_without_a_default_asks(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["two"] = VOLUME, VOLUME
    with pytest.raises(FileError, match="several arrays: one, two"):
        io.open_volume(tmp_path / "a.h5")
    assert io.open_volume(tmp_path / "a.h5", dataset="two").shape == (5, 6, 7)


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("name", ["a.zarr", "a.tif", "a.npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_written_volume_reads_back_with_its_size(tmp_path, name, dtype):
    size = PixelSize((2, 0.65, 0.65), "um")
    values = VOLUME.astype(dtype)
    with io.create_volume(tmp_path / name, VOLUME.shape, dtype, chunks=(2, 3, 4), voxel_size=size) as out:
        out[:2] = values[:2]
        out[2:, :3] = values[2:, :3]
        out[2:, 3:] = values[2:, 3:]
        np.testing.assert_array_equal(out[1:3], values[1:3])
        assert not (tmp_path / name).exists()
    image = io.open_volume(tmp_path / name)
    assert image.dtype == dtype and image.axes == "ZYX" and np.allclose(image.pixel_size.size, size.size)
    np.testing.assert_array_equal(image.read(), values)


@pytest.mark.parametrize("name", ["a.zarr", "a.tif", "a.npy"])
def test_interrupted_writing_goes_on(tmp_path, name):
    def begin(key, resume=True):
        return io.create_volume(tmp_path / name, (4, 3, 3), np.uint16, key=key, resume=resume)

    box = (slice(0, 2), slice(0, 3), slice(0, 3))
    with pytest.raises(KeyboardInterrupt), begin({"sigma": 1}) as out:
        out[box] = 7
        out.mark_done(box)
        raise KeyboardInterrupt
    with open(tmp_path / f"{name}.blocks", "a") as file:
        file.write("2:4,0:3")  # a line that a kill cut off
    again = begin({"sigma": 1})
    assert again.is_done(box) and not again.is_done("2:4,0:3") and (again[:2] == 7).all()
    assert not begin({"sigma": 2}).is_done(box)  # other settings begin anew
    with begin({"sigma": 2}) as out:
        assert not out.complete and (out[...] == 0).all()
        out[...] = 3
    assert sorted(p.name for p in tmp_path.iterdir() if ".json" not in p.name) == [name]
    finished = begin({"sigma": 2})
    assert finished.complete and finished.is_done("anything") and (finished[...] == 3).all()
    with pytest.raises(UserError, match="is finished"):
        finished[0] = 1
    assert not begin({"sigma": 2}, resume=False).complete


def test_volume_larger_than_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**8))
    with pytest.raises(FileError, match="takes 2 GB, the disk has 100 MB left"):
        io.create_volume(tmp_path / "a.tif", (1000, 1000, 1000), np.uint16)
    with pytest.raises(UserError, match="written as .zarr, .tif or .npy"):
        io.create_volume(tmp_path / "a.h5", (4, 4, 4), np.uint8)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not DATA.is_dir(), reason="MICROSEG_DATA/xct_volumes is not there")
def test_real_volumes():
    berea = io.open_volume(DATA / "berea/berea.zip")
    assert berea.shape == (400, 400, 400) and round(float((berea.read() == 0).mean()), 5) == 0.19645
    assert io.open_volume(DATA / "grains/grains.npy.zip").shape == (501, 501, 300)
    strut = io.open_volume(DATA / "am_strut_90deg")
    assert strut.shape == (12, 504, 504) and io.slice_numbers(strut)[[0, -1]].tolist() == [432, 443]
    assert strut.pixel_size.unit == "um" and np.allclose(strut.pixel_size.size, 7.0014, atol=1e-3)
    assert "scanner log" in strut.pixel_size.source
