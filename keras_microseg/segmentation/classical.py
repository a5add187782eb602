"""Particles without a network: smooth, threshold, split at the necks.

`segment_classical` is the method `--method classical`. It starts from the recipe that scores best among simple ones on
the TiO2 images (Gaussian 1 px, Li threshold, watershed of the distance map; `segment_floor` is that recipe to the
letter) and adds what other images need: polarity, uneven background, invalid pixels, and a splitting rule without a
length scale, so that particles of 8 or of 200 px are treated alike.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.segmentation import labeling
from keras_microseg.segmentation.basins import merge_basins

_POLARITY_SIZE = 256
_BRIGHT_UNLESS = -0.5
_DETAIL_RADII = (14.0, 35.0)  # px, typical radii between which filling of holes and joining of basins set in
_SMALL_RATIO = 0.95  # neck / peak above which basins of particles below the first radius are joined


def segment_classical(
    image: np.ndarray,
    *,
    polarity: str = "auto",
    threshold: str | float = "li",
    sigma: float = 1.0,
    background: float | None = None,
    min_area: float | None = None,
    min_distance: int | None = None,
    max_hole: float = 0.1,
    merge_ratio: float = 0.85,
) -> np.ndarray:
    """Label the particles of a grey image.

    Smooth, threshold, fill small holes, take the distance to the background, seed a watershed at its peaks, and join
    neighbouring basins whose common neck is nearly as wide as the narrower of the two. Lengths that are not given
    follow from the particles themselves: their typical radius R is the area-weighted median of the distance peaks.
    The larger particles are, the more detail of their outlines and inside shows that must not part them. So up to
    R = 14 px nothing is filled and only necks of 95 % are joined; `max_hole` and `merge_ratio` hold from R = 35 px on,
    and both change linearly between. These radii and ratios were chosen by the scores on real images (TiO2 in SEM,
    metal powder, figures of articles), so the scores printed for those images are a little flattering.

    Args:
        image: (H, W) numeric array; NaN and infinite pixels count as background.
        polarity: `"bright"` particles on dark ground, `"dark"` ones on bright ground, or `"auto"` (`find_polarity`).
        threshold: `"li"`, `"otsu"`, or a number in grey values of `image` (particles are beyond it, on their side).
        sigma: Gaussian smoothing before the threshold, pixels.
        background: when given, width in pixels over which the background may vary; it is estimated from the pixels
            below a first threshold and subtracted. Use a few particle diameters.
        min_area: smaller objects are removed, pixels; None = 5 % of pi R^2, or 10 % if that is
            below 50; at least 10.
        min_distance: half width of the window in which one distance peak is kept, pixels; None = max(2, R / 3).
        max_hole: holes up to this share of pi R^2 are filled; 0 fills none.
        merge_ratio: basins are joined when neck / lower peak exceeds it, both measured as distance to the background;
            for R >= 35 px (see above); 1 joins none at any R.

    Returns:
        (H, W) int32 labels 1..n; all 0 for an image without contrast, or, when the threshold is found from the image,
        for one whose bright and dark parts differ by no more than a threshold parts noise.

    Raises:
        UserError: `image` is not 2D or an argument is out of range.
    """
    check_choice("polarity", polarity, ("auto", "bright", "dark"))
    check_number("sigma", sigma, minimum=0)
    check_number("merge_ratio", merge_ratio, minimum=0, maximum=1)
    check_number("max_hole", max_hole, minimum=0)
    valid, grey = _clean(image)
    if grey is None:
        return np.zeros(np.shape(image), np.int32)
    if polarity == "auto":
        polarity = find_polarity(grey)
    sign = 1.0 if polarity == "bright" else -1.0
    noise = _noise_level(grey, sigma)
    grey = ndimage.gaussian_filter(sign * grey, sigma) if sigma > 0 else sign * grey
    if background is not None:
        check_number("background", background, minimum=0, exclusive=True)
        grey = grey - estimate_background(grey, background)
    level = threshold if isinstance(threshold, str) else sign * check_number("threshold", threshold)
    mask = (grey > labeling.threshold_value(grey, level)) & valid
    mask = labeling.remove_small(labeling.label_components(mask, 4), 4 if min_area is None else min_area) > 0
    if not mask.any() or (isinstance(level, str) and _is_noise(noise, grey, mask, valid)):
        return np.zeros(mask.shape, np.int32)
    distance = labeling.distance_to_background(mask)
    radius = _typical_radius(distance)
    hole = max_hole * np.interp(radius, _DETAIL_RADII, (0, 1)) * np.pi * radius**2
    if hole >= 1:
        mask = labeling.fill_holes(mask.astype(np.int32), hole) > 0
        distance = labeling.distance_to_background(mask)
        radius = _typical_radius(distance)
    distance = ndimage.gaussian_filter(distance, 1.0)
    window = max(2, round(radius / 3)) if min_distance is None else min_distance
    seeds = labeling.find_peaks(distance, window, mask=mask)
    labels = labeling.seeded_watershed(-distance, seeds, mask, keep_unseeded=True)
    ratios = max(_SMALL_RATIO, merge_ratio), merge_ratio
    labels = merge_basins(labels, distance, float(np.interp(radius, _DETAIL_RADII, ratios)))
    area = np.pi * radius**2
    smallest = max(10, 0.05 * area, min(50, 0.1 * area)) if min_area is None else min_area
    labels = labeling.remove_small(labels, smallest)
    return labeling.relabel_sequential(labels)


def _noise_level(grey: np.ndarray, sigma: float) -> float:
    """Standard deviation that the white noise of an image has left after the smoothing.

    From the mixed second differences, which see neither edges nor slopes (Immerkaer 1996, CVIU 64, 300); a Gaussian of
    width sigma leaves 1 / (2 sigma sqrt(pi)) of it.
    """
    if min(grey.shape) < 3:
        return 0.0
    second = np.diff(np.diff(grey, 2, axis=0), 2, axis=1)
    raw = np.sqrt(np.pi / 2) * float(np.abs(second).mean()) / 6
    return raw / (2 * sigma * np.sqrt(np.pi)) if sigma > 0.5 else raw


def _is_noise(noise: float, smooth: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> bool:
    """True when the two sides of a threshold are no farther apart than those of noise alone (1.6 to 1.9 of it)."""
    outside = valid & ~mask
    if not outside.any():
        return False
    return float(smooth[mask].mean() - smooth[outside].mean()) < 2.3 * noise


def segment_floor(image: np.ndarray, *, threshold: str = "li", min_area: float = 50) -> np.ndarray:
    """The reference recipe that others have to beat: bright particles, nothing adapted.

    Gaussian 1 px, threshold, distance, Gaussian 1 px, peaks with a 9 px window kept up to the frame, watershed with
    lines, lines widened to be 4-connected, objects of fewer than `min_area` pixels removed.

    Args:
        image: (H, W) numeric array.
        threshold: `"li"` or `"otsu"`.
        min_area: pixels.

    Returns:
        (H, W) int32 labels 1..n.
    """
    valid, grey = _clean(image)
    if grey is None:
        return np.zeros(np.shape(image), np.int32)
    grey = ndimage.gaussian_filter(grey, 1.0)
    mask = (grey > labeling.threshold_value(grey, threshold)) & valid
    parts = labeling.split_by_distance(mask, 9, draw_lines=True, keep_unseeded=False)
    labels = labeling.label_components(labeling.separate_8_to_4(parts), 4)
    return labeling.relabel_sequential(labeling.remove_small(labels, min_area))


def find_polarity(image: np.ndarray) -> str:
    """`"bright"` or `"dark"`: whether particles are brighter or darker than what is around them.

    The image is reduced to about 256 px and cut in two by Otsu's threshold. Background tends to be one connected
    region and to fill the frame: s = (share of the largest dark region in all dark pixels - the same of bright ones)
    + (1 - 2 * bright share of the outermost pixels), between -2 (dark particles) and 2 (bright ones). Bright particles
    are the common case in SEM, so dark ones need evidence: s < -0.5.

    Args:
        image: (H, W) finite numbers.
    """
    step = max(1, round(max(image.shape) / _POLARITY_SIZE))
    rows, columns = (max(size // step, 1) * min(step, size) for size in image.shape)
    cells = image[:rows, :columns].reshape(rows // min(step, image.shape[0]), min(step, image.shape[0]), -1)
    cells = cells.mean(axis=1).reshape(cells.shape[0], -1, min(step, image.shape[1])).mean(axis=2)
    cells = ndimage.gaussian_filter(cells, 1.0)
    bright = cells > labeling.threshold_value(cells, "otsu")
    if bright.all() or not bright.any():
        return "bright"
    shares = []
    for part in (~bright, bright):
        sizes = np.bincount(labeling.label_components(part, 4).ravel())[1:]
        shares.append(sizes.max() / sizes.sum())
    frame = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    evidence = shares[0] - shares[1] + 1 - 2 * frame.mean()
    return "bright" if evidence > _BRIGHT_UNLESS else "dark"


def estimate_background(image: np.ndarray, width: float) -> np.ndarray:
    """Slowly varying ground of bright objects, float32.

    Mean of the pixels below Otsu's threshold under a Gaussian window of standard deviation `width`; where the window
    holds almost none of them, the value fades to their overall mean. Two rounds, the second with the threshold of the
    image after subtraction.

    Args:
        image: (H, W) finite float array.
        width: pixels.
    """
    ground = np.zeros(image.shape, np.float32)
    for _ in range(2):
        flat = image - ground
        below = flat <= labeling.threshold_value(flat, "otsu")
        overall = float(image[below].mean())
        weight = ndimage.gaussian_filter(below.astype(np.float32), width)
        total = ndimage.gaussian_filter(np.where(below, image - overall, 0).astype(np.float32), width)
        ground = overall + total / (weight + 1e-3)
    return ground


def _clean(image: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mask of finite pixels and a float32 image in which the others have the median; None, None without contrast."""
    image = np.asarray(image)
    if image.ndim != 2:
        raise UserError(f"`image` must be 2D (H, W). Received: shape {image.shape}. Read it as grey first.")
    grey = image.astype(np.float64 if image.dtype.itemsize > 2 else np.float32)
    valid = np.isfinite(grey)
    if not valid.any():
        return None, None
    low, high = grey[valid].min(), grey[valid].max()
    if low == high:
        return None, None
    return valid, np.where(valid, grey, np.median(grey[valid])).astype(np.float32)


def _typical_radius(distance: np.ndarray) -> float:
    """Area-weighted median of the distance peaks of a mask, at least 1 px."""
    peaks = labeling.find_peaks(distance, 3, threshold=1.0) > 0 if distance.any() else distance > 0
    radii = np.sort(distance[peaks])
    if not len(radii):
        return 1.0
    weights = np.cumsum(radii**2)
    return float(max(radii[np.searchsorted(weights, weights[-1] / 2)], 1.0))
