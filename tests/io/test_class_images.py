"""Class lists and class images (`io.annotations`)."""

import numpy as np
import pytest
from PIL import Image as PillowImage

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations import (
    ClassList,
    find_class_list,
    parse_colour,
    read_class_image,
    read_class_list,
)

CLASSES = ClassList(("whole", "cut"), ("#00ff00", (255, 0, 0)))


def painted(tmp_path, numbers, classes=CLASSES, name="a.png"):
    io.write_image(tmp_path / name, classes.paint(np.asarray(numbers)), axes="YXC")
    return tmp_path / name


def test_paint_and_read_are_inverse(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 3, (5, 7))
    for name in ("a.png", "a.tif"):
        found = read_class_image(painted(tmp_path, numbers, name=name), CLASSES)
        np.testing.assert_array_equal(found, numbers)
        assert found.dtype == np.int32


def test_palette_and_grey_and_alpha(tmp_path):
    numbers = np.zeros((40, 40), np.uint8)
    numbers[0, :2] = 1, 2  # hardly any pixel is coloured
    palette = PillowImage.fromarray(numbers, "P")
    palette.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_class_image(tmp_path / "p.png", CLASSES), numbers)
    io.write_image(tmp_path / "g.png", numbers * 100, axes="YX")
    np.testing.assert_array_equal(read_class_image(tmp_path / "g.png", ClassList(("a", "b"), (100, 200))), numbers)
    rgba = np.dstack([CLASSES.paint(numbers), np.full(numbers.shape, 7, np.uint8)])
    PillowImage.fromarray(rgba).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_class_image(tmp_path / "c.png", CLASSES), numbers)


def test_unknown_colours_are_listed_with_their_neighbour(tmp_path):
    array = CLASSES.paint(np.array([[0, 1, 2]]))
    array = np.concatenate([array, np.array([[[0, 250, 3]]], np.uint8)], axis=1)
    io.write_image(tmp_path / "a.png", array, axes="YXC")
    with pytest.raises(FileError, match=r"a\.png.*1 colours.*#00fa03 in 1 pixels, nearest is whole #00ff00"):
        read_class_image(tmp_path / "a.png", CLASSES)


def test_class_lists_are_found_and_read(tmp_path):
    path = painted(tmp_path, [[0, 1, 2]])
    assert find_class_list([path]) == ClassList(("red", "green"), ((255, 0, 0), (0, 255, 0)))
    (tmp_path / "a.json").write_text('{"background": 0, "whole": "#00ff00", "cut": [255, 0, 0]}')
    (tmp_path / "a.csv").write_text("# a comment\nwhole, #00ff00\n// another\ncut,255,0,0\n")
    (tmp_path / "a.txt").write_text("whole 0 255 0\ncut red\nbackground black\n")
    for name in ("a.json", "a.csv", "a.txt"):
        assert read_class_list(tmp_path / name) == CLASSES


@pytest.mark.parametrize("text", ["", "whole", "whole, 1, 2", "a, red\na, blue", "a, red\nb, red", "a, black"])
def test_no_class_list(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(FileError, match=r"a\.txt.*is no class list"):
        read_class_list(tmp_path / "a.txt")


def test_photographs_and_empty_images_are_no_class_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    io.write_image(tmp_path / "n.png", noise, axes="YXC")
    with pytest.raises(FileError, match="more than 64 colours"):
        find_class_list([tmp_path / "n.png"])
    with pytest.raises(UserError, match="nothing but background"):
        find_class_list([painted(tmp_path, [[0, 0]])])


def test_colours():
    assert parse_colour("#0f0") == parse_colour("lime") == parse_colour([0, 255, 0]) == (0, 255, 0)
    assert parse_colour(7) == parse_colour("7") == (7, 7, 7)
    for wrong in ("no colour", -1, (1, 2), 1.5, None):
        with pytest.raises(UserError, match="A colour must be"):
            parse_colour(wrong)
