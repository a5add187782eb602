"""Labels and masks in, labels out, with pixel size and origin."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import PixelSize
from keras_microseg.io import find_images, read_labels, write_image, write_labels

LABELS = np.array([[0, 1, 1, 0, 7], [0, 1, 0, 0, 7], [3, 0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "u4"])
@pytest.mark.parametrize("top", [7, 70_000])
def test_round_trip(tmp_path, dtype, top):
    if top > np.iinfo(dtype).max:
        return
    labels = LABELS.copy()
    labels[labels == 7] = top
    size = PixelSize((2, 3), "nm", "ZEISS tag 34118, ap_image_pixel_size")
    write_labels(tmp_path / "a.tif", labels.astype(dtype), pixel_size=size, origin=(5, 9))
    image = read_labels(tmp_path / "a.tif")
    assert image.axes == "YX" and image.dtype == np.int32 and image.origin == (5, 9)
    np.testing.assert_array_equal(image.data, labels)
    assert image.pixel_size.size == pytest.approx(size.size) and image.pixel_size.source == size.source
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_imagej and tif.imagej_metadata["unit"] == "nm"
        assert tif.pages[0].dtype == (np.uint16 if top < 2**16 else np.int32)


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(0, 99_999)))
def test_any_labels_come_back(tmp_path_factory, labels):
    path = tmp_path_factory.getbasetemp() / "any.tif"
    write_labels(path, labels)
    image = read_labels(path)
    expected = labels[0] if len(labels) == 1 and labels.ndim == 3 else labels  # a single slice is an image
    np.testing.assert_array_equal(image.data, expected)
    assert image.axes == "ZYX"[-expected.ndim :] and image.pixel_size is None


def test_facts_of_the_origin(tmp_path):
    write_labels(tmp_path / "a.tif", LABELS, origin={"method": "classical", "first_pixel": [0, 4], "µ": 1})
    image = read_labels(tmp_path / "a.tif")
    assert image.metadata["origin"] == {"method": "classical", "µ": 1} and image.origin == (0, 4)
    write_labels(tmp_path / "a.tif", LABELS > 0, origin="by hand")
    image = read_labels(tmp_path / "a.tif")
    assert image.metadata["origin"] == "by hand"
    np.testing.assert_array_equal(image.data, LABELS > 0)  # written as labels, so not split


@pytest.mark.parametrize("values", [(0, 255, "u1"), (0, 1, "u1"), (0, 1, "?"), (0, 65535, "u2"), (0, 1, "f4")])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy"])
def test_masks_are_numbered_4_connected(tmp_path, values, suffix):
    low, high, dtype = values
    if suffix == ".png" and dtype == "f4":
        return
    mask = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0], [0] * 6])
    write_image(tmp_path / f"a{suffix}", np.where(mask, high, low).astype(dtype), axes="YX")
    expected = [[1, 1, 0, 0, 0, 0], [0, 0, 2, 0, 3, 3], [0, 0, 2, 0, 3, 3], [0, 0, 0, 0, 0, 0], [0] * 6]
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}").data, expected)


def test_labels_with_gaps_keep_their_numbers(tmp_path):
    write_image(tmp_path / "a.png", LABELS.astype(np.uint16))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").data, LABELS)
    write_image(tmp_path / "z.png", LABELS.astype(np.uint16) * 0)
    assert read_labels(tmp_path / "z.png").data.max() == 0


def test_palette_indices_are_labels(tmp_path):
    from PIL import Image as Picture

    picture = Picture.fromarray(LABELS.astype(np.uint8), "P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").data, LABELS)


def test_grey_mask_saved_as_rgb_and_jpeg(tmp_path):
    from PIL import Image as Picture

    mask = np.zeros((60, 60), np.uint8)
    mask[10:20, 10:20] = mask[30:50, 30:50] = 255
    write_image(tmp_path / "a.png", np.stack([mask] * 3, -1))
    Picture.fromarray(mask).save(tmp_path / "a.jpg", quality=60)
    for name in ("a.png", "a.jpg"):
        assert read_labels(tmp_path / name).data.max() == 2


def test_what_is_not_labels(tmp_path):
    def refused(array, words):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(FileError, match=words):
            read_labels(tmp_path / "a.npy")

    refused(np.full((5, 5), 0.5), "fractions or NaN")
    refused(np.full((5, 5), np.nan), "fractions or NaN")
    refused(np.full((5, 5), -1), "outside")
    refused(np.full((5, 5), 2**40), "outside")
    write_image(tmp_path / "c.png", np.random.default_rng(0).integers(0, 255, (10, 10, 3), np.uint8))
    with pytest.raises(FileError, match="colour image"):
        read_labels(tmp_path / "c.png")
    for bad in (np.zeros((2, 2)), np.zeros(3, int), np.full((2, 2), -1), np.zeros((0, 2), int)):
        with pytest.raises(UserError, match="labels"):
            write_labels(tmp_path / "d.tif", bad)
    with pytest.raises(UserError, match=r"\.tif"):
        write_labels(tmp_path / "d.png", LABELS)
    with pytest.raises(UserError, match="origin"):
        write_labels(tmp_path / "d.tif", LABELS, origin=(1, 2, 3))
    assert not (tmp_path / "d.tif").exists()


def test_emps_maps(real_data):
    image = read_labels(real_data / "emps" / "segmaps" / "37ce835fb2.png")
    assert image.shape == (512, 916) and len(np.unique(image.data)) == 67


def test_bam_masks_hold_the_counted_particles(real_data):
    """The data sheet counts 2211 particles above row 704 in the 16 masks."""
    total = 0
    for path in find_images(real_data / "bam_tio2" / "masks_manual"):
        total += len(np.unique(read_labels(path).data[:704])) - 1
    assert total == 2211
