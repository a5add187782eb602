"""Objects with holes and several parts in formats that know single polygons only.

Each polygon carries a note (JSON text): which object it belongs to, whether it is a hole, and what else the format has
no field for. Programs that do not know the note show the polygons; reading them here gives the object again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_microseg.io.annotations.records import Region

NOTE = "keras_microseg"


def split_pieces(region: Region, number: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The polygons of a region with their notes.

    Args:
        region: the object.
        number: a number of its own within the image.
    """
    fill = "centres" if region.mask is not None else region.fill
    facts = {"fill": fill if fill != "outline" else None, "key": region.key, "crowd": region.crowd or None}
    facts = {name: value for name, value in facts.items() if value is not None}
    polygons = region.polygons
    single = len(polygons) == 1 and len(polygons[0]) == 1
    for part, rings in enumerate(polygons):
        for index, ring in enumerate(rings):
            yield ring, facts if single else {**facts, "object": number, "part": part, "hole": index > 0}


def read_note(text: Any) -> dict[str, Any]:
    """A note from its text; empty when it is none of ours."""
    try:
        note = json.loads(text) if isinstance(text, str) and text.startswith("{") else {}
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def join_pieces(pieces: Iterable[tuple[Region, Mapping[str, Any]]]) -> tuple[Region, ...]:
    """Objects again: pieces with the same `object` in their notes become one region."""
    regions: list[Region] = []
    places: dict[Any, int] = {}
    for region, note in pieces:
        region = dataclasses.replace(
            region,
            fill="centres" if note.get("fill") == "centres" else region.fill,
            key=note.get("key", region.key),
            crowd=bool(note.get("crowd", region.crowd)),
        )
        name = note.get("object")
        if name is None or name not in places:
            if name is not None:
                places[name] = len(regions)
            regions.append(region)
            continue
        whole = regions[places[name]]
        if not note.get("hole"):
            whole = dataclasses.replace(whole, parts=(*whole.parts, (region.outline, *region.holes)))
        elif whole.parts:
            whole = dataclasses.replace(whole, parts=(*whole.parts[:-1], (*whole.parts[-1], region.outline)))
        else:
            whole = dataclasses.replace(whole, holes=(*whole.holes, region.outline))
        regions[places[name]] = whole
    return tuple(regions)
