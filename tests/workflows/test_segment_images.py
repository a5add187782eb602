import json

import numpy as np
import pandas as pd
import pytest

import keras_microseg as km
from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.workflows.segment_images import CleanLabels, SegmentSettings, parse_length, to_pixels


def micrograph(shape=(140, 180), radius=9, dark=False) -> tuple[np.ndarray, np.ndarray]:
    """Discs on a grid, bright on dark ground, with their labels."""
    yy, xx = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate([(30, 30), (30, 90), (70, 60), (70, 130), (110, 30), (110, 100)], start=1):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= radius**2] = number
    image = np.where(labels > 0, 180.0, 40.0) + np.random.default_rng(0).normal(0, 4, shape)
    return (255 - image if dark else image).astype(np.uint8), labels


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        io.write_image(tmp_path / "in" / f"{name}.tif", micrograph()[0], axes="YX", pixel_size=PixelSize.parse("2 nm"))
    return tmp_path


def test_arrays_in_memory():
    image, truth = micrograph()
    results = km.segment(image, method="classical", pixel_size="0.5 um")
    assert len(results.table) == 6 and not results.failures and results.out is None
    assert results.unit == "um"
    assert results.table["equivalent_diameter"].median() == pytest.approx(9.5, rel=0.08)  # 19 px of 0.5 um
    assert km.evaluate(results.images[0].read_labels(), truth, resamples=10)["f1"] == 1


@pytest.mark.parametrize("dark", [False, True])
def test_files_to_folder_and_polarity(folder, dark):
    io.write_image(folder / "in" / "c.png", micrograph(dark=dark)[0], axes="YX")
    results = km.segment(folder / "in", folder / "out", method="classical")
    assert results.report_path.is_file() and len(results.table) == 18
    record = json.loads((folder / "out/run.json").read_text(encoding="utf-8"))
    assert [image["pixel_size"] for image in record["images"]] == ["2 nm", "2 nm", "unknown"]
    labels = km.read_labels(folder / "out/labels/a.tif")
    assert labels.pixel_size.unit == "nm" and labels.data.max() == 6


def test_a_corrupt_file_does_not_stop_the_others(folder):
    data = (folder / "in/a.tif").read_bytes()
    (folder / "in/broken.tif").write_bytes(data[: len(data) // 3])
    (folder / "in/text.tif").write_text("no image at all")
    results = km.segment(folder / "in", folder / "out", method="classical")
    assert len(results.images) == 2 and len(results.failures) == 2
    assert all(failure.item.split("/")[-1] in failure.message for failure in results.failures)
    text = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "2 of 4 files could not be processed" in text


def test_resume_after_repair(folder):
    (folder / "in/text.tif").write_text("no image at all")
    km.segment(folder / "in", folder / "out", method="classical")
    before = (folder / "out/labels/a.tif").stat().st_mtime_ns
    io.write_image(folder / "in/text.tif", micrograph()[0], axes="YX")
    results = km.segment(folder / "in", folder / "out", method="classical", resume=True)
    assert not results.failures and len(results.table) == 18
    assert (folder / "out/labels/a.tif").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((80, 90), np.uint8),
        np.full((80, 90), np.nan, np.float32),
        np.ones((1, 1), np.uint16),
        np.arange(7 * 300, dtype=np.uint16).reshape(7, 300) % 3,
    ],
    ids=["black", "nan", "1x1", "7x300"],
)
def test_images_without_particles(pixels):
    results = km.segment(Image(pixels, "YX"), method="classical")
    assert not results.failures
    assert results.images[0].read_labels().shape == pixels.shape


def test_inf_and_colour_images_are_read():
    image, _ = micrograph()
    hot = image.astype(np.float32)
    hot[0, 0], hot[5, 5] = np.inf, -np.inf
    colour = np.stack([image] * 3, axis=-1)
    for array in (hot, colour):
        assert len(km.segment(array, method="classical").table) == 6


def test_stack_is_segmented_plane_by_plane(tmp_path):
    stack = np.stack([micrograph()[0], micrograph(dark=True)[0]])
    io.write_image(tmp_path / "stack.tif", stack, axes="TYX")
    results = km.segment(tmp_path / "stack.tif", tmp_path / "out", method="classical", pixel_size="1nm")
    assert [record.name for record in results.images] == ["stack_p1", "stack_p2"]
    assert (tmp_path / "out/overlays/stack_p2.png").is_file()
    assert results.table.groupby("image").size().tolist() == [6, 6]


def test_info_bar_row_is_left_out():
    image, _ = micrograph()
    image[120:] = 0
    image[125:135, 20:120] = 255
    results = km.segment(image, method="classical", info_bar=120)
    (record,) = results.images
    assert record.info_bar == 120 and not record.read_labels()[120:].any()
    assert record.read_labels().shape == image.shape and len(results.table) == 6
    with pytest.raises(UserError, match="info_bar.*pixel row.*'bottom'"):
        km.segment(image, method="classical", info_bar="bottom")


