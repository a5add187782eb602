"""Pieces that cannot belong to the filament go; what moves a little, breaks, or burns away stays as it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from keras_microseg.checks import UserError
from keras_microseg.io.frame_layouts import open_series
from keras_microseg.measurement.tracking import drop_pieces, follow_filament


def video():
    masks = np.zeros((4, 60, 120), bool)
    masks[0, 20:30, 10:90] = True
    masks[1, 22:32, 14:90] = True  # moved
    masks[2, 22:32, 14:40] = masks[2, 22:32, 60:80] = True  # broken
    return masks


def test_the_filament_stays():
    np.testing.assert_array_equal(follow_filament(video(), reach=5), video())


def test_false_pieces_go():
    masks, clean = video(), video()
    masks[0, 50:58, 100:118] = masks[2, 45:58, 90:118] = masks[2, 0:4, 0:4] = True
    np.testing.assert_array_equal(follow_filament(masks, reach=5), clean)
    core = np.zeros_like(masks)
    core[:, 24:28] = True
    found = drop_pieces({"A1": masks, "A2": core}, reach=5)
    np.testing.assert_array_equal(found["A2"], core & clean)
    assert drop_pieces({"A2": core})["A2"] is core


def test_a_window_that_jumps_leaves_the_frame_as_it_is():
    masks = video()
    masks[1] = False
    masks[1, 50:58, 100:118] = True
    assert follow_filament(masks, reach=5)[1].any()
    assert not follow_filament(masks, reach=5, lost="empty")[1].any()
    np.testing.assert_array_equal(follow_filament(masks, reach=5)[2], video()[2])  # and the next frames are found again


@given(arrays.arrays(bool, (3, 8, 9)))
def test_the_result_is_a_part_and_stays_so(masks):
    found = follow_filament(masks, reach=2)
    assert not (found & ~masks).any()
    np.testing.assert_array_equal(follow_filament(found, reach=2), found)


def test_arguments_are_checked():
    with pytest.raises(UserError, match="reach"):
        follow_filament(video(), reach=-1)
    with pytest.raises(UserError, match="frame, y, x"):
        follow_filament(np.zeros((3, 3), bool))


@pytest.mark.parametrize("name", ["302", "301"])
def test_nothing_is_lost_of_true_masks(real_data, name):
    folder = real_data / "etem_filaments"
    if not folder.is_dir():
        pytest.skip(f"no filament videos at {folder}")
    masks = open_series(folder / name).reaction.read_masks("A1")
    assert np.count_nonzero(masks & ~follow_filament(masks)) <= 1e-3 * np.count_nonzero(masks)
