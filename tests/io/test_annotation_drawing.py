"""Objects to label images and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_microseg.checks import UserError
from keras_microseg.io.annotations import Region, Rle, draw_regions, fill_rings, polygon_area, region_mask, trace_labels

LABELS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


@given(LABELS)
def test_tracing_and_drawing_give_the_labels_again(labels):
    regions = trace_labels(labels)
    keys = [region.key for region in regions]
    assert keys == sorted(set(labels[labels > 0].tolist()))
    assert np.array_equal(draw_regions(regions, labels.shape, numbers=keys), labels)
    for region in regions:  # the polygons enclose what the pixels cover
        assert region.area == (labels == region.key).sum()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_runs_give_the_mask_again(mask):
    runs = Rle.encode(mask)
    assert sum(runs.counts) == mask.size and np.array_equal(runs.decode(), mask)
    region = Region(None, mask=runs)
    assert region.area == mask.sum()
    drawn, window = region_mask(region, mask.shape)
    assert np.array_equal(drawn, mask) and window == (slice(0, mask.shape[0]), slice(0, mask.shape[1]))


def test_ring_within_ring_within_ring():
    labels = np.zeros((9, 9), int)
    labels[1:8, 1:8], labels[2:7, 2:7], labels[4, 4] = 1, 0, 1
    (region,) = trace_labels(labels)
    assert len(region.holes) == 1 and len(region.parts) == 1
    assert region.outline.tolist() == [[0.5, 7.5], [7.5, 7.5], [7.5, 0.5], [0.5, 0.5]]
    assert polygon_area(region.holes[0]) == 25 and region.area == 25


def test_pixels_that_touch_at_a_corner_are_parts():
    (region,) = trace_labels(np.eye(3, dtype=int))
    assert len(region.polygons) == 3 and region.area == 3


def test_neighbours_share_no_pixel_and_leave_none():
    # Two triangles that share the diagonal of a 6 x 6 square of pixels.
    square = np.array([(0, 0), (0, 6), (6, 6), (6, 0)], float) - 0.5
    lower, upper = fill_rings([square[[0, 2, 3]]], (6, 6)), fill_rings([square[[0, 1, 2]]], (6, 6))
    assert not (lower & upper).any() and (lower | upper).all()


@pytest.mark.parametrize("radius", [3.0, 10.3])
def test_filled_disc_has_its_area(radius):
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.column_stack([20 + radius * np.sin(angle), 20.3 + radius * np.cos(angle)])
    # Counting centres errs by less than a pixel per unit of radius.
    assert fill_rings([ring], (41, 41)).sum() == pytest.approx(np.pi * radius**2, abs=radius)


def test_conventions_differ_by_the_rim():
    square = np.array([(1, 2), (1, 8), (5, 8), (5, 2)], float)
    drawn = draw_regions([Region(square)], (10, 12))
    centres = draw_regions([Region(square, fill="centres")], (10, 12))
    assert (drawn > 0).sum() == 35 and (centres > 0).sum() == 24
    hole = np.array([(2.5, 4.5), (2.5, 5.5), (3.5, 5.5), (3.5, 4.5)])
    assert (draw_regions([Region(square, holes=(hole,))], (10, 12)) > 0).sum() == 34


def test_cut_at_the_border_and_masks_of_another_size():
    region = Region(np.array([(-5, -5), (-5, 2.5), (2.5, 2.5), (2.5, -5)]), fill="centres")
    assert draw_regions([region], (6, 6)).sum() == 9
    with pytest.raises(UserError, match="does not fit"):
        draw_regions([Region(None, mask=Rle((2, 2), (4,)))], (6, 6))
