"""Raw voxels: no header inside the file, so shape and type come from a file beside it, the name, or the user."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, standardize_tuple
from keras_microseg.image import Image, LazyArray, PixelSize
from keras_microseg.io import sources

DATA_SUFFIXES = (".raw", ".vol", ".bin", ".dat")
SIDECARS = (".json", ".mhd", ".nhdr", ".info")
SUFFIXES = (*DATA_SUFFIXES, ".mhd", ".nhdr")
"""Endings that `open_raw` takes: the voxels, or a header that names them."""
ALL_SUFFIXES = (*DATA_SUFFIXES, *SIDECARS)
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "signed char": "i1", "int8": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "short": "i2",
    "int16": "i2", "ushort": "u2", "unsigned short": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "float": "f4", "double": "f8",
}  # fmt: skip


def open_raw(path: str | os.PathLike, *, shape: Sequence[int] | None = None, dtype: Any = None) -> Image:
    """Open raw voxels as an `Image` of axes `ZYX`.

    Args:
        path: the voxels, or a `.mhd` or `.nhdr` header that names them.
        shape, dtype: (z, y, x) and type, in place of a header.

    A `.json` beside the voxels (`x.raw.json` or `x.json`) holds `shape`, `dtype` and, when wanted, `voxel_size`
    (numbers or text), `unit`, `offset` (bytes) and `byte_order` (`little`, `big`).

    Raises:
        FileError: no header, or one that does not fit the size of the file.
    """
    path = Path(path)
    if path.suffix.lower() in (".mhd", ".nhdr"):
        header = path
        facts = _parse(header)
        path = header.with_name(facts.pop("file", None) or header.with_suffix(".raw").name)
    elif shape is not None:
        if dtype is None:
            raise UserError("`dtype` is needed with `shape`. Received: dtype=None")
        facts = {"shape": standardize_tuple(shape, 3, "shape"), "dtype": dtype, "source": "user"}
    else:
        facts = _beside(path)
    if not path.is_file():
        raise FileError(path, "does not exist.", "Check the path and the spelling.")
    try:
        kind = np.dtype(facts["dtype"])
    except TypeError:
        raise FileError(path, f"the type {facts['dtype']!r} is not known.", "Use a name such as uint16.") from None
    if facts.get("big_endian"):
        kind = kind.newbyteorder(">")
    size, count = path.stat().st_size, int(np.prod(facts["shape"], dtype=np.int64)) * kind.itemsize
    offset = facts.get("offset", 0)
    if offset == -1:
        offset = size - count
    if offset < 0 or offset + count != size:
        z, y, x = facts["shape"]
        raise FileError(
            path,
            f"has {size} bytes; {z} x {y} x {x} voxels of {kind.name} and an offset of {max(offset, 0)} need "
            f"{max(offset, 0) + count} ({facts['source']}).",
            "Correct shape, dtype or offset.",
        )
    data: LazyArray = sources.MappedFile(str(path), offset, kind, facts["shape"])
    metadata = {"format": "raw", "header": facts["source"]}
    return Image(data, "ZYX", facts.get("voxel_size"), str(path), metadata=metadata)


def _beside(path: Path) -> dict[str, Any]:
    """Facts from a file beside the voxels or from their name."""
    for suffix in SIDECARS:
        for name in (path.with_name(path.name + suffix), path.with_suffix(suffix)):
            if name.is_file():
                facts = _parse(name)
                facts.pop("file", None)
                return facts
    match = re.search(r"(\d+)x(\d+)x(\d+)[_-]([a-z]+\d+)", path.stem.lower())
    if match:
        shape = tuple(int(part) for part in match.groups()[2::-1])
        return {"shape": shape, "dtype": match[4], "source": f"file name {path.name}, x y z"}
    raise FileError(
        path,
        "raw voxels need their shape and type.",
        f'Pass shape=(z, y, x) and dtype=, or write {path.name}.json: {{"shape": [z, y, x], "dtype": "uint16"}}.',
    )


def _parse(path: Path) -> dict[str, Any]:
    reader = {".json": _json, ".mhd": _meta_image, ".nhdr": _nrrd, ".info": _esrf}[path.suffix.lower()]
    try:
        facts = reader(path.read_text("utf-8", errors="replace"), path)
        facts["shape"] = standardize_tuple(facts["shape"], 3, "shape")
    except FileError:
        raise
    except (KeyError, ValueError, IndexError, TypeError, OSError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(path, f"is not a usable header of raw voxels ({what}).", "Correct it.") from error
    return {"source": f"header {path.name}", **facts}


def _json(text: str, path: Path) -> dict[str, Any]:
    header = json.loads(text)
    facts: dict[str, Any] = {"shape": header["shape"], "dtype": header["dtype"], "offset": int(header.get("offset", 0))}
    facts["big_endian"] = str(header.get("byte_order", "little")).lower() in ("big", ">", "msb")
    if header.get("voxel_size") is not None:
        size = PixelSize.parse(header["voxel_size"], ndim=3, unit=header.get("unit"))
        facts["voxel_size"] = PixelSize(size.size, size.unit, f"header {path.name}")
    return facts


def _pairs(text: str, separator: str) -> dict[str, str]:
    pairs = (line.split(separator, 1) for line in text.splitlines() if separator in line and line[:1] not in "#!")
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _meta_image(text: str, path: Path) -> dict[str, Any]:
    header = _pairs(text, "=")
    facts: dict[str, Any] = {
        "shape": [int(part) for part in header["dimsize"].split()][::-1],
        "dtype": _META_TYPES[header["elementtype"]],
        "offset": int(header.get("headersize", 0)),
        "file": header.get("elementdatafile"),
    }
    if header.get("compresseddata", "false").lower() == "true" or facts["file"] == "LOCAL":
        raise FileError(path, "holds compressed or inlined voxels.", "Save it as plain .mhd + .raw.")
    order = header.get("binarydatabyteordermsb", header.get("elementbyteordermsb", "false"))
    facts["big_endian"] = order.lower() == "true"
    spacing = header.get("elementspacing", header.get("elementsize"))
    if spacing:
        sizes = tuple(float(part) for part in spacing.split())[::-1]
        facts["voxel_size"] = PixelSize(sizes, "mm", f"MetaImage {path.name}, ElementSpacing (mm by convention)")
    return facts


def _nrrd(text: str, path: Path) -> dict[str, Any]:
    header = _pairs(text.replace(":=", ":"), ":")
    if header.get("encoding", "raw") != "raw":
        raise FileError(path, f"has the encoding {header['encoding']}.", "Save it with the encoding raw.")
    facts: dict[str, Any] = {
        "shape": [int(part) for part in header["sizes"].split()][::-1],
        "dtype": _NRRD_TYPES[header["type"]],
        "file": header.get("data file", header.get("datafile")),
        "big_endian": header.get("endian", "little") == "big",
        "offset": int(header.get("byte skip", header.get("byteskip", 0))),
    }
    sizes: list[float] = []
    if "spacings" in header:
        sizes = [float(part) for part in header["spacings"].split()]
    elif "space directions" in header:
        vectors = re.findall(r"\(([^)]*)\)", header["space directions"])
        sizes = [float(np.linalg.norm([float(part) for part in vector.split(",")])) for vector in vectors]
    if len(sizes) == 3 and all(np.isfinite(sizes)):
        unit = re.findall(r'"([^"]+)"', header.get("space units", ""))
        unit_name = unit[0] if unit else "mm"
        facts["voxel_size"] = PixelSize(tuple(sizes[::-1]), unit_name, f"NRRD {path.name}, spacings")
    return facts


def _esrf(text: str, path: Path) -> dict[str, Any]:
    """PyHST `.vol.info`: float32, `voxelSize` in um."""
    header = _pairs(text, "=")
    facts: dict[str, Any] = {
        "shape": [int(header[f"num_{axis}"]) for axis in "zyx"],
        "dtype": "f4",
        "big_endian": header.get("byteorder", "").upper() == "HIGHBYTEFIRST",
    }
    if float(header.get("voxelsize", 0)) > 0:
        facts["voxel_size"] = PixelSize((float(header["voxelsize"]),) * 3, "um", f"ESRF header {path.name}, voxelSize")
    return facts
