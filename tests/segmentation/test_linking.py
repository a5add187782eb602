"""Slices to objects: gaps, splits, merges, and one link per object where several overlap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.metrics import match
from keras_microseg.segmentation.labeling import label_components
from keras_microseg.segmentation.linking import LinkSettings, apply_links, assign_pairs, link_labels, link_slices


def scene(seed=0, shape=(20, 60, 60), count=8):
    """Ellipsoids that do not touch, as 3D labels and as labels numbered anew in every slice."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    truth = np.zeros(shape, np.int32)
    for _ in range(count * 4):
        centre, radii = rng.uniform((5, 9, 9), np.array(shape) - (5, 9, 9)), rng.uniform((3, 4, 4), (5, 8, 8))
        inside = (((grid - centre) / radii) ** 2).sum(-1) <= 1
        around = (((grid - centre) / (radii + 2)) ** 2).sum(-1) <= 1
        if not truth[around].any():
            truth[inside] = truth.max() + 1
    return truth, np.stack([label_components(plane > 0, 8) for plane in truth])


def test_slices_of_separate_solids_give_the_solids_back():
    truth, planes = scene()
    linked = link_labels(planes, LinkSettings(min_iou=0.1))
    assert linked.dtype == np.uint32 and match(truth, linked.astype(np.int64)).mean_iou == 1


def test_gaps_are_bridged_and_filled():
    truth, planes = scene(1)
    holed = planes.copy()
    holed[7:9] = 0
    linked = link_labels(holed, LinkSettings(min_iou=0.1, max_gap=2))
    found = match(truth, linked.astype(np.int64))
    assert found.fp == 0 and found.recall == 1 and found.mean_iou > 0.93
    assert link_labels(holed, LinkSettings(min_iou=0.1, max_gap=1)).max() > truth.max()
    links = link_slices(holed, LinkSettings(min_iou=0.1))
    plain = np.zeros(holed.shape, np.int64)
    apply_links(holed, links, plain, fill_gaps=False)
    assert len(links.gaps) and not plain[7:9].any()


def test_an_object_split_in_one_slice_stays_one():
    planes = np.zeros((5, 20, 20), np.int32)
    planes[:, 4:16, 4:16] = 1
    planes[2, :, 10] = 0
    planes[2, :, 11:][planes[2, :, 11:] > 0] = 2  # a crack parts the middle slice
    links = link_slices(planes)
    assert links.num_objects == 1 and links.repaired >= 1
    assert link_slices(planes, LinkSettings(min_inside=1.0)).num_objects == 2


def test_a_touching_neighbour_does_not_swallow():
    planes = np.zeros((4, 10, 30), np.int32)
    planes[:, 2:8, 2:14], planes[:, 2:8, 15:27] = 1, 2
    planes[2, 2:8, 2:14], planes[2, 2:8, 15:27] = 5, 3  # numbers mean nothing between slices
    linked = link_labels(planes)
    assert linked.max() == 2 and len(np.unique(linked[:, 4, 5])) == 1


def test_short_objects_vanish():
    planes = np.zeros((6, 12, 12), np.int32)
    planes[:, 1:5, 1:5] = 1
    planes[3, 7:11, 7:11] = 2
    assert link_labels(planes, LinkSettings(min_slices=2)).max() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_links_keep_the_foreground_and_do_not_depend_on_numbering(seed):
    rng = np.random.default_rng(seed)
    planes = np.stack([label_components(rng.random((9, 11)) < 0.5, 4) for _ in range(5)])
    chosen = LinkSettings(fill_gaps=False)
    linked = link_labels(planes, chosen)
    assert np.array_equal(linked > 0, planes > 0)
    shuffled = planes.copy()
    for plane in shuffled:
        order = np.concatenate([[0], 1 + rng.permutation(plane.max())])
        plane[:] = order[plane]
    again = match(linked.astype(np.int64), link_labels(shuffled, chosen).astype(np.int64))
    assert again.recall > 0.6  # ties may be cut differently, nothing else


def test_assignment_takes_most_pairs_then_the_best():
    rows, columns = np.array([0, 0, 1]), np.array([0, 1, 0])
    assert assign_pairs(rows, columns, np.array([0.9, 0.3, 0.3])).tolist() == [1, 2]
    assert assign_pairs(np.array([0, 0]), np.array([0, 1]), np.array([0.4, 0.6])).tolist() == [1]


def test_refusals():
    with pytest.raises(UserError, match="one size"):
        link_slices([np.ones((3, 3), int), np.ones((3, 4), int)])
    with pytest.raises(UserError, match="whole numbers"):
        link_slices([np.full((3, 3), np.nan)])
    with pytest.raises(UserError, match="per slice"):
        link_labels(np.ones((3, 3), int))
