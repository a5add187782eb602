"""Network input from raw frames: windows, lines, polygons, tables; the data set's own cuts reproduced."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.frame_cuts import FrameCut, cut_series, follow_masks, read_cuts
from keras_microseg.io.frame_layouts import open_series
from keras_microseg.io.frames import FrameSeries


def raw(numbers=(10, 20, 30), shape=(60, 80)):
    images = np.random.default_rng(0).integers(0, 170, (len(numbers), *shape)).astype(np.uint8)
    masks = np.zeros(images.shape, bool)
    for i in range(len(numbers)):
        masks[i, 20:40, 20 + 4 * i : 50] = True
    files = tuple(f"{number:06d}.png" for number in numbers)
    return FrameSeries("v", images, list(numbers), [float(n) for n in numbers], files, masks={"A1": masks})


def test_inside_is_untouched_outside_is_filled():
    series = raw()
    cut = cut_series(series, {n: FrameCut(8, 12, 20, 40) for n in (10, 20, 30)}, size=(32, 40), fill=178)
    images, valid = cut.read_images(), cut.read_valid()
    assert images.shape == (3, 32, 40) and cut.fill == 178
    np.testing.assert_array_equal(valid[0].any(axis=0), (np.arange(12, 52) >= 20) & (np.arange(12, 52) <= 40))
    np.testing.assert_array_equal(images[valid], series.images[:, 8:40, 12:52][valid])
    assert (images[~valid] == 178).all()
    np.testing.assert_array_equal(cut.read_masks("A1"), series.masks["A1"][:, 8:40, 12:52] & valid)
    np.testing.assert_array_equal(cut.images[1, 3:9, 5:30], images[1, 3:9, 5:30])


def test_a_polygon_leaves_out_neighbours():
    polygon = np.array([(8, 12), (8, 60), (39, 60)], float)  # the upper right triangle
    cut = cut_series(raw((10,)), {10: FrameCut(8, 12, polygon=polygon)}, size=(32, 40))
    valid = cut.read_valid()[0]
    assert valid[2, 35] and not valid[25, 3]
    assert abs(valid.sum() - 0.5 * 32 * 40) < 160  # a triangle, cut at the window's right edge


def test_windows_over_the_edge_show_what_there_is():
    cut = cut_series(raw((10,)), {10: FrameCut(-10, 60)}, size=(32, 40))
    valid = cut.read_valid()[0]
    assert not valid[:10].any() and not valid[:, 20:].any() and valid[10:, :20].all()
    np.testing.assert_array_equal(cut.read_images()[0][10:, :20], raw((10,)).images[0, :22, 60:])


def test_frames_between_are_interpolated():
    series = raw((10, 20, 30))
    polygon = np.array([(0, 0), (0, 79), (59, 79), (59, 0)], float)
    cut = cut_series(series, {10: FrameCut(0, 10, 12, 30, polygon), 30: FrameCut(10, 20, 14, 40)}, size=(32, 40))
    assert cut.metadata["windows"] == [[0, 10], [5, 15], [10, 20]]
    columns = np.flatnonzero(cut.read_valid([1])[0].any(axis=0)) + 15
    assert (columns[0], columns[-1]) == (15, 35)
    with pytest.raises(UserError, match="no window is given for frame 30; the table goes from frame 10 to 20"):
        cut_series(series, {10: FrameCut(0, 0), 20: FrameCut(0, 0)}, size=(32, 40))
    with pytest.raises(UserError, match="no window"):
        cut_series(series, {}, size=32)


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="nothing of frame 10 is left"):
        cut_series(raw((10,)), {10: FrameCut(0, 0, 50, 45)}, size=(32, 40))


def test_windows_follow_the_mask():
    series = raw()
    cuts = follow_masks(series, size=(32, 40))
    assert [(cut.left, cut.right) for cut in cuts.values()] == [(20, 49), (24, 49), (28, 49)]
    cut = cut_series(series, cuts, size=(32, 40))
    np.testing.assert_array_equal(cut.read_masks("A1").sum((1, 2)), series.masks["A1"].sum((1, 2)))
    empty = series.with_masks({"A1": np.zeros(series.shape, bool)})
    with pytest.raises(UserError, match="no window can follow"):
        follow_masks(empty)


@given(st.integers(-20, 70), st.integers(-20, 90), st.integers(0, 40), st.integers(0, 40))
def test_cutting_never_invents_pixels(y, x, left, width):
    series = raw((10,))
    cut = FrameCut(y, x, x + left, x + left + width)
    try:
        found = cut_series(series, {10: cut}, size=(32, 40))
    except UserError:
        assert not cut.visible((32, 40), (60, 80)).any()
        return
    valid = found.read_valid()[0]
    assert valid.sum() <= (width + 1) * 32
    for row, column in np.argwhere(valid)[::17]:
        assert found.images[0, row, column] == series.images[0, y + row, x + column]


def test_tables(tmp_path):
    table = pd.DataFrame(
        {"frame": [10, 20], "y": [1, 2], "x": [3, 4], "left": [5, np.nan], "polygon": ["0 0; 0 9; 9 9", ""]}
    )
    for path in (tmp_path / "w.csv", tmp_path / "w.xlsx"):
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_excel(path, index=False)
        cuts = read_cuts(path, [10, 20])
        assert (cuts[10].y, cuts[10].x, cuts[10].left, cuts[10].right) == (1, 3, 5, None)
        assert cuts[20].left is None and cuts[20].polygon is None and cuts[10].polygon.tolist()[1] == [0, 9]
    rois = pd.DataFrame(
        {
            "Name": list("abcdef"),
            "Type": ["Rectangle", "Straight Line", "Straight Line"] * 2,
            "X": [100, 140, 120, 110, 150, 125],
            "Y": [7, 0, 0, 8, 0, 0],
            "Width": [256, 0, 0] * 2,
            "Height": [256, 99, 99] * 2,
            "Pos": [1, 1, 1, 2, 2, 2],
        }
    )
    rois.to_csv(tmp_path / "rois.csv", index=False)
    cuts = read_cuts(tmp_path / "rois.csv", [88, 150])
    assert (cuts[150].y, cuts[150].x, cuts[150].left, cuts[150].right) == (8, 110, 125, 150)
    rois[:2].to_csv(tmp_path / "rois.csv", index=False)
    with pytest.raises(FileError, match="position 1 has 1 rectangles and 1 lines"):
        read_cuts(tmp_path / "rois.csv", [88, 150])
    (tmp_path / "bad.csv").write_text("frame,y,x\n1,two,3\n")
    with pytest.raises(FileError, match="no number"):
        read_cuts(tmp_path / "bad.csv", [1])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="Needed are frame, y, x"):
        read_cuts(tmp_path / "bad.csv", [1])


# Corner (y, x) and columns (first, last) of the data set's windows, found by matching its images to its raw frames.
WINDOWS = {
    "102_R1": ("102", {88: (127, 278, 313, 520), 600: (165, 258, 285, 417), 1200: (568, 107, 150, 158)}),
    "102_R2": ("102", {88: (172, 472, 520, 713), 600: (271, 412, 435, 587), 1200: (533, 142, 168, 209)}),
    "103": ("103", {88: (117, 535, 602, 753), 600: (154, 439, 536, 659), 1200: (210, 430, 520, 617)}),
    "301": ("301", {88: (116, 132, 207, 324), 450: (120, 141, 228, 340), 900: (120, 141, 236, 315)}),
    "302": ("302", {88: (196, 356, 380, 591), 500: (209, 354, 400, 597), 1000: (209, 354, 416, 594)}),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_data_sets_own_input_comes_out(real_data, name):
    folder = real_data / "etem_filaments"
    if not folder.is_dir():
        pytest.skip(f"no filament videos at {folder}")
    source, windows = WINDOWS[name]
    ours = cut_series(open_series(folder / source / "original"), {n: FrameCut(*cut) for n, cut in windows.items()})
    theirs = open_series(folder / name)
    theirs = theirs.take(np.isin(theirs.numbers, list(windows)))
    visible = theirs.read_valid()  # ours without the hand-drawn polygon shows more
    assert not (visible & ~ours.read_valid()).any()
    np.testing.assert_array_equal(ours.read_images()[visible], theirs.read_images()[visible])
    for task in ("A1", "A2"):
        np.testing.assert_array_equal(ours.read_masks(task)[visible], theirs.read_masks(task)[visible])
