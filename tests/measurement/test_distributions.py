"""Size distributions: weights, quantiles, intervals, edge correction, fit, particles needed."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement import (
    fit_lognormal,
    measure_particles,
    miles_lantuejoul_weights,
    particles_needed,
    size_distribution,
    summarize_sizes,
)

SIZES = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0.1, 1e4))


def lognormal(n, median=100.0, sigma=0.3, seed=0):
    return median * np.exp(np.random.default_rng(seed).normal(0, sigma, n))


@given(SIZES, st.floats(0, 1))
def test_number_quantiles_are_hazen(values, fraction):
    found = size_distribution(values, num_bootstrap=0).quantile(fraction)
    assert found == pytest.approx(np.quantile(values, fraction, method="hazen"), rel=1e-9)


@given(SIZES, st.floats(1e-3, 1e3), st.sampled_from(["number", "area", "volume"]))
def test_sizes_scale_and_order(values, scale, weight):
    plain = size_distribution(values, weight=weight, num_bootstrap=0)
    scaled = size_distribution(np.flip(values) * scale, weight=weight, num_bootstrap=0)
    for name in ("D10", "D50", "D90", "mean", "sd"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name) * scale, rel=1e-6, abs=1e-6 * scale)
    slack = 1 + 1e-12
    assert values.min() <= plain.D10 * slack and plain.D10 <= plain.D50 * slack and plain.D50 <= plain.D90 * slack
    assert plain.D90 <= values.max() * slack and plain.weights.sum() == pytest.approx(1)


def test_weights_of_a_lognormal_follow_hatch_and_choate():
    """ln D50 by area = ln D50 by number + 2 sigma^2, by volume + 3 sigma^2; sigma is the same."""
    values = lognormal(200_000)
    for weight, power in (("number", 0), ("area", 2), ("volume", 3)):
        found = size_distribution(values, weight=weight, num_bootstrap=0)
        median = 100 * math.exp(power * 0.09)
        assert found.D50 == pytest.approx(median, rel=0.01)
        assert found.D90 == pytest.approx(median * math.exp(1.2816 * 0.3), rel=0.02)
        fit = found.fit_lognormal()
        assert fit.median == pytest.approx(median, rel=0.01)
        assert fit.geometric_sd == pytest.approx(math.exp(0.3), rel=0.01)


def test_weighting_repeats_particles():
    """A particle of weight 3 counts as three of weight 1 in mean and spread."""
    table = pd.DataFrame({"size": [1.0, 2.0, 5.0], "area": [1.0, 2.0, 3.0]})
    found = size_distribution(table, "size", "area", num_bootstrap=0)
    repeated = np.array([1.0, 2, 2, 5, 5, 5])
    assert (found.mean, found.sd) == pytest.approx((repeated.mean(), repeated.std()))
    assert found.span == pytest.approx((found.D90 - found.D10) / found.D50)


@pytest.mark.parametrize("weight", ["number", "area"])
def test_intervals_cover_the_truth(weight):
    truth = 100 * math.exp(0.18 if weight == "area" else 0)
    hits = 0
    for seed in range(60):
        found = size_distribution(lognormal(150, seed=seed), weight=weight, num_bootstrap=150, seed=seed)
        low, high = found.intervals["D50"]
        hits += low <= truth <= high
    assert hits >= 50  # 57 expected; four standard deviations of chance below


def test_bootstrap_is_seeded():
    values = lognormal(100)
    same = [size_distribution(values, seed=4, num_bootstrap=50).intervals for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != size_distribution(values, seed=5, num_bootstrap=50).intervals


def test_images_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(10), 50)
    table = pd.DataFrame(
        {"equivalent_diameter": lognormal(500) * np.exp(rng.normal(0, 0.3, 10))[image], "image": image}
    )
    table.attrs["unit"] = "nm"
    single = size_distribution(table)
    grouped = size_distribution(table, groups="image")
    assert np.ptp(grouped.intervals["D50"]) > 2 * np.ptp(single.intervals["D50"])
    assert grouped.D50 == single.D50 and grouped.unit == "nm"


def test_edge_correction_undoes_the_loss_at_the_frame():
    """Squares of 5 and 41 px, equally many, at every position over and around a frame of 120 x 150.

    Large squares are more often cut, so they are rare among those left; weighted they are one half again, exactly.
    """
    height, width = 120, 150
    parts = []
    for side in (5, 41):
        y0, x0 = (grid.ravel() for grid in np.mgrid[1 - side : height, 1 - side : width])
        touches = (y0 <= 0) | (x0 <= 0) | (y0 + side >= height) | (x0 + side >= width)
        sides = np.full(len(y0), side)
        weights = miles_lantuejoul_weights(sides, sides, (height, width), touches)
        assert weights.sum() == pytest.approx(height * width)
        parts.append(pd.DataFrame({"feret_min": sides, "touches_border": touches, "edge_weight": weights}))
    table = pd.concat(parts)
    found = size_distribution(table, "feret_min", num_bootstrap=0)
    plain = size_distribution(table, "feret_min", border="exclude", num_bootstrap=0)
    assert found.weights[found.values > 20].sum() == pytest.approx(0.5)
    assert plain.weights[plain.values > 20].sum() < 0.35
    assert found.num_border == plain.num_border > 0 and found.border == "correct"


def test_border_choices():
    labels = np.zeros((60, 60), int)
    labels[0:20, 0:20], labels[30:34, 30:34], labels[45:55, 45:50] = 1, 2, 3
    table = measure_particles(labels, pixel_size=PixelSize((2, 2), "nm"))
    assert size_distribution(table, "feret_min", border="include").num_particles == 3
    assert size_distribution(table, "feret_min", border="exclude").num_particles == 2
    corrected = size_distribution(table, "feret_min")
    assert corrected.values.tolist() == [8, 10] and corrected.unit == "nm" and corrected.weights[1] > 0.5
    with pytest.raises(UserError, match="edge_weight"):
        size_distribution(table[["feret_min"]], "feret_min", border="correct")
    assert size_distribution(table[["feret_min"]], "feret_min").border == "include"


def test_none_one_and_missing_values():
    empty = size_distribution(np.zeros(0))
    assert empty.num_particles == 0 and math.isnan(empty.D50) and math.isnan(empty.intervals["D50"][0])
    assert empty.histogram().fraction.sum() == 0 and math.isnan(empty.fit_lognormal().median)
    single = size_distribution(np.array([7.0]))
    assert single.D10 == single.D50 == single.D90 == single.mean == 7 and single.sd == 0
    assert math.isnan(single.intervals["D50"][0]) and single.histogram().fraction.sum() == 1
    some = size_distribution(np.array([1.0, np.nan, 3.0, np.inf]))
    assert some.num_particles == 2 and some.num_missing == 2
    table = measure_particles(np.zeros((4, 4), int))
    assert size_distribution(table).num_particles == 0
    assert len(summarize_sizes(table)) == 9


@given(SIZES, st.booleans(), st.sampled_from(["auto", 1, 7]))
def test_histogram_loses_nothing(values, log, bins):
    histogram = size_distribution(values, weight="area", num_bootstrap=0).histogram(bins, log=log)
    assert histogram.fraction.sum() == pytest.approx(1) and histogram.counts.sum() == len(values)
    assert (np.diff(histogram.edges) > 0).all()
    assert (histogram.density * np.diff(histogram.edges)).sum() == pytest.approx(1)


def test_histogram_edges_of_the_caller():
    histogram = size_distribution(np.array([1.0, 2, 3, 4])).histogram([0, 2, 5])
    assert histogram.counts.tolist() == [1, 3] and histogram.density.tolist() == [0.125, 0.25]
    with pytest.raises(UserError, match="ascending"):
        size_distribution(np.array([1.0])).histogram([2, 1])


def test_lognormal_p_value_is_uniform_for_lognormal_sizes():
    p = np.array([fit_lognormal(lognormal(80, seed=seed)).p_value for seed in range(400)])
    assert 0.02 <= (p < 0.05).mean() <= 0.09 and 0.4 <= (p < 0.5).mean() <= 0.6


def test_lognormal_fit_sees_what_is_not_lognormal():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(50, 3, 300), rng.normal(100, 3, 300)])
    assert fit_lognormal(two).p_value < 1e-6 and fit_lognormal(two).ks_distance > 0.1
    fit = fit_lognormal(lognormal(300))
    assert fit.undersize(fit.median) == pytest.approx(0.5)
    x = np.linspace(1, 600, 20001)
    assert np.sum(fit.density(x)) * (x[1] - x[0]) == pytest.approx(1, abs=1e-4)
    same = fit_lognormal(np.full(10, 3.0))
    assert same.median == pytest.approx(3) and same.geometric_sd == 1 and math.isnan(same.p_value)
    assert same.undersize(np.array([2.9, 3.1])).tolist() == [0, 1]
    with pytest.raises(UserError, match="above 0"):
        fit_lognormal(np.array([0.0, 1.0]))


def test_particles_needed_is_what_it_takes():
    """Theory: the median of n log-normal sizes varies by sigma sqrt(pi / 2 n); half-width 1.96 times that."""
    needed = particles_needed(size_distribution(lognormal(2000)), 0.01)
    theory = (1.96 * 0.3 * math.sqrt(math.pi / 2) / 0.01) ** 2
    assert needed.total == pytest.approx(theory, rel=0.25) and needed.more == needed.total - 2000
    enough = size_distribution(lognormal(needed.total, seed=1))
    assert particles_needed(enough, 0.01).half_width == pytest.approx(0.01, rel=0.2)
    assert particles_needed(enough, 0.5).more == 0


def test_particles_needed_refuses_without_interval():
    with pytest.raises(UserError, match="two particles"):
        particles_needed(size_distribution(np.array([3.0])))
    with pytest.raises(UserError, match="precision"):
        particles_needed(size_distribution(lognormal(50)), 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"column": "colour"}, "colour"),
        ({"weight": "mass"}, "weight"),
        ({"border": "cut"}, "border"),
        ({"confidence": 1.0}, "confidence"),
        ({"groups": "image"}, "image"),
        ({"groups": np.zeros(3)}, "groups"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(UserError, match=words):
        size_distribution(measure_particles(np.ones((3, 3), int)), **arguments)


def test_summary_table():
    labels = np.zeros((60, 60), int)
    labels[5:20, 5:20], labels[30:34, 30:34], labels[45:55, 45:50] = 1, 2, 3
    summary = summarize_sizes(measure_particles(labels), num_bootstrap=20)
    assert summary[["column", "weight"]].drop_duplicates().shape[0] == 9
    assert {"D50", "D50_low", "D50_high", "unit", "num_particles"} <= set(summary.columns)
    assert (summary.D50_low <= summary.D50_high).all()
