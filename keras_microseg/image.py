"""`Image`: pixels together with their axes, pixel size and origin. What array modules pass to each other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_choice

METRES = {"pm": 1e-12, "angstrom": 1e-10, "nm": 1e-9, "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "inch": 0.0254}
_ALIASES = {
    "µm": "um", "μm": "um", "micron": "um", "microns": "um", "micrometer": "um", "micrometre": "um",
    "\\u00b5m": "um", "nanometer": "nm", "nanometre": "nm", "picometer": "pm", "millimeter": "mm",
    "å": "angstrom", "a": "angstrom", "ångström": "angstrom", "ang": "angstrom", "in": "inch", "meter": "m",
    "metre": "m", "centimeter": "cm",
}  # fmt: skip


def normalize_unit(unit: str) -> str:
    """Length unit in the spelling used everywhere here (`um`, `nm`, ...); `UserError` when it is not a length."""
    text = str(unit).strip().rstrip(".")
    for candidate in (text, text.lower()):
        name = _ALIASES.get(candidate, candidate)
        if name in METRES:
            return name
    raise UserError(f"Unknown length unit {unit!r}. Use one of {', '.join(METRES)}.")


@dataclasses.dataclass(frozen=True)
class PixelSize:
    """Edge length of a pixel (voxel) along each spatial axis.

    Attributes:
        size: one positive float per spatial axis, in the order of the axes ((y, x) or (z, y, x)).
        unit: length unit, one of `METRES`.
        source: where the number comes from, in words ("ZEISS tag 34118, ap_image_pixel_size", "user").
    """

    size: tuple[float, ...]
    unit: str
    source: str = "user"

    def __post_init__(self) -> None:
        sizes = tuple(float(value) for value in np.atleast_1d(self.size))
        if not sizes or not all(np.isfinite(value) and value > 0 for value in sizes):
            raise UserError(f"`pixel_size` must be positive and finite. Received: {self.size!r}")
        object.__setattr__(self, "size", sizes)
        object.__setattr__(self, "unit", normalize_unit(self.unit))

    @classmethod
    def parse(
        cls, text: str | float | Sequence[float] | PixelSize, ndim: int = 2, unit: str | None = None
    ) -> PixelSize:
        """Read `"1.2nm"`, `"1.2 x 1.3 um"`, or numbers with `unit`.

        Args:
            text: length with unit, several lengths separated by `x` or `,` (y before x), numbers, or a `PixelSize`.
            ndim: number of spatial axes; a single length is used for all.
            unit: unit of plain numbers.
        """
        if isinstance(text, PixelSize):
            return text
        if isinstance(text, str):
            match = re.fullmatch(r"\s*([-+0-9.eE]+(?:\s*[x,*]\s*[-+0-9.eE]+)*)\s*([^\s\d.,]*)\s*", text)
            if not match or not (match[2] or unit):
                raise UserError(f"Cannot read the pixel size {text!r}. Write a number and a unit, for example 1.2nm.")
            try:
                values = [float(part) for part in re.split(r"[x,*]", match[1])]
            except ValueError:
                raise UserError(f"Cannot read the pixel size {text!r}. Write for example 1.2nm.") from None
            unit = match[2] or unit
        else:
            values = [float(value) for value in np.atleast_1d(text)]
        if unit is None:
            raise UserError(f"`pixel_size` needs a unit, for example '1.2nm'. Received: pixel_size={text!r}")
        if len(values) == 1:
            values *= ndim
        if len(values) != ndim:
            raise UserError(f"`pixel_size` needs 1 or {ndim} numbers. Received: pixel_size={text!r}")
        return cls(tuple(values), unit, "user")

    def to(self, unit: str) -> PixelSize:
        """The same size in another unit."""
        unit = normalize_unit(unit)
        factor = METRES[self.unit] / METRES[unit]
        return dataclasses.replace(self, size=tuple(value * factor for value in self.size), unit=unit)

    @property
    def is_square(self) -> bool:
        """True when all axes agree to 0.1 %."""
        return max(self.size) <= min(self.size) * 1.001

    @property
    def mean(self) -> float:
        """Geometric mean over the axes, in `unit`."""
        return float(np.exp(np.mean(np.log(self.size))))

    def scaled(self, factor: float | Sequence[float]) -> PixelSize:
        """Pixel size after the image was enlarged by `factor` (per axis or one for all)."""
        factors = np.broadcast_to(factor, len(self.size))
        return dataclasses.replace(self, size=tuple(s / f for s, f in zip(self.size, factors, strict=True)))

    def __str__(self) -> str:
        numbers = " x ".join(f"{value:.5g}" for value in (self.size[:1] if self.is_square else self.size))
        return f"{numbers} {self.unit}"


class LazyArray:
    """Array whose pixels are read when asked for: `shape`, `dtype` and `[...]` with integers and slices.

    A subclass sets `shape` and `dtype` and writes `read_block`.

    Attributes:
        shape: length of every axis.
        dtype: NumPy data type in native byte order.
        chunks: lengths of the pieces it is stored in, None when that does not matter for reading.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None = None

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        """Pixels of `block`: one slice per axis, with `0 <= start <= stop <= length` and no step."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        block, rest = split_index(index, self.shape)
        return self.read_block(block)[rest]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype=dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


def split_index(index: Any, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Split a basic index into the smallest block that holds it and the index into that block.

    Args:
        index: integers, slices (any step) and at most one `...`; fewer entries than axes are filled with `:`.
        shape: length of every axis.

    Returns:
        `(block, rest)` with `array[index] == array[block][rest]`; `block` has one slice without step per axis.

    Raises:
        IndexError: out of range, too many entries, or an index that is not an integer or slice.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    gaps = [i for i, entry in enumerate(entries) if entry is Ellipsis]
    if len(gaps) > 1 or len(entries) - len(gaps) > len(shape):
        raise IndexError(f"too many indices for {len(shape)} axes. Received: {index!r}")
    position = gaps[0] if gaps else len(entries)
    fill = [slice(None)] * (len(shape) - len(entries) + len(gaps))
    entries[position : position + len(gaps)] = fill
    block, rest = [], []
    for entry, length in zip(entries, shape, strict=True):
        if isinstance(entry, slice):
            taken = range(*entry.indices(length))
            low, high = (min(taken[0], taken[-1]), max(taken[0], taken[-1]) + 1) if len(taken) else (0, 0)
            block.append(slice(low, high))
            if len(taken) and taken.step < 0:
                rest.append(slice(None, None, taken.step))
            else:
                rest.append(slice(0, high - low, taken.step))
        elif isinstance(entry, (int, np.integer)) and not isinstance(entry, bool):
            if not -length <= entry < length:
                raise IndexError(f"index {entry} is out of range for an axis of length {length}.")
            start = int(entry) % length
            block.append(slice(start, start + 1))
            rest.append(0)
        else:
            raise IndexError(f"only integers, slices and ... are allowed. Received: {index!r}")
    return tuple(block), tuple(rest)


class LazyView(LazyArray):
    """A block of another array, still unread.

    Args:
        source: array or lazy array.
        block: one slice per axis of `source`, without step.
        keep: axes of `source` that stay; the others must have length 1 in `block`.
    """

    def __init__(self, source: Any, block: tuple[slice, ...], keep: Sequence[int] | None = None):
        self.source = source
        self.block = split_index(block, source.shape)[0]
        self.keep = tuple(range(len(source.shape)) if keep is None else keep)
        self.shape = tuple(self.block[axis].stop - self.block[axis].start for axis in self.keep)
        self.dtype = np.dtype(source.dtype)
        chunks = getattr(source, "chunks", None)
        self.chunks = None if chunks is None else tuple(chunks[axis] for axis in self.keep)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        index: list[Any] = [taken.start for taken in self.block]
        for axis, wanted in zip(self.keep, block, strict=True):
            start = self.block[axis].start
            index[axis] = slice(start + wanted.start, start + wanted.stop)
        return np.asarray(self.source[tuple(index)])


class BufferedPlanes(LazyArray):
    """An array stored in thick chunks, read plane by plane without unpacking every chunk once per plane.

    Args:
        source: lazy array with `chunks`.
        max_bytes: of the planes kept; at least one plane is.
    """

    def __init__(self, source: Any, max_bytes: int = 1 << 29):
        self.source, self.shape, self.dtype, self.chunks = source, tuple(source.shape), source.dtype, source.chunks
        plane = max(int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, 1)
        pieces = -(-self.chunks[0] * plane // max_bytes)
        self.depth = max(1, self.chunks[0] // pieces)
        self._first, self._planes = -1, np.zeros((0, *self.shape[1:]), self.dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        rows, rest = block[0], block[1:]
        parts, at = [], rows.start
        while at < rows.stop:
            first = at - at % self.depth
            if first != self._first:
                self._first, self._planes = first, np.asarray(self.source[first : first + self.depth])
            stop = min(rows.stop, first + self.depth)
            parts.append(self._planes[(slice(at - first, stop - first), *rest)])
            at = stop
        if not parts:
            return np.zeros([part.stop - part.start for part in block], self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def buffer_planes(array: Any) -> Any:
    """`array`, buffered where it is stored in chunks of several planes; for reading from first to last."""
    chunks = getattr(array, "chunks", None)
    is_thick = isinstance(array, LazyArray) and chunks is not None and chunks[0] > 1
    return BufferedPlanes(array) if is_thick and not isinstance(array, BufferedPlanes) else array


@dataclasses.dataclass(frozen=True)
class Image:
    """Pixels with meaning.

    Attributes:
        data: array or lazy array (`shape`, `dtype`, `__getitem__` with slices returning NumPy).
        axes: one letter per array axis out of `T Z Y X C`, for example `"YX"`, `"YXC"`, `"ZYX"`.
        pixel_size: edge lengths of the spatial axes, or None when unknown.
        path: file it came from, or None.
        origin: index of the first pixel in the file, per spatial axis (not 0 when a crop was read).
        metadata: further facts of the file (vendor, detector, warnings), plain JSON values.
    """

    data: Any
    axes: str
    pixel_size: PixelSize | None = None
    path: str | None = None
    origin: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.data.shape):
            raise UserError(f"`axes` must name every axis. Received: axes={self.axes!r} for shape {self.data.shape}")
        for letter in self.axes:
            check_choice("axes", letter, "TZYXC")
        if not self.origin:
            object.__setattr__(self, "origin", (0,) * len(self.spatial_axes))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.data.dtype)

    @property
    def spatial_axes(self) -> str:
        """The axes that are lengths, in array order: `"YX"` or `"ZYX"`."""
        return "".join(letter for letter in self.axes if letter in "ZYX")

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return tuple(n for n, letter in zip(self.shape, self.axes, strict=True) if letter in "ZYX")

    @property
    def name(self) -> str:
        """File name for messages, or `"image"`."""
        return "image" if self.path is None else re.split(r"[\\/]", self.path)[-1]

    def read(self, window: tuple[slice, ...] | None = None) -> np.ndarray:
        """Pixels of `window` (one slice per spatial axis; None = all), with all other axes whole, as NumPy."""
        if window is None:
            return np.asarray(self.data[...])
        slices = iter(window)
        index = tuple(next(slices) if letter in "ZYX" else slice(None) for letter in self.axes)
        return np.asarray(self.data[index])

    def with_data(self, data: Any, axes: str | None = None) -> Image:
        """The same facts about other pixels."""
        return dataclasses.replace(self, data=data, axes=axes or self.axes)

    def crop(self, window: Sequence[slice]) -> Image:
        """The part inside `window` (one slice per spatial axis, no step), unread; `origin` tells where it began."""
        slices = list(window)
        if len(slices) != len(self.spatial_axes) or any(part.step not in (None, 1) for part in slices):
            raise UserError(f"`window` needs one slice per axis of {self.spatial_axes!r}. Received: window={window!r}")
        parts = iter(slices)
        index = tuple(next(parts) if letter in "ZYX" else slice(None) for letter in self.axes)
        view = LazyView(self.data, index)
        starts = [b.start for b, letter in zip(view.block, self.axes, strict=True) if letter in "ZYX"]
        if 0 in view.shape:
            raise UserError(f"{self.name}: nothing is left inside window={window!r} of shape {self.spatial_shape}.")
        origin = tuple(old + new for old, new in zip(self.origin, starts, strict=True))
        return dataclasses.replace(self, data=view, origin=origin)

    def planes(self) -> Iterator[Image]:
        """The single `YX` (or `YXC`) images of a stack, unread, first axis slowest; a 2-D image gives itself.

        The pixel size of a plane is that of y and x. `metadata["plane"]` holds the indices along the other axes.
        """
        stacked = [i for i, letter in enumerate(self.axes) if letter in "TZ"]
        if not stacked:
            yield self
            return
        keep = [i for i in range(len(self.axes)) if i not in stacked]
        size = self.pixel_size
        if size is not None:
            size = dataclasses.replace(size, size=size.size[-2:])
        elif "pixel_size_yx" in self.metadata:
            size = PixelSize(**self.metadata["pixel_size_yx"])
        for indices in np.ndindex(*(self.shape[i] for i in stacked)):
            block = [slice(None)] * len(self.axes)
            for axis, index in zip(stacked, indices, strict=True):
                block[axis] = slice(index, index + 1)
            facts = {**self.metadata, "plane": [int(i) for i in indices]}
            yield Image(
                LazyView(self.data, tuple(block), keep),
                "".join(self.axes[i] for i in keep),
                size,
                self.path,
                self.origin[-2:],
                facts,
            )
