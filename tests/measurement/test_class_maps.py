"""One reading of a class map: equal to what the whole map gives at once, and known answers."""

import numpy as np
import pandas as pd
import pytest

from keras_microseg.image import LazyArray, PixelSize
from keras_microseg.measurement import class_maps
from keras_microseg.measurement.class_maps import (
    association,
    choose_block,
    chord_distribution,
    convergence,
    covariance_errors,
    lineal_path,
    representative_area,
    row_bands,
    scan_class_map,
    spread_windows,
    surface_table,
    two_point_functions,
)
from keras_microseg.measurement.composition import association_matrix, block_counts, chord_lengths
from keras_microseg.simulation.rocks import MINERALS, Rock, RockSettings


class Chunked(LazyArray):
    """An array that says how it is stored and remembers what was read."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.dtype, self.chunks, self.reads = array, array.shape, array.dtype, chunks, []

    def read_block(self, block):
        self.reads.append(block[0])
        return self.array[block]


@pytest.fixture(scope="module")
def rock():
    return Rock(RockSettings((330, 290), seed=3, grain_size=20)).classes[...].astype(np.int16) - 1


@pytest.mark.parametrize("band", [290, 290 * 7, 1 << 21])
def test_a_scan_in_bands_is_that_of_the_whole_map(rock, band, monkeypatch):
    monkeypatch.setattr(class_maps, "_BAND_PIXELS", band)
    scan = scan_class_map(Chunked(rock, (16, 32)), 6, block=50)
    names = MINERALS[1:]
    np.testing.assert_array_equal(scan.counts.reshape(-1, 6), block_counts(rock, 6, 50))
    size = PixelSize((2.0, 3.0), "um")
    pd.testing.assert_frame_equal(
        association(scan, names, pixel_size=size), association_matrix(rock, names, pixel_size=size)
    )
    padded = np.pad(rock, 1, constant_values=-1)
    for axis in (0, 1):
        for k in range(6):
            every = np.bincount(chord_lengths(padded == k, axis=axis).astype(int), minlength=331)
            np.testing.assert_array_equal(scan.runs[axis, k], every)
        inside = np.bincount(chord_lengths(padded >= 0, axis=axis).astype(int), minlength=331)
        np.testing.assert_array_equal(scan.inside[axis], inside)


def test_chords_cut_by_the_frame_or_by_nothing_do_not_count():
    classes = np.array([[0, 1, 1, 0, 9, 1, 0, 1]])
    scan = scan_class_map(classes, 2, block=4)
    assert scan.runs[1, :, 1].tolist() == [3, 2] and scan.runs[1, 1, 2] == 1
    assert scan.whole_runs[1, 1].tolist()[:3] == [0, 0, 1]  # the run of two; others touch the frame or the 9
    assert scan.whole_runs[1, 0, 1] == 1
    assert scan.whole_runs[0].sum() == 0


def test_stripes_have_known_surfaces_chords_and_functions():
    classes = np.broadcast_to((np.arange(240) // 6 % 3 > 0).astype(np.uint8), (200, 240))  # 6 of 0, 12 of 1
    scan = scan_class_map(classes, 2, block=20)
    table = surface_table(scan, "ab", pixel_size=PixelSize((2.0, 2.0), "um"))
    np.testing.assert_allclose(table["boundary_per_area"], 26 * 200 * 2 * np.pi / 4 / (200 * 240 * 4))
    np.testing.assert_allclose(table["specific_surface"], table["boundary_per_area"] * 4 / np.pi)
    assert table["chord_x"].tolist() == [12, 24]
    assert table["num_chords"].tolist() == [200 * 12, 200 * 13]
    assert table["chord_y"].isna().all()
    chords = chord_distribution(scan, "ab")
    assert chords["length"][chords["b"].argmax()] == pytest.approx(12, rel=0.2)
    path = lineal_path(scan, "ab", max_distance=20)
    alone = scan_class_map(classes[:1], 2, block=20)
    line = lineal_path(alone, "ab", max_distance=0)
    np.testing.assert_allclose(line[["a", "b"]].to_numpy()[0], path[["a", "b"]].to_numpy()[0])
    assert path["b"][0] == pytest.approx(156 / 240)
    assert (path[["a", "b"]].diff().iloc[1:] <= 0).all(axis=None)


def test_two_point_function_of_independent_pixels():
    classes = np.random.default_rng(0).choice(3, (300, 400), p=(0.2, 0.5, 0.3))
    classes[:, :50] = 255
    table = two_point_functions(classes, "abc", max_distance=20, window=128, max_windows=100)
    np.testing.assert_allclose(table.iloc[0, 1:], (0.2, 0.5, 0.3), atol=0.01)
    np.testing.assert_allclose(table.iloc[1:, 1:].mean(), np.square((0.2, 0.5, 0.3)), atol=0.005)
    errors = covariance_errors(scan_class_map(classes, 3, block=50), table, "abc")
    np.testing.assert_allclose(errors["standard_error"], np.sqrt(np.array([0.16, 0.25, 0.21]) / (300 * 350)), rtol=0.5)


def test_covariance_agrees_with_the_spread_between_rocks():
    shares, errors = [], []
    for seed in range(30):
        classes = Rock(RockSettings((240, 240), seed, grain_size=12, disc=0)).classes[...].astype(int) - 1
        scan = scan_class_map(classes, 6, block=60)
        table = two_point_functions(classes, MINERALS[1:], max_distance=40, window=240)
        errors.append(covariance_errors(scan, table, MINERALS[1:])["standard_error"])
        shares.append(scan.counts.sum(axis=(0, 1)) / scan.pixels)
    np.testing.assert_allclose(np.mean(errors, axis=0)[:4], np.std(shares, axis=0)[:4], rtol=0.35)


def test_representative_area_shrinks_with_the_square_root_of_the_area():
    classes = np.random.default_rng(1).integers(0, 2, (512, 512))
    table = representative_area(scan_class_map(classes, 2, block=8), "ab", pixel_size=PixelSize((3.0, 3.0), "um"))
    part = table[table["class"] == "a"].reset_index()
    assert part["edge"][0] == 24 and part["area"][0] == 576
    np.testing.assert_allclose(part["std"][:4], 0.5 / (part["edge"][:4] / 3), rtol=0.2)
    grown = convergence(scan_class_map(classes, 2, block=32), "ab")
    assert grown["area"].is_monotonic_increasing and grown["area"].iloc[-1] == 512**2
    np.testing.assert_allclose(grown["a"] + grown["b"], 1)


def test_blocks_and_windows_suit_the_map(rock):
    block = choose_block(rock, 6)
    assert 40 <= block <= 60  # mean chord about 8 px would give 80; 36 blocks at least
    assert spread_windows((100, 90), 128, 4) == [(slice(0, 100), slice(0, 90))]
    windows = spread_windows((1000, 2000), 100, 20)
    assert len(windows) <= 20 and windows[-1] == (slice(900, 1000), slice(1900, 2000))


def test_chunks_are_read_once():
    array = Chunked(np.arange(40 * 6).reshape(40, 6), (16, 6))
    bands = list(row_bands(array, 5, cut=8))
    np.testing.assert_array_equal(np.concatenate([band for _, band in bands]), array.array)
    assert [part.stop - part.start for part in array.reads] == [16, 16, 8]
    assert all(top // 8 == (top + len(band) - 1) // 8 for top, band in bands)


def test_memory_is_flat_in_the_height(rock):
    import tracemalloc

    class Tall(LazyArray):
        dtype = np.dtype(np.uint8)

        def __init__(self, height):
            self.shape = (height, 1500)

        def read_block(self, block):
            y, x = (np.arange(part.start, part.stop) for part in block)
            return ((y[:, None] // 9 + x // 7) % 3).astype(np.uint8)

    peaks = []
    for height in (2000, 8000):
        tracemalloc.start()
        scan_class_map(Tall(height), 3, block=200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0] and peaks[1] < 2e8
