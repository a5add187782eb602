"""Every format in, unchanged pixels and right axes out; every bad file gives a clear message."""

import pickle

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import PixelSize
from keras_microseg.io import open_image, read_grey, sources, write_image


def pixels(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) > 0.5
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)


def same(image, expected, axes):
    assert image.axes == axes
    assert image.shape == expected.shape
    got = image.read()
    assert got.dtype == expected.dtype.newbyteorder("=") == image.dtype
    np.testing.assert_array_equal(got, expected)
    height, width = image.spatial_shape[-2:]
    window = (slice(None),) * (len(image.spatial_axes) - 2) + (slice(height // 3, height - 1), slice(2, width // 2))
    if height > 4 and width > 8:
        whole = iter(window)
        index = tuple(next(whole) if letter in "ZYX" else slice(None) for letter in axes)
        np.testing.assert_array_equal(image.read(window), expected[index])


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", ">u2", ">f4", "?"])
def test_tiff_keeps_every_type(tmp_path, dtype):
    array = pixels((41, 60), dtype)
    byteorder = ">" if dtype.startswith(">") else "<"
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=byteorder, photometric="minisblack")
    same(open_image(tmp_path / "a.tif"), array.astype(array.dtype.newbyteorder("=")), "YX")


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (32, 16)},
        {"tile": (32, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"rowsperstrip": 7},
        {"compression": "packbits", "rowsperstrip": 5},
        {"compression": "zstd"},
        {"bigtiff": True, "compression": "deflate", "tile": (16, 16)},
        {"bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 3), (3, 70, 90)], ids=str)
def test_tiff_layouts(tmp_path, options, shape):
    array = pixels(shape, "u2")
    if shape[0] == 3:
        options = {**options, "photometric": "rgb", "planarconfig": "separate"}
    else:
        options = {**options, "photometric": "rgb" if shape[-1] == 3 else "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image = open_image(tmp_path / "a.tif")
    same(image, np.moveaxis(array, 0, -1) if shape[0] == 3 else array, "YX" if len(shape) == 2 else "YXC")
    assert pickle.loads(pickle.dumps(image)).read().shape == image.shape


@given(
    block=st.tuples(st.integers(0, 69), st.integers(0, 69), st.integers(0, 89), st.integers(0, 89)),
    tile=st.sampled_from([(16, 16), (32, 64)]),
)
def test_any_window_of_tiles_equals_the_array(tmp_path_factory, block, tile):
    path = tmp_path_factory.getbasetemp() / f"tiles_{tile[0]}.tif"
    array = pixels((70, 90), "u2")
    if not path.exists():
        tifffile.imwrite(path, array, tile=tile, compression="zlib")
    top, bottom, left, right = min(block[:2]), max(block[:2]) + 1, min(block[2:]), max(block[2:]) + 1
    image = open_image(path)
    assert isinstance(image.data, sources.TiffSegments)
    np.testing.assert_array_equal(image.data[top:bottom, left:right], array[top:bottom, left:right])


def test_a_window_decodes_only_its_tiles(tmp_path, monkeypatch):
    array = pixels((256, 256), "u2")
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(64, 64), compression="zlib")
    sources.block_memory.clear()
    decoded = []
    decode = sources.TiffSegments._decode
    monkeypatch.setattr(
        sources.TiffSegments, "_decode", lambda self, k, p, i, c: (decoded.append(i), decode(self, k, p, i, c))[1]
    )
    image = open_image(tmp_path / "a.tif")
    assert decoded == []
    image.read((slice(60, 70), slice(130, 140)))
    assert decoded == [2, 6]


def test_memory_of_blocks_is_bounded():
    memory = sources.BlockMemory(1000)
    for number in range(20):
        memory.get(number, lambda: np.zeros(50))
    assert memory._bytes <= 1000
    assert memory.get("big", lambda: np.zeros(500)).nbytes == 4000
    assert list(memory._blocks) == ["big"]


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_stacks(tmp_path, compression):
    array = pixels((4, 20, 30), "u2")
    tifffile.imwrite(tmp_path / "pages.tif", array, metadata=None, compression=compression, photometric="minisblack")
    same(open_image(tmp_path / "pages.tif"), array, "TYX")
    same(open_image(tmp_path / "pages.tif", axes="ZYX"), array, "ZYX")
    tifffile.imwrite(
        tmp_path / "ij.tif", array, imagej=True, resolution=(10, 5),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 0.5},
    )  # fmt: skip
    image = open_image(tmp_path / "ij.tif")
    same(image, array, "ZYX")
    assert image.pixel_size.size == pytest.approx((0.5, 0.2, 0.1)) and image.pixel_size.unit == "um"
    planes = list(image.planes())
    assert [p.metadata["plane"] for p in planes] == [[0], [1], [2], [3]]
    np.testing.assert_array_equal(read_grey(planes[2]), array[2])
    assert planes[2].pixel_size.size == pytest.approx((0.2, 0.1))
    with pytest.raises(UserError, match="stack along Z"):
        read_grey(image)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_channels_go_last(tmp_path, compression):
    array = pixels((2, 3, 20, 30), "u2")
    tifffile.imwrite(
        tmp_path / "a.ome.tif", array, compression=compression, photometric="minisblack",
        metadata={"axes": "ZCYX", "PhysicalSizeX": 12, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.013,
                  "PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 50, "PhysicalSizeZUnit": "nm"},
    )  # fmt: skip
    image = open_image(tmp_path / "a.ome.tif")
    same(image, np.moveaxis(array, 1, -1), "ZYXC")
    assert image.pixel_size.size == pytest.approx((50, 13, 12))
    assert image.pixel_size.source == "OME-XML, PhysicalSizeX"


def test_pyramid_and_series(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels((20, 30), "u1"), metadata=None)
        writer.write(pixels((10, 12), "u2"), metadata=None)
    assert open_image(tmp_path / "a.tif").shape == (20, 30)
    same(open_image(tmp_path / "a.tif", series=1), pixels((10, 12), "u2"), "YX")
    with pytest.raises(UserError, match="series"):
        open_image(tmp_path / "a.tif", series=2)


def test_white_is_zero_and_bilevel(tmp_path):
    array = pixels((20, 30), "u2")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    image = open_image(tmp_path / "a.tif")
    same(image, ~array, "YX")
    assert "0 as white" in image.metadata["inverted"]
    assert read_grey(open_image_of(tmp_path, pixels((20, 30), "?"))).dtype == np.uint8


def open_image_of(tmp_path, array, **options):
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    return open_image(tmp_path / "x.tif")


def ramp():
    return np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 3, axis=0)


def test_grey_palette_gives_the_index(tmp_path):
    array = pixels((30, 40), "u1")
    same(open_image_of(tmp_path, array, photometric="palette", colormap=ramp()), array, "YX")


def test_coloured_entries_that_do_not_occur_do_not_matter(tmp_path):
    palette = ramp()
    palette[:, 9] = 65535, 0, 0
    array = pixels((30, 40), "u1")
    array[array == 9] = 8
    same(open_image_of(tmp_path, array, photometric="palette", colormap=palette), array, "YX")


def test_few_coloured_marks_become_their_mean(tmp_path):
    palette = ramp()
    palette[:, 9] = 65535, 65535, 0
    array = np.full((50, 50), 100, np.uint8)
    array[3, :5] = 9
    image = open_image_of(tmp_path, array, photometric="palette", colormap=palette)
    expected = array.copy()
    expected[3, :5] = 170
    same(image, expected, "YX")
    assert "5 marked" in image.metadata["palette"]
    same(open_image(tmp_path / "x.tif", raw_palette=True), array, "YX")


def test_colour_palette_becomes_rgb(tmp_path):
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    array = pixels((30, 40), "u1")
    image = open_image_of(tmp_path, array, photometric="palette", colormap=colours * 257, compression="zlib")
    same(image, colours.T.astype(np.uint8)[array], "YXC")
    np.testing.assert_allclose(read_grey(image), image.read().mean(-1), rtol=1e-6)


def test_other_grey_palette_gives_its_grey_values(tmp_path):
    palette = ramp()[:, ::-1]
    array = pixels((30, 40), "u1")
    same(open_image_of(tmp_path, array, photometric="palette", colormap=palette), 255 - array, "YX")


@pytest.mark.parametrize(
    ("suffix", "mode", "dtype", "axes"),
    [
        (".png", "L", "u1", "YX"), (".png", "I;16", "u2", "YX"), (".png", "RGB", "u1", "YXC"),
        (".png", "RGBA", "u1", "YXC"), (".png", "LA", "u1", "YXC"), (".png", "1", "?", "YX"), (".bmp", "L", "u1", "YX"),
        (".bmp", "RGB", "u1", "YXC"), (".gif", "L", "u1", "YX"),
    ],
)  # fmt: skip
def test_pictures(tmp_path, suffix, mode, dtype, axes):
    from PIL import Image as Picture

    channels = {"RGB": (3,), "RGBA": (4,), "LA": (2,)}.get(mode, ())
    array = pixels((30, 41, *channels), dtype)
    Picture.fromarray(array).save(tmp_path / f"a{suffix}")
    same(open_image(tmp_path / f"a{suffix}"), array, axes)


def test_png_of_16_bit_colour_stays_16_bit(tmp_path):
    array = pixels((30, 41, 3), "u2")
    write_image(tmp_path / "a.png", array)
    same(open_image(tmp_path / "a.png"), array, "YXC")


def test_png_with_colour_palette(tmp_path):
    from PIL import Image as Picture

    array = np.arange(120, dtype=np.uint8).reshape(10, 12) % 4
    picture = Picture.fromarray(array, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture.save(tmp_path / "a.png")
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    same(open_image(tmp_path / "a.png"), colours[array], "YXC")
    same(open_image(tmp_path / "a.png", raw_palette=True), array, "YX")


def test_jpeg_and_animation(tmp_path):
    from PIL import Image as Picture

    smooth = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (60, 1))
    Picture.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, dpi=(300, 300))
    image = open_image(tmp_path / "a.jpg")
    assert image.axes == "YX" and image.pixel_size is None
    assert np.abs(image.read().astype(int) - smooth).max() < 4
    frames = [Picture.fromarray(pixels((10, 12), "u1", seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = open_image(tmp_path / "a.gif")
    assert image.axes == "TYXC" and image.shape == (3, 10, 12, 3)


def test_numpy_files(tmp_path):
    array = pixels((12, 30, 40), "f4")
    np.save(tmp_path / "a.npy", array)
    same(open_image(tmp_path / "a.npy"), array, "ZYX")
    np.save(tmp_path / "f.npy", np.asfortranarray(array[0]))
    same(open_image(tmp_path / "f.npy"), array[0], "YX")
    np.save(tmp_path / "o.npy", np.array([[{}]]))
    with pytest.raises(FileError, match="Python objects"):
        open_image(tmp_path / "o.npy")
    np.save(tmp_path / "c.npy", array[0].astype(complex))
    with pytest.raises(FileError, match="complex128"):
        open_image(tmp_path / "c.npy")
    np.save(tmp_path / "d1.npy", array[0, 0])
    with pytest.raises(FileError, match="1 axes"):
        open_image(tmp_path / "d1.npy")


def test_hdf5(tmp_path):
    import h5py

    array = pixels((12, 30, 40), "u2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("scan/volume", data=array, chunks=(4, 16, 16), compression="gzip")
        made.attrs["element_size_um"] = [0.3, 0.1, 0.1]
    image = open_image(tmp_path / "a.h5")
    same(image, array, "ZYX")
    assert image.pixel_size.size == pytest.approx((0.3, 0.1, 0.1))
    sources.release(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["other"] = array[0]
    with pytest.raises(FileError, match=r"scan/volume.*dataset="):
        open_image(tmp_path / "a.h5")
    same(open_image(tmp_path / "a.h5", dataset="other"), array[0], "YX")
    with pytest.raises(FileError, match="no dataset 'third'"):
        open_image(tmp_path / "a.h5", dataset="third")


def test_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = pixels((2, 5, 30, 40), "u2")
    made = zarr.create_array(str(tmp_path / "a.zarr"), shape=array[0].shape, chunks=(2, 16, 16), dtype="u2")
    made[...] = array[0]
    same(open_image(tmp_path / "a.zarr"), array[0], "ZYX")
    group = zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    made = group.create_array("0", shape=array.shape, chunks=(1, 2, 16, 16), dtype="u2")
    made[...] = array
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": name, "type": "space", "unit": "nanometer"} for name in ("z", "y", "x")
    ]
    scale = [{"type": "scale", "scale": [1, 9, 4, 3]}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    ]
    image = open_image(tmp_path / "b.zarr")
    same(image, np.moveaxis(array, 0, -1), "ZYXC")
    assert image.pixel_size == PixelSize((9, 4, 3), "nm", "OME-Zarr, coordinateTransformations")
    assert pickle.loads(pickle.dumps(image)).data[0, 0, 0, 0] == array[0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (1, 300), (300, 1)])
def test_odd_shapes(tmp_path, shape):
    for suffix in (".tif", ".png", ".npy"):
        array = pixels(shape, "u1")
        write_image(tmp_path / f"a{suffix}", array, axes="YX")
        same(open_image(tmp_path / f"a{suffix}"), array, "YX")


def test_nan_is_kept(tmp_path):
    array = np.array([[1, np.nan], [np.inf, -2]], np.float32)
    write_image(tmp_path / "a.tif", array)
    np.testing.assert_array_equal(read_grey(open_image(tmp_path / "a.tif")), array)


def test_the_content_decides_not_the_name(tmp_path):
    write_image(tmp_path / "a.png", pixels((20, 30), "u1"))
    (tmp_path / "a.png").rename(tmp_path / "b.tif")
    image = open_image(tmp_path / "b.tif")
    assert image.metadata["format"] == "PNG"
    same(image, pixels((20, 30), "u1"), "YX")


def test_user_pixel_size_wins_and_contradiction_is_noted(tmp_path):
    write_image(tmp_path / "a.tif", pixels((20, 30), "u1"), pixel_size=PixelSize((2, 2), "nm"))
    assert open_image(tmp_path / "a.tif").pixel_size.to("nm").size == pytest.approx((2, 2))
    image = open_image(tmp_path / "a.tif", pixel_size="3nm")
    assert image.pixel_size == PixelSize((3, 3), "nm", "user")
    assert "disagree: 3 nm (user), used; 2 nm (ImageJ" in image.metadata["warnings"][0]
    assert "warnings" not in open_image(tmp_path / "a.tif", pixel_size="0.002um").metadata


@pytest.mark.parametrize("size", [PixelSize((1.5, 1.25), "nm"), PixelSize((0.2, 0.3), "um"), PixelSize((7, 7), "pm")])
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "f8"])
def test_written_pixel_size_is_read_back(tmp_path, size, dtype):
    write_image(tmp_path / "a.tif", pixels((20, 30), dtype), pixel_size=size)
    image = open_image(tmp_path / "a.tif")
    same(image, pixels((20, 30), dtype), "YX")
    assert image.pixel_size.to(size.unit).size == pytest.approx(size.size, rel=1e-4)


def test_png_carries_the_pixel_size(tmp_path):
    write_image(tmp_path / "a.png", pixels((20, 30), "u2"), pixel_size=PixelSize((20, 25), "nm"))
    assert open_image(tmp_path / "a.png").pixel_size.to("nm").size == pytest.approx((20, 25), rel=1e-4)


def test_volumes_written(tmp_path):
    array = pixels((4, 20, 30), "i4")
    write_image(tmp_path / "a.tif", array, axes="ZYX", pixel_size=PixelSize((3, 2, 1), "um"))
    image = open_image(tmp_path / "a.tif")
    same(image, array, "ZYX")
    assert image.pixel_size.size == pytest.approx((3, 2, 1))
    rgb = pixels((20, 30, 3), "u1")
    write_image(tmp_path / "b.tif", rgb, pixel_size=PixelSize((2, 1), "um"))
    same(open_image(tmp_path / "b.tif"), rgb, "YXC")
    with pytest.raises(UserError, match=r"\.tif, \.png, \.npy"):
        write_image(tmp_path / "b.bmp", rgb)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy", ".h5", ".jpg", ".gif", ".bmp"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.95])
def test_truncated_files(tmp_path, suffix, kept):
    import h5py
    from PIL import Image as Picture

    array, path = pixels((64, 80), "u1"), tmp_path / f"a{suffix}"
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["a"] = array
    elif suffix in (".jpg", ".gif", ".bmp"):
        Picture.fromarray(array).save(path)
    elif suffix == ".tif":
        tifffile.imwrite(path, array, compression="zlib", rowsperstrip=8)
    else:
        write_image(path, array)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(FileError) as error:
        open_image(path).read()
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) > len(str(path)) + 30


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.h5", "a.npy", "a"])
def test_text_with_the_name_of_an_image(tmp_path, name):
    (tmp_path / name).write_text("These are not the pixels you are looking for.\n" * 5)
    with pytest.raises(FileError, match="not an image. It looks like text"):
        open_image(tmp_path / name)


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileError, match=r"no\.tif: does not exist"):
        open_image(tmp_path / "no.tif")
    with pytest.raises(FileError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_give_a_file_error_or_pixels(tmp_path, seed):
    rng = np.random.default_rng(seed)
    suffix = [".tif", ".png"][seed % 2]
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, pixels((40, 50), "u2"), compression="zlib", rowsperstrip=8)
    else:
        write_image(path, pixels((40, 50), "u2"))
    data = bytearray(path.read_bytes())
    for place in rng.integers(4, 300, 6):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    try:
        assert open_image(path).read((slice(0, 5), slice(0, 5))).ndim >= 2
    except FileError as error:
        assert str(error).startswith(str(path))


