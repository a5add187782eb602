"""Pairs files of two folders by name: label images with micrographs, predictions with truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from keras_microseg.checks import UserError

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
