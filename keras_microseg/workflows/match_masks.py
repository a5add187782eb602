"""Settings of the mask simulator under which masks resemble given images: coverage, sizes, contacts, clustering.

The images are segmented without labels of their own; then the statistics of those segmentations are compared with the
statistics of simulated masks, and the settings changed until they agree. Coverage can be trusted even of a simple
segmentation; sizes and contacts are as good as its separation of touching particles.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import UserError, check_number
from keras_microseg.segmentation.classical import segment_classical
from keras_microseg.segmentation.labeling import remove_labels, touches_border
from keras_microseg.simulation.masks import MaskSettings, Particles, simulate_mask

logger = logging.getLogger(__name__)

_LAGS = (1.5, 3.0, 6.0)  # in typical diameters
_LEVELS = np.linspace(0, 1, 11)
_CLUSTERS = tuple(
    {"mode": "clusters", "touch": touch, "cluster_size": size}
    for touch, size in itertools.product((0.55, 0.7, 0.85, 1.0), (2.0, 5.0, 12.0, 30.0, 80.0))
)
_PATCHES = tuple({"mode": "noise", "noise_frequency": f, "noise_threshold": t} for f in (2.0, 4.0) for t in (0.4, 0.7))


@dataclasses.dataclass(frozen=True)
class MaskStatistics:
    """What label images look like, as far as a simulator can imitate it.

    Attributes:
        coverage: mean share of the tiles covered by particles.
        coverage_quantiles: of that share over the tiles, lowest, 10 %, ..., highest.
        diameters: equivalent diameters, px, at 25, 50 and 75 % of the area of whole particles.
        fragments: 10 % quantile over median of the diameters by number: small where hidden particles show little.
        contact: share of the outlines that faces another particle, at most 4 px away.
        clustering: probability that a point at 1.5, 3 and 6 typical diameters from a particle point is particle, too.
        particles: number per tile area.
    """

    coverage: float
    coverage_quantiles: tuple[float, ...]
    diameters: tuple[float, float, float]
    fragments: float
    contact: float
    clustering: tuple[float, ...]
    particles: float


@dataclasses.dataclass(frozen=True)
class MaskMatch:
    """Settings found, and how well they do.

    Attributes:
        settings: for `simulate_masks`.
        images: statistics of the images.
        masks: statistics of masks simulated with `settings`.
    """

    settings: MaskSettings
    images: MaskStatistics
    masks: MaskStatistics

    @property
    def facts(self) -> dict[str, Any]:
        """Both statistics side by side: name -> (images, masks)."""
        ours, theirs = dataclasses.asdict(self.images), dataclasses.asdict(self.masks)
        return {name: (ours[name], theirs[name]) for name in ours}


def match_settings(
    images: Iterable[Any],
    particles: Particles,
    *,
    segment: Callable[[np.ndarray], np.ndarray] = segment_classical,
    base: MaskSettings | None = None,
    tile: int | None = None,
    min_coverage: float = 0.02,
    trials: int = 16,
    seed: int = 0,
) -> MaskMatch:
    """Settings under which simulated masks resemble images, see `match_labels`.

    Args:
        images: files, or (H, W) arrays; info bars of files are found and left out.
        particles: the stock that masks are made of.
        segment: `segment(grey) -> labels`, for example of the model that ships with the package; the classical method
            otherwise. It draws some particles together, which makes sizes come out 10 to 20 % too large.
        base, tile, min_coverage, trials, seed: see `match_labels`.

    Raises:
        FileError: an image that cannot be read.
    """
    found = []
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            opened = io.open_image(image)
            grey = np.asarray(io.read_grey(opened))[: io.find_info_bar(opened)]
        else:
            grey = np.asarray(image)
        found.append(segment(grey))
    return match_labels(found, particles, base=base, tile=tile, min_coverage=min_coverage, trials=trials, seed=seed)


def match_labels(
    labels: Sequence[np.ndarray],
    particles: Particles,
    *,
    base: MaskSettings | None = None,
    tile: int | None = None,
    min_coverage: float = 0.02,
    trials: int = 16,
    seed: int = 0,
) -> MaskMatch:
    """Settings under which simulated masks resemble label images.

    Coverage is taken over as it is spread over the tiles; the size distribution (log-normal) is corrected until the
    visible sizes agree, as particles hide each other; how particles gather (`mode`, `touch`, `cluster_size`, patches)
    and `max_overlap` are those of some tens of candidates whose masks agree best in contacts, clustering and fragments.
    Lattices and packed layers keep their mode.

    Args:
        labels: label images of the micrographs, at the scale of the masks.
        particles: the stock; its shapes are used, with new sizes.
        base: settings that stay where nothing is matched.
        tile: edge length of the tiles whose coverage is looked at, px; None = that of the masks.
        min_coverage: tiles with less are left out: they are ground, of which training tiles hold little.
        trials: masks drawn for each comparison.
        seed: of those masks.

    Raises:
        UserError: no particles in any tile.
    """
    base = base or MaskSettings.sem()
    check_number("min_coverage", min_coverage, minimum=0, maximum=1)
    check_number("trials", trials, minimum=1, integer=True)
    tile = min(base.size) if tile is None else check_number("tile", tile, minimum=16, integer=True)
    wanted = describe_labels(labels, tile=tile, min_coverage=min_coverage)
    low, median, high = wanted.diameters
    spread = float(np.clip(np.log(high / low) / 1.349, 0.05, 0.8))
    # the area-weighted median of a log-normal distribution lies exp(2 s^2) above its median
    settings = dataclasses.replace(
        base,
        coverage=tuple(round(min(value, 0.95), 4) for value in wanted.coverage_quantiles),
        diameter=(median * float(np.exp(-2 * spread**2)), spread),
        scale_mean=1.0,
        scale_spread=0.0,
        order="random",
    )

    def try_out(settings: MaskSettings, count: int = trials) -> MaskStatistics:
        drawn = [simulate_mask(np.random.default_rng([seed, i]), particles, settings).labels for i in range(count)]
        return describe_labels(drawn, tile=tile, min_coverage=0.0, lags=_lags_of(wanted))

    settings = _fit_sizes(settings, wanted, try_out)
    if base.mode in ("random", "clusters", "noise"):
        candidates = [{"mode": "random"}, *_CLUSTERS, *_PATCHES]
        settings = _best(settings, candidates, wanted, try_out)
        overlaps = sorted({0.05, 0.2, 0.35, 0.5, 0.7, 0.9, base.max_overlap})
        settings = _best(settings, [{"max_overlap": value} for value in overlaps], wanted, try_out)
        settings = _fit_sizes(settings, wanted, try_out, 2)
        settings = _best(settings, candidates, wanted, try_out)
    settings = _fit_sizes(settings, wanted, try_out)
    match = MaskMatch(settings, wanted, try_out(settings, 2 * trials))
    logger.info("Masks matched to images: %s", match.facts)
    return match


def describe_labels(
    labels: Sequence[np.ndarray],
    *,
    tile: int,
    min_coverage: float = 0.0,
    lags: Sequence[int] | None = None,
) -> MaskStatistics:
    """Statistics of label images.

    Args:
        labels: (H, W) int arrays.
        tile: edge length of the tiles for the coverage, px; smaller images are one tile.
        min_coverage: tiles with less are left out.
        lags: distances for `clustering`, px; None = 1.5, 3 and 6 typical diameters.

    Raises:
        UserError: nothing left.
    """
    coverages = np.concatenate([_tile_coverages(one != 0, tile) for one in labels]) if len(labels) else np.zeros(0)
    coverages = coverages[coverages >= min_coverage]
    diameters = np.concatenate([_whole_diameters(one) for one in labels]) if len(labels) else np.zeros(0)
    if not len(coverages) or not len(diameters):
        raise UserError("No particles were found in the images, so masks cannot be matched to them.")
    ordered = np.sort(diameters)
    weights = np.cumsum(ordered**2)
    by_area = [float(ordered[np.searchsorted(weights, weights[-1] * level)]) for level in (0.25, 0.5, 0.75)]
    if lags is None:
        lags = [max(round(by_area[1] * lag), 1) for lag in _LAGS]
    edges = np.sum([_edges(one) for one in labels], axis=0)
    area = sum(one.size for one in labels)
    count = sum(int(np.count_nonzero(np.bincount(one.ravel())[1:])) for one in labels)
    return MaskStatistics(
        float(coverages.mean()),
        tuple(float(value) for value in np.quantile(coverages, _LEVELS)),
        tuple(by_area),
        float(np.quantile(ordered, 0.1) / np.median(ordered)),
        float(edges[0] / max(edges.sum(), 1)),
        tuple(_neighbourhood(labels, lag) for lag in lags),
        count * tile**2 / area,
    )


def _fit_sizes(
    settings: MaskSettings, wanted: MaskStatistics, try_out: Callable[[MaskSettings], MaskStatistics], rounds: int = 4
) -> MaskSettings:
    """Correct the log-normal sizes until visible sizes agree."""
    for _ in range(rounds):
        low, middle, high = try_out(settings).diameters
        median, spread = settings.diameter
        wide = np.log(wanted.diameters[2] / wanted.diameters[0]) / max(np.log(high / low), 0.05)
        spread = float(np.clip(spread * np.clip(wide, 0.6, 1.6), 0.03, 0.9))
        # a wider distribution moves its area-weighted median as well
        shift = 2 * (settings.diameter[1] ** 2 - spread**2)
        median = float(np.clip(median * wanted.diameters[1] / middle * np.exp(shift), 3.0, 1e4))
        settings = dataclasses.replace(settings, diameter=(round(median, 3), round(spread, 4)))
    return settings


def _best(
    settings: MaskSettings,
    candidates: Sequence[dict[str, Any]],
    wanted: MaskStatistics,
    try_out: Callable[[MaskSettings], MaskStatistics],
) -> MaskSettings:
    """The candidate whose masks differ least from the images."""
    tried = [dataclasses.replace(settings, **changes) for changes in candidates]
    return min(tried, key=lambda one: _difference(try_out(one), wanted))


def _difference(masks: MaskStatistics, images: MaskStatistics) -> float:
    """Sum of squares in units of differences that matter: 0.05 in contacts, 0.05 in clustering, 0.1 in fragments."""
    terms = [(masks.contact - images.contact) / 0.05, (masks.fragments - images.fragments) / 0.1]
    terms += [(a - b) / 0.05 for a, b in zip(masks.clustering, images.clustering, strict=True)]
    terms += [10 * (masks.coverage - images.coverage) / max(images.coverage, 0.02)]
    return float(np.sum(np.square(terms)))


def _lags_of(wanted: MaskStatistics) -> list[int]:
    return [max(round(wanted.diameters[1] * lag), 1) for lag in _LAGS]


def _tile_coverages(inside: np.ndarray, tile: int) -> np.ndarray:
    """Share of True in tiles that overlap by half."""
    height, width = inside.shape
    sums = np.pad(inside.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    size_y, size_x = min(tile, height), min(tile, width)
    ys = np.unique(np.linspace(0, height - size_y, max(round(2 * height / tile) - 1, 1)).astype(int))[:, None]
    xs = np.unique(np.linspace(0, width - size_x, max(round(2 * width / tile) - 1, 1)).astype(int))[None, :]
    total = sums[ys + size_y, xs + size_x] - sums[ys, xs + size_x] - sums[ys + size_y, xs] + sums[ys, xs]
    return (total / (size_y * size_x)).ravel()


def _whole_diameters(labels: np.ndarray) -> np.ndarray:
    areas = np.bincount(remove_labels(labels, touches_border(labels)).ravel())[1:]
    return np.sqrt(4 / np.pi * areas[areas > 0])


def _edges(labels: np.ndarray, reach: int = 4) -> np.ndarray:
    """Outline pixels that face another particle at most `reach` pixels away, and those that face ground."""
    touching = facing = 0
    for axis in (0, 1):
        for lab in (np.moveaxis(labels, axis, 0), np.moveaxis(labels, axis, 0)[::-1]):
            here = lab[: -reach - 1]
            ends = (here != 0) & (lab[1 : len(here) + 1] != here)
            other = np.zeros(here.shape, bool)
            for step in range(1, reach + 1):
                there = lab[step : len(here) + step]
                other |= (there != 0) & (there != here)
            touching += int(np.count_nonzero(ends & other))
            facing += int(np.count_nonzero(ends & ~other))
    return np.array([touching, facing])


def _neighbourhood(labels: Sequence[np.ndarray], lag: int) -> float:
    """Probability that a point `lag` pixels from a particle point is particle."""
    both = start = 0
    diagonal = max(round(lag / np.sqrt(2)), 1)
    for one in labels:
        inside = one != 0
        for dy, dx in ((0, lag), (lag, 0), (diagonal, diagonal), (diagonal, -diagonal)):
            if dy >= inside.shape[0] or abs(dx) >= inside.shape[1]:
                continue
            a = inside[: inside.shape[0] - dy, max(-dx, 0) : inside.shape[1] - max(dx, 0)]
            b = inside[dy:, max(dx, 0) : inside.shape[1] + min(dx, 0)]
            both += 2 * int(np.count_nonzero(a & b))
            start += int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return both / start if start else 0.0
