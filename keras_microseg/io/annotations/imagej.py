"""ImageJ and Fiji: single regions of interest (`.roi`) and sets of them (`.zip`).

The binary format is that of ImageJ's RoiDecoder and RoiEncoder: big-endian, a header of 64 bytes, the coordinates, a
second header with name, plane and properties. Coordinates count from the corner of the first pixel.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations.labelme import file_stem
from keras_microseg.io.annotations.records import (
    AnnotatedImage,
    Annotations,
    Collector,
    Region,
    Rings,
    ellipse,
    polygon_area,
    rectangle,
)
from keras_microseg.io.files import atomic_path, natural_key

_POLYGON, _RECT, _OVAL, _FREEHAND, _TRACED = 0, 1, 2, 7, 8
_NO_AREA = {3: "line", 4: "freehand line", 5: "segmented line", 6: "empty selection", 9: "angle", 10: "point"}
_TEXT, _IMAGE = 1, 4
_SUBPIXEL = 128
_VERSION = 228
_CURVE = np.linspace(0, 1, 17)[1:, None]


def read(path: str | os.PathLike) -> Annotations:
    """Read a region, a set of regions, or a folder of such files.

    Every file stands for the image of its name (`scan.zip` for `scan.tif`). Polygons, freehand and traced selections,
    rectangles, ovals and composite selections are read, with fractions of pixels; lines, points and texts are left
    out and listed. Regions of a stack are sorted into the planes they were drawn on.

    Raises:
        FileError: unreadable, or no ROI file.
    """
    path = Path(path)
    collector = Collector(path, "imagej")
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in (".roi", ".zip")), key=natural_key)
    else:
        files = [path]
    for file in files:
        try:
            entries = list(_entries(file))
        except FileError as error:
            if not path.is_dir():
                raise
            collector.note(file.stem, "", "unreadable file", str(error))
            continue
        planes: dict[tuple[str, int] | None, list[Region]] = {} if entries else {None: []}
        for name, data in entries:
            try:
                region, position = decode_roi(data, name)
            except (ValueError, struct.error, IndexError) as error:
                collector.note(file.stem, name, "damaged shape", str(error))
                continue
            except NotImplementedError as error:
                collector.note(file.stem, name, "no area", str(error), is_error=False)
                continue
            planes.setdefault(("z", position - 1) if position else None, []).append(region)
        for plane, regions in planes.items():
            collector.add(AnnotatedImage(file.stem, tuple(regions), plane=plane))
    return collector.result()


def write(folder: str | os.PathLike, annotations: Annotations) -> None:
    """Write a set of regions (`.zip`) per image into a folder; planes of one volume share a set.

    ImageJ leaves out pixels that only touch the outline, so objects of VIA and labelme lose about half a pixel all
    around; convert them to label images first to keep every pixel.
    """
    sets: dict[str, list[AnnotatedImage]] = {}
    for image in annotations.images:
        sets.setdefault(Path(image.name).stem if image.plane else file_stem(image), []).append(image)
    for stem, images in sets.items():
        with atomic_path(Path(folder) / f"{stem}.zip") as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                count = 0
                for image in images:
                    for region in image.regions:
                        count += 1
                        name = f"{count:05d}" + (f"-{region.category}" if region.category else "")
                        data = encode_roi(region, name, image.plane[1] + 1 if image.plane else 0)
                        archive.writestr(f"{name.replace('/', '_')}.roi", data)


def decode_roi(data: bytes, name: str = "") -> tuple[Region, int]:
    """A region from the bytes of a `.roi` file.

    Returns:
        `(region, position)`: the region, and the plane it was drawn on counted from 1, 0 = none.

    Raises:
        UserError: no ROI, or a cut one.
        NotImplementedError: a selection without area; the message says which.
    """
    if len(data) < 64 or data[:4] != b"Iout":
        raise UserError("is no ImageJ region")
    version, kind = struct.unpack(">HB", data[4:7])
    top, left, bottom, right, count = struct.unpack(">4hH", data[8:18])
    (shape_size,), (subtype, options) = struct.unpack(">i", data[36:40]), struct.unpack(">hh", data[48:52])
    position, second = struct.unpack(">ii", data[56:64])
    attributes, category = {"name": name} if name else {}, ""
    if second and second + 52 <= len(data):
        _, z, _, name_at, name_size = struct.unpack(">5i", data[second + 4 : second + 24])
        position = z or position
        notes_at, notes_size = struct.unpack(">ii", data[second + 40 : second + 48])
        if name_size > 0:
            attributes["name"] = data[name_at : name_at + 2 * name_size].decode("utf-16-be", "replace")
        if notes_size > 0:
            notes = data[notes_at : notes_at + 2 * notes_size].decode("utf-16-be", "replace")
            pairs = dict(line.split(": ", 1) for line in notes.splitlines() if ": " in line)
            category = pairs.pop("category", "")
            attributes.update(pairs)
    if kind in _NO_AREA or subtype in (_TEXT, _IMAGE):
        raise NotImplementedError(f"is a {_NO_AREA.get(kind, 'text or picture')} and is left out.")
    exact = bool(options & _SUBPIXEL) and version >= 222
    if shape_size > 0:
        parts = _nest(_read_path(np.frombuffer(data, ">f4", shape_size, 64).astype(np.float64)))
    elif kind in (_RECT, _OVAL):
        x, y, width, height = left, top, right - left, bottom - top
        if exact and version >= 223:
            x, y, width, height = (float(value) for value in struct.unpack(">4f", data[18:34]))
        if kind == _RECT:
            ring = rectangle(y, x, y + height, x + width)
        else:
            points = int(np.clip(8 * max(width, height), 64, 2048)) // 4 * 4
            ring = ellipse((y + height / 2, x + width / 2), (height / 2, width / 2), points=points)
        parts = [(ring,)]
    elif kind in (_POLYGON, _FREEHAND, _TRACED):
        if exact:
            x, y = np.frombuffer(data, ">f4", 2 * count, 64 + 4 * count).astype(np.float64).reshape(2, count)
        else:
            x, y = np.frombuffer(data, ">i2", 2 * count, 64).astype(np.float64).reshape(2, count)
            x, y = x + left, y + top
        parts = [(np.column_stack([y, x]),)]
    else:
        raise UserError(f"unknown kind of region {kind}")
    if not parts or not all(len(ring) and np.isfinite(ring).all() for part in parts for ring in part):
        raise UserError("its vertices are missing or not finite")
    first, *others = (tuple(ring - 0.5 for ring in part) for part in parts)
    region = Region(first[0], attributes, category, first[1:], tuple(others), key=name or None, fill="centres")
    return region, position


def encode_roi(region: Region, name: str = "", position: int = 0) -> bytes:
    """Bytes of a `.roi` file: a polygon, or a composite selection where there are holes or parts.

    Vertices that are no whole numbers are written with fractions. The category goes to the properties.

    Raises:
        UserError: more than 65,535 vertices, or coordinates beyond the 16 bits of the format.
    """
    polygons = [[np.asarray(ring, np.float64) + 0.5 for ring in part] for part in region.polygons]
    rings = [ring for part in polygons for ring in part]
    if not rings:
        raise UserError("an object without pixels cannot be an ImageJ region")
    points = np.concatenate(rings)
    low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
    if max(abs(low).max(), abs(high).max()) > 32767 or max(len(ring) for ring in rings) > 65535:
        raise UserError("an object reaches beyond the 16 bits of an ImageJ region")
    options = shape_size = count = 0
    if len(rings) > 1:
        kind, numbers = _RECT, []
        for ring in rings:
            for k, (y, x) in enumerate(ring):
                numbers += [1.0 if k else 0.0, x, y]
            numbers.append(4.0)
        body, shape_size = np.array(numbers, ">f4").tobytes(), len(numbers)
    else:
        kind, count = _FREEHAND if region.fill == "outline" else _TRACED, len(points)
        whole = np.rint(points).astype(int) - low
        body = whole.T[::-1].astype(">i2").tobytes()
        if (points % 1).any():
            kind, options = _POLYGON, _SUBPIXEL
            body += points.T[::-1].astype(">f4").tobytes()
    head = bytearray(64)
    head[:4] = b"Iout"
    struct.pack_into(">HB", head, 4, _VERSION, kind)
    struct.pack_into(">4hH", head, 8, low[0], low[1], high[0], high[1], count)
    struct.pack_into(">i", head, 36, shape_size)
    struct.pack_into(">hh", head, 48, 0, options)
    notes = f"category: {region.category}\n" if region.category else ""
    second = 64 + len(body)
    struct.pack_into(">ii", head, 56, position, second)
    tail = bytearray(64)
    name_at = second + 64
    notes_at = name_at + len(name.encode("utf-16-be"))
    struct.pack_into(">5i", tail, 4, 0, 0, 0, name_at, len(name.encode("utf-16-be")) // 2)
    struct.pack_into(">ii", tail, 40, notes_at if notes else 0, len(notes.encode("utf-16-be")) // 2)
    return bytes(head) + body + bytes(tail) + name.encode("utf-16-be") + notes.encode("utf-16-be")


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every region of a file."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.lower().endswith(".roi"):
                        yield Path(name).stem, archive.read(name)
            return
        data = path.read_bytes()
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(path, f"cannot be read ({error}).", "Save the regions again in ImageJ.") from error
    if data[:4] != b"Iout":
        raise FileError(path, "is no ImageJ region or set of regions.", "Save it with the ROI manager.")
    yield path.stem, data


def _read_path(numbers: np.ndarray) -> list[np.ndarray]:
    """Rings (y, x) of a path: move, line, quadratic, cubic, close."""
    rings: list[np.ndarray] = []
    points: list[np.ndarray] = []
    at = 0
    sizes = {0: 2, 1: 2, 2: 4, 3: 6, 4: 0}
    while at < len(numbers):
        step = int(numbers[at])
        if step not in sizes or at + sizes[step] >= len(numbers) + (step == 4):
            raise UserError("its path is damaged")
        values = numbers[at + 1 : at + 1 + sizes[step]].reshape(-1, 2)[:, ::-1]
        at += 1 + sizes[step]
        if step in (0, 4):
            if len(points) > 2:
                rings.append(np.array(points))
            points = [*values]
        elif step == 1:
            points.append(values[0])
        else:
            control = np.array([points[-1], *values])
            while len(control) > 1:  # de Casteljau, all parameters at once
                control = [(1 - _CURVE) * a + _CURVE * b for a, b in zip(control, control[1:], strict=False)]
            points.extend(control[0])
    return [*rings, np.array(points)] if len(points) > 2 else rings


def _nest(rings: Sequence[np.ndarray]) -> list[Rings]:
    """Parts of a path filled even-odd: outlines, each with the rings that lie directly within as its holes."""
    order = sorted(rings, key=polygon_area, reverse=True)
    depths: list[int] = []
    parts: dict[int, list[np.ndarray]] = {}
    for k, ring in enumerate(order):
        probe = _inner_point(ring)
        around = [j for j in range(k) if _is_inside(probe, order[j])]
        depths.append(len(around))
        if depths[k] % 2 and (owners := [j for j in around if depths[j] == depths[k] - 1]):
            parts[owners[-1]].append(ring)
        else:
            parts[k] = [ring]
    return [tuple(part) for part in parts.values()]


def _inner_point(ring: np.ndarray) -> np.ndarray:
    """A point inside a ring: midway between the first two crossings of the line through the middle of its first edge
    that is not level.
    """
    start, end = ring, np.roll(ring, -1, axis=0)
    edge = int(np.argmax(np.abs(end[:, 0] - start[:, 0])))
    y = start[edge, 0] + (end[edge, 0] - start[edge, 0]) * 0.4871  # off the vertices
    x = np.sort(_crossings(ring, y))
    return np.array([y, (x[0] + x[1]) / 2]) if len(x) > 1 else ring.mean(axis=0)


def _crossings(ring: np.ndarray, y: float) -> np.ndarray:
    start, end = ring, np.roll(ring, -1, axis=0)
    cut = (start[:, 0] <= y) != (end[:, 0] <= y)
    start, end = start[cut], end[cut]
    return start[:, 1] + (y - start[:, 0]) * (end[:, 1] - start[:, 1]) / (end[:, 0] - start[:, 0])


def _is_inside(point: np.ndarray, ring: np.ndarray) -> bool:
    return int(np.count_nonzero(_crossings(ring, point[0]) > point[1])) % 2 == 1
