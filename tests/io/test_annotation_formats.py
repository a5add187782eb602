"""Every annotation format: known files, round trips, faults, real files."""

import base64
import dataclasses
import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PillowImage

from keras_microseg.checks import FileError, UserError
from keras_microseg.io import read_labels, write_image, write_labels
from keras_microseg.io.annotations import (
    FOLDER_TARGETS,
    TARGETS,
    AnnotatedImage,
    Annotations,
    Region,
    Rle,
    check_annotations,
    draw_regions,
    read_annotations,
    trace_labels,
    write_annotations,
)
from keras_microseg.io.annotations import labels as label_files
from keras_microseg.io.annotations.coco import compress_runs, expand_runs
from keras_microseg.io.annotations.imagej import decode_roi, encode_roi
from keras_microseg.io.annotations.validation import count_crossings

RING = np.zeros((12, 15), int)
RING[2:9, 3:11], RING[4:6, 5:8], RING[10:, :3], RING[0, 12:] = 2, 0, 7, 2  # a hole, two parts, two objects


def sample():
    regions = tuple(dataclasses.replace(r, category="grain" if r.key == 2 else "pore") for r in trace_labels(RING))
    empty = AnnotatedImage("empty.tif", size=(4, 5))
    return Annotations((AnnotatedImage("scan.tif", regions, RING.shape), empty), ("grain", "pore"))


def kinds(annotations):
    return [problem.kind for problem in check_annotations(annotations)]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_is_read_again(tmp_path, target):
    for name, shape in (("scan.tif", (12, 15)), ("empty.tif", (4, 5))):
        write_image(tmp_path / "images" / name, np.zeros(shape, np.uint8), axes="YX")
    path = tmp_path / "out" if target in FOLDER_TARGETS else tmp_path / "out.json"
    write_annotations(path, sample(), target)
    found = read_annotations(path, images=tmp_path / "images")
    assert found.problems == () and sorted(image.name for image in found.images) == ["empty.tif", "scan.tif"]
    image = next(image for image in found.images if image.name == "scan.tif")
    assert image.size == (12, 15) and sorted(region.category for region in image.regions) == ["grain", "pore"]
    numbers = [{"grain": 2, "pore": 7}[region.category] for region in image.regions]
    assert np.array_equal(draw_regions(image.regions, RING.shape, numbers=numbers), RING)


def test_volumes_keep_their_planes_and_labels(tmp_path):
    volume = np.zeros((4, 6, 7), np.int32)
    volume[1:3, 2:5, 1:4], volume[3, 0, 0] = 5, 9
    write_labels(tmp_path / "volume.tif", volume)
    for axis in "zyx":
        found = label_files.read(tmp_path / "volume.tif", axis=axis)
        label_files.write(tmp_path / "again", found)
        assert np.array_equal(read_labels(tmp_path / "again" / "volume.tif").read(), volume)
    found = read_annotations(tmp_path / "volume.tif")
    assert [image.plane for image in found.images] == [("z", k) for k in range(4)]
    write_annotations(tmp_path / "rois", found, "imagej")
    planes = {image.plane: image.regions for image in read_annotations(tmp_path / "rois").images}
    assert set(planes) == {("z", 1), ("z", 2), ("z", 3)}
    assert draw_regions(planes["z", 1], (6, 7)).sum() == 9


# ---- VIA


def test_via_versions_1_and_csv(tmp_path):
    shape = {"name": "polygon", "all_points_x": [1, 4, 4], "all_points_y": [1, 1, 5]}
    region = {"shape_attributes": shape, "region_attributes": {"class": {"big": True, "small": False}}}
    one = {"a.png9": {"filename": "a.png", "size": 9, "regions": {"0": region}, "file_attributes": {}}}
    (tmp_path / "one.json").write_text(json.dumps(one))
    quoted = ['"' + json.dumps(region[key]).replace('"', '""') + '"' for key in region]
    head = "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    (tmp_path / "one.csv").write_text(
        f'{head}\na.png,9,"{{}}",1,0,{",".join(quoted)}\nb.png,9,"{{}}",0,0,"{{}}","{{}}"'
    )
    for name in ("one.json", "one.csv"):
        found = read_annotations(tmp_path / name)
        assert found.images[0].regions[0].outline.tolist() == [[1, 1], [1, 4], [5, 4]]
        assert found.images[0].regions[0].category == "big"
    assert found.images[1].name == "b.png" and found.images[1].regions == ()


