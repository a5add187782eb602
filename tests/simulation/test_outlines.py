import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from keras_microseg.checks import UserError
from keras_microseg.simulation.outlines import clean_outlines, read_outlines


def disc(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.fixture
def folder(tmp_path):
    """Good masks of three sizes and types, and every kind of bad one."""
    tifffile.imwrite(tmp_path / "a.tif", disc((64, 64), (30, 30), 12).astype(np.uint8) * 255)
    tifffile.imwrite(tmp_path / "b.tif", disc((40, 90), (20, 60), 9).astype(np.uint16) * 4000)
    tifffile.imwrite(tmp_path / "c.tif", disc((50, 50), (25, 25), 15).astype(np.float32))
    colours = np.repeat(disc((33, 31), (16, 15), 8).astype(np.uint8)[..., None] * 255, 3, axis=2)
    Picture.fromarray(colours).save(tmp_path / "d.png")
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros((20, 20), np.uint8))
    tifffile.imwrite(tmp_path / "cut.tif", disc((40, 40), (20, 2), 10).astype(np.uint8) * 255)
    two = disc((40, 80), (20, 20), 10) | disc((40, 80), (20, 60), 8)
    tifffile.imwrite(tmp_path / "two.tif", two.astype(np.uint8) * 255)
    tifffile.imwrite(tmp_path / "black.tif", 255 - disc((40, 40), (20, 20), 10).astype(np.uint8) * 255)
    tifffile.imwrite(tmp_path / "speck.tif", disc((20, 20), (10, 10), 1).astype(np.uint8) * 255)
    (tmp_path / "broken.tif").write_bytes(b"no picture")
    return tmp_path


def test_usable_outlines_are_centred_in_one_size(folder):
    outlines = read_outlines(folder)
    assert outlines.names == ("a.tif", "b.tif", "c.tif", "d.png")
    assert outlines.masks.shape == (4, 48, 48) and outlines.masks.dtype == bool, "31 px and a rim fit into 48"
    np.testing.assert_allclose(outlines.diameters, 2 * np.array([12, 9, 15, 8]), rtol=0.06)
    for mask in outlines.masks:
        y, x = np.nonzero(mask)
        assert abs(y.mean() - 23.5) <= 0.5 and abs(x.mean() - 23.5) <= 0.5


def test_each_unusable_file_is_named_with_its_fault(folder):
    problems = read_outlines(folder).problems
    assert set(problems) == {"empty.tif", "cut.tif", "two.tif", "black.tif", "speck.tif", "broken.tif"}
    for name, words in {
        "empty.tif": "no particle",
        "cut.tif": "touches the frame",
        "two.tif": "holds 2 particles",
        "black.tif": "black on white",
        "speck.tif": "fewer than 16",
    }.items():
        assert words in problems[name]


def test_none_usable_lists_the_reasons(tmp_path):
    tifffile.imwrite(tmp_path / "e.tif", np.zeros((20, 20), np.uint8))
    with pytest.raises(UserError, match="None of 1 files .* e.tif: no particle"):
        read_outlines(tmp_path)


def test_several_particles_can_be_split_and_colours_inverted(folder):
    outlines = read_outlines(folder / "two.tif", split=True)
    assert outlines.names == ("two.tif #1", "two.tif #2")
    np.testing.assert_allclose(outlines.diameters, [20, 16], rtol=0.06)
    assert len(read_outlines(folder / "black.tif", invert=True)) == 1


def test_size_and_reference_folder(folder, tmp_path):
    (tmp_path / "root" / "Input_Masks").mkdir(parents=True)
    (folder / "a.tif").rename(tmp_path / "root" / "Input_Masks" / "a.tif")
    assert read_outlines(tmp_path / "root", size=64).size == 64
    with pytest.raises(UserError, match="multiple of 16 and at least 25"):
        read_outlines(tmp_path / "root", size=16)


def test_shapes_keep_outlines():
    y, x = np.mgrid[:64, :64]
    pear = ((y - 30) / 14) ** 2 + ((x - 30) / (9 + (y - 30) * 0.2)) ** 2 < 1
    from keras_microseg.simulation import Particles
    from keras_microseg.simulation.outlines import OutlineSet
    from keras_microseg.simulation.particles import edge_coordinate

    particles = Particles.from_outlines(OutlineSet(pear[None], ("pear",)))
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    cy, cx = (axis.mean() for axis in np.nonzero(pear))
    u = edge_coordinate(particles.shapes.profile[0], particles.diameters[0] / 2, 0, 0, rows - cy, columns - cx)
    drawn = u < 1
    assert (drawn & pear).sum() / (drawn | pear).sum() > 0.98


def test_generated_pictures_are_cleaned():
    good = np.where(disc((32, 32), (16, 16), 9), 0.8, -0.9)
    hole = np.where(disc((32, 32), (16, 16), 3), -1, good)
    crumbs = np.where(disc((32, 32), (8, 8), 5) | disc((32, 32), (24, 24), 5), 1, -1)
    cut = np.where(disc((32, 32), (3, 16), 8), 1, -1)
    pictures = np.stack([good, hole, crumbs, np.full((32, 32), -1), cut, good * 0 + disc((32, 32), (9, 9), 1) * 2 - 1])
    cleaned = clean_outlines(pictures[..., None])
    assert cleaned.names == ("0", "1")
    assert cleaned.problems == {"2": "fragments", "3": "empty", "4": "cut by the frame", "5": "too small"}
    assert cleaned.masks[0].sum() == cleaned.masks[1].sum() == (good > 0).sum()
    doubled = clean_outlines(pictures[:1], scale=2.0)
    np.testing.assert_allclose(doubled.diameters, 2 * cleaned.diameters[0], rtol=0.06)
    with pytest.raises(UserError, match="1 empty"):
        clean_outlines(pictures[3:4])
