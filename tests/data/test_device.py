"""Tiles on the device: every tile is shown, mirrored only, as a pure function of (seed, epoch, index)."""

import numpy as np
import pytest
from harness import to_numpy

from keras_microseg.checks import UserError
from keras_microseg.data.device import DeviceTiles

pytestmark = pytest.mark.network


def tiles(count, side=2):
    return np.arange(count * side * side, dtype="float32").reshape(count, side, side, 1)


def numbers(batch):
    """Which tile each one is, by its smallest value."""
    return [int(tile.min()) // 4 for tile in to_numpy(batch)]


def test_an_epoch_shows_shuffled_copies_of_every_set():
    data = DeviceTiles([tiles(6), tiles(2)], 3, 2, seed=0)
    seen = [[], []]
    for i in range(len(data)):
        for group, batch in zip(seen, data[i], strict=True):
            group += numbers(batch)
    assert sorted(seen[0]) == list(range(6)) and sorted(seen[1]) == [0, 0, 0, 1, 1, 1]
    again = DeviceTiles([tiles(6), tiles(2)], 3, 2, seed=0)
    np.testing.assert_array_equal(to_numpy(again[2][0]), to_numpy(data[2][0]))
    again.set_epoch(1)
    others = [n for i in range(3) for n in numbers(again[i][0])]
    assert others != seen[0] and sorted(others) == list(range(6))


def test_tiles_are_mirrored_in_all_eight_ways():
    data = DeviceTiles([tiles(1)], 16, 4, seed=0)
    ways = {tuple(tile.ravel()) for i in range(16) for tile in to_numpy(data[i][0])}
    assert len(ways) == 8 and all(sorted(way) == [0, 1, 2, 3] for way in ways)
    plain = DeviceTiles([tiles(1)], 16, 4, seed=0, augment=False)
    assert {tuple(tile.ravel()) for i in range(16) for tile in to_numpy(plain[i][0])} == {(0, 1, 2, 3)}


def test_refuses_what_are_no_tiles_and_knows_its_content():
    with pytest.raises(UserError, match="`sets` must be"):
        DeviceTiles([tiles(1), tiles(0)], 1, 1, 0)
    assert DeviceTiles([tiles(2)], 1, 1, 0).fingerprint() != DeviceTiles([tiles(2) + 1], 1, 1, 0).fingerprint()
    half = DeviceTiles([tiles(2)], 1, 2, 0, dtype="float16", augment=False)[0][0]
    assert to_numpy(half).dtype == np.float32