def test_via_3_project(tmp_path):
    content = {
        "project": {"pid": "p"},
        "attribute": {"1": {"aname": "kind", "options": {"0": "whole", "1": "cracked"}}},
        "file": {"1": {"fid": 1, "fname": "a.png"}, "2": {"fid": 2, "fname": "b.png"}},
        "view": {"1": {"fid_list": [1]}, "2": {"fid_list": ["2"]}},
        "metadata": {
            "1_a": {"vid": "1", "xy": [2, 1, 2, 4, 3], "av": {"1": "1"}},
            "1_b": {"vid": "1", "xy": [7, 0, 0, 5, 0, 5, 5], "av": {}},
            "1_c": {"vid": "1", "xy": [1, 3, 3], "av": {}},
            "2_d": {"vid": "2", "xy": [4, 20, 10, 5, 4], "av": {}},
            "9_e": {"vid": "9", "xy": [1, 3, 3], "av": {}},
        },
    }
    (tmp_path / "three.json").write_text(json.dumps(content))
    found = read_annotations(tmp_path / "three.json", category="kind")
    first, second = found.images
    assert [region.category for region in first.regions] == ["cracked", ""]
    assert first.regions[0].outline.tolist() == [[2, 1], [2, 5], [5, 5], [5, 1]]
    assert second.regions[0].area == pytest.approx(20 * np.pi, rel=1e-3)
    assert sorted(problem.kind for problem in found.problems) == ["absent image", "no area"]


# ---- COCO


def coco_file(path, segmentations, **changes):
    annotations = [
        {"id": k, "image_id": 1, "category_id": 0, "segmentation": segmentation, "iscrowd": 0}
        for k, segmentation in enumerate(segmentations, start=1)
    ]
    images = [{"id": 1, "file_name": "./data/a.png", "height": 5, "width": 6}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "pool"}]}
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_coco_shapes(tmp_path):
    # The compressed text is that of COCO's own program for these runs.
    runs = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert compress_runs(runs) == "61X13mN000`0" and expand_runs("61X13mN000`0") == runs
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    shapes = [[square], {"size": [5, 6], "counts": [6, 2, 22]}, {"size": [5, 6], "counts": compress_runs([6, 2, 22])}]
    found = read_annotations(coco_file(tmp_path / "a.json", shapes))
    assert found.categories == ("pool",) and found.problems == () and found.images[0].name == "a.png"
    polygon, listed, compressed = found.images[0].regions
    labels = draw_regions([polygon], (5, 6))
    assert labels[1:3, 1:4].all() and labels.sum() == 6  # edges at pixel corners: 3 x 2 pixels
    assert listed.mask == compressed.mask and listed.mask.decode()[1:3, 1].all() and listed.area == 2


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_compressed_runs(counts):
    assert expand_runs(compress_runs(counts)) == counts


def test_damaged_coco_entries_are_named_and_the_rest_is_read(tmp_path):
    good = [1, 1, 4, 1, 4, 3, 1, 3]
    shapes = [[good], [[1, 2]], {"size": [5, 6], "counts": [3]}, {"size": [5, 6], "counts": "~~"}, []]
    path = coco_file(tmp_path / "bad.json", shapes)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 8
    content["annotations"] += [{"id": 1, "image_id": 1, "category_id": 0, "segmentation": [good]}, {"image_id": 4}]
    path.write_text(json.dumps(content))
    found = read_annotations(path)
    assert len(found.images[0].regions) == 2
    assert [problem.kind for problem in found.problems] == (
        ["unknown category", *["damaged shape"] * 4, "duplicate id", "absent image"]
    )
    assert all("bad.json" in str(problem) and "annotation" in str(problem) for problem in found.problems)


# ---- labelme


def test_labelme_shapes(tmp_path):
    picture = io.BytesIO()
    PillowImage.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(picture, "PNG")
    shapes = [
        {"label": "a", "points": [[1, 1], [6, 4]], "shape_type": "rectangle", "group_id": None},
        {"label": "a", "points": [[20, 20], [24, 20]], "shape_type": "circle"},
        {"label": "b", "points": [[1, 10], [3, 10], [3, 12]], "shape_type": "polygon", "group_id": 1},
        {"label": "b", "points": [[6, 10], [8, 10], [8, 12]], "shape_type": "polygon", "group_id": 1},
        {"label": "c", "points": [[10, 2], [11, 3]], "shape_type": "mask",
         "mask": base64.b64encode(picture.getvalue()).decode()},
        {"label": "d", "points": [[1, 1]], "shape_type": "point"},
        {"label": "e", "points": [], "shape_type": "polygon"},
    ]  # fmt: skip
    content = {"shapes": shapes, "imagePath": "..\\x\\a.png", "imageHeight": 30, "imageWidth": 31}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text("{}")
    found = read_annotations(tmp_path)
    assert [image.name for image in found.images] == ["a.png"] and found.images[0].size == (30, 31)
    areas = [region.area for region in found.images[0].regions]
    assert areas == pytest.approx([15, 16 * np.pi, 4, 3], rel=1e-3)  # two triangles of one group are one object
    mask = draw_regions(found.images[0].regions[-1:], (30, 31))
    assert np.argwhere(mask).tolist() == [[2, 10], [3, 10], [3, 11]]
    assert [problem.kind for problem in found.problems] == ["no area", "damaged shape", "unreadable file"]


