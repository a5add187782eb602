"""Pixel size from every header we know, made here with made-up numbers."""

import struct

import numpy as np
import pytest
import tifffile

from keras_microseg.image import PixelSize
from keras_microseg.io import open_image
from keras_microseg.io.metadata import HeaderFacts, choose_pixel_size, ome_facts, readable

BLANK = np.zeros((60, 80), np.uint8)


def tiff(path, array=BLANK, tags=(), **options):
    tifffile.imwrite(path, array, extratags=list(tags), metadata=None, **options)
    return path


def text_tag(code, text):
    data = text.encode("cp1252") + b"\0"
    return (code, 1, len(data), data, True)


def check(image, size, unit, source):
    assert image.pixel_size.to(unit).size == pytest.approx(size, rel=1e-4)
    assert source in image.pixel_size.source


ZEISS = "0\r\n0\r\n0\r\n{metres}\r\n" + (
    "AP_PIXEL_SIZE\r\nPixel Size = 3.1 nm\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {value}\r\n"
    "DP_DETECTOR_CHANNEL\r\nSignal A = InLens\r\nAP_ACTUALKV\r\nEHT = 20.00 kV\r\n"
)


@pytest.mark.parametrize(("value", "unit"), [("7.344 nm", "nm"), ("7.344 µm", "um")])
def test_zeiss(tmp_path, value, unit):
    path = tiff(tmp_path / "a.tif", tags=[text_tag(34118, ZEISS.format(metres=7.344e-9, value=value))])
    image = open_image(path)
    check(image, (7.344, 7.344), unit, "ZEISS tag 34118, ap_image_pixel_size")
    assert image.metadata["vendor"] == "ZEISS" and image.metadata["detector"] == "InLens"
    assert image.metadata["voltage"] == "20.0 kV"


FEI = (
    "[User]\r\nDate=01/02/2020\r\n[System]\r\nSystemType=Quanta FEG\r\n[Beam]\r\nHV=15000\r\n"
    "[EScan]\r\nPixelWidth=2.5e-9\r\nPixelHeight=2.6e-9\r\n[Image]\r\nResolutionX=80\r\nResolutionY=52\r\n"
    "[PrivateFei]\r\nDatabarHeight=8\r\n"
)


@pytest.mark.parametrize("code", [34680, 34682])
def test_fei(tmp_path, code):
    image = open_image(tiff(tmp_path / "a.tif", tags=[text_tag(code, FEI)]))
    check(image, (2.6, 2.5), "nm", "FEI header, EScan.PixelWidth")
    assert image.metadata["scan_height"] == 52
    assert image.metadata["instrument"] == "Quanta FEG" and image.metadata["voltage"] == "15000 V"


def test_thermo_xml(tmp_path):
    sizes = '<PixelSize><X unit="m">3e-9</X><Y unit="m">4e-9</Y></PixelSize>'
    xml = f"<Metadata><BinaryResult>{sizes}</BinaryResult></Metadata>"
    check(open_image(tiff(tmp_path / "a.tif", tags=[text_tag(34683, xml)])), (4, 3), "nm", "Thermo Fisher XML")


def test_tescan_tag_and_sidecar(tmp_path):
    text = "\x01\x00junk\n[MAIN]\nDevice=MIRA3\nPixelSizeX=9.76e-09\nPixelSizeY=9.76e-09\nImageStripSize=12\n"
    image = open_image(tiff(tmp_path / "a.tif", tags=[text_tag(50431, text.replace("\0", " "))]))
    check(image, (9.76, 9.76), "nm", "TESCAN tag 50431")
    assert image.metadata["scan_height"] == 48
    tiff(tmp_path / "b.tif")
    (tmp_path / "b-tif.hdr").write_text(text[7:])
    check(open_image(tmp_path / "b.tif"), (9.76, 9.76), "nm", "TESCAN header b-tif.hdr")


def test_sis(tmp_path):
    body = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 1, 2, 3, 4, 120, b"name", 1)
    values = struct.pack("<10xhdd8xd2x34s32s", -9, 1.5, 1.6, 50000.0, b"Morada", b"")
    data = body + struct.pack("<hhI", 1, 1, 0xDEADBEEF) + values
    path = tiff(tmp_path / "a.tif", tags=[(33560, 1, len(data), data, True)])
    raw = path.read_bytes()
    start = raw.index(b"SIS0")
    path.write_bytes(raw.replace(struct.pack("<I", 0xDEADBEEF), struct.pack("<I", start + len(body) + 8)))
    image = open_image(path)
    check(image, (1.6, 1.5), "nm", "Olympus SIS")
    assert image.metadata["detector"] == "Morada"


def test_tvips(tmp_path):
    first = np.zeros((), np.dtype(tifffile.TIFF.TVIPS_HEADER_V1))
    second = np.zeros((), np.dtype(tifffile.TIFF.TVIPS_HEADER_V2))
    first["Version"] = 2
    second["PixelSizeX"], second["PixelSizeY"], second["Magic"] = 0.37, 0.38, 0xAAAAAAAA
    data = first.tobytes() + second.tobytes()
    image = open_image(tiff(tmp_path / "a.tif", tags=[(37706, 1, len(data), data, True)]))
    check(image, (0.38, 0.37), "nm", "TVIPS")


