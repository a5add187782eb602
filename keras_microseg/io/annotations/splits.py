"""Training, validation and test parts that share nothing: by image, by block with a guard; and a check for leaks.

Every picture is a box in its specimen (`Place`): a plane of a volume is a box one voxel thick, a tile a window of a
micrograph. Two parts leak when boxes of the same specimen come closer than the guard; so planes along z and planes
along y of one volume, which cross, leak as well.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.io.annotations.records import AnnotatedImage

_TILE = re.compile(r"^(?P<source>.*?)[_-](\d+)[_-](\d+)[_-](\d+)[_-](\d+)$")
_PLANE = re.compile(r"^(?P<source>.*?)[_-]?(?P<axes>xy|xz|yz)[_-]?(?P<index>\d+)$", re.IGNORECASE)
_EVERYWHERE = (-math.inf, math.inf)
GUARD = "guard"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a picture lies in its specimen.

    Attributes:
        name: of the picture.
        source: the specimen, volume or micrograph it was cut from.
        box: (start, stop) in pixels along z, y and x; infinite where it is not known.
    """

    name: str
    source: str
    box: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = (_EVERYWHERE,) * 3


class Leak(NamedTuple):
    """Two pictures of different parts that lie too close: their parts, names, and distance in pixels (0 = overlap)."""

    first_part: str
    first: str
    second_part: str
    second: str
    distance: float


def place_of(image: AnnotatedImage | str) -> Place:
    """The place of an image, from its plane or its name.

    Names understood: `xy0123`, `scan_xz0800` (planes of a volume), `Slice1_x0_y0_x1_y1` with numbers (tiles). Any other
    image is a specimen of its own.
    """
    if isinstance(image, AnnotatedImage) and image.plane is not None:
        axis, index = image.plane
        return _plane(f"{image.name} {axis}={index}", image.name, axis, index)
    name = image if isinstance(image, str) else image.name
    stem = Path(name).stem
    if match := _PLANE.match(stem):
        axis = {"xy": "z", "xz": "y", "yz": "x"}[match["axes"].lower()]
        return _plane(name, match["source"], axis, int(match["index"]))
    if match := _TILE.match(stem):
        left, top, right, bottom = (int(match[k]) for k in range(2, 6))
        if right > left and bottom > top:
            return Place(name, match["source"], (_EVERYWHERE, (top, bottom), (left, right)))
    return Place(name, stem)


def split_images(
    names: Sequence[str],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    group: Callable[[str], Hashable] | None = None,
) -> dict[str, list[str]]:
    """Distribute images at random, those of one group together.

    Args:
        names: of the images.
        shares: part -> share of the images, such as `{"train": 0.8, "validation": 0.2}`.
        seed: of the order.
        group: what belongs together, such as `lambda name: place_of(name).source`; None = every image by itself.

    Returns:
        part -> names in their old order; parts are filled as near to their shares as whole groups allow.

    Raises:
        UserError: shares that are no shares, or fewer groups than parts.
    """
    wanted = _check_shares(shares)
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(name if group is None else group(name), []).append(name)
    if len(groups) < len(wanted):
        raise UserError(
            f"{len(groups)} independent images or groups cannot be split into {len(wanted)} parts. Split by block."
        )
    keys = list(groups)
    order = [keys[k] for k in np.random.default_rng(seed).permutation(len(keys))]
    order.sort(key=lambda key: -len(groups[key]))
    chosen: dict[str, set[str]] = {part: set() for part in wanted}
    for place, key in enumerate(order):
        empty = [part for part in chosen if not chosen[part]]
        among = empty if len(order) - place <= len(empty) else list(chosen)
        part = max(among, key=lambda part: wanted[part] * len(names) - len(chosen[part]))
        chosen[part].update(groups[key])
    return {part: [name for name in names if name in chosen[part]] for part in wanted}


