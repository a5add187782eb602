"""What a detector sees beyond the border of an image."""

import numpy as np

from keras_microseg.inference.instances import _read
from keras_microseg.tiling import TileGrid


def test_beyond_the_border_the_image_goes_on_for_a_margin_then_has_its_mean_grey():
    image = np.random.default_rng(0).random((20, 48, 1), dtype=np.float32)
    grid = TileGrid.cover(image.shape[:2], 32, 4)
    outside = np.array([7.0], np.float32)
    for batch in grid.batches(1):
        tile = batch.tiles[0]
        block = _read(image, tile, outside, margin=3)
        rows, columns = (np.arange(32) + tile.origin[axis] for axis in (0, 1))
        for axis, (places, length) in enumerate(((rows, 20), (columns, 48))):
            beyond = np.maximum(-places, places - (length - 1))  # pixels beyond the border, 0 or less inside
            far = np.take(block, np.flatnonzero(beyond > 3), axis=axis)
            assert (far == 7).all()
        near_rows = np.flatnonzero((rows > -4) & (rows < 23))
        near_columns = np.flatnonzero((columns > -4) & (columns < 51))
        mirrored = [np.abs(rows[near_rows]), np.abs(columns[near_columns])]
        mirrored = [np.where(m > n - 1, 2 * (n - 1) - m, m) for m, n in zip(mirrored, (20, 48), strict=True)]
        np.testing.assert_array_equal(block[np.ix_(near_rows, near_columns)], image[np.ix_(*mirrored)])
        assert len(near_rows) < 32  # the tile is larger than the image
