"""Tiles for detectors: boxes and masks where the objects are, whatever the augmentation; nothing lost silently."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.data.augment import NO_AUGMENTATION
from keras_microseg.data.boxes import DetectionTiles, object_image, object_image_from_labels, resample_mask
from keras_microseg.io.annotations import Region
from keras_microseg.layers.anchors import pyramid_anchors

ANCHORS = np.concatenate(pyramid_anchors(64, (16, 32), (1.0,), (8, 16)))


def disc_image(size=96, discs=((20, 20, 9), (60, 30, 12), (40, 70, 7))):
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for k, (cy, cx, r) in enumerate(discs, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = k
    image = np.where(labels > 0, 200, 50).astype(np.uint16)
    return image, labels


def tiles(one, **changes):
    options = {"anchors": ANCHORS, "tile": 64, "max_instances": 8, "mini_mask_size": 28} | changes
    return DetectionTiles([one], 3, 2, 0, **options)


def test_a_part_has_the_objects_that_reach_into_it():
    one = object_image_from_labels("a", *disc_image())
    part = one.crop((slice(0, 40), slice(14, 96)))  # the third disc ends at column 77, row 47: it stays, cut
    assert part.image.shape == (40, 82) and part.classes.tolist() == [1, 1]
    np.testing.assert_array_equal(part.boxes[0], [11, 0, 30, 16])
    np.testing.assert_array_equal(part.areas, [(part.layers == k).sum() for k in (1, 2)])
    assert not part.ignored().any()


def test_boxes_and_masks_fit_the_pixels_of_the_tile():
    image, labels = disc_image()
    data = tiles(object_image_from_labels("a", image, labels))
    (batch,) = data[0]
    assert batch["image"].shape == (2, 64, 64, 1) and batch["masks"].shape == (2, 8, 28, 28)
    for image, boxes, classes in zip(batch["image"], batch["boxes"] * 64, batch["classes"], strict=True):
        for box, number in zip(boxes, classes, strict=True):
            if number > 0:
                y1, x1, y2, x2 = box.astype(int)
                middle = image[(y1 + y2) // 2, (x1 + x2) // 2, 0]
                assert middle > np.median(image), "the centre of a disc's box is bright"
            else:
                assert number == -1 or not box.any()


def test_batches_depend_on_epoch_and_index_alone():
    image, labels = disc_image()
    data = tiles(object_image_from_labels("a", image, labels))
    first = [data[k][0] for k in range(3)]
    data.set_epoch(1)
    assert not np.array_equal(data[0][0]["image"], first[0]["image"])
    data.set_epoch(0)
    for k in (2, 0, 1):
        for key, value in data[k][0].items():
            np.testing.assert_array_equal(value, first[k][key])


def test_overlapping_objects_keep_all_their_pixels():
    square = [
        np.array([(10, 10), (10, 30), (30, 30), (30, 10)], float),
        np.array([(20, 20), (20, 40), (40, 40), (40, 20)], float),
    ]
    one = object_image("a", np.zeros((64, 64)), [Region(s, fill="centres") for s in square], [1, 1])
    np.testing.assert_array_equal(one.areas, [400, 400])
    np.testing.assert_array_equal(one.boxes, [(10, 10, 30, 30), (20, 20, 40, 40)])
    data = tiles(one, augment=NO_AUGMENTATION)
    (batch,) = data[0]
    counts = batch["classes"].sum(axis=1)
    np.testing.assert_array_equal(counts, [2, 2])
    for slot in range(2):
        np.testing.assert_allclose(batch["masks"][0, slot], 1)  # whole squares, also where the other lies on top


def test_more_objects_than_slots_are_counted_and_told(caplog):
    image, labels = disc_image()
    anchors = np.concatenate(pyramid_anchors(96, (16, 32), (1.0,), (8, 16)))
    one = object_image_from_labels("crowded.tif", image, labels)
    data = tiles(one, max_instances=1, augment=NO_AUGMENTATION, tile=96, anchors=anchors)
    with caplog.at_level("WARNING", logger="keras_microseg"):
        (batch,) = data[0]
    assert data.lost == 4 and "crowded.tif" in caplog.text and "3 objects" in caplog.text
    assert (batch["classes"] > 0).sum() == 2
    positive = batch["rpn_match"] == 1
    assert positive.sum() >= 6, "all three objects of both tiles still train the proposals"
    assert data.count_objects(4) == 3


def test_regions_outside_and_of_no_area_are_left_out_and_told(caplog):
    outside = Region(np.array([(200, 200), (200, 210), (210, 210)], float))
    line = Region(np.array([(5, 5), (5, 5), (5, 5)], float), fill="centres")
    inside = Region(np.array([(10, 10), (10, 20), (20, 20), (20, 10)], float))
    with caplog.at_level("WARNING", logger="keras_microseg"):
        one = object_image("b.png", np.zeros((64, 64)), [outside, line, inside], [1, 1, 1])
    assert len(one.classes) == 1 and "b.png: 2 objects" in caplog.text


def test_slivers_and_crowds_are_ignored():
    labels = np.zeros((128, 64), np.int32)
    labels[20:120, 10:50] = 1
    one = object_image_from_labels("a", labels, labels)
    cut = DetectionTiles([one], 1, 1, 0, anchors=ANCHORS, tile=64, max_instances=4, augment=NO_AUGMENTATION)
    seen = {int(v) for k in range(30) for v in cut.sample(np.random.default_rng(k))["classes"] if v}
    assert seen == {1}  # at least 44 of 100 rows are always inside
    crowd = object_image("a", labels, [Region(np.array([(0, 0), (0, 30), (30, 30)], float), crowd=True)], [1])
    assert crowd.classes.tolist() == [-1]
    with pytest.raises(UserError, match="No object"):
        tiles(crowd)


def test_colour_and_deep_images_become_0_to_1():
    image, labels = disc_image()
    one = object_image_from_labels("a", np.stack([image * 300] * 3, axis=-1), labels)
    data = tiles(one, channels=3)
    (batch,) = data[0]
    assert batch["image"].shape[-1] == 3 and 0 <= batch["image"].min() and batch["image"].max() <= 1


def test_masks_are_resampled_at_pixel_centres():
    ramp = np.repeat(np.arange(8.0)[:, None], 4, axis=1)
    np.testing.assert_allclose(resample_mask(ramp, 4)[:, 0], [0.5, 2.5, 4.5, 6.5])
    assert resample_mask(np.ones((1, 1), bool), 5).min() == 1
    assert abs(resample_mask(np.indices((400, 400)).sum(axis=0) % 2, 28).mean() - 0.5) < 0.02
