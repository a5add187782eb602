import html.parser
import json
import re

import numpy as np
import openpyxl
import pandas as pd
import pytest

from keras_microseg import io
from keras_microseg.image import Image, PixelSize
from keras_microseg.report import html as report
from keras_microseg.report.results import ImageRecord, choose_unit
from keras_microseg.workflows.measure_labels import MeasureSettings, assemble
from keras_microseg.workflows.steps import Failure


def discs(count: int, shape=(120, 160), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    yy, xx = np.indices(shape)
    for label in range(1, count + 1):
        y, x, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(4, 9)
        labels[(yy - y) ** 2 + (xx - x) ** 2 < r * r] = label
    return labels


def make_results(sizes=("2 nm", "2 nm"), failures=(), count=25):
    records = []
    for number, size in enumerate(sizes):
        labels = discs(count, seed=number)
        image = Image(np.random.default_rng(number).integers(0, 60, (140, 160)).astype(np.uint8), "YX")
        known = None if size is None else PixelSize.parse(size)
        records.append(ImageRecord(f"img{number}", f"img{number}.tif", labels, image, known, info_bar=120))
    return assemble("measure", records, MeasureSettings(("x",)), ["Measured."], list(failures))


class Checker(html.parser.HTMLParser):
    """Collects what a page loads, and its ids."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.links, self.open, self.images_without_alt = [], [], [], [], 0

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        if tag == "a":
            self.links.append(found["href"])
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)
        if tag == "img":
            self.images_without_alt += "alt" not in found
            if not found["src"].startswith("data:image/"):
                self.loads.append(found["src"])


def test_all_files_are_written_and_agree(tmp_path):
    results = make_results().write(tmp_path / "out")
    out = tmp_path / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        "particles.csv",
        "particles.xlsx",
        "report.html",
        "run.json",
        "labels/img0.tif",
        "overlays/img1.png",
    } <= names
    assert "figures/size_distribution_volume.png" in names and not any(".part" in name for name in names)
    table = pd.read_csv(out / "particles.csv", comment="#")
    assert len(table) == len(results.table) > 30
    assert set(table["unit"]) == {"nm"} and list(table.columns)[:2] == ["image", "label"]
    sheet = openpyxl.load_workbook(out / "particles.xlsx")
    assert {"table", "sizes", "images", "method", "definitions", "facts", "units"} <= set(sheet.sheetnames)
    assert sheet["table"].max_row == len(table) + 1
    method = {row[0]: row[1] for row in sheet["method"].iter_rows(values_only=True)}
    assert method["unit of lengths"] == "nm" and "method" in method
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["particles"] == len(table) and record["images"][0]["pixel_size_source"] == "user"
    np.testing.assert_array_equal(io.read_labels(out / "labels/img0.tif").data, results.images[0].labels)


def test_report_is_self_contained_and_accessible():
    results = make_results(failures=[Failure("bad.tif", "segment", "bad.tif: is <broken> & truncated.")])
    text = report.render_report(results)
    page = Checker()
    page.feed(text)
    assert page.loads == [] and page.images_without_alt == 0
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text) and "@import" not in text
    assert "bad.tif: is &lt;broken&gt; &amp; truncated." in text
    assert 'lang="en"' in text and "prefers-color-scheme: dark" in text
    for word in ("D50 in nm", "Miles-Lantuejoul", "2 nm, from user", "equivalent_diameter", "left out from row 120"):
        assert word in text, word


def test_unknown_pixel_size_is_said_and_measured_in_px():
    results = make_results((None, None))
    assert results.unit == "px" and "pixel size is unknown" in results.warnings[0]
    text = report.render_report(results)
    assert "D50 in px" in text and "The pixel size is unknown" in text


def test_images_without_pixel_size_stay_out_of_the_statistics():
    results = make_results(("2 nm", None))
    assert set(results.table["unit"]) == {"nm", "px"}
    assert set(results.sized["image"]) == {"img0"} and "1 of 2 images" in results.warnings[0]


def test_units_of_different_images_are_brought_together():
    results = make_results(("2 nm", "0.002 um"))
    areas = results.table.groupby("image")["area"].median()
    assert areas["img0"] == pytest.approx(areas["img1"], rel=0.4)
    assert results.unit == "nm"


@pytest.mark.parametrize(
    "size, unit", [("2 nm", "nm"), ("0.1 um", "um"), ("1e-9 m", "nm"), ("40 um", "mm"), ("1 angstrom", "nm")]
)
def test_unit_suits_the_pixels(size, unit):
    assert choose_unit([PixelSize.parse(size), None]) == unit


def test_no_particle_and_no_image_give_a_report(tmp_path):
    empty = make_results(("2 nm",), count=0)
    assert not empty.distributions and "No particle" in " ".join(empty.warnings)
    empty.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "particles.csv", comment="#")) == 0
    nothing = assemble("segment", [], MeasureSettings(("x",)), [], [Failure("a.tif", "segment", "a.tif: broken.")])
    assert "No image could be processed." in report.render_report(nothing)


def test_pictures_stay_small_for_large_images():
    labels = np.zeros((4000, 6000), np.int32)
    labels[100:900, 100:1900] = 1
    record = ImageRecord("big", "big.tif", labels, Image(labels.astype(np.uint8), "YX"), PixelSize.parse("1 nm"))
    results = assemble("measure", [record], MeasureSettings(("x",)), [])
    assert len(report.render_report(results)) < 3e6
    assert results.overlay(record).shape == (4000, 6000, 3)


@pytest.mark.parametrize(
    "value, text", [(0, "0.000"), (1234567, "1.235e+06"), (12345.6, "12\u2009346"), (np.nan, "\u2013")]
)
def test_numbers_for_people(value, text):
    assert report.number(value) == text


def test_scale_bar_stays_above_the_info_bar():
    labels = np.zeros((300, 400), np.int32)
    labels[40:80, 40:90] = 1
    image = Image(np.full((300, 400), 50, np.uint8), "YX")
    record = ImageRecord("a", "a.tif", labels, image, PixelSize.parse("2 nm"), info_bar=240)
    results = assemble("measure", [record], MeasureSettings(("x",)), [])
    white = np.argwhere((results.overlay(record) == 255).all(axis=2))
    assert len(white) and white[:, 0].max() < 240
