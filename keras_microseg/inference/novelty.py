"""Is an image like those a network learned from? Distance of grey histograms, and what the confidence map says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.intensity import Normalizer

LIMIT = 0.35
"""Total variation distance of the histograms from which an image is called unlike the training images."""
_EDGE, _WINDOWS = 1024, 49


def grey_distance(image: Any, normalizer: Normalizer, histogram: Sequence[float]) -> dict[str, Any]:
    """Total variation distance (0 alike, 1 disjoint) between grey values and those of the training images.

    Windows spread over the image are read; those that are black all over (outside of a sample) are left out.

    Args:
        image: (H, W) grey values as the network gets them before scaling, array or lazy array.
        normalizer: scaling to 0..1.
        histogram: shares of equal steps of 0..1 in training.

    Returns:
        `distance`, `limit`, `unlike` (distance above the limit), `windows`, and `worst`: the (y, x) origin and distance
        of the window that is farthest off.
    """
    expected = np.asarray(histogram, float)
    expected = expected / max(expected.sum(), 1e-12)
    total, worst, used = np.zeros(len(expected)), (0.0, (0, 0)), 0
    for window in spread(image.shape[:2]):
        values = normalizer(np.asarray(image[window]))
        counts = np.histogram(values, bins=len(expected), range=(0, 1))[0].astype(float)
        if counts[0] > 0.95 * counts.sum() > 0 and expected[0] < 0.5:
            continue
        total += counts
        used += 1
        distance = 0.5 * np.abs(counts / max(counts.sum(), 1) - expected).sum()
        if distance > worst[0]:
            worst = (float(distance), tuple(part.start for part in window))
    distance = float(0.5 * np.abs(total / total.sum() - expected).sum()) if total.sum() else 1.0
    return {
        "distance": distance, "limit": LIMIT, "unlike": distance > LIMIT, "windows": used,
        "worst": {"origin": list(worst[1]), "distance": worst[0]},
    }  # fmt: skip


def confidence_facts(confidence: Any, classes: Any, ignore: int) -> Mapping[str, float]:
    """Mean confidence, and the share of pixels below 0.5, over windows spread over the map."""
    total = low = count = 0.0
    for window in spread(classes.shape):
        known = np.asarray(confidence[window])[np.asarray(classes[window]) != ignore]
        total, low, count = total + known.sum() / 255, low + (known < 128).sum(), count + known.size
    return {"mean": float(total / max(count, 1)), "below_half": float(low / max(count, 1))}


def spread(shape: Sequence[int], edge: int = _EDGE, most: int = _WINDOWS) -> list[tuple[slice, slice]]:
    """Windows evenly spread over an image, at most `most`; all of it where that suffices."""
    side = max(1, int(most**0.5))
    starts = []
    for n in shape:
        count = min(side, -(-n // edge))
        starts.append(np.linspace(0, max(n - edge, 0), count).round().astype(int))
    return [
        (slice(y, min(y + edge, shape[0])), slice(x, min(x + edge, shape[1]))) for y in starts[0] for x in starts[1]
    ]
