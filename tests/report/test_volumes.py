"""Views of volumes: proportions, true slice numbers, surfaces of known area."""

import base64
import json
import re

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.intensity import volume_statistics
from keras_microseg.report import turning
from keras_microseg.report.page import write_page
from keras_microseg.report.turning import turning_view
from keras_microseg.report.volumes import comparison_rows, orthogonal_views, slice_film, volume_sections

GREY = np.random.default_rng(0).integers(0, 255, (20, 60, 80)).astype(np.uint8)
LABELS = np.zeros((20, 60, 80), np.uint32)
LABELS[4:12, 10:30, 10:40], LABELS[4:12, 30:50, 10:40] = 70_000, 70_001
SIZE = PixelSize((2.0, 0.5, 0.5), "um")
NUMBERS = {"slice_numbers": list(range(1000, 1020))}


def volume(array, size=SIZE):
    return Image(array, "ZYX", size, "scan.zarr", metadata=NUMBERS)


def test_views_are_in_proportion_and_name_the_true_slices():
    top, front, side = orthogonal_views(volume(GREY), labels=volume(LABELS), position=(5, 30, 20))
    assert top.pixels.shape == (240, 320, 3)  # small ones four times enlarged
    assert front.pixels.shape == (320, 320, 3)  # z is 20 x 2 um, x is 80 x 0.5 um
    assert side.pixels.shape == (320, 240, 3)
    assert "Slice 1005" in top.caption and "y = 30, slices 1000 to 1019" in front.caption
    assert "slice 1000" in slice_film("a", volume(GREY), labels=volume(LABELS)).markup.lower()
    cropped = volume(GREY).crop((slice(7, 20), slice(None), slice(None)))
    assert "Slice 1013" in orthogonal_views(cropped)[0].caption


def test_comparison_marks_errors():
    other = np.roll(LABELS, 3, axis=2)
    sheet = comparison_rows(
        volume(GREY), {"truth": volume(LABELS), "network": volume(other)}, slices=[1006], truth="truth"
    )
    colours = {tuple(colour) for colour in sheet.pixels.reshape(-1, 3).tolist()}
    assert (235, 70, 60) in colours and (70, 140, 255) in colours and "network: errors" in sheet.caption
    with pytest.raises(UserError, match="slices 1000 to 1019"):
        comparison_rows(volume(GREY), {}, slices=[3])
    with pytest.raises(UserError, match="need the shape of the volume"):
        orthogonal_views(volume(GREY), labels=Image(LABELS[:5], "ZYX"))


def mesh_of(widget):
    return json.loads(re.search(r"mesh = (\{.*\});", widget.script)[1])


def test_turning_view_holds_the_surface():
    widget = turning_view("labels", volume(LABELS), caption="Two blocks.")
    mesh = mesh_of(widget)
    points = np.frombuffer(base64.b64decode(mesh["points"]), "<u2").reshape(-1, 3) / 65535 * np.array([40, 30, 40])
    faces = np.frombuffer(base64.b64decode(mesh["faces"]), "<u2").reshape(-1, 3)
    assert len(mesh["parts"]) == 1 and mesh["parts"][0] == [0, len(faces)]
    corners = points[faces]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    sides = 8 * 2, 40 * 0.5, 30 * 0.5  # um
    wanted = 2 * (sides[0] * sides[1] + sides[0] * sides[2] + sides[1] * sides[2])
    assert area == pytest.approx(wanted, rel=0.1)  # marching cubes cuts edges and corners
    assert (points.min(axis=0) > [6, 4, 4]).all() and (points.max(axis=0) < [26, 26, 21]).all()
    colours = np.frombuffer(base64.b64decode(mesh["colors"]), np.uint8)
    assert len(np.unique(colours)) == 2 and len(colours) == len(faces)
    assert "40 × 30 × 40 µm (z, y, x)" in widget.caption
    assert turning_view("none", volume(LABELS * 0)) is None


def test_large_meshes_get_coarser_and_are_packed_in_parts(monkeypatch):
    noise = np.random.default_rng(1).random((40, 40, 40)).astype(np.float32)
    mesh = mesh_of(turning_view("noise", Image(noise, "ZYX"), threshold=0.5, max_faces=5000))
    assert len(base64.b64decode(mesh["faces"])) // 6 <= 5000
    points = np.random.default_rng(0).random((90_000, 3))
    faces = np.arange(90_000).reshape(-1, 3)
    packed = turning._pack(points, faces, np.zeros(30_000, np.uint8))
    index = np.frombuffer(base64.b64decode(packed["faces"]), "<u2").reshape(-1, 3).astype(int)
    start = 0
    for base, stop in packed["parts"]:
        np.testing.assert_array_equal(index[start:stop] + base, faces[start:stop])
        start = stop
    assert start == 30_000 and len(packed["parts"]) == 2


def test_page_of_a_volume(tmp_path):
    sections = volume_sections(volume(GREY), volume_statistics(GREY), labels=volume(LABELS), marks={"Otsu": 127.0})
    text = write_page(tmp_path / "a.html", "Volume", sections).read_text()
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert "1000 to 1019" in text and "2 × 0.5 × 0.5 µm" in text
