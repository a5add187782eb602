"""Pixel size and instrument facts from the headers that microscopes and programs write.

Each `*_facts` function reads one kind of header into `HeaderFacts`; `tiff_facts` asks them all. The first trustworthy
pixel size wins, its provenance is kept in `PixelSize.source`, and one that disagrees is noted as a warning.
A resolution meant for printing (72 or 300 dots per inch) is not a pixel size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.image import METRES, PixelSize, normalize_unit

LARGEST_PIXEL = 10e-6
"""Metres. A resolution tag that gives a larger pixel than this (2540 per inch) speaks of paper, not of the sample."""


@dataclasses.dataclass
class HeaderFacts:
    """What a header says.

    Attributes:
        sizes: pixel sizes found, the most trustworthy first; (y, x) or (z, y, x).
        facts: instrument facts in words, JSON values.
        scan_height: rows of the scan itself, when the header states them (what lies below is a data bar).
        warnings: what was strange.
    """

    sizes: list[PixelSize] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    scan_height: int | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add_size(self, values: Iterable[Any], unit: str, source: str) -> None:
        """Note a pixel size; zero, negative or unreadable numbers and unknown units are left out."""
        try:
            numbers = tuple(float(value) for value in values)
            if all(np.isfinite(n) and n > 0 for n in numbers):
                self.sizes.append(readable(PixelSize(numbers, unit, source)))
        except (TypeError, ValueError):
            pass

    def merge(self, other: HeaderFacts) -> None:
        """Append what `other` found; what is already known stays."""
        self.sizes += other.sizes
        self.facts = {**other.facts, **self.facts}
        self.scan_height = self.scan_height or other.scan_height
        self.warnings += other.warnings


def readable(size: PixelSize) -> PixelSize:
    """The same size in the unit (pm, nm, um, mm) that gives a number from 1 to 1000; in its own unit if that does."""
    if 0.1 <= size.mean < 1000 and size.unit not in ("m", "cm", "inch"):
        return size
    metres = size.mean * METRES[size.unit]
    unit = next((u for u in ("pm", "nm", "um") if metres < 1000 * METRES[u]), "mm")
    return size.to(unit)


def choose_pixel_size(found: HeaderFacts, ndim: int) -> tuple[PixelSize | None, dict[str, Any]]:
    """The pixel size to use and what goes into `Image.metadata`.

    Args:
        found: all that the headers say.
        ndim: spatial axes of the image. For 3 a slice distance must be known; without one the size of y and x is only
            noted as `pixel_size_yx`.

    Returns:
        `(pixel_size or None, metadata)`.
    """
    metadata: dict[str, Any] = dict(found.facts)
    warnings = list(found.warnings)
    chosen = None
    if found.sizes:
        plane = dataclasses.replace(found.sizes[0], size=_fit(found.sizes[0].size, 2))
        for other in found.sizes[1:]:
            ratios = np.array(_fit(other.to(plane.unit).size, 2)) / np.array(plane.size)
            if np.any(np.abs(np.log(ratios)) > 0.01):
                warnings.append(
                    f"pixel sizes disagree: {plane} ({plane.source}), used; {other.to(plane.unit)} ({other.source})"
                )
        if ndim == 2:
            chosen = plane
        else:
            chosen = next((size for size in found.sizes if len(size.size) == ndim), None)
            if chosen is None:
                metadata["pixel_size_yx"] = {"size": list(plane.size), "unit": plane.unit, "source": plane.source}
                warnings.append("the header gives no distance between slices; pass pixel_size=(z, y, x) with its unit")
    if found.scan_height:
        metadata["scan_height"] = int(found.scan_height)
    if warnings:
        metadata["warnings"] = warnings
    return chosen, metadata


def _fit(size: tuple[float, ...], ndim: int) -> tuple[float, ...]:
    return size[-ndim:] if len(size) >= ndim else size * ndim


# ---------------------------------------------------------------------------------------------------- TIFF headers


def tiff_facts(tif: Any, series: int = 0) -> HeaderFacts:
    """All that the headers of an open `tifffile.TiffFile` say about the size of its pixels.

    Args:
        tif: the open file.
        series: which series; matters for OME-TIFF, where every series has its own size.
    """
    found = HeaderFacts()
    page = tif.pages.first
    for reader in (_zeiss, _fei, _tescan, _sis, _tvips):
        try:
            found.merge(reader(tif, page))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found.warnings.append(f"a vendor header could not be read ({reader.__name__[1:]}: {error})")
    if tif.is_ome and tif.ome_metadata:
        found.merge(ome_facts(tif.ome_metadata, series))
    if tif.is_imagej:
        found.merge(imagej_facts(tif.imagej_metadata or {}, _ratio(page, "XResolution"), _ratio(page, "YResolution")))
    else:
        unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof("ResolutionUnit", default=2) or 0))
        if unit:
            x, y = _ratio(page, "XResolution"), _ratio(page, "YResolution")
            found.merge(resolution_facts(y, x, unit, "TIFF resolution tags"))
    return found


def _ratio(page: Any, name: str) -> float | None:
    """A resolution tag as pixels per unit."""
    value = page.tags.valueof(name)
    try:
        top, bottom = value
        return float(top) / float(bottom)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def resolution_facts(y: float | None, x: float | None, unit: str, source: str) -> HeaderFacts:
    """Pixel size from pixels per length, unless the resolution is one of paper or screen.

    Args:
        y, x: pixels per `unit`.
        unit: length unit.
        source: where it stands, in words.
    """
    found = HeaderFacts()
    if x and y and np.isfinite([x, y]).all() and min(x, y) > 0 and METRES[unit] / min(x, y) <= LARGEST_PIXEL:
        found.add_size((1 / y, 1 / x), unit, source)
    return found


def _zeiss(tif: Any, page: Any) -> HeaderFacts:
    """ZEISS SmartSEM, tag 34118. Values look like `("Image Pixel Size", 7.344, "nm")`."""
    found = HeaderFacts()
    header = tif.sem_metadata
    if not header:
        return found
    for name in ("ap_image_pixel_size", "ap_pixel_size"):
        entry = header.get(name, ())
        if len(entry) == 3:
            found.add_size(entry[1:2] * 2, entry[2], f"ZEISS tag 34118, {name}")
            if found.sizes:
                break
    unnamed = header.get("", ())
    if not found.sizes and len(unnamed) > 3:  # the fourth unnamed value is the pixel size in metres
        found.add_size([unnamed[3]] * 2, "m", "ZEISS tag 34118, fourth value")
    names = {
        "dp_detector_channel": "detector", "ap_mag": "magnification", "ap_actualkv": "voltage",
        "ap_wd": "working_distance", "ap_date": "date", "sv_serial_number": "instrument",
    }  # fmt: skip
    found.facts["vendor"] = "ZEISS"
    for name, fact in names.items():
        if len(header.get(name, ())) > 1:
            found.facts[fact] = " ".join(str(part) for part in header[name][1:])
    return found


def _fei(tif: Any, page: Any) -> HeaderFacts:
    """FEI / Thermo Fisher: INI text in tags 34680 and 34682 (metres), XML in tag 34683."""
    found = HeaderFacts()
    header = tif.fei_metadata or {}
    for section in ("Scan", "EScan", "IScan"):
        values = header.get(section, {})
        if "PixelWidth" in values and not found.sizes:
            height = values.get("PixelHeight", values["PixelWidth"])
            found.add_size((height, values["PixelWidth"]), "m", f"FEI header, {section}.PixelWidth")
    rows = header.get("Image", {}).get("ResolutionY")
    bar = header.get("PrivateFei", {}).get("DatabarHeight")
    if isinstance(rows, int) and 0 < rows < page.imagelength:
        found.scan_height = rows
    elif isinstance(bar, int) and 0 < bar < page.imagelength:
        found.scan_height = page.imagelength - bar
    if header:
        found.facts["vendor"] = "FEI / Thermo Fisher"
        for section, name, fact in (
            ("System", "SystemType", "instrument"), ("Detectors", "Name", "detector"), ("Beam", "HV", "voltage"),
            ("EBeam", "HV", "voltage"), ("Stage", "WorkingDistance", "working_distance"), ("User", "Date", "date"),
        ):  # fmt: skip
            value = header.get(section, {}).get(name)
            if value not in (None, ""):
                unit = {"voltage": " V", "working_distance": " m"}.get(fact, "")
                found.facts.setdefault(fact, f"{value}{unit}")
    xml = page.tags.valueof(34683)
    if xml is not None:
        text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else str(xml)
        sizes = [
            re.search(rf"<PixelSize>.*?<{axis}\b[^>]*?unit=\"m\"[^>]*>\s*([-+0-9.eE]+)\s*</{axis}>", text, re.DOTALL)
            for axis in "YX"
        ]
        if all(sizes):
            found.add_size([match[1] for match in sizes], "m", "Thermo Fisher XML tag 34683, PixelSize")
            found.facts.setdefault("vendor", "FEI / Thermo Fisher")
    return found


def _tescan(tif: Any, page: Any) -> HeaderFacts:
    """TESCAN: INI text inside the binary tag 50431."""
    value = page.tags.valueof(50431)
    if value is None:
        return HeaderFacts()
    data = value if isinstance(value, (bytes, str)) else np.asarray(value, np.uint8).tobytes()
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    return tescan_facts(text, page.imagelength, "TESCAN tag 50431")


def tescan_facts(text: str, rows: int, source: str) -> HeaderFacts:
    """TESCAN `key=value` text; `ImageStripSize` is the height of the data bar."""
    found = HeaderFacts()
    values = dict(re.findall(r"(?m)^\s*([A-Za-z]\w*)=([^\r\n\0]*)", text))
    if "PixelSizeX" not in values:
        return found
    found.add_size((values.get("PixelSizeY", values["PixelSizeX"]), values["PixelSizeX"]), "m", f"{source}, PixelSizeX")
    strip = values.get("ImageStripSize", "0").strip()
    if strip.isdecimal() and 0 < int(strip) < rows:
        found.scan_height = rows - int(strip)
    found.facts["vendor"] = "TESCAN"
    for name, fact in (("Device", "instrument"), ("Detector", "detector"), ("Date", "date"), ("HV", "voltage")):
        if values.get(name, "").strip():
            found.facts[fact] = values[name].strip() + (" V" if fact == "voltage" else "")
    return found


def _sis(tif: Any, page: Any) -> HeaderFacts:
    """Olympus SIS (also JEOL, Hitachi and Philips TEMs with iTEM), tag 33560; metres."""
    found = HeaderFacts()
    header = tif.sis_metadata or {}
    if "pixelsizex" in header:
        size_x = header["pixelsizex"]
        found.add_size((header.get("pixelsizey") or size_x, size_x), "m", "Olympus SIS tag 33560, pixelsizex")
        found.facts["vendor"] = "Olympus SIS"
        if header.get("cameraname"):
            found.facts["detector"] = str(header["cameraname"])
    return found


def _tvips(tif: Any, page: Any) -> HeaderFacts:
    """TVIPS EM-MENU, tag 37706. Nanometres; some tifffile versions convert to metres."""
    found = HeaderFacts()
    header = tif.tvips_metadata or {}
    size_x = header.get("PixelSizeX")
    if size_x:
        unit = "nm" if float(size_x) > 1e-5 else "m"
        found.add_size((header.get("PixelSizeY") or size_x, size_x), unit, "TVIPS tag 37706, PixelSizeX")
        found.facts["vendor"] = "TVIPS"
    return found


def imagej_facts(header: Mapping[str, Any], x: float | None, y: float | None) -> HeaderFacts:
    """ImageJ / Fiji: the unit stands in the description, pixels per unit in the resolution tags.

    Args:
        header: `imagej_metadata` of tifffile.
        x, y: pixels per unit.
    """
    found = HeaderFacts()
    try:
        unit = normalize_unit(str(header.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00C5", "Å"))
    except UserError:
        return found  # no unit, or "pixel"
    if not x or not y:
        return found
    if unit == "inch":  # ImageJ copies the print resolution of JPEG and PNG files into its own unit
        return resolution_facts(y, x, unit, "ImageJ header, unit and resolution")
    spacing = header.get("spacing")
    if spacing:
        found.add_size((abs(float(spacing)), 1 / y, 1 / x), unit, "ImageJ header, unit, resolution and spacing")
    else:
        found.add_size((1 / y, 1 / x), unit, "ImageJ header, unit and resolution")
    return found


def ome_facts(xml: str, series: int = 0) -> HeaderFacts:
    """OME-XML: `PhysicalSizeX` and its unit (micrometre when none stands there) of one image.

    Args:
        xml: the OME-XML text.
        series: index of the image in it.
    """
    from xml.etree import ElementTree

    found = HeaderFacts()
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        found.warnings.append(f"the OME-XML header is damaged ({error})")
        return found
    pixels = [node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"]
    if series < len(pixels):
        node = pixels[series]
        sizes = {axis: node.get(f"PhysicalSize{axis}") for axis in "ZYX"}
        units = {axis: node.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"}
        axes = "ZYX" if sizes["Z"] else "YX"
        try:
            metres = [float(sizes[axis]) * METRES[normalize_unit(units[axis])] for axis in axes if sizes[axis]]
        except ValueError:
            metres = []
        if len(metres) == len(axes):
            unit = normalize_unit(units["X"])
            found.add_size([value / METRES[unit] for value in metres], unit, "OME-XML, PhysicalSizeX")
    for node in root.iter():
        if node.tag.rpartition("}")[2] == "Microscope" and node.get("Model"):
            found.facts["instrument"] = node.get("Model")
    return found


# ------------------------------------------------------------------------------------------------ files beside images


def sidecar_facts(path: Path, rows: int) -> HeaderFacts:
    """Headers that JEOL, Hitachi and TESCAN put into a text file beside the image (same name, `.txt` or `.hdr`).

    Args:
        path: the image file.
        rows: rows of the image, to find the data bar.
    """
    found = HeaderFacts()
    names = [path.with_suffix(".txt"), path.with_suffix(".hdr"), path.with_name(f"{path.stem}-{path.suffix[1:]}.hdr")]
    for beside in names:
        try:
            if not beside.is_file() or beside == path or beside.stat().st_size > 1_000_000:
                continue
            raw = beside.read_bytes()
        except OSError:
            continue
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1", "replace")
        if "$CM_FORMAT" in text or "$$SM_MICRON" in text:
            found.merge(_jeol_text(text, rows, beside.name))
        elif "[SemImageFile]" in text:
            found.merge(_hitachi_text(text, rows, beside.name))
        elif beside.suffix.lower() == ".hdr":
            found.merge(tescan_facts(text, rows, f"TESCAN header {beside.name}"))
    return found


def _jeol_text(text: str, rows: int, name: str) -> HeaderFacts:
    """JEOL: a scale bar of `$$SM_MICRON_BAR` pixels stands for the length `$$SM_MICRON_MARKER`."""
    found = HeaderFacts()
    values = dict(re.findall(r"(?m)^\$+(\w+)[ \t]+([^\r\n]*)", text))
    marker = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\S+)\s*", values.get("SM_MICRON_MARKER", ""))
    try:
        bar = float(values.get("SM_MICRON_BAR", "nan"))
        if marker and bar > 0:
            found.add_size([float(marker[1]) / bar] * 2, marker[2], f"JEOL header {name}, SM_MICRON_MARKER / BAR")
    except ValueError:
        found.warnings.append(f"{name}: the scale bar entry is damaged")
    size = values.get("CM_FULL_SIZE", "").split()
    if len(size) == 2 and size[1].isdecimal() and 0 < int(size[1]) < rows:
        found.scan_height = int(size[1])
    found.facts["vendor"] = "JEOL"
    for key, fact in (("CM_INSTRUMENT", "instrument"), ("CM_MAG", "magnification"), ("CM_DATE", "date")):
        if values.get(key, "").strip():
            found.facts[fact] = values[key].strip()
    if values.get("CM_ACCEL_VOLT", "").strip():
        found.facts["voltage"] = values["CM_ACCEL_VOLT"].strip() + " kV"
    return found


def _hitachi_text(text: str, rows: int, name: str) -> HeaderFacts:
    """Hitachi: `PixelSize` in nanometres, `DataSize` is the scan without the data bar."""
    found = HeaderFacts()
    values = dict(re.findall(r"(?m)^(\w+)=([^\r\n]*)", text))
    if "PixelSize" in values:
        found.add_size([values["PixelSize"]] * 2, "nm", f"Hitachi header {name}, PixelSize")
    size = re.fullmatch(r"\s*(\d+)x(\d+)\s*", values.get("DataSize", ""))
    if size and 0 < int(size[2]) < rows:
        found.scan_height = int(size[2])
    found.facts["vendor"] = "Hitachi"
    for key, fact in (
        ("InstructName", "instrument"), ("InstrumentName", "instrument"), ("SignalName", "detector"),
        ("Magnification", "magnification"), ("AcceleratingVoltage", "voltage"), ("Date", "date"),
    ):  # fmt: skip
        if values.get(key, "").strip():
            found.facts[fact] = values[key].strip()
    return found