# ---- ImageJ


def roi_bytes(kind, box, points=(), *, version=227, options=0, floats=(), shape=()):
    """A file as ImageJ's own writer lays it out."""
    head = struct.pack(">4sHBx4hH", b"Iout", version, kind, *box, len(points))
    head += struct.pack(">4f", *(floats or (0, 0, 0, 0))) + struct.pack(">hi", 0, len(shape))
    head += struct.pack(">ii", 0, 0) + struct.pack(">hhBBhii", 0, options, 0, 0, 0, 0, 0)
    assert len(head) == 64
    xs, ys = [x for x, _ in points], [y for _, y in points]
    whole = [int(x) - box[1] for x in xs] + [int(y) - box[0] for y in ys]
    body = struct.pack(f">{len(whole)}h", *whole)
    if options & 128 and points:
        body += struct.pack(f">{2 * len(points)}f", *xs, *ys)
    return head + body + struct.pack(f">{len(shape)}f", *shape)


def test_imagej_kinds():
    # top, left, bottom, right; a rectangle of 3 x 4 pixels
    region, position = decode_roi(roi_bytes(1, (2, 1, 5, 5)))
    labels = draw_regions([region], (8, 8))
    assert labels.sum() == 12 and labels[2:5, 1:5].all() and position == 0
    polygon, _ = decode_roi(roi_bytes(0, (2, 1, 5, 5), [(1, 2), (5, 2), (5, 5), (1, 5)]))
    assert np.array_equal(draw_regions([polygon], (8, 8)), labels)
    oval, _ = decode_roi(roi_bytes(2, (0, 0, 20, 30)))
    assert oval.area == pytest.approx(np.pi * 150, rel=2e-3)
    exact = [(1.5, 2.25), (5.5, 2.25), (5.5, 5.75)]
    freehand, _ = decode_roi(roi_bytes(7, (2, 1, 6, 6), exact, options=128))
    assert (freehand.outline[:, ::-1] + 0.5).tolist() == [list(point) for point in exact]
    small, _ = decode_roi(roi_bytes(1, (2, 1, 5, 5), options=128, floats=(1.25, 2.5, 3.0, 2.0)))
    assert small.area == 6 and small.outline[0].tolist() == [2.0, 0.75]
    path = [0, 0, 0, 1, 6, 0, 1, 6, 6, 1, 0, 6, 4, 0, 2, 2, 1, 4, 2, 1, 4, 4, 1, 2, 4, 4]
    ring, _ = decode_roi(roi_bytes(1, (0, 0, 6, 6), shape=path))
    assert ring.area == 32 and len(ring.holes) == 1
    curve = [0, 0, 0, 2, 4, 0, 4, 4, 3, 4, 6, 2, 8, 0, 4, 4]  # a quadratic and a cubic stretch
    assert decode_roi(roi_bytes(1, (0, 0, 6, 6), shape=curve))[0].area > 5
    for kind in (3, 10):
        with pytest.raises(NotImplementedError, match="left out"):
            decode_roi(roi_bytes(kind, (0, 0, 1, 1)))
    with pytest.raises(UserError, match="no ImageJ region"):
        decode_roi(b"Iou")


@given(arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))).filter(np.any), st.integers(0, 9))
def test_imagej_round_trip(mask, position):
    (region,) = trace_labels(mask * 1)
    again, place = decode_roi(encode_roi(region, "name", position))
    assert place == position and again.attributes["name"] == "name"
    assert np.array_equal(draw_regions([again], mask.shape) > 0, mask)


def test_imagej_fractions_survive():
    region = Region(np.array([(0.25, 0.5), (0.25, 4.125), (3.75, 2.0)]), category="dünn", fill="centres")
    again, _ = decode_roi(encode_roi(region))
    assert np.allclose(again.outline, region.outline) and again.category == "dünn"


def test_damaged_sets(tmp_path):
    (tmp_path / "a.roi").write_bytes(roi_bytes(0, (0, 0, 4, 4), [(0, 0), (4, 0), (4, 4)])[:70])
    (tmp_path / "b.roi").write_bytes(b"nothing")
    (tmp_path / "c.roi").write_bytes(roi_bytes(10, (0, 0, 1, 1), [(0, 0)]))
    (tmp_path / "d.roi").write_bytes(roi_bytes(1, (0, 0, 2, 2)))
    found = read_annotations(tmp_path)
    assert found.num_regions == 1
    assert [(p.image, p.kind) for p in found.problems] == [
        ("a", "damaged shape"), ("b", "unreadable file"), ("c", "no area")]  # fmt: skip
    with pytest.raises(FileError, match="ROI manager"):
        read_annotations(tmp_path / "b.roi")


