import io
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image as Picture

from keras_microseg.checks import UserError
from keras_microseg.measurement import size_distribution
from keras_microseg.report import figures


def lognormal(count: int, sigma: float = 0.3) -> np.ndarray:
    return np.random.default_rng(0).lognormal(np.log(50), sigma, count)


@pytest.mark.parametrize("weight", ["number", "area", "volume"])
@pytest.mark.parametrize("count, sigma", [(1, 0.3), (2, 0.3), (400, 0.3), (400, 1.2)])
def test_figure_states_count_weight_and_sizes(weight, count, sigma):
    found = size_distribution(lognormal(count, sigma), weight=weight, unit="um", num_bootstrap=50)
    svg = figures.figure_svg(figures.size_distribution_figure(found), title='a "b" <c>', name="x", adaptive=True)
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext())
    for name in ("D10", "D50", "D90"):
        assert f"{name} = {getattr(found, name):.3g}" in text
    assert f"N = {count} particles, weighted by {weight}" in text
    assert "in \u00b5m" in text
    assert root.get("aria-label") == 'a "b" <c>'


def test_adaptive_svg_follows_the_page_and_ids_are_distinct():
    found = size_distribution(lognormal(50), unit="nm", num_bootstrap=10)
    pages = []
    for name in ("one", "two"):
        svg = figures.figure_svg(figures.size_distribution_figure(found), title="t", name=name, adaptive=True)
        assert "currentColor" in svg and figures.INK not in svg
        pages.append({node.get("id") for node in ElementTree.fromstring(svg).iter() if node.get("id")})
    assert not pages[0] & pages[1]
    again = figures.figure_svg(figures.size_distribution_figure(found), title="t", name="two", adaptive=True)
    assert again == svg


def test_png_is_a_picture_for_print():
    found = size_distribution(lognormal(30), unit="nm", num_bootstrap=0)
    picture = Picture.open(io.BytesIO(figures.figure_png(figures.size_distribution_figure(found), dpi=100)))
    assert picture.size == (740, 490)


def test_empty_distribution_is_refused():
    with pytest.raises(UserError, match="at least one particle"):
        figures.size_distribution_figure(size_distribution(np.zeros(0), unit="nm"))


def test_no_pyplot():
    assert "matplotlib.pyplot" not in sys.modules


def test_histogram_of_pixel_wide_bins_states_its_numbers():
    values = np.array([3.2, 3.9, 4.1, 7.0, np.nan])
    figure = figures.value_histogram_figure(values, quantity="Minimum Feret diameter", unit="px", bin_width=1)
    svg = figures.figure_svg(figure, title="t", name="n")
    for text in ("N = 4", "mean = 4.55 px", "median = 4 px", "sd = 1.678 px", "Minimum Feret diameter in px"):
        assert text in svg
    for bad in ({"values": np.array([np.nan])}, {"values": values, "bin_width": 0}):
        with pytest.raises(UserError):
            figures.value_histogram_figure(**bad, quantity="x")
