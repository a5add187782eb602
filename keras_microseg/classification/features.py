"""Numbers per particle from which its class can be told: shape, grey values, outline, neighbours.

Grey values are of the image stretched to 0..1 between its 0.5 and 99.5 percentile, so that features do not depend on
brightness and contrast of the image. All but `log_diameter` do not depend on the magnification either.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.segmentation import expand_labels

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.measurement import measure_particles

GAP = 2
"""Particles at most twice this many pixels apart count as touching (hand-drawn masks leave a line between them)."""

_RIM = 2.0  # px: width of the outer zone of a particle
_RING = 3.0  # px: width of the ground around it
_SHAPE = (
    "aspect_ratio", "ellipse_ratio", "circularity", "roundness", "compactness", "extent", "convexity", "solidity",
    "completeness",
)  # fmt: skip
FEATURES = {
    "log_diameter": "natural logarithm of the equivalent diameter in the unit of lengths",
    "relative_size": "natural logarithm of the equivalent diameter over the median of the image's particles",
    **{name: f"see the quantity {name} of the particle table" for name in _SHAPE},
    "grey_mean": "mean grey value",
    "grey_std": "standard deviation of the grey values",
    "grey_range": "difference of the greatest and the least grey value",
    "grey_relative": "mean grey value minus the mean over the image's particles",
    "contrast": "mean grey value minus that of the free ground within 3 px",
    "rim_contrast": "mean grey value of the outer 2 px minus that of the rest of the particle",
    "rim_std": "standard deviation of the grey values of the outer 2 px",
    "edge_strength": "mean slope of the grey values (Gaussian, 1 px) along the outline",
    "edge_variation": "standard deviation of that slope",
    "texture": "standard deviation of the Laplacian (Gaussian, 1 px) inside",
    "contact_share": "share of the outline (grown by 2 px) that borders on other particles",
    "contacts": "number of particles it borders on",
    "neighbour_grey": "mean grey value minus that of the touching particles, weighted by the length of contact",
    "neighbour_size": "natural logarithm of the equivalent diameter over the mean one of the touching particles",
    "contact_step": "grey value of the own rim minus that of the neighbour's along the contact",
    "touches_border": "1 when the image edge cuts it",
}
"""Name and meaning of every feature, in order."""


def instance_features(labels: np.ndarray, grey: np.ndarray, *, pixel_size: PixelSize | None = None) -> pd.DataFrame:
    """Measure the features of every particle.

    Args:
        labels: (H, W) integers, 0 = background.
        grey: (H, W) grey values of any type, non-finite pixels allowed.
        pixel_size: edge lengths of a pixel; None = unknown, `log_diameter` is of pixels then.

    Returns:
        DataFrame with a row per particle in ascending order of labels, `label` and the columns of `FEATURES`, float64;
        NaN where a feature does not exist (a particle without free ground or neighbours). `attrs["unit"]` is the unit
        of `log_diameter`.

    Raises:
        UserError: shapes differ.
    """
    labels, grey = np.asarray(labels), np.asarray(grey)
    if labels.shape != grey.shape or labels.ndim != 2:
        raise UserError(
            f"`labels` and `grey` must be images of one size. Received: shapes {labels.shape}, {grey.shape}"
        )
    quantities = ("equivalent_diameter", *_SHAPE, "touches_border")
    table = measure_particles(labels, pixel_size=pixel_size, quantities=quantities)
    unit = table.attrs["unit"]
    if not len(table):
        found = pd.DataFrame({"label": table["label"], **{name: np.zeros(0) for name in FEATURES}})
        found.attrs = {"unit": unit}
        return found
    ids = table["label"].to_numpy()
    index = np.zeros(int(ids.max()) + 1, np.int64)
    index[ids] = np.arange(1, len(ids) + 1)
    numbers = index[labels]  # 1..n in the order of the table
    values = stretch(grey, percentile_limits(grey)).astype(np.float64)
    diameter = table["equivalent_diameter"].to_numpy()
    zones = _Zones(numbers, values, len(ids))
    whole, rim, core = zones.statistics(numbers), zones.statistics(zones.rim), zones.statistics(zones.core)
    slope = ndimage.gaussian_gradient_magnitude(values, 1.0)
    edge = zones.statistics(zones.outline, slope)
    fine = zones.statistics(numbers, ndimage.gaussian_laplace(values, 1.0))
    ground = zones.statistics(zones.ring)
    extremes = [f(values, numbers, np.arange(1, len(ids) + 1)) for f in (ndimage.maximum, ndimage.minimum)]
    columns = {
        "log_diameter": np.log(diameter),
        "relative_size": np.log(diameter / np.median(diameter)),
        **{name: table[name].to_numpy(float) for name in _SHAPE},
        "grey_mean": whole.mean,
        "grey_std": whole.std,
        "grey_range": extremes[0] - extremes[1],
        "grey_relative": whole.mean - values[numbers > 0].mean(),
        "contrast": whole.mean - ground.mean,
        "rim_contrast": rim.mean - core.mean,
        "rim_std": rim.std,
        "edge_strength": edge.mean,
        "edge_variation": edge.std,
        "texture": fine.std,
        **zones.contacts(whole.mean, diameter),
        "touches_border": table["touches_border"].to_numpy(float),
    }
    found = pd.DataFrame({"label": ids, **{name: columns[name] for name in FEATURES}})
    found.attrs = {"unit": unit}
    return found


class _Statistics:
    """Mean and standard deviation per particle; NaN where it has no pixel."""

    def __init__(self, numbers: np.ndarray, values: np.ndarray, count: int):
        flat, values = numbers.ravel(), values.ravel()
        pixels = np.bincount(flat, minlength=count + 1)[1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            self.mean = np.bincount(flat, values, count + 1)[1:] / pixels
            centred = values - np.concatenate([[0.0], self.mean])[flat]
            self.std = np.sqrt(np.bincount(flat, centred**2, count + 1)[1:] / pixels)


class _Zones:
    """Rim, core, outline and surroundings of every particle as label images, and who touches whom."""

    def __init__(self, numbers: np.ndarray, values: np.ndarray, count: int):
        self.numbers, self.values, self.count = numbers, values, count
        self.outline = np.where(_differs(numbers), numbers, 0)
        edge = self.outline > 0  # the image frame is no outline
        depth = ndimage.distance_transform_edt(~edge) if edge.any() else np.full(numbers.shape, np.inf)
        inside = numbers > 0
        self.rim = np.where(inside & (depth < _RIM), numbers, 0)
        self.core = np.where(inside & (depth >= _RIM), numbers, 0)
        near = expand_labels(numbers, _RING)
        self.ring = np.where(inside, 0, near)
        self.grown = expand_labels(numbers, GAP)

    def statistics(self, numbers: np.ndarray, values: np.ndarray | None = None) -> _Statistics:
        return _Statistics(numbers, self.values if values is None else values, self.count)

    def contacts(self, grey: np.ndarray, diameter: np.ndarray) -> dict[str, np.ndarray]:
        """Features of the neighbourhood, from the pixel edges between the grown particles."""
        rim_values = np.where(self.rim > 0, self.values, np.nan)
        filled = _nearest_values(rim_values)
        size = self.count + 1
        outline = np.zeros(size)
        own, other, step = [], [], []
        for axis in (0, 1):
            a, b = (np.moveaxis(self.grown, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
            u, v = (np.moveaxis(filled, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
            edges = a != b
            a, b, difference = a[edges], b[edges], (u - v)[edges]
            outline += np.bincount(a, minlength=size) + np.bincount(b, minlength=size)
            both = (a > 0) & (b > 0)
            own += [a[both], b[both]]
            other += [b[both], a[both]]
            step += [difference[both], -difference[both]]
        own, other, step = np.concatenate(own), np.concatenate(other), np.concatenate(step)
        length = np.bincount(own, minlength=size)[1:]
        pairs = np.unique(own * size + other)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = length / outline[1:]
            around = np.bincount(own, grey[other - 1], size)[1:] / length
            sizes = np.bincount(own, diameter[other - 1], size)[1:] / length
            steps = np.bincount(own, step, size)[1:] / length
        return {
            "contact_share": np.nan_to_num(share),
            "contacts": np.bincount(pairs // size, minlength=size)[1:].astype(float),
            "neighbour_grey": grey - around,
            "neighbour_size": np.log(diameter / sizes),
            "contact_step": steps,
        }


def _differs(numbers: np.ndarray) -> np.ndarray:
    """Pixels of a particle that have a 4-neighbour of another number; the frame counts for nothing."""
    found = np.zeros(numbers.shape, bool)
    for axis in (0, 1):
        n, f = np.moveaxis(numbers, axis, 0), np.moveaxis(found, axis, 0)
        edge = n[:-1] != n[1:]
        f[:-1] |= edge
        f[1:] |= edge
    return found & (numbers > 0)


def _nearest_values(values: np.ndarray) -> np.ndarray:
    """Every NaN replaced by the value of the nearest pixel that has one, where there is any."""
    if np.isnan(values).all():
        return values
    nearest = ndimage.distance_transform_edt(np.isnan(values), return_distances=False, return_indices=True)
    return values[tuple(nearest)]
