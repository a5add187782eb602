"""Volumes written block by block: Zarr, TIFF or `.npy`, larger than memory, taken up again after a kill.

While it grows, the output is called `NAME.part` and a list of its finished blocks stands beside it (`NAME.blocks`).
When complete it gets its name and the list goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, format_bytes
from keras_microseg.image import PixelSize
from keras_microseg.io import files, sources
from keras_microseg.io.units import OME_ZARR_UNITS, imagej_unit, ome_xml_unit

CHUNKS = (64, 128, 128)
"""Voxels per chunk of a Zarr volume along z, y, x."""
_KEEP_FREE = 64 * 2**20
_FACTS = "keras_microseg"


def check_disk_space(path: str | os.PathLike, num_bytes: int, what: str = "the output") -> None:
    """`FileError` unless the disk of `path` has room for `num_bytes` and a little more."""
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes + _KEEP_FREE > free:
        raise FileError(
            path,
            f"{what} takes {format_bytes(num_bytes)}, the disk has {format_bytes(free)} left.",
            "Free some space, choose another output folder, or write a part of the slices.",
        )


def create_volume(
    path: str | os.PathLike,
    shape: Sequence[int],
    dtype: Any,
    *,
    chunks: Sequence[int] | None = None,
    voxel_size: PixelSize | None = None,
    facts: Mapping[str, Any] | None = None,
    key: Any = None,
    resume: bool = False,
) -> VolumeWriter:
    """Begin a volume, or go on with one.

    Args:
        path: `.zarr` (OME-Zarr 0.4, array `0`), `.tif` (one uncompressed block, BigTIFF above 4 GB, with the voxel size
            as Fiji reads it) or `.npy`.
        shape: (z, y, x) or (z, y, x, c).
        dtype: any type; booleans become uint8 in TIFF, float16 becomes float32 there.
        chunks: of a Zarr volume, one length per axis; default `CHUNKS`.
        voxel_size: edge lengths along z, y, x.
        facts: provenance, JSON values; stored in the file (not in `.npy`).
        key: JSON values that decide about the result. Work is only taken up under the same key, shape and type.
        resume: take up what an earlier, interrupted writer left, and leave a finished output as it is.

    Raises:
        FileError: unwritable place, or more than the disk has left.
        UserError: another ending.
    """
    return VolumeWriter(
        Path(path), tuple(int(n) for n in shape), np.dtype(dtype), chunks, voxel_size, dict(facts or {}), key, resume
    )


class VolumeWriter:
    """A volume on disk that is filled block by block; see `create_volume`.

    `writer[box] = values` and `writer[box]` take integers and slices without step. Blocks that are whole chunks can be
    written in any order and by several processes.

    Attributes:
        path: where the volume stands when finished.
        shape, dtype, chunks: of the array; `chunks` are the planes of a TIFF or `.npy`.
        complete: the finished volume with this key is there already; nothing needs to be written.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        chunks: Sequence[int] | None,
        voxel_size: PixelSize | None,
        facts: dict[str, Any],
        key: Any,
        resume: bool,
    ):
        self.kind = path.suffix.lower()
        if self.kind not in (".zarr", ".tif", ".tiff", ".npy"):
            raise UserError(f"{path.name}: volumes are written as .zarr, .tif or .npy. Choose one of these endings.")
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise UserError(f"`shape` must be (z, y, x) or (z, y, x, c), none of them 0. Received: shape={shape}")
        if self.kind in (".tif", ".tiff"):
            dtype = np.dtype(
                {"b": np.uint8, "e": np.float32}.get(dtype.char if dtype.kind == "f" else dtype.kind, dtype)
            )
        self.path, self.shape, self.dtype = path, shape, dtype
        default = (*CHUNKS, *shape[3:]) if self.kind == ".zarr" else (1, *shape[1:])
        wanted = tuple(chunks) if chunks is not None and self.kind == ".zarr" else default
        self.chunks = tuple(min(int(c), n) for c, n in zip(wanted, shape, strict=True))
        self.voxel_size, self.facts = voxel_size, facts
        if voxel_size is not None:
            facts["voxel_size"] = dataclasses.asdict(voxel_size)
        text = json.dumps([list(shape), str(dtype), list(self.chunks), key], sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.part = path.with_name(f"{path.stem}.part{path.suffix}")
        self.list_path = path.with_name(f"{path.name}.blocks")
        self._array: Any = None
        self._done: set[str] = set()
        self.complete = resume and path.exists() and self._finished_key() == self.key
        if self.complete:
            return
        if path.exists() and not (path.is_file() if self.kind != ".zarr" else files.is_zarr(path)):
            raise FileError(path, "is in the way of the output.", "Choose another name.")
        with files.write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (resume and self._take_up()):
                self._begin()

    # Blocks

    def is_done(self, block: Any) -> bool:
        """Whether `mark_done` was called for this block (a box of slices, or any name)."""
        return self.complete or _name(block) in self._done

    def mark_done(self, block: Any) -> None:
        """Note that this block is finished; one line on disk, after the block's own bytes."""
        name = _name(block)
        if name not in self._done:
            with files.write_errors(self.path):
                flush = getattr(self._array, "flush", None)
                if flush is not None:
                    flush()
                with open(self.list_path, "a", encoding="utf-8") as file:
                    file.write(name + "\n")
            self._done.add(name)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, box: Any) -> np.ndarray:
        return np.asarray(self._open()[box])

    def __setitem__(self, box: Any, values: Any) -> None:
        if self.complete:
            raise UserError(f"{self.path.name} is finished. Write to another file, or begin it anew without resume.")
        with files.write_errors(self.path):
            self._open()[box] = np.asarray(values).astype(self.dtype, copy=False)

    # Life

    def __enter__(self) -> VolumeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def finish(self) -> None:
        """Give the volume its name. What was never written is 0."""
        if self.complete:
            return
        self._close()
        with files.write_errors(self.path):
            if self.kind == ".zarr":
                import zarr

                group = zarr.open_group(self.part, mode="r+")
                group.attrs[_FACTS] = {**group.attrs[_FACTS], **_plain(self.facts), "complete": True}
                if self.path.exists():
                    shutil.rmtree(self.path)
            sources.release(self.path)
            os.replace(self.part, self.path)
            if self.kind != ".zarr":
                _sidecar(self.path).write_text(json.dumps({"key": self.key, **_plain(self.facts)}), "utf-8")
            self.list_path.unlink(missing_ok=True)
        self.complete = True

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Provenance known only later; stored with `finish`."""
        self.facts.update(facts)

    def abandon(self) -> None:
        """Remove the unfinished output and its list."""
        self._close()
        _remove(self.part)
        self.list_path.unlink(missing_ok=True)

    # Storage

    def _take_up(self) -> bool:
        try:
            first, *names = self.list_path.read_text(encoding="utf-8").split("\n")
        except OSError:
            return False
        if first != self.key or not self.part.exists():
            return False
        self._done = set(names[:-1])  # text behind the last line end is a line the kill cut off
        return True

    def _begin(self) -> None:
        _remove(self.part)
        num_bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if self.kind != ".zarr":  # Zarr is compressed; its size is not known beforehand
            check_disk_space(self.path, num_bytes)
        if self.kind == ".zarr":
            self._begin_zarr()
        elif self.kind == ".npy":
            np.lib.format.open_memmap(self.part, "w+", self.dtype, self.shape)
        else:
            self._begin_tiff(num_bytes)
        self.list_path.write_text(self.key + "\n", encoding="utf-8")

    def _begin_zarr(self) -> None:
        import zarr

        facts = _plain({"key": self.key, "complete": False, **self.facts})
        names = "zyxc"[: self.ndim]
        axes: list[dict[str, str]] = [{"name": name, "type": "channel" if name == "c" else "space"} for name in names]
        scale = [1.0] * self.ndim
        if self.voxel_size is not None:
            scale[:3] = self.voxel_size.size
            for axis in axes[:3]:
                axis["unit"] = OME_ZARR_UNITS[self.voxel_size.unit]
        steps = [{"type": "scale", "scale": scale}]
        group = zarr.open_group(self.part, mode="w", zarr_format=2)
        group.create_array("0", shape=self.shape, dtype=self.dtype, chunks=self.chunks, fill_value=0)
        group.attrs.update(
            {
                "multiscales": [
                    {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
                ],
                _FACTS: facts,
            }
        )

    def _begin_tiff(self, num_bytes: int) -> None:
        import tifffile

        options: dict[str, Any] = {"photometric": "minisblack", "byteorder": "<", "bigtiff": num_bytes > 2**32 - 2**25}
        described: dict[str, Any] = {"axes": "ZYXC"[: self.ndim]}
        size = self.voxel_size
        if self.dtype in (np.uint8, np.uint16, np.float32) and self.ndim == 3 and not options["bigtiff"]:
            described["axes"] = "ZYX"
            if size is not None:
                described.update(unit=imagej_unit(size.unit), spacing=size.size[0])
                options["resolution"] = (1 / size.size[2], 1 / size.size[1])
            options["imagej"] = True
        else:  # types and sizes ImageJ does not know: OME-TIFF
            options["ome"] = True
            if size is not None:
                unit = ome_xml_unit(size.unit)
                for axis, length in zip("ZYX", size.size, strict=True):
                    described.update({f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": unit})
        tifffile.imwrite(self.part, shape=self.shape, dtype=self.dtype, metadata=described, **options)

    def _open(self) -> Any:
        if self._array is None:
            path = self.path if self.complete else self.part
            if self.kind == ".zarr":
                import zarr

                self._array = zarr.open_group(path, mode="r" if self.complete else "r+")["0"]
            elif self.kind == ".npy":
                self._array = np.lib.format.open_memmap(path, "r" if self.complete else "r+")
            else:
                import tifffile

                mode = "r" if self.complete else "r+"
                with tifffile.TiffFile(path) as file:
                    offset = file.series[0].dataoffset
                self._array = np.memmap(path, self.dtype.newbyteorder("<"), mode, offset, self.shape)
        return self._array

    def _close(self) -> None:
        if isinstance(self._array, np.memmap) and not self.complete:
            self._array.flush()
        self._array = None

    def _finished_key(self) -> str | None:
        with contextlib.suppress(Exception):  # whatever cannot be read is not our finished output
            if self.kind == ".zarr":
                import zarr

                facts = zarr.open_group(self.path, mode="r").attrs[_FACTS]
                return facts["key"] if facts["complete"] else None
            return json.loads(_sidecar(self.path).read_text(encoding="utf-8"))["key"]
        return None


def _sidecar(path: Path) -> Path:
    """Facts beside a TIFF or `.npy` volume."""
    return path.with_name(f"{path.name}.json")


def volume_facts(path: Path) -> dict[str, Any]:
    """Provenance that a `VolumeWriter` stored with the volume at `path`; empty for volumes of others."""
    if files.is_zarr(path):
        import zarr

        note = dict(zarr.open(path, mode="r").attrs).get(_FACTS, {})
        return dict(note) if isinstance(note, dict) else {}
    try:
        note = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        return note if isinstance(note, dict) and "key" in note else {}
    except (OSError, ValueError):
        return {}


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them."""
    return json.loads(json.dumps(facts, default=str))


def _name(block: Any) -> str:
    if isinstance(block, (tuple, list)) and all(isinstance(part, slice) for part in block):
        return ",".join(f"{part.start}:{part.stop}" for part in block)
    return str(block).replace("\n", " ")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
