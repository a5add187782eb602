"""`PixelSize`, `Image` and lazy arrays."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.image import (
    BufferedPlanes,
    Image,
    LazyArray,
    LazyView,
    PixelSize,
    buffer_planes,
    normalize_unit,
    split_index,
)


@pytest.mark.parametrize(
    ("text", "size", "unit"),
    [
        ("1.2nm", (1.2, 1.2), "nm"), ("1.2 x 1.3 um", (1.2, 1.3), "um"), ("2e-3,3e-3 µm", (0.002, 0.003), "um"),
        (" 5 Å ", (5, 5), "angstrom"), ("0.5 micron", (0.5, 0.5), "um"),
    ],
)  # fmt: skip
def test_parse(text, size, unit):
    assert PixelSize.parse(text) == PixelSize(size, unit, "user")


@pytest.mark.parametrize("text", ["", "nm", "1.2", "1 2 nm", "1 x 2 x 3nm", "-1nm", "0nm", "1e999nm", "1 px", "1..2nm"])
def test_parse_refuses(text):
    with pytest.raises(UserError):
        PixelSize.parse(text)


def test_numbers_need_a_unit():
    assert PixelSize.parse((1, 2), unit="nm").size == (1, 2)
    assert PixelSize.parse(3, ndim=3, unit="um").size == (3, 3, 3)
    with pytest.raises(UserError, match="needs a unit"):
        PixelSize.parse(3)


@given(st.floats(1e-6, 1e6), st.sampled_from(["pm", "angstrom", "nm", "um", "mm", "cm", "m", "inch"]))
def test_units_there_and_back(value, unit):
    size = PixelSize((value, 2 * value), "nm")
    assert size.to(unit).to("nm").size == pytest.approx(size.size)
    assert size.to(unit).mean == pytest.approx(size.to(unit).size[0] * 2**0.5)


def test_pixel_size_facts():
    assert str(PixelSize((7.344, 7.344), "nm")) == "7.344 nm"
    assert str(PixelSize((1, 2), "µm")) == "1 x 2 um"
    assert PixelSize((2, 4), "nm").scaled(2).size == (1, 2)
    assert PixelSize((1, 1.0005), "nm").is_square and not PixelSize((1, 1.01), "nm").is_square
    with pytest.raises(UserError, match="furlong"):
        normalize_unit("furlong")


class Counted(LazyArray):
    def __init__(self, array):
        self.array, self.shape, self.dtype, self.blocks = array, array.shape, array.dtype, []

    def read_block(self, block):
        self.blocks.append(block)
        return self.array[block]


entries = st.one_of(st.integers(-5, 4), st.slices(5))


@given(st.lists(entries, max_size=3), st.booleans(), st.integers(0, 3))
def test_split_index_equals_numpy(index, has_dots, place):
    array = np.arange(125).reshape(5, 5, 5)
    index = tuple(index[:place]) + (...,) * has_dots + tuple(index[place:])
    np.testing.assert_array_equal(Counted(array)[index], array[index])


def test_lazy_array():
    lazy = Counted(np.arange(24).reshape(2, 3, 4))
    assert (lazy.ndim, lazy.size, len(lazy), lazy.nbytes) == (3, 24, 2, 24 * lazy.dtype.itemsize)
    np.testing.assert_array_equal(np.asarray(lazy), lazy.array)
    assert lazy[1, 2, 3] == 23 and lazy.blocks[-1] == (slice(1, 2), slice(2, 3), slice(3, 4))
    for bad in ((0, 0, 0, 0), (..., ...), 2, None, [0, 1], True):
        with pytest.raises(IndexError):
            lazy[bad]
    assert split_index(slice(9, 9), (3,)) == ((slice(0, 0),), (slice(0, 0, 1),))


def test_views_of_views():
    array = np.arange(100).reshape(10, 10)
    view = LazyView(LazyView(Counted(array), (slice(2, 9), slice(1, 8))), (slice(1, 4), slice(2, None)))
    np.testing.assert_array_equal(view[...], array[3:6, 3:8])
    np.testing.assert_array_equal(view[::-1, 1], array[5:2:-1, 4])


def test_image_axes():
    with pytest.raises(UserError, match="every axis"):
        Image(np.zeros((2, 2)), "YXC")
    with pytest.raises(UserError, match="axes"):
        Image(np.zeros((2, 2)), "YQ")
    image = Image(np.zeros((4, 5, 6, 3)), "ZYXC", path="a/b\\c.tif")
    assert (image.spatial_axes, image.spatial_shape, image.name) == ("ZYX", (4, 5, 6), "c.tif")
    assert image.origin == (0, 0, 0) and image.read((slice(1), slice(2), slice(3))).shape == (1, 2, 3, 3)
    assert image.with_data(np.zeros((4, 5, 6)), "ZYX").path == image.path


def test_crop_remembers_where_it_began():
    array = np.arange(300).reshape(10, 10, 3)
    image = Image(Counted(array), "YXC", PixelSize((2, 2), "nm"))
    crop = image.crop((slice(2, 9), slice(-4, None))).crop((slice(1, None), slice(0, 2)))
    assert crop.origin == (3, 6) and crop.shape == (6, 2, 3) and crop.pixel_size == image.pixel_size
    assert image.data.blocks == []
    np.testing.assert_array_equal(crop.read(), array[3:9, 6:8])
    for window in ((slice(0, 2),), (slice(0, 8, 2), slice(None)), (slice(5, 5), slice(None))):
        with pytest.raises(UserError, match="window"):
            image.crop(window)


def test_planes():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    planes = list(Image(array, "TZYX", PixelSize((9, 2, 1), "nm")).planes())
    assert len(planes) == 6 and planes[4].metadata["plane"] == [1, 1] and planes[4].pixel_size.size == (2, 1)
    np.testing.assert_array_equal(planes[4].read(), array[1, 1])
    single = Image(array[0, 0], "YX")
    assert list(single.planes()) == [single]


def test_io_loads_neither_keras_nor_heavy_readers():
    heavy = "{'keras','tensorflow','torch','jax','zarr','h5py','PIL','imagecodecs','pandas','scipy','tifffile'}"
    code = f"import keras_microseg.io, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class CountingChunks(LazyArray):
    """Counts how many planes were unpacked, as a store of thick chunks does."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.dtype, self.chunks, self.unpacked = array, array.shape, array.dtype, chunks, 0

    def read_block(self, block):
        depth = self.chunks[0]
        first, stop = block[0].start // depth, -(-block[0].stop // depth)
        self.unpacked += (stop - first) * depth
        return self.array[block]


def test_planes_of_thick_chunks_are_unpacked_once():
    array = np.arange(20 * 3 * 4).reshape(20, 3, 4)
    source = CountingChunks(array, (8, 3, 4))
    planes = buffer_planes(source)
    for z in range(20):
        np.testing.assert_array_equal(planes[z], array[z])
        np.testing.assert_array_equal(planes[z : z + 2, 1:, ::2], array[z : z + 2, 1:, ::2])
    assert source.unpacked == 24
    assert buffer_planes(array) is array and buffer_planes(planes) is planes
    assert planes[5:5].shape == (0, 3, 4)
    small = BufferedPlanes(CountingChunks(array, (8, 3, 4)), max_bytes=5 * array[0].nbytes)
    assert small.depth == 4 and np.array_equal(small[...], array)
