"""The page about a mineral map: everything that is known is on it, nothing is loaded, user text is escaped."""

import re

import numpy as np
import pandas as pd

from keras_microseg.report import mineral_figures as figures
from keras_microseg.report.minerals import MineralRecord, write_mineral_page

NAMES = ("pore", "a <b> & c")
COLOURS = ((255, 255, 255), (255, 192, 192))


def fractions():
    values = {"raw": [0.1, 0.9], "share": [0.12, 0.88], "low": [0.08, 0.83], "high": [0.17, 0.92]}
    others = ("boundary_per_area", "specific_surface", "surface_per_class", "chord_x", "chord_y", "effective_number")
    return pd.DataFrame({"class": NAMES, **values, **dict.fromkeys(others, 1.0)})


def record(**changes):
    quantities = {
        "confidence": 0.95, "porosity": 0.12, "porosity_low": 0.08, "porosity_high": 0.17, "pores": ["pore"],
        "unit": "um", "sample_area": 1e4, "blocks": 30, "block_px": 40, "correction": "stratified", "notes": ["a note"],
    }  # fmt: skip
    basic = MineralRecord(
        "A <rock>", NAMES, COLOURS, quantities, {"fractions": fractions()}, np.zeros((60, 80), np.uint8),
        zoom_link='view/"x".html',
    )  # fmt: skip
    return MineralRecord(**{**basic.__dict__, **changes})


def test_the_page_holds_what_is_known_and_escapes_the_rest(tmp_path):
    text = write_mineral_page(tmp_path / "page.html", record()).read_text(encoding="utf-8")
    for part in (
        "A &lt;rock&gt;",
        "a &lt;b&gt; &amp; c",
        "a note",
        "12.0 %",
        "8.0 to 17.0 %",
        "view/&quot;x&quot;.html",
    ):
        assert part in text, part
    assert "Registration" not in text and "Errors of classification" not in text and "<b> &" not in text
    assert not re.search(r'src="(?!data:)', text)
    more = record(
        confusion=np.array([[8, 2], [1, 9]]),
        scores=pd.DataFrame({"class": NAMES, "IoU": [0.7, 0.75]}),
        tables={"fractions": fractions(), "comparison": pd.DataFrame(
            [("helium", "pore", 0.12, 0.11, 1.0, 0.09, True)],
            columns=["method", "class", "share", "reference", "points", "relative", "inside"],
        )},
    )  # fmt: skip
    text = write_mineral_page(tmp_path / "more.html", more).read_text(encoding="utf-8")
    assert "Errors of classification" in text and "helium" in text and "0.75" in text


def test_numbers_in_heat_maps_are_percent_of_their_rows():
    figure = figures.confusion_figure(np.array([[30, 10], [0, 0]]), NAMES)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["75", "25", "\u00b7", "\u00b7"]  # an empty row divides by nothing


def test_numbers_without_a_class_show_the_ground():
    picture = figures.map_picture(np.array([[0, 1, 255]] * 3, np.uint8), COLOURS, None)
    assert picture[0].tolist() == [[255, 255, 255], [255, 192, 192], [35, 38, 44]]
