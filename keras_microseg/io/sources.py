"""Arrays that stay in their file until a window is asked for, one class per kind of storage.

Files are opened when needed and kept open for a while (per thread and process, so a source can be pickled to workers).
Decoded blocks are kept in one small memory shared by all sources.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import LazyArray

BLOCK_MEMORY = 64 * 2**20
"""Bytes of decoded blocks that are kept (the latest one always is)."""
_OPEN_FILES = 8


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever a decoder raises while reading `path` into a `FileError` that says what to do."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise FileError(path, "is too large for the memory.", "Read it by window, or save it as tiled TIFF.") from error
    except PermissionError as error:
        raise FileError(path, "no permission to read.", "Check who owns the file.") from error
    except FileNotFoundError as error:
        raise FileError(path, "does not exist.", "Check the path and the spelling.") from error
    except Exception as error:  # decoders raise anything from SyntaxError to their own RuntimeError
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise FileError(
            path, f"is damaged, truncated or of an unknown variant ({what[:200]}).", "Copy or export the file again."
        ) from error


class BlockMemory:
    """Remembers the most recent results of `get` up to a number of bytes. Safe for threads."""

    def __init__(self, limit: int):
        self.limit = limit
        self._blocks: collections.OrderedDict[Any, np.ndarray] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The remembered array of `key`, or that of `compute()`; read-only."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = compute()
        block.flags.writeable = False
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._bytes += block.nbytes
            while self._bytes > self.limit and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._bytes = 0


block_memory = BlockMemory(BLOCK_MEMORY)
_open_files = threading.local()


def file_key(path: str) -> tuple:
    """Changes when the file at `path` does."""
    facts = os.stat(path)
    return path, facts.st_mtime_ns, facts.st_size


def open_file(path: str, opener: Callable[[str], Any]) -> Any:
    """`opener(path)`, kept open among the last few files of this thread until the file changes."""
    files = _open_files.__dict__.setdefault("files", collections.OrderedDict())
    key = (*file_key(path), opener, os.getpid())
    if key not in files:
        files[key] = opener(path)
        while len(files) > _OPEN_FILES:
            files.popitem(last=False)[1].close()
    files.move_to_end(key)
    return files[key]


def release(path: str | os.PathLike) -> None:
    """Close `path` if this thread keeps it open (an open file cannot be replaced on Windows)."""
    files = _open_files.__dict__.get("files", {})
    for key in [key for key in files if Path(key[0]) == Path(path)]:
        files.pop(key).close()


class MappedFile(LazyArray):
    """Uncompressed, contiguous pixels of a file: a window touches only its own bytes.

    Args:
        path: the file.
        offset: bytes before the first pixel.
        dtype: stored type, any byte order.
        shape: length of every axis, C order.
    """

    def __init__(self, path: str, offset: int, dtype: Any, shape: Sequence[int]):
        self.path, self.offset, self.stored = path, int(offset), np.dtype(dtype)
        self.shape = tuple(int(n) for n in shape)
        self.dtype = self.stored.newbyteorder("=")

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        with reading(self.path):
            mapped = np.memmap(self.path, self.stored, "r", self.offset, self.shape)
            return np.array(mapped[block], dtype=self.dtype)


class DecodedFile(LazyArray):
    """Pixels of a format that is decoded whole (PNG, JPEG, GIF, some TIFFs).

    Args:
        path: the file.
        decode: function of the path that gives the array; a module-level function or partial, so that it pickles.
        shape, dtype: what `decode` will give.
    """

    def __init__(self, path: str, decode: Callable[[str], np.ndarray], shape: Sequence[int], dtype: Any):
        self.path, self.decode = path, decode
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        with reading(self.path):
            whole = block_memory.get((*file_key(self.path), repr(self.decode)), self._decode)
        return whole[block].copy()

    def _decode(self) -> np.ndarray:
        array = np.ascontiguousarray(self.decode(self.path))
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"the pixels are {array.shape} {array.dtype}, the header says {self.shape} {self.dtype}")
        return array


@contextlib.contextmanager
def tifffile_messages() -> Iterator[list[str]]:
    """What tifffile logs meanwhile, instead of on the terminal."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage()[:200])  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def open_tiff(path: str) -> Any:
    """`tifffile.TiffFile` of `path`."""
    import tifffile

    return tifffile.TiffFile(path)


