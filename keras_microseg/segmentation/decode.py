"""Probability maps of a network -> instance labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_microseg.checks import UserError, check_number
from keras_microseg.segmentation.labeling import (
    fill_holes,
    label_components,
    relabel_sequential,
    remove_small,
    seeded_watershed,
    split_by_distance,
)


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """How maps become labels.

    Attributes:
        threshold: foreground probability above which a pixel belongs to a particle, 0..1.
        seed_threshold: height of the separation landscape above which a region is a seed, 0..1.
        boundary_weight: share of the boundary map taken off the distance map in the landscape.
        min_seed_area: smallest seed, px.
        min_area: smallest particle, px.
        fill: fill holes inside particles.
        by_shape: separate particles by a watershed of the distance to the background instead of by maps: for networks
            that predict the foreground alone.
        min_distance: of the peaks of that distance, px.
    """

    threshold: float = 0.5
    seed_threshold: float = 0.6
    boundary_weight: float = 0.0
    min_seed_area: int = 3
    min_area: float = 10
    fill: bool = True
    by_shape: bool = False
    min_distance: int = 5

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, minimum=0, maximum=1)
        check_number("seed_threshold", self.seed_threshold, minimum=-1, maximum=1)
        check_number("boundary_weight", self.boundary_weight, minimum=0)
        check_number("min_seed_area", self.min_seed_area, minimum=1)
        check_number("min_area", self.min_area, minimum=0)


def separation_landscape(
    maps: np.ndarray, outputs: Sequence[str], settings: DecodeSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground mask and the landscape whose hills are particles.

    Args:
        maps: (H, W, C) float maps, 0..1.
        outputs: name of each channel; `foreground` is needed, `distance` and `boundary` are used when present.
        settings: see `DecodeSettings`.

    Returns:
        Boolean (H, W) mask and float32 (H, W) landscape: distance - boundary_weight x boundary.

    Raises:
        UserError: there is no channel called `foreground`.
    """
    channel = {name: index for index, name in enumerate(outputs)}
    if "foreground" not in channel or maps.shape[-1] != len(channel):
        raise UserError(f"The maps need a channel 'foreground'. Received: outputs={list(outputs)}, shape={maps.shape}")
    mask = maps[..., channel["foreground"]] > settings.threshold
    if "distance" in channel:
        landscape = maps[..., channel["distance"]].astype(np.float32)
    else:
        landscape = maps[..., channel["foreground"]].astype(np.float32)
    if "boundary" in channel and settings.boundary_weight:
        landscape = landscape - np.float32(settings.boundary_weight) * maps[..., channel["boundary"]]
    return mask, landscape


def labels_from_maps(maps: np.ndarray, outputs: Sequence[str], settings: DecodeSettings | None = None) -> np.ndarray:
    """Instance labels of one image.

    Seeds are the connected regions of the mask where the landscape (`separation_landscape`) is above `seed_threshold`;
    a watershed grows them to the whole foreground. A component of the foreground without a seed is no particle.

    Args:
        maps: (H, W, C) float maps, 0..1.
        outputs: name of each channel.
        settings: see `DecodeSettings`.

    Returns:
        (H, W) int32 labels 1..n, 0 = background.
    """
    settings = settings or DecodeSettings()
    mask, landscape = separation_landscape(maps, outputs, settings)
    if settings.by_shape:
        labels = split_by_distance(mask, settings.min_distance)
        labels = fill_holes(labels) if settings.fill else labels
        return relabel_sequential(remove_small(labels, settings.min_area))
    seeds = find_seeds(mask, landscape, settings)
    labels = seeded_watershed(-landscape, seeds, mask, connectivity=4)
    if settings.fill:
        labels = fill_holes(labels)
    return relabel_sequential(remove_small(labels, settings.min_area))


def find_seeds(mask: np.ndarray, landscape: np.ndarray, settings: DecodeSettings) -> np.ndarray:
    """int32 seeds: 4-connected regions of `mask` above the seed threshold and of at least `min_seed_area` pixels."""
    return remove_small(label_components(mask & (landscape > settings.seed_threshold), 4), settings.min_seed_area)
