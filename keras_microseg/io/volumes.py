"""Opening volumes lazily, whatever they are stored in: every one is an `Image` of axes `ZYX`.

Slices keep the numbers of their file names (`slice_numbers`), so figures and tables can name the slice a user knows.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.image import Image, LazyArray, PixelSize
from keras_microseg.io import files, raw_volumes, sources
from keras_microseg.io.images import open_image, read_grey
from keras_microseg.io.metadata import readable
from keras_microseg.io.volume_writer import check_disk_space, volume_facts

SLICE_SUFFIXES = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")
_PILLOW_BITS = {
    "1": "bool",
    "L": "uint8",
    "P": "uint8",
    "I;16": "uint16",
    "I;16B": "uint16",
    "I": "int32",
    "F": "float32",
}


def open_volume(
    path: str | os.PathLike,
    *,
    dataset: str | None = None,
    voxel_size: PixelSize | str | Sequence[float] | None = None,
    axes: str | None = None,
    gaps: str = "error",
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    scratch_dir: str | os.PathLike | None = None,
) -> Image:
    """Open a volume without reading its voxels.

    Args:
        path: a folder or pattern of slices (TIFF, PNG, BMP, JPEG; natural order); a multi-page, Big or OME TIFF; HDF5
            (data exchange, NeXus); Zarr or OME-Zarr; `.npy`; raw voxels (`.raw`, `.vol`, `.bin`) with a header beside
            them (`.json`, `.mhd`, `.nhdr`, ESRF `.info`), a name like `x_300x501x501_uint8.raw` (x, y, z), or `shape`
            and `dtype`; or a `.zip` of one of these.
        dataset: name of the array inside HDF5, Zarr or zip; found by itself where the file has a default.
        voxel_size: edge lengths z, y, x (or one for all) instead of what the header says, e.g. `"0.65um"`.
        axes: letters of the stored axes instead of what the header says, e.g. `"YXZ"`.
        gaps: what to do when numbers are missing among the slices: `"error"`, or `"report"` in `metadata["warnings"]`.
        shape, dtype: (z, y, x) and type of raw voxels.
        scratch_dir: where a `.zip` is unpacked; default the system's folder for temporary files. Removed with the
            last reference to the data.

    Returns:
        `Image` of axes `ZYX` with lazy data in the stored type. `pixel_size` is None when the edge lengths are not all
        known. `metadata`: `format`, `warnings`; `slice_numbers` of slices; `provenance` of volumes written by us.

    Raises:
        FileError: missing, damaged, several arrays without a default, slices that differ in size or type, gaps.
    """
    path = Path(path)
    check_choice("gaps", gaps, ("error", "report"))
    if path.suffix.lower() == ".zip" and path.is_file():
        return _open_zip(
            path, scratch_dir, dataset=dataset, voxel_size=voxel_size, axes=axes, gaps=gaps, shape=shape, dtype=dtype
        )
    if any(letter in str(path) for letter in "*?[") and not path.exists():
        image = _open_slices(files.find_images(path), path.parent, gaps)
    elif path.is_dir() and not files.is_zarr(path):
        image = _open_slices(_slices_in(path), path, gaps)
    elif shape is not None or path.suffix.lower() in raw_volumes.SUFFIXES:
        image = raw_volumes.open_raw(path, shape=shape, dtype=dtype)
    else:
        image = _open_file(path, dataset, axes)
    if voxel_size is not None:
        size = PixelSize.parse(voxel_size, ndim=3)
        if len(size.size) != 3:
            raise UserError(f"`voxel_size` needs 1 or 3 numbers (z, y, x). Received: voxel_size={voxel_size!r}")
        facts = {key: value for key, value in image.metadata.items() if key != "pixel_size_yx"}
        facts["warnings"] = [text for text in facts.get("warnings", []) if "distance between slices" not in text]
        image = dataclasses.replace(image, pixel_size=size, metadata=facts)
    return image


def slice_numbers(image: Image) -> np.ndarray:
    """True number of every slice of a volume, int64 (Z,): from the file names, else its place in the file."""
    start, count = image.origin[0], image.shape[0]
    known = image.metadata.get("slice_numbers")
    if known is None:
        return np.arange(start, start + count, dtype=np.int64)
    return np.asarray(known, np.int64)[start : start + count]


def check_voxel_size(image: Image) -> PixelSize | None:
    """The voxel size, or None when nothing is known.

    Raises:
        FileError: only the pixel size inside the slices is known. Cubic voxels are not taken for granted.
    """
    plane = image.metadata.get("pixel_size_yx")
    if image.pixel_size is None and plane is not None:
        y, x = plane["size"]
        raise FileError(
            image.path,
            f"gives {y:.5g} x {x:.5g} {plane['unit']} for y and x ({plane['source']}), but no distance between slices.",
            f'Pass the voxel size as z x y x x, for example "{y:.5g} x {y:.5g} x {x:.5g} {plane["unit"]}" for cubes.',
        )
    return image.pixel_size


# ----------------------------------------------------------------------------------------------------- single files


def _open_file(path: Path, dataset: str | None, axes: str | None) -> Image:
    image = open_image(path, dataset=dataset, axes=axes, keep_inverted=True)
    if axes is None and image.axes == "YXC" and image.metadata["format"] in ("NumPy", "HDF5", "Zarr"):
        image = open_image(path, dataset=dataset, axes="ZYX", keep_inverted=True)  # a thin volume, not a colour picture
    if image.axes == "TYX":  # pages of unstated meaning are slices
        image = dataclasses.replace(image, axes="ZYX")
        if image.pixel_size is not None:  # that of y and x
            image = _with_plane_size(image, image.pixel_size)
    if image.axes == "YX":
        size = image.pixel_size
        image = Image(sources.AddedAxis(image.data), "ZYX", None, image.path, metadata=image.metadata)
        if size is not None:
            image = _with_plane_size(image, size)
    if image.axes != "ZYX":
        what = "colours or channels" if "C" in image.axes else "a time series"
        raise FileError(
            path,
            f"holds {what} (axes {image.axes}, shape {image.shape}), not one grey volume.",
            "Name its axes with axes= ('ZYX'), or save one channel or time alone.",
        )
    note = volume_facts(path)
    if note.get("voxel_size") is not None:  # the same size, but it names its first source
        image = dataclasses.replace(image, pixel_size=PixelSize(**note["voxel_size"]))
    numbers = note.get("slice_numbers")
    if numbers is not None and len(numbers) == image.shape[0]:
        image = dataclasses.replace(image, metadata={**image.metadata, "slice_numbers": numbers})
    if note.get("warnings"):
        image = dataclasses.replace(
            image, metadata={**image.metadata, "warnings": [*image.metadata.get("warnings", []), *note["warnings"]]}
        )
    hidden = ("key", "complete", "slice_numbers", "voxel_size", "warnings")
    provenance = {key: value for key, value in note.items() if key not in hidden}
    return dataclasses.replace(image, metadata={**image.metadata, "provenance": provenance}) if provenance else image


def _with_plane_size(image: Image, size: PixelSize) -> Image:
    """Note a size of y and x that has no slice distance."""
    note = {"size": list(size.size[-2:]), "unit": size.unit, "source": size.source}
    warning = "the header gives no distance between slices; pass the voxel size as z x y x x with its unit"
    facts = {**image.metadata, "pixel_size_yx": note, "warnings": [*image.metadata.get("warnings", []), warning]}
    return dataclasses.replace(image, pixel_size=None, metadata=facts)


class _Unpacked(LazyArray):
    """Voxels of an unpacked archive; the folder goes with it."""

    def __init__(self, source: LazyArray, folder: str):
        self.source, self.shape, self.dtype = source, tuple(source.shape), np.dtype(source.dtype)
        self._cleaner = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return self.source[block]

    def __reduce__(self) -> Any:
        raise TypeError("Voxels of a .zip cannot go to another process. Unpack the archive first.")


def _open_zip(path: Path, scratch_dir: str | os.PathLike | None, dataset: str | None, **options: Any) -> Image:
    """Unpack a `.zip` (member by member, streamed) and open what is in it."""
    with sources.reading(path), zipfile.ZipFile(path) as archive:
        members = [
            member for member in archive.infolist()
            if not member.is_dir() and "__MACOSX" not in member.filename
            and Path(member.filename).suffix.lower() in (*files.SUFFIXES, *raw_volumes.ALL_SUFFIXES)
        ]  # fmt: skip
        if dataset is not None:
            members = [member for member in members if member.filename == dataset]
        if not members:
            raise FileError(path, "holds no volume.", "Unpack it and look what is inside.")
        folder = tempfile.mkdtemp(prefix="keras_microseg_", dir=scratch_dir)
        try:
            total = sum(member.file_size for member in members)
            check_disk_space(folder, total, f"{path.name}, unpacked,")
            for member in members:
                target = Path(folder) / Path(member.filename).name
                if target.exists():
                    raise FileError(path, f"holds {target.name} twice.", "Unpack it and choose one.")
                with archive.open(member) as packed, open(target, "wb") as file:
                    shutil.copyfileobj(packed, file, 2**20)
            names = [Path(folder) / Path(member.filename).name for member in members]
            volumes = [name for name in names if name.suffix.lower() not in raw_volumes.SIDECARS]
            image = open_volume(volumes[0] if len(volumes) == 1 else folder, **options)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    facts = {**image.metadata, "format": f"zip, {image.metadata['format']}"}
    return dataclasses.replace(image, data=_Unpacked(image.data, folder), path=str(path), metadata=facts)


# ------------------------------------------------------------------------------------------------ folders of slices


class SliceFiles(LazyArray):
    """One file per slice, opened when a block needs it.

    Args:
        paths: the slices in order, all of one size and type.
        shape: (y, x) of a slice.
        dtype: of a slice as `read_grey` gives it.
    """

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int], dtype: Any):
        self.paths = [str(path) for path in paths]
        self.shape, self.dtype = (len(paths), *shape), np.dtype(dtype)
        self._opened: dict[int, Image] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], self.dtype)
        for place, number in enumerate(range(block[0].start, block[0].stop)):
            if number not in self._opened:
                self._opened[number] = open_image(self.paths[number], keep_inverted=True)
            plane = read_grey(self._opened[number], block[1:])
            if plane.shape != out.shape[1:] or plane.dtype != self.dtype:
                raise FileError(self.paths[number], f"has changed to {plane.dtype}.", "Open the folder again.")
            out[place] = plane
        return out


def _slices_in(folder: Path) -> list[Path]:
    """The slices of a folder in natural order, all with one ending."""
    paths = [path for path in files.find_images(folder) if path.suffix.lower() in SLICE_SUFFIXES]
    kinds = {".tif" if path.suffix.lower() == ".tiff" else path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        found = ", ".join(sorted(kinds))
        raise FileError(folder, f"holds slices of several kinds ({found}).", f'Name one kind: "{folder}/*.tif".')
    if not paths:
        raise FileError(folder, "holds no slices.", f"Looked for {', '.join(SLICE_SUFFIXES)}.")
    return paths


def _open_slices(paths: list[Path], folder: Path, gaps: str) -> Image:
    first = open_image(paths[0], keep_inverted=True)
    if first.axes not in ("YX", "YXC"):
        raise FileError(paths[0], f"is a stack (axes {first.axes}), not a slice.", "Name this file as the volume.")
    facts = _header(paths[0])
    for path in paths[1:]:
        other = _header(path)
        if other != facts:
            raise FileError(
                path,
                f"is {other[0]} x {other[1]} {other[2]}, the slices before it (from {paths[0].name}) are "
                f"{facts[0]} x {facts[1]} {facts[2]}.",
                f'Slices need one size and type. Leave the file out, e.g. with a pattern like "{_pattern(paths[0])}".',
            )
    sample = np.dtype(np.float32) if "C" in first.axes else np.dtype(np.uint8 if first.dtype == bool else first.dtype)
    data = SliceFiles(paths, first.spatial_shape, sample)
    metadata: dict[str, Any] = {
        "format": f"{len(paths)} slices, {first.metadata['format']}",
        **{
            key: value
            for key, value in first.metadata.items()
            if key in ("vendor", "instrument", "detector", "date", "voltage")
        },
    }
    warnings: list[str] = []
    numbers = _numbers(paths)
    if numbers is not None:
        metadata["slice_numbers"] = numbers.tolist()
        missing = _missing(numbers)
        if missing and gaps == "error":
            raise FileError(
                folder,
                f"slice numbers are missing: {missing} (found {numbers[0]} to {numbers[-1]}).",
                "Copy the missing slices, or accept the gaps with gaps='report' (--allow-gaps); distances across a gap "
                "are then too small.",
            )
        if missing:
            warnings.append(f"slice numbers are missing: {missing}; distances across a gap are too small")
        elif len(numbers) > 1 and numbers[1] - numbers[0] != 1:
            warnings.append(
                f"slice numbers go in steps of {numbers[1] - numbers[0]}; the z edge of a voxel is the step"
            )
    if warnings:
        metadata["warnings"] = warnings
    image = Image(data, "ZYX", None, str(folder), metadata=metadata)
    size = _scanner_log(paths[0], folder)
    if size is not None:
        return dataclasses.replace(image, pixel_size=size)
    return image if first.pixel_size is None else _with_plane_size(image, first.pixel_size)


def _header(path: Path) -> tuple[int, int, str]:
    """Rows, columns and type of a slice, from its header alone."""
    with sources.reading(path):
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            with sources.tifffile_messages(), tifffile.TiffFile(path) as file:
                page = file.pages.first
                size = page.imagelength, page.imagewidth
                kind = str(page.dtype) + (" colour" if page.samplesperpixel > 1 else "")
                return (*size, kind if len(file.pages) == 1 else f"{kind}, several pages")
        import PIL.Image

        with PIL.Image.open(path) as picture:
            return picture.height, picture.width, _PILLOW_BITS.get(picture.mode, picture.mode)


def _numbers(paths: Sequence[Path]) -> np.ndarray | None:
    """The slice numbers in the names: the last group of digits that differs from file to file; None without."""
    groups = [[int(part) for part in re.findall(r"\d+", path.stem)] for path in paths]
    if len({len(group) for group in groups}) != 1 or not groups[0]:
        return None
    if len(paths) == 1:
        return np.array(groups[0][-1:], np.int64)
    for column in reversed(list(zip(*groups, strict=True))):
        if len(set(column)) == len(paths) and max(column) < 2**62:
            return np.array(column, np.int64) if list(column) == sorted(column) else None
    return None


def _missing(numbers: np.ndarray) -> str:
    """Missing numbers as text (`"5, 9-12"`), "" when the numbers go in equal steps."""
    steps = np.diff(numbers)
    if len(steps) == 0 or (steps == steps[0]).all():
        return ""
    step = int(np.gcd.reduce(steps))
    parts = []
    for at in np.flatnonzero(steps > step):
        low, high = int(numbers[at]) + step, int(numbers[at + 1]) - step
        parts.append(f"{low}" if low == high else f"{low}-{high}")
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more places" if len(parts) > 8 else "")


def _pattern(path: Path) -> str:
    return str(path.parent / (re.sub(r"\d+(?=\D*$)", "*", path.stem) + path.suffix))


def _scanner_log(path: Path, folder: Path) -> PixelSize | None:
    """Voxel edge from a SkyScan / NRecon log beside the slices (cubic voxels)."""
    logs = sorted(folder.glob("*.log"), key=files.natural_key) if folder.is_dir() else []
    for log in logs:
        try:
            text = log.read_text("latin-1") if log.stat().st_size < 1_000_000 else ""
        except OSError:
            continue
        section = text.partition("[Reconstruction]")[2]
        for part in (section, text):  # the reconstruction may be coarser than the projections
            found = re.search(r"(?mi)^\s*(?:Image )?Pixel Size \((um|nm|mm)\)\s*=\s*([0-9.eE+-]+)", part)
            if found and float(found[2]) > 0:
                edge = float(found[2])
                return readable(PixelSize((edge,) * 3, found[1].lower(), f"scanner log {log.name}, Pixel Size"))
    return None
