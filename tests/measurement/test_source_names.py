import numpy as np
import pandas as pd
import pytest

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement import QUANTITIES, measure_particles
from keras_microseg.measurement.filters import keep_common, keep_inside, keep_ranges
from keras_microseg.measurement.source_names import IMAGEJ, SOURCE, rename_columns


def table():
    labels = np.zeros((60, 90), np.int32)
    labels[10:20, 10:30], labels[30:50, 40:60], labels[0:5, 70:90] = 1, 2, 3
    return measure_particles(labels, intensity=labels * 10.0, pixel_size=PixelSize.parse("2 nm"))


def test_every_name_means_a_quantity_of_ours():
    assert set(SOURCE.values()) | set(IMAGEJ.values()) <= set(QUANTITIES)


def test_there_and_back():
    ours = table()
    theirs = rename_columns(ours)
    assert theirs.columns[0] == "label" and list(theirs.columns[1:]) == list(SOURCE)
    assert theirs["Area"].tolist() == [800, 1600, 400] and theirs.attrs["units"]["minFeret"] == "nm"
    back = rename_columns(theirs, back=True)
    for name in set(SOURCE.values()):
        np.testing.assert_array_equal(back[name], ours[name])
    assert rename_columns(ours, "imagej")["Mean"].tolist() == [10, 20, 30]
    for bad in (True, False):
        with pytest.raises(UserError, match="None of the columns"):
            rename_columns(pd.DataFrame({"a": [1]}), back=bad)


def test_ranges_as_in_the_source():
    ours = table()
    assert keep_ranges(ours, {"area": (500, None)}).tolist() == [True, True, False]
    assert keep_ranges(ours, {"area": (500, 1000), "feret_min": (None, 100)}).tolist() == [True, False, False]
    assert keep_ranges(ours, {"area": (500, 100)}).all(), "greatest below least: no limit"
    with pytest.raises(UserError, match="no column 'size'"):
        keep_ranges(ours, {"size": (0, 1)})


def test_border_and_outliers():
    assert keep_inside(table()).tolist() == [True, True, False]
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(3, 0.2, 200))
    sizes[7], sizes[9] = 400.0, 0.5
    kept = keep_common(pd.DataFrame({"equivalent_diameter": sizes}))
    assert not kept[7] and not kept[9] and kept.sum() >= 196
    assert keep_common(pd.DataFrame({"equivalent_diameter": [5.0] * 9 + [7]})).all()
    assert keep_common(pd.DataFrame({"equivalent_diameter": [1, 2, 3, np.nan]})).tolist() == [True, True, True, False]
