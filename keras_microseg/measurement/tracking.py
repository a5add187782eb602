"""Following one filament through a video: pieces of its masks that cannot belong to it are dropped.

The reaction only removes carbon, so a piece of a mask must lie where the filament was in the frame before. Windows are
not registered to each other; `reach` is how far a filament may move between frames. At 32 px nothing is lost of the
true masks of the training videos of MultiTaskDeltaNet (at 24 px up to 3 % are).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number

_EIGHT = np.ones((3, 3), bool)


def follow_filament(masks: np.ndarray, *, reach: float = 32.0, share: float = 0.5, lost: str = "keep") -> np.ndarray:
    """Keep the largest piece of the first mask, and from then on the pieces that lie where the filament was.

    A piece is kept when at least `share` of it lies within `reach` of the masks kept in the last frame that had any.
    A frame without such a piece comes out as `lost` says.

    Args:
        masks: (N, H, W) bool masks of the whole filament, A1, in the order of time.
        reach: px.
        share: 0..1.
        lost: "keep" leaves a frame without such a piece as it is (the window may have jumped); "empty" empties it.

    Returns:
        (N, H, W) bool, a part of `masks`.
    """
    check_number("reach", reach, minimum=0)
    check_number("share", share, minimum=0, maximum=1)
    check_choice("lost", lost, ("keep", "empty"))
    masks = np.asarray(masks, bool)
    if masks.ndim != 3:
        raise UserError(f"`masks` must be (frame, y, x). Received: shape {masks.shape}")
    kept = masks.copy()
    near: np.ndarray | None = None
    for i in range(len(masks)):
        pieces, count = ndimage.label(masks[i], _EIGHT)
        if not count:
            continue
        sizes = np.bincount(pieces.ravel(), minlength=count + 1).astype(float)
        sizes[0] = 0
        if near is None:
            chosen = sizes == sizes.max()
        else:
            inside = np.bincount(pieces[near], minlength=count + 1)
            chosen = (inside >= share * sizes) & (sizes > 0)
        if chosen.any() or lost == "empty":
            kept[i] = chosen[pieces]
        if chosen.any():
            near = ndimage.distance_transform_edt(~kept[i]) <= reach
    return kept


def drop_pieces(masks: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """`follow_filament` for A1, and all other tasks limited to what is left of it (the core lies inside)."""
    if "A1" not in masks:
        return dict(masks)
    whole = follow_filament(masks["A1"], **options)
    return {task: whole if task == "A1" else np.asarray(one, bool) & whole for task, one in masks.items()}