def test_small_and_cut_particles_are_left_out():
    image, labels = micrograph()
    image[0:12, 100:120] = 180  # cut by the edge
    image[60:63, 10:13] = 180  # 9 pixels
    count = [len(km.segment(image, method="classical", min_diameter=low).table) for low in (1, "5 px")]
    assert count[1] == 7
    clean = km.segment(image, method="classical", min_diameter="5 px", exclude_border=True)
    assert len(clean.table) == 6 and clean.images[0].read_labels().max() == 6
    with_size = km.segment(image, method="classical", min_diameter="10 nm", pixel_size="2 nm")
    assert len(with_size.table) == 7
    unknown = km.segment(image, method="classical", min_diameter="10 nm")
    assert "needs the pixel size" in unknown.failures[0].message


@pytest.mark.parametrize(
    "text, expected", [("5nm", (5, "nm")), ("4 px", (4, "px")), (12, (12, "px")), ("1.5 µm", (1.5, "um"))]
)
def test_lengths(text, expected):
    assert parse_length(text, "diameter") == expected


@pytest.mark.parametrize("text", ["", "nm", "-3nm", "0", "5 furlongs", "nan"])
def test_no_lengths(text):
    with pytest.raises(UserError, match="diameter"):
        parse_length(text, "diameter")


def test_lengths_in_pixels():
    assert to_pixels("10 nm", PixelSize.parse("0.002 um"), "diameter") == pytest.approx(5)
    assert to_pixels("7 px", None, "diameter") == 7


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"polarity": "grey"}, {"unit": "parsec"}, {"pixel_size": "1"}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError):
        SegmentSettings(("a",), **wrong)


def test_table_is_the_same_in_memory_and_on_disk(folder):
    memory = km.segment(folder / "in", method="classical")
    disk = km.segment(folder / "in", folder / "out", method="classical")
    pd.testing.assert_frame_equal(memory.table, disk.table)
    stored = pd.read_csv(folder / "out/particles.csv", comment="#")
    np.testing.assert_allclose(stored["area"], disk.table["area"])


class Window:
    """An array that can only be read by windows, as those on disk."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key):
        return np.array(self.array[key])


@pytest.mark.parametrize("top", [50, 70_000])
def test_labels_of_large_images_are_cleaned_and_written_in_bands(tmp_path, top):
    _, labels = micrograph()
    labels = labels * (top // 6)  # gaps
    labels[:3, 50:60] = 5  # cut by the edge
    clean = CleanLabels(Window(labels), (150, 180), exclude_border=True)
    assert clean.count == 6 and clean.shape == (150, 180)
    size = PixelSize.parse("1.5 nm")
    io.write_labels(tmp_path / "a.tif", clean, pixel_size=size, origin={"source": "x"})
    stored = km.read_labels(tmp_path / "a.tif")
    assert stored.pixel_size.size == pytest.approx((1.5, 1.5)) and stored.data.max() == 6
    assert not stored.data[140:].any()
    np.testing.assert_array_equal(stored.data[:140] > 0, (labels > 0) & (labels != 5))
    many = CleanLabels(Window(np.arange(70_000, dtype=np.int32).reshape(200, 350)), (200, 350))
    io.write_labels(tmp_path / "b.tif", many)
    np.testing.assert_array_equal(km.read_labels(tmp_path / "b.tif").data, many[...])


def test_quality_in_table_summary_and_report(folder):
    results = km.segment(folder / "in", folder / "out", method="classical", quality=True)
    assert results.table["stability"].between(0.6, 1).all() and len(results.table) == 12
    facts = results.images[0].facts
    assert facts["agreement"] == 1 and 0 <= facts["expected_f1"] <= 1
    assert any(line.startswith("Quality: agreement") for line in results.highlights())
    assert "Quality: agreement" in (folder / "out/report.html").read_text(encoding="utf-8")
    assert "stability" in set(results.definitions()["quantity"])
    written = pd.read_csv(folder / "out/particles.csv", comment="#")
    np.testing.assert_allclose(written["stability"], results.table["stability"])
    (folder / "out/report.html").unlink()
    again = km.segment(folder / "in", folder / "out", method="classical", quality=True, resume=True)
    np.testing.assert_allclose(again.table["stability"], results.table["stability"])
    image, _ = micrograph()
    in_memory = km.segment([image, np.zeros((40, 50), np.uint8)], method="classical", quality=True)
    assert in_memory.images[0].facts["agreement"] == 1
    assert "agreement" not in in_memory.images[1].facts  # nothing was found that could be judged
    assert "stability" not in km.segment(image, method="classical").table
