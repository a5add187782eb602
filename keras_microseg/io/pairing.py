"""Pairs files of two folders by name: label images with micrographs, predictions with truth."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from keras_microseg.checks import UserError
from keras_microseg.io.files import find_images

log = logging.getLogger(__name__)

_ENDINGS = re.compile(
    r"[ _.-]*(?:cp_masks|masks?|labels?|labelled|segmentation|segmap|seg|prediction|predicted|pred|gt|truth"
    r"|annotation|c?m)$",
    re.IGNORECASE,
)


def match_names(files: Iterable[Path], partners: Iterable[Path]) -> dict[Path, Path | None]:
    """The partner of every file: the same stem, else the same after an ending such as `_mask` or `_labels` is cut off.

    Args:
        files: what needs a partner.
        partners: what may be one.

    Returns:
        file -> partner, or None where there is none. Upper and lower case are the same.

    Raises:
        UserError: two partners fit one file.
    """
    files, partners = list(files), list(partners)
    exact, loose = _index(partners, _stem), _index(partners, _core)
    found: dict[Path, Path | None] = {}
    for path in files:
        candidates = exact.get(_stem(path)) or loose.get(_core(path)) or []
        others = [candidate for candidate in candidates if candidate != path] or candidates
        if len(others) > 1:
            names = ", ".join(str(candidate) for candidate in others[:4])
            raise UserError(f"{path}: more than one file could belong to it ({names}). Rename or remove the others.")
        found[path] = others[0] if others else None
    return found


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file and its label (or mask) file."""

    image: Path
    labels: Path


def pair_files(images: str | Path, labels: str | Path | None = None) -> list[Pair]:
    """Match images with labels by file name.

    Args:
        images: folder of images; or a folder with `images/` and `labels/` (or `masks/`) inside, when `labels` is None.
        labels: folder of label images or masks, named as their images, with or without an ending such as `_mask` or
            `_labels`, see `io.pairing.match_names`.

    Returns:
        Pairs in natural order. Images without labels are left out and counted in the log.

    Raises:
        UserError: no folder with labels, or no pair at all.
    """
    images = Path(images)
    if labels is None:
        for name in ("labels", "masks"):
            if (images / "images").is_dir() and (images / name).is_dir():
                images, labels = images / "images", images / name
                break
        else:
            raise UserError(
                f"{images}: needs the folders images/ and labels/ (or masks/) inside; or name both folders."
            )
    found = find_images(images)
    partners = match_names(found, find_images(labels))
    pairs = [Pair(path, partner) for path, partner in partners.items() if partner is not None]
    if not pairs:
        raise UserError(
            f"No image in {images} has a label image of the same name in {labels}. "
            "Name them alike, for example images/a.tif and labels/a.tif."
        )
    if len(pairs) < len(found):
        log.warning("%d of %d images have no label image and are left out.", len(found) - len(pairs), len(found))
    return pairs


def _index(paths: list[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = {}
    for path in paths:
        index.setdefault(key(path), []).append(path)
    return index


def _stem(path: Path) -> str:
    return re.sub(r"\.ome$", "", path.stem, flags=re.IGNORECASE).casefold()


def _core(path: Path) -> str:
    stem = _stem(path)
    return _ENDINGS.sub("", stem) or stem
