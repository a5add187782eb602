import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.tiling import TileGrid, blending_window, read_tile, reflected_positions, slab_thickness, slabs


@st.composite
def grids(draw):
    ndim = draw(st.integers(2, 3))
    longest = 60 if ndim == 2 else 20
    shape = tuple(draw(st.integers(1, longest)) for _ in range(ndim))
    multiple_of = draw(st.sampled_from([1, 2, 4, 8]))
    halo = tuple(draw(st.integers(0, 9)) for _ in range(ndim))
    least = [-(-(2 * h + multiple_of) // multiple_of) for h in halo]
    tile = tuple(multiple_of * draw(st.integers(k, k + 6)) for k in least)
    return TileGrid.cover(shape, tile, halo, multiple_of), multiple_of


@given(grids())
def test_every_pixel_has_one_owner_and_enough_context(case):
    grid, multiple_of = case
    owners = np.zeros(grid.shape, int)
    tiles = list(grid)
    assert len(tiles) == len(grid)
    for tile in tiles:
        owners[tile.write] += 1
        for axis, (crop, write) in enumerate(zip(tile.crop, tile.write, strict=True)):
            assert crop.start >= grid.halo[axis] and tile.shape[axis] - crop.stop >= grid.halo[axis]
            assert write.stop > write.start and (tile.origin[axis] - tiles[0].origin[axis]) % multiple_of == 0
    assert (owners == 1).all()


@given(grids(), st.integers(1, 5), st.booleans())
def test_split_and_join_is_identity(case, batch_size, has_channels):
    grid, _ = case
    shape = grid.shape + ((3,) if has_channels else ())
    image = np.random.default_rng(0).random(shape)
    out = np.full(shape, np.nan)
    for batch in grid.batches(batch_size):
        block = batch.read(image)
        assert block.shape == (batch_size, *grid.tile, *shape[len(grid.shape) :])
        batch.write(out, block)
    np.testing.assert_array_equal(out, image)


@given(grids())
def test_blocks_are_cut_from_the_reflected_image(case):
    grid, _ = case
    image = np.random.default_rng(1).random(grid.shape)
    far = max(grid.tile) + max(grid.halo)
    padded = np.pad(image, far, mode="reflect")
    for tile in list(grid)[:20]:
        window = tuple(slice(o + far, o + far + n) for o, n in zip(tile.origin, tile.shape, strict=True))
        np.testing.assert_array_equal(read_tile(image, tile), padded[window])


@given(grids())
def test_blending_weights_sum_to_one(case):
    grid, _ = case
    image = np.random.default_rng(2).random((*grid.shape, 2))
    total, out = np.zeros(grid.shape), np.zeros(image.shape)
    for tile in grid:
        region, weights = grid.blending_weights(tile)
        assert (weights >= 0).all()
        total[region] += weights
        grid.blend(out, tile, read_tile(image, tile))
    np.testing.assert_allclose(total, 1, atol=1e-6)
    np.testing.assert_allclose(out, image, atol=1e-6)


@given(st.integers(1, 12), st.integers(0, 8), st.integers(2, 4))
def test_blending_window_tiles_the_line(inner, halo, count):
    window = blending_window(inner + 2 * halo, halo)
    line = np.zeros(count * inner + 2 * halo)
    for k in range(count):
        line[k * inner : k * inner + len(window)] += window
    np.testing.assert_allclose(line[2 * halo : len(line) - 2 * halo], 1, atol=1e-6)


@given(st.integers(1, 9), st.integers(-40, 40), st.integers(0, 50))
def test_reflection_equals_numpy(length, start, count):
    padded = np.pad(np.arange(length), 100, mode="reflect")
    np.testing.assert_array_equal(reflected_positions(start, start + count, length), padded[100 + start :][:count])


def test_a_readable_example():
    grid = TileGrid.cover((4, 4), tile=4, halo=1)
    first = grid[0, 0]
    image = np.arange(16).reshape(4, 4)
    assert grid.counts == (2, 2)
    assert first.write == (slice(0, 2), slice(0, 2)) and first.pad == ((1, 0), (1, 0))
    np.testing.assert_array_equal(read_tile(image, first), [[5, 4, 5, 6], [1, 0, 1, 2], [5, 4, 5, 6], [9, 8, 9, 10]])


def test_inner_tiles_read_no_more_than_their_block():
    tile = TileGrid.cover((10_000, 10_000), 256, 16)[3, 4]
    assert all(r.stop - r.start == 256 for r in tile.read) and tile.pad == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("tile", "halo", "multiple_of", "message"),
    [((500, 512), 0, 16, r"Use \(512, 512\)"), (32, 16, 16, r"at least \(48, 48\)"), (0, 0, 1, "tile")],
)
def test_bad_sizes_are_answered_with_good_ones(tile, halo, multiple_of, message):
    with pytest.raises(UserError, match=message):
        TileGrid.cover((100, 100), tile, halo, multiple_of)


def test_slabs_own_every_plane_once():
    parts = list(slabs(11, 4, halo=3))
    owned = np.concatenate([np.arange(11)[part.write] for part in parts])
    assert owned.tolist() == list(range(11))
    for part in parts:
        assert np.arange(11)[part.read][part.crop].tolist() == np.arange(11)[part.write].tolist()
    assert parts[1].read == slice(1, 11)


def test_slab_thickness_keeps_to_the_budget():
    assert slab_thickness((100, 10, 10), "10kB", 4, halo=2) == 21  # 25 planes of 400 bytes, 4 of them context
    assert slab_thickness((100, 10, 10), "10kB", 4, halo=2, multiple_of=8) == 16
    assert slab_thickness((20, 10, 10), "10kB", 4, halo=2) == 20
    with pytest.raises(UserError, match="Use at least 2.02 kB"):
        slab_thickness((100, 10, 10), 1900, 4, halo=2)
