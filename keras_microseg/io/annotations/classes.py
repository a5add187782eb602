"""Class images (every pixel in the colour of its class) and the class lists that say which colour is which."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.images import open_image

_MOST_CLASSES = 64
_NAMED = ("red", "lime", "blue", "yellow", "cyan", "magenta", "white", "orange", "purple", "brown", "pink", "gray")
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Names and colours of classes. Class k (from 1) is entry k - 1; 0 stands for the background.

    Attributes:
        names: one per class, all different.
        colours: (red, green, blue) per class as in the class images, all different; grey values v are (v, v, v).
        background: colour of what belongs to no class.

    Raises:
        UserError: no class, as many colours as names missing, or a name or colour twice.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    background: Colour = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name).strip() for name in self.names))
        object.__setattr__(self, "colours", tuple(parse_colour(colour) for colour in self.colours))
        object.__setattr__(self, "background", parse_colour(self.background))
        if not self.names or len(self.names) != len(self.colours):
            raise UserError(f"A class list needs a name and a colour for each class. Received: {self}")
        for kind, values in (("name", self.names), ("colour", (self.background, *self.colours))):
            shown = [colour_text(value) if kind == "colour" else value for value in values]
            twice = sorted({value for value in shown if shown.count(value) > 1} | {v for v in shown if not v})
            if twice:
                raise UserError(f"Every class needs a {kind} of its own (background too). Received: {', '.join(shown)}")

    def __len__(self) -> int:
        return len(self.names)

    def paint(self, classes: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 picture of class numbers (H, W); numbers without a class are background."""
        table = np.array([self.background, *self.colours])
        top = table.max(initial=255)
        table = (table * 255 // top if top > 255 else table).astype(np.uint8)
        return table[np.where((classes >= 0) & (classes <= len(self)), classes, 0)]


def parse_colour(value: Any) -> Colour:
    """A colour as whole numbers (red, green, blue).

    Args:
        value: `"#00ff00"`, a colour name, a grey value, or three numbers.

    Raises:
        UserError: none of these.
    """
    try:
        if isinstance(value, str):
            text = value.strip()
            return parse_colour(int(text)) if text.isdigit() else ImageColor.getrgb(text)[:3]
        numbers = [value] * 3 if np.isscalar(value) else list(value)
        whole = tuple(int(number) for number in numbers)
        if len(whole) == 3 and all(a == b and 0 <= a < 2**16 for a, b in zip(whole, numbers, strict=True)):
            return whole
    except (TypeError, ValueError):
        pass
    raise UserError(f"A colour must be like #00ff00, green, a grey value or three numbers. Received: {value!r}")


def colour_text(colour: Colour) -> str:
    """`#rrggbb`; the three numbers where they exceed 8 bits."""
    return "#{:02x}{:02x}{:02x}".format(*colour) if max(colour) < 256 else str(tuple(colour))


def read_class_list(path: str | os.PathLike) -> ClassList:
    """Read a class list.

    Args:
        path: JSON, `{"whole": "#00ff00", "fragment": [255, 0, 0]}`, or text with a class per line, `whole, #00ff00` or
            `whole 0 255 0`; `#` or `//` before a line makes it a comment. The name `background` sets the background's
            colour (else black).

    Raises:
        FileError: unreadable, or no class list.
    """
    path = Path(path)
    remedy = 'Write one class per line, like "whole, #00ff00", or JSON {"whole": "#00ff00"}.'
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            entries = list(json.loads(text, object_pairs_hook=list))
        else:
            entries = [_class_line(line) for line in text.splitlines() if line.strip() and not _is_comment(line)]
        found = [(str(name), parse_colour(colour)) for name, colour in entries]
        background = [colour for name, colour in found if name.lower() == "background"]
        found = [(name, colour) for name, colour in found if name.lower() != "background"]
        return ClassList(*zip(*found, strict=True), *background) if found else ClassList((), ())
    except OSError as error:
        raise FileError(
            path, f"cannot be read ({error.strerror or error}).", "Check the name and the rights."
        ) from error
    except (ValueError, TypeError) as error:
        raise FileError(path, f"is no class list ({error}).", remedy) from error


def find_class_list(paths: Iterable[str | os.PathLike], *, background: Colour = (0, 0, 0)) -> ClassList:
    """The class list that class images imply: every colour but the background is a class named after it.

    Colours come out in the order red, green, blue, ... then by value; others are named by their hexadecimal value.

    Raises:
        FileError: more than 64 colours, as photographs, micrographs and JPEG files have.
        UserError: the images hold nothing but background.
    """
    found: set[Colour] = set()
    for path in paths:
        colours, _ = colours_of(path)
        found |= {tuple(int(v) for v in colour) for colour in colours} - {tuple(background)}
        if len(found) > _MOST_CLASSES:
            raise FileError(
                path,
                f"has more than {_MOST_CLASSES} colours, so it is no class image.",
                "Save class images without smoothing, as PNG or TIFF (not JPEG), one colour per class.",
            )
    known = {ImageColor.getrgb(name): "green" if name == "lime" else name for name in _NAMED}
    order = sorted(found, key=lambda colour: (list(known).index(colour) if colour in known else len(known), colour))
    if not order:
        raise UserError("The class images hold nothing but background. Paint every class in a colour of its own.")
    names = tuple(known.get(colour, colour_text(colour).lstrip("#")) for colour in order)
    return ClassList(names, tuple(order), background)


def read_class_image(path: str | os.PathLike, classes: ClassList) -> np.ndarray:
    """Read the class of every pixel from an image in which each class has its colour.

    Args:
        path: grey, palette or colour image of any format of `open_image`; an alpha channel is ignored.
        classes: the classes that may occur.

    Returns:
        (H, W) int32: 0 = background, k = class k (entry k - 1 of the list).

    Raises:
        FileError: colours that are not in the list; the message names them, how often they occur, and what is near.
    """
    colours, numbers = colours_of(path)
    listed = {classes.background: 0, **{colour: k for k, colour in enumerate(classes.colours, start=1)}}
    table = np.array([listed.get(tuple(int(v) for v in colour), -1) for colour in colours], np.int32)
    unknown = np.flatnonzero(table < 0)
    if len(unknown):
        counts = np.bincount(numbers.ravel(), minlength=len(colours))
        unknown = unknown[np.argsort(-counts[unknown], kind="stable")]
        shown = "; ".join(
            f"{colour_text(tuple(int(v) for v in colours[k]))} in {counts[k]} pixels, nearest is "
            f"{_nearest(colours[k], classes)}"
            for k in unknown[:6]
        )
        more = f"; and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        remedy = "Add them to the class list, or repaint them without smoothing and save as PNG or TIFF."
        raise FileError(path, f"has {len(unknown)} colours that are no class: {shown}{more}.", remedy)
    return table[numbers]


def colours_of(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) distinct colours of an image, and (H, W) the index of each pixel's colour."""
    image = open_image(path)
    if "T" in image.axes or "Z" in image.axes:
        raise FileError(path, f"has axes {image.axes}.", "Save one class image per file.")
    array = image.read()
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind != "u":
        raise FileError(path, f"holds {array.dtype} values, so it is no class image.", "Save colours of 8 or 16 bits.")
    if image.axes.endswith("C"):
        has_alpha = image.metadata.get("alpha", array.shape[-1] == 4)
        array = array[..., :-1] if has_alpha and array.shape[-1] > 1 else array
        if array.shape[-1] not in (1, 3):
            raise FileError(path, f"has {array.shape[-1]} channels.", "Save class images as grey or RGB.")
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.ndim == 2:
        values, numbers = np.unique(array, return_inverse=True)
        return np.repeat(values[:, np.newaxis], 3, axis=1), numbers.reshape(array.shape)
    packed = (array.astype(np.uint64) << np.array([32, 16, 0], np.uint64)).sum(axis=-1)
    values, numbers = np.unique(packed, return_inverse=True)
    colours = np.stack([values >> 32, (values >> 16) & 0xFFFF, values & 0xFFFF], axis=1).astype(np.int64)
    return colours, numbers.reshape(array.shape[:2])


def _nearest(colour: np.ndarray, classes: ClassList) -> str:
    names, table = ("background", *classes.names), np.array([classes.background, *classes.colours], np.int64)
    nearest = int(np.abs(table - colour).sum(axis=1).argmin())
    return f"{names[nearest]} {colour_text(tuple(int(v) for v in table[nearest]))}"


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("//", "# "))


def _class_line(line: str) -> tuple[str, Any]:
    """Name and colour of `whole, #00ff00` or `whole 0 255 0`."""
    parts = [part for part in re.split(r"\s*[,;\t]\s*", line.strip()) if part]
    if len(parts) < 2:
        parts = re.split(r"\s+", line.strip())
    name, colour = parts[0], parts[1:]
    if len(colour) == 1 and " " in colour[0]:
        colour = colour[0].split()
    if not colour:
        raise UserError(f"no colour in the line {line.strip()!r}")
    return name, colour[0] if len(colour) == 1 else [float(value) for value in colour]
