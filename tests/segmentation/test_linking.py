"""Slices to objects: gaps, splits, merges, and one link per object where several overlap."""

import numpy as np
import pytest
from cathode_scenes import large, renumber, spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.metrics import match
from keras_microseg.segmentation.labeling import label_components
from keras_microseg.segmentation.linking import LinkSettings, apply_links, link_labels, link_slices
from keras_microseg.segmentation.slice_graph import assign_pairs
from keras_microseg.segmentation.view_fusion import fuse_views
from keras_microseg.simulation.cathodes import CathodeSettings, make_cathode


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


def test_numbers_may_have_gaps():
    truth, planes = scene(3)
    links = link_slices(np.where(planes > 0, 7 * planes + 100, 0), LinkSettings(min_iou=0.1))
    assert links.num_objects == len(np.unique(truth)) - 1
    assert link_labels(7 * planes, LinkSettings(min_iou=0.1)).max() == links.num_objects


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


# ------------------------------------------------------------------------------- cathodes: particles that touch


@pytest.fixture(scope="module")
def cathode():
    """Exact labels, and the same numbered anew in every slice."""
    labels = make_cathode(CathodeSettings(shape=(70, 90, 90), diameter=26, seed=4))[0].labels
    return labels, renumber(labels)


def test_perfect_slices_of_a_packed_bed_are_exact(cathode):
    labels, planes = cathode
    found = match(large(labels), large(link_labels(planes)))
    assert found.fp == found.fn == 0 and found.mean_iou > 0.999


def test_spheres_on_top_of_each_other_are_cut_at_the_neck():
    grid = np.indices((44, 30, 30)).astype(float)
    squares = [((grid - np.array([z, 15, 15])[:, None, None, None]) ** 2).sum(0) for z in (12, 32)]
    truth = np.where(squares[0] <= np.minimum(squares[1], 110), 1, 2 * (squares[1] <= 110)).astype(np.int32)
    planes = (truth > 0).astype(np.int32)  # label 1 in every slice
    assert link_slices(planes, LinkSettings(neck=0)).num_objects == 1
    found = match(truth.astype(np.int64), link_labels(planes).astype(np.int64))
    assert found.tp == 2 and found.mean_iou > 0.98


@pytest.mark.parametrize("kind", ["missing", "split", "merged"])
def test_spoiled_slices_are_repaired(cathode, kind):
    labels, planes = cathode
    spoiled = spoil(planes, kind, 0.06)
    truth = large(labels)
    found = match(truth, large(link_labels(spoiled, LinkSettings(min_slices=3))))
    count = len(np.unique(truth)) - 1
    assert abs(found.tp + found.fp - count) <= 0.03 * count + 1
    assert found.recall > 0.95 and found.mean_iou > 0.96
    plain = match(truth, large(link_labels(spoiled, LinkSettings(min_inside=1.0, max_gap=0))))
    assert plain.fp + plain.fn > found.fp + found.fn


def test_two_particles_merged_in_one_slice_are_cut_where_they_were():
    grid = np.indices((15, 40, 60))
    first = ((grid - np.array([7, 20, 18])[:, None, None, None]) ** 2).sum(0) < 144
    second = (((grid - np.array([7, 20, 42])[:, None, None, None]) ** 2).sum(0) < 144) & ~first
    truth = first + 2 * second
    planes = truth.copy()
    planes[6:8][planes[6:8] > 0] = 1  # two slices in a row
    linked = link_labels(planes)
    assert linked.max() == 2
    assert match(truth.astype(np.int64), linked.astype(np.int64)).mean_iou > 0.98


def test_out_of_core_equals_memory(cathode, tmp_path):
    _, planes = cathode
    spoiled = spoil(planes, "split", 0.05)
    stored = np.lib.format.open_memmap(tmp_path / "planes.npy", "w+", np.int32, spoiled.shape)
    stored[...] = spoiled
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint32, spoiled.shape)
    links = link_slices(iter(stored))
    apply_links(stored, links, out)
    np.testing.assert_array_equal(np.asarray(out), link_labels(spoiled))


def test_views_vote(cathode):
    labels, planes = cathode
    truth = large(labels)
    views = []
    for axis in range(3):
        moved = np.ascontiguousarray(np.moveaxis(labels, axis, 0))
        spoiled = spoil(moved, ("missing", "split", "merged")[axis], 0.2, seed=axis)
        views.append(np.moveaxis(link_labels(spoiled, LinkSettings(min_slices=3)), 0, axis))
    fused = np.zeros(labels.shape, np.uint32)
    count = fuse_views(views, fused, min_voxels=200)
    assert count == fused.max()
    scores = [match(truth, large(view)) for view in (*views, fused)]
    assert scores[3].mean_iou >= max(score.mean_iou for score in scores[:3]) - 0.01
    assert scores[3].f1 >= max(score.f1 for score in scores[:3])
    assert scores[3].fp + scores[3].fn <= 2


def test_a_particle_merged_in_one_view_stays_two():
    truth = np.zeros((10, 10, 30), np.int32)
    truth[2:8, 2:8, 2:14], truth[2:8, 2:8, 14:27] = 1, 2
    merged = (truth > 0).astype(np.int32)
    out = np.zeros(truth.shape, np.uint32)
    assert fuse_views([merged, truth, np.where(truth > 0, 3 - truth, 0)], out) == 2
    assert match(truth.astype(np.int64), out.astype(np.int64)).mean_iou == 1
    with pytest.raises(UserError, match="two or more"):
        fuse_views([truth], out)