def test_what_tifffile_complains_of_is_kept_with_the_image(real_data, caplog, capfd):
    """These files state the shape (512, 512, 3) for pages of 4 samples; the page is right."""
    image = open_image(real_data / "nasa_superalloy" / "val_annot" / "spot1_0d_0_mask.tif")
    assert image.shape == (512, 512, 4) and image.read().shape == (512, 512, 4)
    assert capfd.readouterr().err == ""


def test_an_open_file_is_let_go_before_it_is_replaced(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((40, 50), "u2"), compression="zlib")
    image = open_image(path)
    image.read()
    write_image(path, pixels((40, 50), "u2", seed=5))
    np.testing.assert_array_equal(open_image(path).read(), pixels((40, 50), "u2", seed=5))


def test_threads_share_blocks_not_handles(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    array = pixels((200, 220), "u2")
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16), compression="zlib")
    image = open_image(tmp_path / "a.tif")
    sources.block_memory.clear()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda y: image.read((slice(y, y + 10), slice(None))), range(0, 200, 10)))
    np.testing.assert_array_equal(np.concatenate(parts), array)


def test_the_fourth_channel_is_alpha_only_where_it_is(tmp_path):
    array = pixels((4, 20, 30), "u2")
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata={"axes": "CYX"}, photometric="minisblack")
    np.testing.assert_allclose(read_grey(open_image(tmp_path / "a.ome.tif")), array.mean(0), rtol=1e-6)
    rgba = pixels((20, 30, 4), "u1")
    for extra in ("unassalpha", "unspecified"):
        tifffile.imwrite(tmp_path / "b.tif", rgba, photometric="rgb", extrasamples=[extra])
        np.testing.assert_allclose(read_grey(open_image(tmp_path / "b.tif")), rgba[..., :3].mean(-1), rtol=1e-6)
    write_image(tmp_path / "c.png", rgba)
    np.testing.assert_allclose(read_grey(open_image(tmp_path / "c.png")), rgba[..., :3].mean(-1), rtol=1e-6)
    np.save(tmp_path / "d.npy", rgba[..., :3])
    assert read_grey(open_image(tmp_path / "d.npy"), (slice(3, 9), slice(1, 3))).shape == (6, 2)


def test_tiff_with_a_tifffile_that_tells_no_axes_of_length_one(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 17, 21), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TZYX"})
    tifffile.imwrite(tmp_path / "b.tif", pixels[0, 0], compression="zlib")
    for name in ("get_shape", "get_axes"):
        monkeypatch.delattr(tifffile.TiffPageSeries, name, raising=False)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.tif").data).squeeze(), pixels[0])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "b.tif").data), pixels[0, 0])
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:150])
    with pytest.raises(FileError):
        open_image(tmp_path / "b.tif")
