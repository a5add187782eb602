"""Pages: everything inside, user text escaped, scripts only where a widget brings one."""

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg.report.page import Chart, Picture, Section, Table, Widget, write_page


def test_a_page_holds_all_blocks_and_loads_nothing(tmp_path):
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([0, 1], [0, 1])
    table = pd.DataFrame({"name": ["<b>a</b>"], "size": [1234.5678], "ok": [True], "none": [np.nan]})
    path = write_page(
        tmp_path / "page.html",
        "A <title>",
        [
            Section("First", ["A < b", Table(table, "cap"), Table({"x": 3, "y": "z"})]),
            Section("Second", [Picture(np.zeros((4, 6), np.uint8), 'six "pixels"'), Chart(figure, "a line")]),
        ],
        cards={"particles": 12345},
        warnings=["careful & slow"],
        failures=["a.tif: broken"],
    )
    text = path.read_text(encoding="utf-8")
    for part in ("A &lt; b", "&lt;b&gt;a&lt;/b&gt;", "A &lt;title&gt;", "careful &amp; slow", "a.tif: broken", "<svg"):
        assert part in text
    assert "12\u2009345" in text and "1\u2009235" in text and "six &quot;pixels&quot;" in text
    assert "<script" not in text and "script-src" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_a_script_comes_with_its_widget_only(tmp_path):
    sections = [Section("Film", [Widget('<div id="w"></div>', "document.getElementById('w').textContent = 1 < 2;")])]
    text = write_page(tmp_path / "page.html", "Film", sections).read_text(encoding="utf-8")
    assert "1 < 2" in text and "script-src 'unsafe-inline'" in text
