"""Areas, cylinder volumes and conversion of filaments; the source's spreadsheet and its reading of the labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.io.frame_layouts import open_series
from keras_microseg.measurement.change import (
    conversion,
    measure_areas,
    measure_change,
    member_curves,
    segment_length,
    tube_curves,
)
from keras_microseg.measurement.monotone import fit_monotone, monotone_masks


def test_a_cylinder():
    # a tube of length 100, outer diameter 30, inner 10
    curves = tube_curves([3000.0], [1000.0], 100.0)
    assert curves["D1"][0] == 30 and curves["D2"][0] == 10
    assert curves["V"][0] == pytest.approx(np.pi / 4 * (30**2 - 10**2) * 100)
    with pytest.raises(UserError, match="length"):
        tube_curves([1], [1], 0)


def test_conversion_by_range_and_from_the_start():
    assert conversion([8, 10, 5, 2]).tolist() == [0.25, 0, 0.625, 1]
    assert conversion([8, 10, 5, 2], "start").tolist() == [0, -0.25, 0.375, 0.75]
    assert np.isnan(conversion([0, 0, 0])).all() and np.isnan(conversion([0, 1], "start")).all()
    assert len(conversion([])) == 0
    with pytest.raises(UserError, match="normalization"):
        conversion([1], "other")


def test_everything_over_time():
    areas = {"A1": [4000, 4000, 3000, 0], "A2": [1000, 1000, 1000, 0]}
    members = {"A1": np.array([[4000, 4100], [4000, 3900], [3000, 3050], [0, 10]]), "A2": np.full((4, 2), 500.0)}
    table = measure_change(
        [44, 88, 188, 288], [-22, 0, 50, 100], areas, 100, pixel_size=PixelSize((0.5, 0.5), "nm"), members=members
    )
    assert table["conversion"].isna().tolist() == [True, False, False, False]  # before time 0 there is none
    assert table["conversion"].tolist()[1:] == pytest.approx([0, 7 / 15, 1])
    assert table["A1_nm2"][0] == 1000 and table["D1_nm"][0] == 20
    assert table["V_nm3"][0] == pytest.approx(table["V"][0] / 8)
    assert 4000 <= table["A1_low"][0] < 4003 and 4097 < table["A1_high"][0] <= 4100  # 2.5 and 97.5 percentiles
    assert table["A1_nm2_high"][0] == pytest.approx(table["A1_high"][0] / 4)
    assert table.attrs["units"]["V_nm3"] == "nm3" and table.attrs["length"] == 100
    bare = measure_change([1, 2], [0, 1], {"A1": [5, 4]}, 2.0)
    assert bare["A2"].tolist() == [0, 0] and "A1_nm2" not in bare


def test_members_keep_their_own_curve():
    members = {"A1": np.array([[10.0, np.nan], [5.0, 8.0], [0.0, 4.0]])}
    curves = member_curves(members, 1.0, np.array([True, True, True]))
    assert curves["conversion"][:, 0].tolist() == [0, 0.75, 1] and np.isnan(curves["conversion"][0, 1])
    assert curves["conversion"][1:, 1].tolist() == [0, 1]


def test_length_of_bands():
    mask = np.zeros((100, 200), bool)
    mask[40:60, 30:180] = True
    assert segment_length(mask) == pytest.approx(150, abs=1)
    assert segment_length(mask.T) == pytest.approx(150, abs=1)
    y, x = np.indices((200, 200))
    tilted = (np.abs((y - 100) - 0.7 * (x - 100)) < 14) & (np.abs(x - 100) < 60)  # vertical cuts
    assert segment_length(tilted) == pytest.approx(120 * np.hypot(1, 0.7), rel=0.02)
    bent = (np.abs(np.hypot(y - 300, x - 100) - 200) < 10) & (np.abs(x - 100) < 80)
    assert segment_length(bent) == pytest.approx(2 * 200 * np.arcsin(0.4), rel=0.03)
    valid = np.zeros((100, 200), bool)
    valid[:, 25:175] = True
    assert segment_length(mask, valid, "columns") == 150
    with pytest.raises(UserError, match="no length"):
        segment_length(np.zeros((9, 9), bool))
    with pytest.raises(UserError, match="visible region"):
        segment_length(mask, None, "columns")


def test_areas_count_carbon():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :2] = masks[1, 0, 0] = True
    assert measure_areas({"A1": masks})["A1"].tolist() == [16, 1, 0]


@pytest.mark.parametrize("video", ["301", "302"])
def test_the_sources_spreadsheet(real_data, video):
    """Columns D and E of the authors' workbook are our areas, apart from the typing errors in it."""
    import openpyxl

    folder = real_data / "etem_filaments" / video
    path = folder / "results" / "kinetic curves parameters.xlsx"
    if not path.is_file():
        pytest.skip(f"no spreadsheet at {path}")
    rows = [row[:5] for row in openpyxl.load_workbook(path).active.iter_rows(min_row=3, values_only=True) if row[1]]
    series = open_series(folder)
    areas = measure_areas(series.masks)
    ours = {int(n): (a, b) for n, a, b in zip(series.numbers, areas["A1"], areas["A2"], strict=True)}
    wrong = {(302, 800), (302, 1000)}
    for length, frame, _, a1, a2 in rows:
        assert length == pytest.approx({"301": 148.836, "302": 226.586}[video])
        if (int(video), frame) not in wrong:
            assert ours[frame] == (a1, a2), frame
    # and the length of the axis of our first mask is the length they measured, to 3 %
    first = series.read_masks("A1", [int(np.flatnonzero(series.numbers == 88)[0])])[0]
    assert segment_length(first) == pytest.approx(rows[0][0], rel=0.03)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.booleans())
def test_isotonic_regression(values, increasing):
    fitted = fit_monotone(values, increasing=increasing)
    steps = np.diff(fitted) * (1 if increasing else -1)
    assert (steps >= -1e-9).all()
    assert np.sum(fitted) == pytest.approx(np.sum(values), abs=1e-6)
    np.testing.assert_allclose(fit_monotone(fitted, increasing=increasing), fitted, atol=1e-9)
    # nearest: no monotone curve made by moving one block mean is nearer
    constant = np.full(len(values), np.mean(values))
    assert np.sum((fitted - values) ** 2) <= np.sum((constant - values) ** 2) + 1e-6


def test_weights_pull():
    assert fit_monotone([1, 2], [1, 3]).tolist() == [1.75, 1.75]
    with pytest.raises(UserError, match="finite values"):
        fit_monotone([1, np.nan])


def test_masks_shrink_along_their_probabilities():
    ramp = np.linspace(0, 1, 100).reshape(1, 10, 10)
    probabilities = np.concatenate([ramp * 0.9, ramp, ramp * 0.6])  # areas 44, 50, 17: the second is too large
    areas = (probabilities > 0.5).sum(axis=(1, 2))
    masks = monotone_masks(probabilities)
    found = masks.sum(axis=(1, 2))
    assert areas[1] > areas[0] and (np.diff(found) <= 0).all()
    assert found[0] == found[1] == round((areas[0] + areas[1]) / 2) and found[2] == areas[2]
    np.testing.assert_array_equal(masks[2], probabilities[2] > 0.5)
    # a certain map is not overruled: 0 and 1 leave no room between the limits
    hard = np.zeros((2, 10, 10))
    hard[0, :2], hard[1, :5] = 1, 1
    np.testing.assert_array_equal(monotone_masks(hard), hard > 0.5)
