"""Tables carry their facts, and numbers come back as they were."""

import numpy as np
import pandas
import pytest

from keras_microseg.checks import UserError
from keras_microseg.io import tables, write_table


def table():
    frame = pandas.DataFrame(
        {
            "image": ["=1+1", "a,b", 'say "x"', "# 4"], "label": [1, 2, 3, 4],
            "area": [1.5, np.nan, np.inf, 0.1 + 0.2], "touches_border": [True, False, True, False],
        }
    )  # fmt: skip
    frame.attrs.update(unit="nm", units={"area": "nm^2", "gone": "nm"}, pixel_size="2 nm (user)")
    return frame


def test_csv(tmp_path):
    write_table(tmp_path / "a.csv", table(), facts={"method": "two\nlines", "settings": {"tile": [1, 2]}})
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "# unit: nm", "# pixel_size: 2 nm (user)", "# method: two lines", '# settings: {"tile": [1, 2]}',
        '# units: {"area": "nm^2"}',
    ]  # fmt: skip
    back = pandas.read_csv(tmp_path / "a.csv", comment="#")
    assert list(back.columns) == list(table().columns)
    np.testing.assert_array_equal(back["area"], table()["area"])
    assert back["image"].tolist() == ["=1+1", "a,b", 'say "x"', "\uff03 4"]
    assert back["touches_border"].tolist() == [True, False, True, False]


def test_csv_sheets_are_files(tmp_path):
    write_table(tmp_path / "a.csv", table(), facts={}, sheets={"per image": table()[["label"]]})
    assert pandas.read_csv(tmp_path / "a_per_image.csv")["label"].tolist() == [1, 2, 3, 4]


def test_excel(tmp_path):
    long = "x" * 40
    write_table(
        tmp_path / "a.xlsx", table(), facts={"method": "m", "n": 3}, sheets={long: table(), long + "y": table()}
    )
    sheets = pandas.read_excel(tmp_path / "a.xlsx", sheet_name=None)
    assert list(sheets) == ["table", long[:31], long[:29] + "_2", "facts", "units"]
    back = sheets["table"]
    assert back["image"].tolist() == table()["image"].tolist()
    assert back["area"][0] == 1.5 and np.isnan(back["area"][1]) and back["area"][2] in (np.inf, "inf")
    assert back["area"][3] == pytest.approx(0.3, rel=1e-14)
    assert back["touches_border"].tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert str(dict(sheets["facts"].values)["n"]) == "3"
    assert sheets["units"].values.tolist() == [["area", "nm^2"]]


def test_text_never_becomes_a_formula(tmp_path):
    import openpyxl

    write_table(tmp_path / "a.xlsx", table(), facts={"=A1": "=B1"})
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert {cell.data_type for sheet in book for row in sheet for cell in row} <= {"s", "n", "b"}


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_empty_tables(tmp_path, suffix):
    write_table(tmp_path / f"a{suffix}", table().iloc[:0], facts={})
    write_table(tmp_path / f"b{suffix}", pandas.DataFrame(), facts={"why": "no particle"})
    read = pandas.read_csv if suffix == ".csv" else pandas.read_excel
    options = {"comment": "#"} if suffix == ".csv" else {}
    assert list(read(tmp_path / f"a{suffix}", **options).columns) == list(table().columns)


def test_limits(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"\.csv or \.xlsx"):
        write_table(tmp_path / "a.txt", table(), facts={})
    monkeypatch.setattr(tables, "EXCEL_ROWS", 4)
    with pytest.raises(UserError, match="do not fit"):
        write_table(tmp_path / "a.xlsx", table(), facts={})
    assert list(tmp_path.iterdir()) == []
