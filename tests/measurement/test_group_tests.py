"""Group means, differences and rank correlations: known effects found, none found where there is none."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from keras_microseg.checks import UserError
from keras_microseg.measurement.group_tests import (
    group_differences,
    group_means,
    holm,
    order_groups,
    rank_correlations,
    summarize_sweep,
)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    cycles = np.repeat([100, 5, 50], 40)
    value = 0.3 + 0.002 * (cycles == 100) * 100 + 0.05 * rng.standard_normal(120)
    return pd.DataFrame({"cycles": cycles, "detachment": value, "volume": value**3, "other": rng.random(120)})


def test_means_are_in_order_and_cover(table):
    means = group_means(table, "detachment", "cycles")
    assert means["cycles"].tolist() == [5, 50, 100] and means["particles"].tolist() == [40] * 3
    assert ((means["low"] < means["mean"]) & (means["mean"] < means["high"])).all()
    half = 1.96 * 0.05 / np.sqrt(40)
    np.testing.assert_allclose(means["high"] - means["low"], 2 * half, rtol=0.35)


def test_differences(table):
    found = group_differences(table, "detachment", "cycles").set_index(["first", "second"])
    assert found.loc[(5, 100), "p_adjusted"] < 0.01 and found.loc[(5, 100), "low"] > 0.15
    assert found.loc[(5, 50), "p"] > 0.05 and found.loc[(5, 50), "low"] < 0 < found.loc[(5, 50), "high"]


def test_permutation_p_values_are_uniform_without_effect():
    rng = np.random.default_rng(1)
    p = []
    for seed in range(60):
        table = pd.DataFrame({"group": np.repeat(["a", "b"], 12), "value": rng.exponential(size=24)})
        p.append(group_differences(table, "value", "group", num_bootstrap=200, seed=seed)["p"][0])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_rank_correlations(table):
    found = rank_correlations(table, "detachment", ["volume", "other", "cycles", "absent"]).set_index("quantity")
    assert found.loc["volume", "rho"] == pytest.approx(1) and found.loc["volume", "low"] > 0.99
    assert found.loc["other", "low"] < 0 < found.loc["other", "high"]
    assert list(found.index) == ["volume", "other", "cycles"] and (found["p_adjusted"] >= found["p"]).all()


def test_small_things(table):
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert order_groups(["large", "small", "medium"]) == ["small", "medium", "large"]
    assert order_groups(["10C", "1C"]) == ["10C", "1C"] and order_groups(["10", "9"]) == ["9", "10"]
    with pytest.raises(UserError, match="no column 'rate'"):
        group_means(table, "detachment", "rate")
    assert len(group_differences(table.head(1), "detachment", "cycles")) == 0
    assert len(rank_correlations(table.head(2), "detachment", ["volume"])) == 0
    sweep = pd.DataFrame({"label": [1, 2, 1, 2], "distance": [1.0, 1, 2, 2], "detachment": [0.2, 0.4, np.nan, 0.5]})
    means = summarize_sweep(sweep, [1, 2])
    assert means["mean"].tolist() == pytest.approx([0.3, 0.5]) and means["particles"].tolist() == [2, 1]
