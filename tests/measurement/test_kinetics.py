"""Rate laws: exact curves give their parameters back, noise stays inside the intervals, failures say why."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.io.frame_layouts import open_series
from keras_microseg.measurement.change import measure_areas, measure_change
from keras_microseg.measurement.kinetics import LAWS, compare_fits, fit_rate_law, fit_rate_laws, half_time, member_fits

TRUE = {"avrami": (4.0, 2.3), "first_order": (3.0,), "zero_order": (1.2,), "shrinking_core": (0.8,),
        "contracting_cylinder": (0.9,)}  # fmt: skip
TIMES = np.linspace(0, 600, 25)


@pytest.mark.parametrize("law", LAWS)
def test_exact_curves_give_their_parameters_back(law):
    alpha = LAWS[law].alpha(TIMES / 600, *TRUE[law])
    assert alpha[0] == 0 and (np.diff(alpha) >= 0).all() and alpha.max() <= 1
    fit = fit_rate_law(TIMES, alpha, law)
    assert fit.converged and fit.r2 == pytest.approx(1)
    np.testing.assert_allclose(list(fit.parameters.values()), TRUE[law], rtol=1e-4)
    assert fit.t50 == pytest.approx(600 * LAWS[law].half(*TRUE[law]), rel=1e-4)
    assert float(LAWS[law].alpha(LAWS[law].half(*TRUE[law]), *TRUE[law])) == pytest.approx(0.5)
    best = fit_rate_laws(TIMES, alpha)[0]
    assert best.law == law
    assert compare_fits(fit_rate_laws(TIMES, alpha))["weight"].sum() == pytest.approx(1)


@settings(max_examples=30)
@given(st.floats(1.5, 9), st.floats(0.7, 4))
def test_any_avrami_curve_is_found(k, n):
    fit = fit_rate_law(TIMES, LAWS["avrami"].alpha(TIMES / 600, k, n))
    assert fit.converged and fit.parameters["k"] == pytest.approx(k, rel=1e-3)
    assert fit.parameters["n"] == pytest.approx(n, rel=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    clean = LAWS["avrami"].alpha(TIMES / 600, 4.0, 2.3)
    at = np.array([150.0, 300.0])
    inside, in_band, runs = np.zeros(3), np.zeros(2), 40
    for _ in range(runs):
        fit = fit_rate_law(TIMES, clean + rng.normal(0, 0.03, len(TIMES)))
        truth = {"k": 4.0, "n": 2.3}
        for i, (name, value) in enumerate(truth.items()):
            inside[i] += fit.intervals[name][0] <= value <= fit.intervals[name][1]
        inside[2] += fit.t50_interval[0] <= 600 * LAWS["avrami"].half(4.0, 2.3) <= fit.t50_interval[1]
        low, high = fit.band(at)
        in_band += (low <= np.interp(at, TIMES, clean)) & (np.interp(at, TIMES, clean) <= high)
    assert (inside / runs > 0.8).all() and (in_band / runs > 0.8).all()  # 95 % - 4 standard errors


def test_the_end_of_tau_can_be_given():
    alpha = LAWS["avrami"].alpha(TIMES / 600, 4.0, 2.0)
    fit = fit_rate_law(TIMES, alpha, t_end=300)
    assert fit.parameters["k"] == pytest.approx(1.0, rel=1e-3) and fit.t50 == pytest.approx(
        600 * np.sqrt(np.log(2) / 4)
    )


def test_half_time():
    assert half_time([0, 10, 20], [0, 0.25, 0.75]) == 15
    assert half_time([0, 10], [0.5, 1]) == 0
    assert np.isnan(half_time([0, 10], [0, 0.4])) and half_time([0, 5, 10], [0, np.nan, 1]) == 5


@pytest.mark.parametrize(
    "times, alpha, reason",
    [
        ([0.0], [0.0], "1 frames are too few"),
        ([0.0, 1.0, 2.0], [0.0, 0.5, 1.0], "3 frames are too few for 2 parameters; at least 4"),
        ([], [], "no frame at or after time 0"),
        (TIMES, np.full(25, np.nan), "all masks are empty or the wall volume never changes"),
        (TIMES, np.zeros(25), "never changes"),
        (TIMES, np.linspace(0, 0.03, 25), "reaches only 0.030"),
        (TIMES, (TIMES > 300).astype(float), "the curve is a step: frames between tau = 0.5 and 0.542"),
        (TIMES, (TIMES > 0).astype(float), "everything is gone before the second frame"),
    ],
)
def test_a_fit_that_cannot_be_says_why(times, alpha, reason):
    fit = fit_rate_law(np.asarray(times, float), np.asarray(alpha, float))
    assert not fit.converged and reason in fit.reason
    assert np.isnan(fit.t50) and np.isnan(list(fit.parameters.values())).all() and np.isnan(fit.predict([1.0])).all()
    table = compare_fits([fit])
    assert table["reason"][0] == fit.reason and not table["converged"][0]


def test_arguments_are_checked():
    with pytest.raises(UserError, match="law"):
        fit_rate_law(TIMES, TIMES, "magic")
    with pytest.raises(UserError, match="one length"):
        fit_rate_law([0, 1], [0])
    for times in ([-1.0, 0, 1, 2], [0, 2, 1.0, 3]):
        with pytest.raises(UserError, match="increase"):
            fit_rate_law(times, [0, 0.2, 0.5, 1])


def test_every_member_has_its_fit():
    curves = np.stack([LAWS["avrami"].alpha(TIMES / 600, k, 2.0) for k in (3.0, 4.0, 5.0)], axis=1)
    table = member_fits(TIMES, np.concatenate([curves, np.full((25, 1), np.nan)], axis=1))
    assert table["member"].tolist() == [0, 1, 2] and table["k"].tolist() == pytest.approx([3, 4, 5], rel=1e-3)


@pytest.mark.parametrize(
    "video, length, k, n, r2",
    [("102_R1", 227.32, 3.66, 1.96, 0.970), ("102_R2", 202.06, 3.62, 2.79, 0.935), ("103", 152.81, 2.77, 1.07, 0.924),
     ("301", 148.836, 7.76, 3.44, 0.969), ("302", 226.586, 4.59, 2.20, 0.987)],
)  # fmt: skip
def test_the_labels_of_the_data_set(real_data, video, length, k, n, r2):
    """Avrami fits to the labels, as an independent fit of the same definition gave them."""
    folder = real_data / "etem_filaments"
    if not folder.is_dir():
        pytest.skip(f"no filament videos at {folder}")
    series = open_series(folder / video).reaction
    table = measure_change(series.numbers, series.times, measure_areas(series.masks), length)
    fit = fit_rate_law(table["time"], table["conversion"])
    assert fit.parameters["k"] == pytest.approx(k, abs=0.006) and fit.parameters["n"] == pytest.approx(n, abs=0.006)
    assert fit.r2 == pytest.approx(r2, abs=6e-4)
