import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from keras_microseg.checks import UserError
from keras_microseg.image import METRES, PixelSize
from keras_microseg.report import overlays


def squares() -> np.ndarray:
    labels = np.zeros((40, 60), np.int32)
    labels[5:15, 5:15] = 1
    labels[5:15, 15:25] = 2  # touches 1
    labels[25:35, 40:60] = 7  # at the edge; labels have gaps
    return labels


def test_outline_lies_on_the_rim_of_every_particle():
    layer = overlays.outline_layer(squares(), width=1)
    line = layer[..., 3] == 255
    rim = np.zeros((40, 60), bool)
    for y0, y1, x0, x1 in ((5, 15, 5, 15), (5, 15, 15, 25)):
        rim[y0:y1, x0:x1] = True
        rim[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = False
    rim[25:35, 40:60] = True
    rim[26:34, 41:60] = False  # no line along the image edge
    np.testing.assert_array_equal(line, rim)
    assert not line[squares() == 0].any()


def test_touching_particles_differ_in_colour():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permutation(np.arange(1, 401)).reshape(20, 20), np.ones((6, 6), np.int32)).astype(np.int32)
    colors = overlays.particle_colors(labels)
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        differ = first != second
        assert (colors[first[differ]] != colors[second[differ]]).all()


@given(width=st.integers(50, 30_000), size=st.floats(1e-3, 1e5), unit=st.sampled_from(["nm", "um", "mm", "angstrom"]))
def test_scale_bar_is_round_true_and_fits(width, size, unit):
    bar = overlays.choose_scale_bar(width, PixelSize((size, size), unit))
    number, text = bar.text.split(" ")
    metres = float(number) * METRES[text.replace("\u00b5", "u")]
    assert float(number) in {1, 2, 5, 10, 20, 50, 100, 200, 500} or text in ("m", "pm")
    assert bar.pixels * size * METRES[unit] == pytest.approx(metres, rel=1e-6)
    assert 0.08 * width < bar.pixels <= 0.2201 * width


def test_scale_bar_without_pixel_size_is_in_px():
    assert overlays.choose_scale_bar(1000, None) == overlays.ScaleBar(200.0, "200 px")


def test_drawn_bar_has_the_stated_length():
    size = PixelSize((3.0, 2.0), "nm")  # y, x: the bar lies along x
    bar = overlays.choose_scale_bar(1000, size)
    assert bar.text == "200 nm" or bar.text == "500 nm"
    picture = overlays.draw_scale_bar(np.full((700, 1000, 3), 90, np.uint8), size)
    rows = [(row == 255).all(axis=1).sum() for row in picture]
    assert max(rows) == round(bar.pixels)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_overlay_keeps_shape_and_is_legible_on_any_ground(ground):
    image = np.full((120, 160), ground, np.uint8)
    labels = np.zeros((100, 160), np.int32)  # an info bar was left out
    labels[20:60, 30:90] = 3
    picture = overlays.draw_outlines(image, labels, limits=(0, 255))
    assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
    contrast = np.abs(picture[20, 40].astype(int) - ground).max()
    assert contrast > 80
    assert (picture[40, 60] == ground).all()


@pytest.mark.parametrize("shape", [(1, 1), (7, 3000), (3000, 7), (48, 48)])
def test_odd_shapes(shape):
    labels = np.ones(shape, np.int32)
    picture = overlays.draw_outlines(np.random.default_rng(0).random(shape), labels)
    assert picture.shape == (*shape, 3)


def test_nan_and_constant_images_give_a_picture():
    image = np.full((60, 60), np.nan)
    assert overlays.draw_outlines(image, np.zeros((60, 60), np.int32)).shape == (60, 60, 3)
    assert overlays.to_grey8(np.full((5, 5), 7.0)).max() == 0


def test_labels_of_another_size_are_refused():
    with pytest.raises(UserError, match="do not fit"):
        overlays.draw_outlines(np.zeros((10, 10)), np.zeros((10, 11), np.int32))


def test_written_picture_is_the_same(tmp_path):
    picture = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    overlays.write_picture(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(np.asarray(Picture.open(tmp_path / "a.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