def split_blocks(
    places: Sequence[Place], shares: Mapping[str, float], *, axis: str = "z", guard: float = 0
) -> dict[str, list[str]]:
    """Distribute the pictures of every specimen into consecutive blocks along an axis.

    Args:
        places: of the pictures.
        shares: part -> share, in the order of the blocks.
        axis: `"z"`, `"y"` or `"x"`.
        guard: pixels between blocks; pictures that come closer to the block before go to the part `"guard"`.

    Returns:
        part -> names, with `"guard"` for those that are used nowhere. `find_leaks` of the parts is empty.

    Raises:
        UserError: shares that are no shares, or pictures without a known position along the axis.
    """
    wanted = _check_shares(shares)
    check_choice("axis", axis, ("z", "y", "x"))
    check_number("guard", guard, minimum=0)
    k = "zyx".index(axis)
    result: dict[str, list[str]] = {**{part: [] for part in wanted}, GUARD: []}
    sources: dict[str, list[Place]] = {}
    for place in places:
        if not math.isfinite(place.box[k][0]):
            raise UserError(f"{place.name}: its position along {axis} is not known. Split by image instead.")
        sources.setdefault(place.source, []).append(place)
    bounds = np.cumsum(list(wanted.values()))
    for listed in sources.values():
        listed = sorted(listed, key=lambda place: place.box[k])
        reached = {part: -math.inf for part in wanted}
        for rank, place in enumerate(listed):
            part = list(wanted)[min(int(np.searchsorted(bounds - 1e-9, rank / len(listed), side="right")),
                                    len(bounds) - 1)]  # fmt: skip
            others = max((stop for other, stop in reached.items() if other != part), default=-math.inf)
            if place.box[k][0] < others + guard:
                result[GUARD].append(place.name)
                continue
            reached[part] = max(reached[part], place.box[k][1])
            result[part].append(place.name)
    return result


def cut_blocks(
    shape: tuple[int, ...], shares: Mapping[str, float], *, axis: int = 0, guard: int = 0
) -> dict[str, tuple[slice, ...]]:
    """Windows of one image or volume for each part, with `guard` pixels left out between neighbours.

    Args:
        shape: of the image, (Y, X) or (Z, Y, X).
        shares: part -> share of the length that remains.
        axis: number of the axis to cut.
        guard: width of the gaps, pixels.

    Raises:
        UserError: the image is too short for its parts.
    """
    wanted = _check_shares(shares)
    free = shape[axis] - guard * (len(wanted) - 1)
    if free < len(wanted):
        raise UserError(f"`shape` {tuple(shape)} is too short along axis {axis} for {len(wanted)} parts, {guard=}.")
    ends = np.rint(np.cumsum(list(wanted.values())) * free).astype(int)
    starts = np.concatenate([[0], ends[:-1]])
    windows = {}
    for k, part in enumerate(wanted):
        window = [slice(0, int(edge)) for edge in shape]
        window[axis] = slice(int(starts[k] + k * guard), int(ends[k] + k * guard))
        windows[part] = tuple(window)
    return windows


def find_leaks(parts: Mapping[str, Sequence[Place]], *, guard: float = 0) -> list[Leak]:
    """Pairs of pictures in different parts that overlap, cross, or lie closer than the guard.

    Args:
        parts: part -> places of its pictures; a part named `"guard"` is not looked at.
        guard: smallest distance allowed, pixels.
    """
    listed = [(part, place) for part, places in parts.items() if part != GUARD for place in places]
    sources: dict[str, list[tuple[str, Place]]] = {}
    for part, place in listed:
        sources.setdefault(place.source, []).append((part, place))
    leaks = []
    for members in sources.values():
        if len({part for part, _ in members}) < 2:
            continue
        boxes = np.array([place.box for _, place in members])
        for k, (part, place) in enumerate(members[:-1]):
            gaps = np.maximum(boxes[k + 1 :, :, 0] - boxes[k, :, 1], boxes[k, :, 0] - boxes[k + 1 :, :, 1])
            distance = np.maximum(gaps, 0).max(axis=1)
            for j in np.flatnonzero(((gaps < 0).all(axis=1)) | (distance < guard)):
                other, second = members[k + 1 + j]
                if other != part:
                    leaks.append(Leak(part, place.name, other, second.name, float(distance[j])))
    return leaks


def _plane(name: str, source: str, axis: str, index: int) -> Place:
    box = [_EVERYWHERE] * 3
    box["zyx".index(axis)] = (index, index + 1)
    return Place(name, source, tuple(box))


def _check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    if not shares or GUARD in shares or min(shares.values()) <= 0 or not math.isfinite(total):
        raise UserError(f"`shares` must give every part a positive share; 'guard' is taken. Received: {dict(shares)}")
    return {part: share / total for part, share in shares.items()}
