"""Data bars are found to the row, and nothing else is taken for one."""

import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.image import Image
from keras_microseg.io import find_images, find_info_bar, open_image, read_grey


def picture(height, width, seed=0, level=90, contrast=30.0):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), 6)
    noisy = level + contrast * smooth / smooth.std() + rng.normal(scale=3, size=(height, width))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def with_bar(array, row, background, ink, *, frame=False, last=None, seed=1):
    """Paint a bar with strokes like letters from `row` down to `last`."""
    rng = np.random.default_rng(seed)
    array = array.copy()
    last = array.shape[0] if last is None else last
    bar = np.full((last - row, array.shape[1]), background, np.uint8)
    height = len(bar)
    text = slice(height // 4, 3 * height // 4)
    for x in range(10, array.shape[1] - 40, 9):
        if rng.random() < 0.7:
            bar[text, x : x + 2] = ink
            bar[height // 2, x : x + 6] = ink
    if frame:
        bar[:2] = ink
    array[row:last] = bar
    return array


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("background", "ink", "frame"),
    [(0, 255, False), (0, 243, True), (255, 0, False), (255, 0, True), (128, 255, False)],
)  # fmt: skip
def test_bars_of_all_colours(seed, background, ink, frame):
    array = picture(480, 640, seed, level=[90, 160, 30][seed])
    assert find_info_bar(Image(array, "YX")) is None
    assert find_info_bar(Image(with_bar(array, 441, background, ink, frame=frame), "YX")) == 441


@pytest.mark.parametrize("scale", [1, 257, 1 / 255])
def test_bars_of_all_depths(scale):
    array = with_bar(picture(480, 640), 430, 0, 255).astype(float) * scale
    array = array.astype(np.float32 if scale < 1 else np.uint16)
    assert find_info_bar(Image(array, "YX")) == 430
    assert find_info_bar(Image(np.stack([array] * 3, -1), "YXC", metadata={"alpha": False})) == 430


def test_bar_with_picture_below_and_beside():
    array = picture(480, 640, level=60)
    barred = with_bar(array, 430, 0, 255, last=478)
    barred[:, -2:] = array[:, -2:]
    assert find_info_bar(Image(barred, "YX")) == 430


def test_bar_with_a_logo_in_a_box():
    for background, ink in ((255, 0), (0, 255)):
        barred = with_bar(picture(480, 640), 436, background, ink)
        barred[438:478, 460:630] = ink  # a quarter of the width
        assert find_info_bar(Image(barred, "YX")) == 436


def test_bar_of_a_jpeg(tmp_path):
    from PIL import Image as Picture

    for background, ink in ((0, 255), (255, 0)):
        Picture.fromarray(with_bar(picture(480, 640), 440, background, ink)).save(tmp_path / "a.jpg", quality=75)
        assert abs(find_info_bar(open_image(tmp_path / "a.jpg")) - 440) <= 2


def test_no_bar():
    flat = np.zeros((300, 300), np.uint8)
    discs = np.where(np.hypot(*np.mgrid[-150:150, -150:150]) % 60 < 25, 200, 0).astype(np.uint8)
    margin = picture(300, 300)
    margin[260:] = 255
    scale_bar = picture(300, 400)
    scale_bar[270:280, 280:380] = 255
    for array in (flat, flat + 255, discs, margin, scale_bar, picture(63, 300), np.full((300, 300), np.nan, "f4")):
        for turned in (array, array.T, array[::-1]):
            assert find_info_bar(Image(np.ascontiguousarray(turned), "YX")) is None
    assert find_info_bar(Image(np.zeros((3, 100, 100)), "ZYX")) is None


def test_stated_scan_height_wins_and_follows_a_crop():
    array = picture(480, 640)
    image = Image(array, "YX", metadata={"scan_height": 442})
    assert find_info_bar(image) == 442
    assert find_info_bar(image.crop((slice(100, 480), slice(None)))) == 342
    assert find_info_bar(image.crop((slice(0, 400), slice(None)))) is None


def test_bam_images_end_at_row_712(real_data):
    """Rows 704 to 711 hold picture in all 46 images; the black bar begins at row 712."""
    folder = real_data / "bam_tio2"
    paths = find_images([folder / "sem", folder / "tsem"])
    assert len(paths) == 46
    for path in paths:
        image = open_image(path)
        assert find_info_bar(image) == 712, path.name
        assert find_info_bar(image.crop((slice(0, 712), slice(None)))) is None, path.name


def test_mixed_images(real_data):
    """Looked at by eye: of the journal figures two have a bar, one white (ZEISS) and one black (SU8010)."""
    known = {"37ce835fb2": 465, "ea71fe4650": 481}
    for path in find_images(real_data / "emps" / "images"):
        found, expected = find_info_bar(open_image(path)), known.get(path.stem)
        assert (found is None) == (expected is None), path.name
        assert expected is None or abs(found - expected) <= 2
    folders = ["ampis_powder/images", "nasa_superalloy/train", "nasa_ebc/train", "nasa_meltpool/train"]
    for path in find_images([real_data / folder for folder in folders]):
        assert find_info_bar(open_image(path)) is None, path.name


def test_turned_real_images_have_no_bar(real_data):
    for path in find_images(real_data / "emps" / "images")[::3]:
        grey = read_grey(open_image(path))
        for turns in (1, 2, 3):
            assert find_info_bar(Image(np.ascontiguousarray(np.rot90(grey, turns)), "YX")) is None, path.name
