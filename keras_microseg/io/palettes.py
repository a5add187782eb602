"""Palettes of mineral maps: which colour is which mineral, and into which groups minerals are merged.

A palette is a table in a file; another merge is another column of groups, not another set of images.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.io.annotations.classes import ClassList, Colour, colour_text, colours_of, parse_colour
from keras_microseg.io.files import atomic_path

IGNORE = 255
SHIPPED = Path(__file__).with_name("qemscan.csv")
_REMEDY = "Write a table with the columns id, name, colour and, if wanted, group, density, micro_porosity."


@dataclasses.dataclass(frozen=True)
class Mineral:
    """One colour of a map.

    Attributes:
        id: number of the mineral, 0 to 254.
        name: its name.
        colour: (red, green, blue).
        group: what it is merged into; "" = itself.
        density: g/cm3, NaN = unknown.
        micro_porosity: share of pore space inside, 0..1.
        takes_others: colours that belong to no mineral are counted as this one (a matrix shown as the grey image).
    """

    id: int
    name: str
    colour: Colour
    group: str = ""
    density: float = math.nan
    micro_porosity: float = 0.0
    takes_others: bool = False


@dataclasses.dataclass(frozen=True)
class Palette:
    """The minerals of a map, in the order of the file.

    Raises:
        UserError: no mineral, a number, name or colour twice, or two that take the other colours.
    """

    minerals: tuple[Mineral, ...]

    def __post_init__(self) -> None:
        if not self.minerals:
            raise UserError("A palette needs at least one mineral.")
        for kind in ("id", "name", "colour"):
            values = [getattr(mineral, kind) for mineral in self.minerals]
            for value in values:
                if values.count(value) > 1:
                    shown = colour_text(value) if kind == "colour" else value
                    owners = ", ".join(f"{m.name} ({m.id})" for m in self.minerals if getattr(m, kind) == value)
                    raise UserError(f"The {kind} {shown} occurs more than once in the palette: {owners}.")
        for mineral in self.minerals:
            check_number(f"id of {mineral.name}", mineral.id, minimum=0, maximum=IGNORE - 1, integer=True)
            check_number(f"micro_porosity of {mineral.name}", mineral.micro_porosity, minimum=0, maximum=1)
        takers = [mineral.name for mineral in self.minerals if mineral.takes_others]
        if len(takers) > 1:
            raise UserError(f"Only one mineral can take the other colours. Received: {', '.join(takers)}")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups in order of first use; the number of a group is its place."""
        return tuple(dict.fromkeys(mineral.group or mineral.name for mineral in self.minerals))

    def merge_table(
        self, groups: Mapping[str, Sequence[str | int]] | None = None
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the merged classes, and (256,) uint8 from mineral numbers to class numbers (`IGNORE` elsewhere).

        Args:
            groups: class -> names or numbers of its minerals; None = the groups of the file.

        Raises:
            UserError: a mineral that is in no group, in two, or not in the palette.
        """
        if groups is None:
            groups = {g: [m.id for m in self.minerals if (m.group or m.name) == g] for g in self.groups}
        numbers = {m.name: m.id for m in self.minerals} | {m.id: m.id for m in self.minerals}
        table = np.full(256, IGNORE, np.uint8)
        for k, (group, members) in enumerate(groups.items()):
            for member in members:
                if member not in numbers:
                    raise UserError(f"The group {group!r} names {member!r}, which is not in the palette.")
                if table[numbers[member]] != IGNORE:
                    raise UserError(f"The mineral {member!r} is in more than one group. Keep it in one.")
                table[numbers[member]] = k
        left = [m.name for m in self.minerals if table[m.id] == IGNORE]
        if left:
            raise UserError(f"Minerals in no group: {', '.join(left)}. Put each into a group.")
        return tuple(groups), table

    def merged(
        self, groups: Mapping[str, Sequence[str | int]] | None = None, pixels: np.ndarray | None = None
    ) -> Palette:
        """The palette of the merged classes, numbered 0 to K - 1 as `merge_table` does.

        A class takes colour of its most frequent mineral; density and micro-porosity are the means over its minerals by
        area, as far as they are known.

        Args:
            groups: see `merge_table`.
            pixels: (256,) pixels of each mineral number; None = all alike.
        """
        names, table = self.merge_table(groups)
        weight = np.ones(256) if pixels is None else np.asarray(pixels, float) + 1e-6
        merged = []
        for k, name in enumerate(names):
            members = [m for m in self.minerals if table[m.id] == k]
            areas = np.array([weight[m.id] for m in members])
            density = np.array([m.density for m in members])
            known = np.isfinite(density)
            merged.append(
                Mineral(
                    k,
                    name,
                    members[int(areas.argmax())].colour,
                    density=float(np.average(density[known], weights=areas[known])) if known.any() else math.nan,
                    micro_porosity=float(np.average([m.micro_porosity for m in members], weights=areas)),
                )
            )
        return Palette(tuple(merged))

    def paint(self, ids: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 picture of mineral numbers; numbers without a mineral are mid-grey."""
        table = np.full((256, 3), 127, np.uint8)
        for mineral in self.minerals:
            table[mineral.id] = mineral.colour
        return table[np.where((ids >= 0) & (ids < 256), ids, IGNORE)]

    def class_list(self) -> ClassList:
        """The same colours for the modules that work with class lists; the first mineral is the background."""
        first, *others = self.minerals
        return ClassList(tuple(m.name for m in others), tuple(m.colour for m in others), first.colour)


def read_palette(path: str | os.PathLike | None = None) -> Palette:
    """Read a palette.

    Args:
        path: CSV with the columns `id, name, colour` (`#00ff00` or `0 255 0`) and optionally `group, density,
            micro_porosity, takes_others` (yes at one mineral, which then gets every other colour), or JSON with a list
            of such entries; lines that begin with `#` are comments.
            None = the 24 colours of the source's maps.

    Raises:
        FileError: unreadable, columns or colours missing, or anything twice.
    """
    path = SHIPPED if path is None else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            rows = [dict(entry) for entry in json.loads(text)]
        else:
            lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
            table = pd.read_csv(StringIO(lines), dtype=str, skipinitialspace=True, keep_default_na=False)
            rows = table.rename(columns=str.strip).to_dict("records")
        return Palette(tuple(_mineral(row, number) for number, row in enumerate(rows, start=1)))
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})."
        raise FileError(path, problem, "Check the name and the rights.") from error
    except (ValueError, TypeError) as error:
        raise FileError(path, f"is no palette: {error}", _REMEDY) from error