class TiffSegments(LazyArray):
    """Compressed or scattered TIFF pixels: only the strips and tiles that a window touches are decoded.

    Args:
        path: the file.
        series: index of the series as tifffile counts them.
        shape: shape of the series, unsqueezed: leading axes count pages, the rest is a page.
        dtype: type of the pixels.
    """

    def __init__(self, path: str, series: int, shape: Sequence[int], dtype: Any):
        self.path, self.series = path, series
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype).newbyteorder("=")

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        with reading(self.path), tifffile_messages():
            series = open_file(self.path, open_tiff).series[self.series]
            page_ndim = len(series.keyframe.shape)
            leading = len(self.shape) - page_ndim
            out = np.zeros([part.stop - part.start for part in block], self.dtype)
            if out.size == 0:
                return out
            counts = self.shape[:leading]
            for index in np.ndindex(*(part.stop - part.start for part in block[:leading])):
                place = tuple(part.start + i for part, i in zip(block[:leading], index, strict=True))
                number = int(np.ravel_multi_index(place, counts)) if counts else 0
                page = series[number]
                if page is not None:
                    self._read_page(series.keyframe, page, number, block[leading:], out[index])
            return out

    def _read_page(self, keyframe: Any, page: Any, number: int, block: tuple[slice, ...], out: np.ndarray) -> None:
        """Fill `out` with `block` of one page."""
        chunked = keyframe.chunked
        chunks = (1,) * (len(chunked) - len(keyframe.chunks)) + tuple(keyframe.chunks)
        touched = [
            range(part.start // size, (part.stop - 1) // size + 1) for part, size in zip(block, chunks, strict=True)
        ]
        key = (*file_key(self.path), self.series, number)
        for corner in np.ndindex(*(len(r) for r in touched)):
            position = tuple(r[i] for r, i in zip(touched, corner, strict=True))
            index = int(np.ravel_multi_index(position, chunked))
            segment = block_memory.get((*key, index), lambda i=index: self._decode(keyframe, page, i, chunks))
            starts = [p * size for p, size in zip(position, chunks, strict=True)]
            source, target = [], []
            for part, start, length in zip(block, starts, segment.shape, strict=True):
                low, high = max(part.start, start), min(part.stop, start + length)
                source.append(slice(low - start, high - start))
                target.append(slice(low - part.start, high - part.start))
            out[tuple(target)] = segment[tuple(source)]

    def _decode(self, keyframe: Any, page: Any, index: int, chunks: Sequence[int]) -> np.ndarray:
        """One strip or tile as an array with the axes of a page, cut to the page."""
        handle = page.parent.filehandle
        count = page.databytecounts[index]
        if count == 0:  # sparse files leave out empty tiles
            segment, (*_, shape) = None, keyframe.decode(None, index)
        else:
            handle.seek(page.dataoffsets[index])
            data = handle.read(count)
            if len(data) != count:
                raise EOFError(f"strip or tile {index} ends after {len(data)} of {count} bytes")
            segment, _, shape = keyframe.decode(data, index, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
        if segment is None:
            segment = np.full(shape, keyframe.nodata, self.dtype)
        segment = segment[tuple(slice(0, n) for n in shape)]  # (depth, length, width, samples)
        separate = keyframe.planarconfig == 2 and keyframe.samplesperpixel > 1
        wanted = ([1] if separate else []) + ([shape[0]] if keyframe.imagedepth > 1 else []) + list(shape[1:3])
        if keyframe.planarconfig == 1 and keyframe.samplesperpixel > 1:
            wanted.append(shape[3])
        return np.ascontiguousarray(segment.reshape(wanted), dtype=self.dtype)


def decode_tiff_series(path: str, series: int, shape: tuple[int, ...]) -> np.ndarray:
    """The whole series as one array, for the rare layouts `TiffSegments` does not read."""
    with tifffile_messages():
        array = open_file(path, open_tiff).series[series].asarray().reshape(shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class Hdf5Dataset(LazyArray):
    """A dataset of an HDF5 file.

    Args:
        path: the file.
        name: full name of the dataset.
        shape, dtype: as stored.
        chunks: lengths of a chunk, None when contiguous.
    """

    def __init__(self, path: str, name: str, shape: Sequence[int], dtype: Any, chunks: Sequence[int] | None = None):
        self.path, self.name = path, name
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype).newbyteorder("=")
        self.chunks = None if chunks is None else tuple(int(n) for n in chunks)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        with reading(self.path):
            return np.asarray(open_file(self.path, open_hdf5)[self.name][block], dtype=self.dtype)


def open_hdf5(path: str) -> Any:
    """`h5py.File` of `path`, read-only."""
    import h5py

    return h5py.File(path, "r")


class ZarrArray(LazyArray):
    """An array of a Zarr folder.

    Args:
        path: folder of the array or of the group around it.
        name: name inside the group, "" for the folder itself.
        shape, dtype: as stored.
        chunks: lengths of a chunk; readers of large parts keep to them.
    """

    def __init__(self, path: str, name: str, shape: Sequence[int], dtype: Any, chunks: Sequence[int] | None = None):
        self.path, self.name = path, name
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype).newbyteorder("=")
        self.chunks = None if chunks is None else tuple(int(n) for n in chunks)
        self._array: Any = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        with reading(self.path):
            if self._array is None:
                import zarr

                opened = zarr.open(self.path, mode="r")
                self._array = opened[self.name] if self.name else opened
            return np.asarray(self._array[block], dtype=self.dtype)


class Transposed(LazyArray):
    """Another array with axes reordered and axes of length 1 dropped.

    Args:
        source: lazy array.
        order: axes of `source` that stay, in the new order; the others have length 1.
    """

    def __init__(self, source: LazyArray, order: Sequence[int]):
        self.source, self.order = source, tuple(order)
        self.shape, self.dtype = tuple(source.shape[axis] for axis in self.order), source.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        whole = [slice(0, 1)] * len(self.source.shape)
        for axis, part in zip(self.order, block, strict=True):
            whole[axis] = part
        array = self.source.read_block(tuple(whole))
        dropped = tuple(axis for axis in range(array.ndim) if axis not in self.order)
        ranks = np.argsort(np.argsort(self.order)) if self.order else []
        return np.transpose(array.squeeze(dropped), [int(rank) for rank in ranks])


class AddedAxis(LazyArray):
    """A picture as a volume of one slice."""

    def __init__(self, source: LazyArray):
        self.source, self.shape, self.dtype = source, (1, *source.shape), source.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return self.source[block[1:]][np.newaxis][block[:1]]


class LookedUp(LazyArray):
    """Indices replaced by the entries of a table: palettes.

    Args:
        source: lazy array of unsigned integers.
        table: (N,) grey values or (N, 3) colours; larger indices take the last entry.
    """

    def __init__(self, source: LazyArray, table: np.ndarray):
        self.source, self.table = source, table
        self.shape, self.dtype = source.shape + table.shape[1:], table.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        indices = self.source.read_block(block[: len(self.source.shape)])
        values = np.take(self.table, indices, axis=0, mode="clip")
        return values if self.table.ndim == 1 else values[..., block[-1]]


class Inverted(LazyArray):
    """Unsigned integers or booleans stored with 0 as white, turned so that bright is large."""

    def __init__(self, source: LazyArray):
        self.source, self.shape, self.dtype = source, source.shape, source.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return np.invert(self.source.read_block(block))