# ---- checks


def test_every_fault_is_named():
    cross = np.array([(0, 0), (5, 5), (0, 5), (5, 0)], float)
    assert count_crossings(cross) == 1 and count_crossings(trace_labels(np.eye(4, dtype=int))[0].outline) == 0
    far = np.array([(90, 90), (90, 95), (95, 95)], float)
    line = np.array([(1, 1), (1, 4), (1, 2)], float)
    over = np.array([(5, 5), (5, 14), (9, 14)], float)
    regions = [Region(far), Region(line), Region(cross), Region(line[:2]), Region(over), Region(over, category="odd")]
    regions.append(Region(None, mask=Rle((3, 3), (9,))))
    image = AnnotatedImage("a.png", tuple(regions), (10, 11))
    problems = check_annotations(Annotations((image, AnnotatedImage("b.png"))), categories=["grain"])
    found = {(p.object.split(" (")[0], p.kind, p.is_error) for p in problems if p.kind != "no category"}
    assert found == {
        ("object 1", "outside", True),
        ("object 2", "zero area", True),
        ("object 3", "self-crossing", False),
        ("object 4", "too few points", True),
        ("object 5", "partly outside", False),
        ("object 6", "partly outside", False),
        ("object 6", "drawn twice", True),
        ("object 6", "unknown category", True),
        ("object 7", "zero area", True),
        ("object 7", "size differs", True),
        ("", "no objects", False),
    }


def test_absent_images_and_other_sizes(tmp_path):
    write_image(tmp_path / "scan.tif", np.zeros((12, 16), np.uint8), axes="YX")
    write_annotations(tmp_path / "a.json", sample(), "coco")
    found = read_annotations(tmp_path / "a.json", images=tmp_path)
    assert kinds(found) == ["size differs", "absent image", "no objects"]
    fewer = read_annotations(tmp_path / "a.json", images=tmp_path, drop_absent=True)
    assert [image.name for image in fewer.images] == ["scan.tif"]
    assert [(p.kind, p.is_error) for p in fewer.problems] == [("size differs", True), ("absent image", False)]
    write_annotations(tmp_path / "via.json", sample(), "via")
    with pytest.raises(UserError, match=r"scan\.tif: its size is not known"):
        write_annotations(tmp_path / "b.json", read_annotations(tmp_path / "via.json"), "coco")
    with pytest.raises(FileError, match="does not exist"):
        read_annotations(tmp_path / "nothing.json")
    (tmp_path / "none.json").write_text('{"images": [], "annotations": []}')
    assert kinds(read_annotations(tmp_path / "none.json")) == ["empty file"]


# ---- real files


def test_ampis_powder(real_data, tmp_path):
    folder = real_data / "ampis_powder"
    if not folder.is_dir():
        pytest.skip(f"no ampis_powder in {real_data}")
    found = read_annotations(
        folder / "annotations" / "via_powder_particle_masks_training.json", images=folder / "images"
    )
    counts = {image.name.split("_0-000")[0]: len(image.regions) for image in found.images if image.regions}
    assert counts == {"Sc1Tile_001-001-000": 219, "Sc1Tile_001-002-000": 351, "Sc2Tile_001-001-000": 259,
                      "Sc3Tile_008-007-000": 293}  # fmt: skip
    image = found.images[0]
    assert image.size == (1024, 1536)
    labels = draw_regions(image.regions, image.size)
    write_annotations(tmp_path / "coco.json", dataclasses.replace(found, images=(image,)), "coco-runs")
    again = read_annotations(tmp_path / "coco.json").images[0]
    assert np.array_equal(draw_regions(again.regions, image.size), labels)


def test_nasa_meltpool(real_data):
    folder = real_data / "nasa_meltpool"
    if not folder.is_dir():
        pytest.skip(f"no nasa_meltpool in {real_data}")
    found = read_annotations(folder / "annotations" / "train.json", images=folder / "train")
    assert len(found.images) == 199 and found.num_regions == 1075 and found.categories == ("melt pool",)
    absent = {problem.image for problem in found.problems if problem.kind == "absent image"}
    here = [image for image in found.images if image.name not in absent]
    assert len(here) == 20 and sum(len(image.regions) for image in here) == 104
    content = json.loads((folder / "annotations" / "train.json").read_text())
    areas = np.array([region.area for image in found.images for region in image.regions])
    assert areas.sum() == pytest.approx(sum(entry["area"] for entry in content["annotations"]), rel=0.02)