def write_palette(path: str | os.PathLike, palette: Palette) -> None:
    """Write a palette as the CSV that `read_palette` reads, all or nothing."""
    any_taker = any(m.takes_others for m in palette.minerals)
    rows = [
        {
            "id": m.id,
            "name": m.name,
            "colour": colour_text(m.colour),
            "group": m.group,
            "density": m.density,
            "micro_porosity": m.micro_porosity,
            **({"takes_others": "yes" if m.takes_others else ""} if any_taker else {}),
        }
        for m in palette.minerals
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def read_groups(path: str | os.PathLike) -> dict[str, list[str | int]]:
    """Read a merge: JSON `{"class": ["mineral", 3, ...], ...}`.

    Raises:
        FileError: unreadable, or no such mapping.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict) or not all(isinstance(v, list) and v for v in values.values()):
            raise UserError("every class needs a list of minerals")
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check the name.") from error
    except (ValueError, UserError) as error:
        remedy = 'Write {"clay": ["kaolinite", "illite"], "quartz": ["quartz"]}.'
        raise FileError(path, f"is no merge of minerals ({error}).", remedy) from error
    return values


def _mineral(row: Mapping[str, Any], number: int) -> Mineral:
    for name in ("id", "name", "colour"):
        if str(row.get(name, "")).strip() == "":
            raise UserError(f"entry {number} has no {name}.")
    colour = row["colour"]
    if isinstance(colour, str) and len(colour.split()) == 3:
        colour = [int(part) for part in colour.split()]
    density, share = (str(row.get(name) or "").strip() for name in ("density", "micro_porosity"))
    return Mineral(
        int(row["id"]),
        str(row["name"]).strip(),
        parse_colour(colour),
        str(row.get("group") or "").strip(),
        float(density) if density else math.nan,
        float(share) if share else 0.0,
        str(row.get("takes_others") or "").strip().lower() in ("1", "yes", "true", "x"),
    )


class MineralMap(NamedTuple):
    """A map read with a palette.

    Attributes:
        ids: (H, W) uint8 mineral numbers, `IGNORE` where the colour is unknown.
        unknown: the unknown colours with the number of their pixels, the nearest mineral and its distance.
        replaced: pixels whose colour was taken for the nearest one within the tolerance.
    """

    ids: np.ndarray
    unknown: pd.DataFrame
    replaced: int


def read_mineral_map(
    path: str | os.PathLike,
    palette: Palette,
    *,
    tolerance: float = 0.0,
    image_shape: tuple[int, int] | None = None,
) -> MineralMap:
    """Read mineral numbers from a colour-coded map. Unknown colours are counted and ignored, never taken for a mineral.

    Args:
        path: image with one colour per mineral.
        palette: the minerals.
        tolerance: largest distance of a colour (Euclidean, 8 bits) that is still taken for the nearest mineral; colours
            that are as near to two minerals stay unknown.
        image_shape: (height, width) of the micrograph that belongs to it, when both should have one.

    Raises:
        FileError: unreadable, not a class image, or another shape than the micrograph.
    """
    check_number("tolerance", tolerance, minimum=0)
    colours, numbers = colours_of(path)
    if image_shape is not None and numbers.shape != tuple(image_shape):
        raise FileError(
            path,
            f"has {numbers.shape[0]} x {numbers.shape[1]} pixels, its image {image_shape[0]} x {image_shape[1]}.",
            "Align the two first (registration), or pair the right files.",
        )
    known = np.array([mineral.colour for mineral in palette.minerals], float)
    counts = np.bincount(numbers.ravel(), minlength=len(colours))
    others = next((mineral.id for mineral in palette.minerals if mineral.takes_others), IGNORE)
    table = np.full(len(colours), others, np.uint8)
    entries, replaced = [], 0
    for k, colour in enumerate(colours):
        distance = np.sqrt(((known - colour) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")[:2]
        is_clear = len(order) < 2 or distance[order[0]] < distance[order[1]]
        if distance[order[0]] == 0 or (distance[order[0]] <= tolerance and is_clear):
            table[k] = palette.minerals[order[0]].id
            replaced += int(counts[k]) if distance[order[0]] else 0
            continue
        if others != IGNORE:
            continue
        nearest = palette.minerals[order[0]].name
        entries.append((colour_text(tuple(int(v) for v in colour)), int(counts[k]), nearest, float(distance[order[0]])))
    unknown = pd.DataFrame(entries, columns=["colour", "pixels", "nearest", "distance"])
    unknown = unknown.sort_values("pixels", ascending=False, ignore_index=True, kind="stable")
    return MineralMap(table[numbers], unknown, replaced)
