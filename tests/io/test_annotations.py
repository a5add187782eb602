import json

import numpy as np
import pytest

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations import Region, draw_regions, polygon_area, read_via

SQUARE = {"name": "polygon", "all_points_x": [2, 8, 8, 2], "all_points_y": [1, 1, 5, 5]}


def write(path, shapes, project=True):
    regions = [{"shape_attributes": shape, "region_attributes": {"type": "particle"}} for shape in shapes]
    entries = {"a.png1": {"filename": "a.png", "size": 1, "regions": regions}}
    path.write_text(json.dumps({"_via_img_metadata": entries, "_via_settings": {}} if project else entries))
    return path


@pytest.mark.parametrize("project", [True, False])
def test_polygon_becomes_a_label(tmp_path, project):
    regions = read_via(write(tmp_path / "via.json", [SQUARE], project))["a.png"]
    assert polygon_area(regions[0].outline) == 24 and regions[0].attributes == {"type": "particle"}
    labels = draw_regions(regions, (10, 12))
    assert labels.dtype == np.int32 and labels.shape == (10, 12)
    # Centres on the outline belong to it: 7 x 5 pixels for a square of 6 x 4.
    assert (labels > 0).sum() == 35 and labels[1, 2] == labels[5, 8] == 1


def test_all_shapes(tmp_path):
    shapes = [
        {"name": "rect", "x": 1, "y": 2, "width": 4, "height": 3},
        {"name": "circle", "cx": 30, "cy": 30, "r": 10},
        {"name": "ellipse", "cx": 60, "cy": 30, "rx": 12, "ry": 6, "theta": 0.4},
        {"name": "point", "cx": 3, "cy": 3},
    ]
    regions = read_via(write(tmp_path / "via.json", shapes))["a.png"]
    areas = [polygon_area(region.outline) for region in regions]
    assert areas == pytest.approx([12, np.pi * 100, np.pi * 72], rel=1e-3)
    labels = draw_regions(regions, (60, 80))
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    # Pixels on the outline add about half a pixel of rim.
    assert (labels == 2).sum() == pytest.approx(np.pi * 10.5**2, rel=0.03)


def test_order_of_overlapping_regions():
    small = Region(np.array([[4, 4], [4, 6], [6, 6], [6, 4]], float))
    large = Region(np.array([[0, 0], [0, 10], [10, 10], [10, 0]], float))
    assert draw_regions([small, large], (12, 12))[5, 5] == 2
    assert draw_regions([small, large], (12, 12), order="small_on_top")[5, 5] == 1
    with pytest.raises(UserError, match="order"):
        draw_regions([small], (12, 12), order="random")


def test_regions_outside_the_image_leave_no_pixel():
    outline = np.array([[-9, -9], [-9, -5], [-5, -5]], float)
    assert not draw_regions([Region(outline)], (4, 4)).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "not a VIA 2 project"),
        ('{"a": {"name": "b"}}', "not a VIA 2 project"),
        ('{"a": {"filename": "b", "regions": [{"shape_attributes": {"name": "star"}}]}}', "b, region 1"),
        ('{"a": {"filename": "b", "regions": [{"shape_attributes": {"name": "rect", "x": 1}}]}}', "damaged shape"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(FileError, match=message) as error:
        read_via(path)
    assert "broken.json" in str(error.value)
    with pytest.raises(FileError, match="cannot be read"):
        read_via(tmp_path / "absent.json")
