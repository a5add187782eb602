"""Pasting and joining of detections: geometry, repeats over tiles, cut pieces, what lies on top."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.segmentation.pasting import Piece, draw_pieces, paste_mask, resolve


def square(top, left, height, width, score=0.9, **changes):
    return Piece(top, left, np.ones((height, width), bool), score, **changes)


def test_a_full_mask_fills_its_box():
    top, left, mask = paste_mask(np.ones((28, 28)), (3.0, 4.0, 10.0, 9.0), (20, 20))
    assert (top, left, mask.shape) == (3, 4, (7, 5)) and mask.all()


def test_a_disc_keeps_its_area_at_any_size():
    axis = (np.arange(56) + 0.5) / 56 * 2 - 1
    disc = (axis[:, None] ** 2 + axis**2 <= 1).astype(float)
    for size in (11.0, 40.0, 150.5):
        _, _, mask = paste_mask(disc, (5, 5, 5 + size, 5 + size), (200, 200))
        assert mask.sum() == pytest.approx(np.pi / 4 * size**2, rel=0.03)


@given(st.lists(st.floats(-30, 60), min_size=4, max_size=4))
def test_any_box_stays_inside_the_image(box):
    top, left, mask = paste_mask(np.ones((7, 7)), box, (32, 40))
    assert top >= 0 and left >= 0 and top + mask.shape[0] <= 32 and left + mask.shape[1] <= 40
    if box[2] <= box[0] or box[3] <= box[1]:
        assert mask.size == 0


def test_repeats_of_neighbouring_tiles_are_dropped():
    kept = resolve([square(10, 10, 20, 20, 0.7, tile=0), square(11, 10, 20, 20, 0.9, tile=1), square(50, 50, 8, 8)])
    assert sorted(piece.score for piece in kept) == [0.9, 0.9] and len(kept) == 2


def test_a_cut_piece_inside_a_whole_object_is_dropped_whatever_its_score():
    whole, piece = square(10, 10, 30, 30, 0.6), square(10, 10, 30, 12, 0.99, cut=True, tile=1)
    assert resolve([whole, piece]) == [whole]


def test_two_cut_pieces_of_different_tiles_become_one():
    left, right = square(10, 0, 20, 60, 0.8, cut=True), square(10, 40, 20, 60, 0.9, cut=True, tile=1)
    (one,) = resolve([left, right])
    assert (one.top, one.left, one.area, one.score, one.cut) == (10, 0, 20 * 100, 0.9, True)
    kept = resolve([left, square(10, 40, 20, 60, 0.9, cut=True, tile=0)])
    assert len(kept) == 2, "of one tile they are two objects"


def test_small_particles_on_a_large_one_stay_and_lie_on_top():
    large, satellite = square(0, 0, 40, 40, 0.95), square(10, 10, 6, 6, 0.6)
    labels, drawn = draw_pieces(resolve([large, satellite]), (50, 50))
    assert len(drawn) == 2 and (labels == 2).sum() == 36 and labels[0, 0] == 1
    fragment = square(5, 5, 20, 30, 0.7)
    assert len(resolve([large, fragment])) == 1, "a fragment of it does not"


def test_labels_count_without_gaps_in_the_order_of_the_pieces():
    pieces = [square(0, 0, 10, 10, 0.9), square(0, 0, 10, 10, 0.8), square(20, 20, 5, 5, 0.7)]
    labels, drawn = draw_pieces(pieces, (30, 30))
    assert [piece.score for piece in drawn] == [0.8, 0.7] or [piece.score for piece in drawn] == [0.9, 0.7]
    assert np.unique(labels).tolist() == [0, 1, 2]


def test_thousands_of_objects_are_quick_and_complete():
    pieces = [square(y, x, 6, 6, 0.5 + (x % 7) / 20) for y in range(0, 800, 8) for x in range(0, 800, 8)]
    labels, drawn = draw_pieces(resolve(pieces + pieces[::3]), (800, 800))
    assert len(drawn) == 10_000 and labels.max() == 10_000