def test_jeol_and_hitachi_text_files(tmp_path):
    tiff(tmp_path / "a.tif")
    (tmp_path / "a.txt").write_text(
        "$CM_FORMAT 1.0\n$CM_FULL_SIZE 80 50\n$CM_INSTRUMENT 7600F\n$$SM_MICRON_BAR 40\n$$SM_MICRON_MARKER 100nm\n"
    )
    image = open_image(tmp_path / "a.tif")
    check(image, (2.5, 2.5), "nm", "JEOL header a.txt")
    assert image.metadata["scan_height"] == 50 and image.metadata["instrument"] == "7600F"
    tiff(tmp_path / "b.tif")
    (tmp_path / "b.txt").write_bytes(
        "[SemImageFile]\r\nInstructName=SU8010\r\nPixelSize=4.96\r\nDataSize=80x54\r\n".encode("utf-16")
    )
    image = open_image(tmp_path / "b.tif")
    check(image, (4.96, 4.96), "nm", "Hitachi header b.txt")
    assert image.metadata["scan_height"] == 54
    tiff(tmp_path / "c.tif")
    (tmp_path / "c.txt").write_text("my notes")
    assert open_image(tmp_path / "c.tif").pixel_size is None


@pytest.mark.parametrize(("unit", "per_unit", "size", "name"), [("nm", 0.5, 2, "nm"), ("micron", 40, 25, "nm")])
def test_imagej(tmp_path, unit, per_unit, size, name):
    tifffile.imwrite(tmp_path / "a.tif", BLANK, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    check(open_image(tmp_path / "a.tif"), (size, size), name, "ImageJ header")


@pytest.mark.parametrize("unit", ["", "pixel", "inch"])
def test_imagej_without_a_real_unit(tmp_path, unit):
    tifffile.imwrite(tmp_path / "a.tif", BLANK, imagej=True, resolution=(100, 100), metadata={"unit": unit})
    assert open_image(tmp_path / "a.tif").pixel_size is None


@pytest.mark.parametrize("dpi", [1, 72, 96, 192, 300, 600, 1200])
def test_print_resolution_is_not_a_pixel_size(tmp_path, dpi):
    assert open_image(tiff(tmp_path / "a.tif", resolution=(dpi, dpi), resolutionunit=2)).pixel_size is None


def test_fine_resolution_is_a_pixel_size(tmp_path):
    path = tiff(tmp_path / "a.tif", resolution=(1e6, 5e5), resolutionunit=3)
    check(open_image(path), (20, 10), "nm", "TIFF resolution tags")


def test_contradiction_is_noted(tmp_path):
    path = tiff(
        tmp_path / "a.tif", tags=[text_tag(34118, ZEISS.format(metres=1, value="7 nm"))], resolution=(1e6, 1e6),
        resolutionunit=3,
    )  # fmt: skip
    image = open_image(path)
    check(image, (7, 7), "nm", "ZEISS")
    assert image.metadata["warnings"] == [
        "pixel sizes disagree: 7 nm (ZEISS tag 34118, ap_image_pixel_size), used; 10 nm (TIFF resolution tags)"
    ]


def test_damaged_headers_are_no_obstacle(tmp_path):
    path = tiff(tmp_path / "a.tif", tags=[text_tag(34118, "AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = ?\r\n")])
    assert open_image(path).pixel_size is None
    assert "damaged" in ome_facts("<OME><Pixels").warnings[0]
    found = HeaderFacts()
    for values, unit in (((0, 1), "nm"), ((np.nan, 1), "nm"), (("x",), "nm"), ((1, 1), "furlong"), ((-1, 1), "nm")):
        found.add_size(values, unit, "test")
    assert found.sizes == []


def test_volume_without_slice_distance(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((3, 6, 8), np.uint8), imagej=True, resolution=(2, 2),
        metadata={"unit": "nm", "axes": "ZYX"},
    )  # fmt: skip
    image = open_image(tmp_path / "a.tif")
    assert image.pixel_size is None and "between slices" in image.metadata["warnings"][0]
    assert next(image.planes()).pixel_size.to("nm").size == pytest.approx((0.5, 0.5))
    assert open_image(tmp_path / "a.tif", pixel_size="1 x 0.5 x 0.5 nm").pixel_size.size == (1, 0.5, 0.5)


def test_readable_units():
    assert str(readable(PixelSize((1.2e-8,), "m"))) == "12 nm"
    assert str(readable(PixelSize((2.5e-6,), "inch"))) == "63.5 nm"
    assert str(readable(PixelSize((7.344,), "nm"))) == "7.344 nm"
    assert choose_pixel_size(HeaderFacts(), 2) == (None, {})


def test_zeiss_header_of_a_real_image(real_data):
    path = real_data / "bam_tio2" / "sem" / "1908248.tif"
    image = open_image(path)
    check(image, (7.344, 7.344), "nm", "ZEISS tag 34118, ap_image_pixel_size")
    assert image.axes == "YX" and image.shape == (768, 1024)
    stored = tifffile.imread(path)  # the index is the grey value wherever there is picture
    np.testing.assert_array_equal(image.read((slice(0, 712), slice(None))), stored[:712])
