"""One image, of any size and depth, to instance labels with a trained model."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg import backend, io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.image import Image
from keras_microseg.inference.agreement import Relabel, Stability, measure_stability
from keras_microseg.inference.prediction import Predictor, predict_maps
from keras_microseg.inference.scale import (
    Look,
    add_small_particles,
    find_scale,
    judge,
    median_diameter,
    scale_for_diameter,
)
from keras_microseg.inference.views import GreyView, ScaledView, StretchedView, dequantize, scaled_shape
from keras_microseg.intensity import percentile_limits
from keras_microseg.segmentation.decode import DecodeSettings, labels_from_maps
from keras_microseg.segmentation.labeling import label_components, threshold_value

logger = logging.getLogger(__name__)

DEFAULT_MODEL = Path(__file__).parents[1] / "models" / "weights" / "default.keras"
PROBE_PIXELS = 1_200_000
LOOK_TILE = 320
_LOOK_SIDE = 544
_PROBE_WINDOW = 512
_SMALLEST_SIDE = 48
FINE_BELOW = 0.501  # working scale at which the image holds details that were not looked at
SMALL_SHARE = 0.55  # of the typical diameter: largest particle to add from a finer scale


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """What was found in one image, and how.

    Attributes:
        labels: (H, W) int32 of the whole image, 0 = background and info bar. NumPy, or lazy from `segment_large`.
        scale: factor by which the image was enlarged for the network.
        diameter: area-weighted median of the particles' equivalent diameters, px of the image; None without particles.
        polarity: `"bright"` (particles brighter than the ground) or `"dark"`; None without particles.
        threshold: foreground probability used.
        info_bar_row: first row of the info bar, None when there is none.
        maps: (H', W', C) float32 maps at the working scale, when asked for.
        stability: how well the particles are found again at other scales, when asked for.
        seconds: wall time per step.
    """

    labels: Any
    scale: float
    diameter: float | None
    polarity: str | None
    threshold: float
    info_bar_row: int | None
    maps: np.ndarray | None = None
    stability: Stability | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Segmenter:
    """Finds and separates particles with a trained model.

    Args:
        model: `"default"` (ships with the package), the path of a `.keras` file, or a `keras.Model` with its `card`.
        card: the card of a model given as an object, or instead of the one in the file.
        tile: tile shape, halo included; None chooses by image (four shapes per segmenter at most).
        batch_size: tiles per call of the network.

    Attributes:
        card: the model's card.
        predictor: the compiled network.
        source: path of the model file and its SHA-256, or None for a model given as an object.

    Raises:
        FileError: the model file is missing, damaged, unsafe or without a card.
    """

    def __init__(
        self,
        model: Any = "default",
        *,
        card: Mapping[str, Any] | None = None,
        tile: int | tuple[int, int] | None = None,
        batch_size: int = 1,
    ):
        backend.select()
        from keras_microseg.models import saving

        self.source = None
        if isinstance(model, str | Path):
            path = DEFAULT_MODEL if str(model) == "default" else Path(model)
            model, card = saving.load_model(path, card)
            self.source = {"path": path.name, "sha256": saving.sha256(path)}
        elif card is None:
            raise UserError("`card` is needed with a model given as an object.")
        self.card = check_card(card, self.source["path"] if self.source else "model")
        self.predictor = Predictor(model, self.card)
        self.tile, self.batch_size = tile, batch_size

    def segment(
        self,
        image: Image | np.ndarray,
        *,
        polarity: str = "auto",
        diameter: float | None = None,
        scale: float | None = None,
        threshold: float | str | None = None,
        min_area: float | None = None,
        flips: bool | int = False,
        info_bar: bool = True,
        fine: bool = True,
        return_maps: bool = False,
        quality: bool = False,
    ) -> SegmentationResult:
        """Label the particles of one 2D image in memory (`segment_large` takes images beyond it).

        Args:
            image: `Image` with axes `YX` or `YXC`, or an array of such axes; any type and size.
            polarity: `"bright"` or `"dark"` particles; `"auto"` lets the model see the image as it is, or, when its
                card says it knows one polarity only, takes the polarity of which it is more certain.
            diameter: typical particle diameter in px of the image; None finds the working scale.
            scale: the working scale itself.
            threshold: foreground probability, `"otsu"` or `"li"` for one taken from the image; None takes the model's.
            min_area: smallest particle in px of the image; None takes the model's (at the working scale).
            flips: average over mirrored copies, see `predict_maps`.
            info_bar: find the vendor's data bar and leave it out.
            fine: where the working scale is half the image's or less, add small particles seen at finer scales only,
                see `add_small_particles`.
            return_maps: keep the maps in the result.
            quality: segment again at a smaller and a larger scale and say how far the results agree, see `agreement`.

        Raises:
            UserError: arguments out of range, or an image that is not 2D.
        """
        clock = Clock()
        image, grey, bar = open_grey(image, info_bar)
        values = grey[:, :]
        prepared = Prepared(self, values, polarity, flips)
        clock.note("read")
        if scale is None:
            scale = prepared.find_scale(diameter)
        scale = check_number("scale", scale, minimum=0, exclusive=True)
        clock.note("scale")
        maps = prepared.maps(scale)
        clock.note("network")
        settings = self.settings(scale, min_area, threshold, maps[..., self.foreground])
        small = labels_from_maps(maps, self.predictor.outputs, settings)
        found = labels_at_full_size(small, maps[..., self.foreground], settings.threshold, values.shape)
        clock.note("labels")
        if fine and scale <= FINE_BELOW:
            found = self._add_fine(prepared, found, scale, settings.threshold, min_area)
        labels = np.zeros(image.spatial_shape[-2:], np.int32)
        labels[: len(found)] = found
        clock.note("fine")
        stability = None
        if quality:
            stability = measure_stability(found, prepared.relabel(scale, min_area, threshold))
            clock.note("quality")
        logger.info("%s: %d particles, scale %.3g, %.2f s.", image.name, found.max(initial=0), scale, clock.total)
        return SegmentationResult(
            labels=labels,
            scale=scale,
            diameter=median_diameter(found),
            polarity=polarity_of(values, found),
            threshold=settings.threshold,
            info_bar_row=bar,
            maps=maps if return_maps else None,
            stability=stability,
            seconds=clock.seconds,
        )

    def _add_fine(
        self, prepared: Prepared, labels: np.ndarray, scale: float, threshold: float, min_area: float | None
    ) -> np.ndarray:
        """Small particles from up to four times the working scale, never beyond the image itself."""
        for finer in (2 * scale, 4 * scale):
            if finer > 1.001:
                break
            maps = prepared.maps(finer)
            settings = self.settings(finer, min_area, threshold, maps[..., self.foreground])
            small = labels_from_maps(maps, self.predictor.outputs, settings)
            largest = SMALL_SHARE * self.card["diameter"]["typical"] / scale
            labels = add_small_particles(labels, small, maps, self.predictor.outputs, largest=largest)
        return labels

    @property
    def foreground(self) -> int:
        """Channel of the foreground map."""
        return self.predictor.outputs.index("foreground")

    def settings(
        self, scale: float, min_area: float | None, threshold: float | str | None, foreground: np.ndarray
    ) -> DecodeSettings:
        """The card's decode settings with the caller's wishes, in pixels of the working scale."""
        settings = DecodeSettings(**self.card.get("decode", {}))
        if min_area is not None:
            min_area = check_number("min_area", min_area, minimum=0) * scale**2
            settings = dataclasses.replace(settings, min_area=min_area)
        if threshold is not None:
            settings = dataclasses.replace(settings, threshold=threshold_value(foreground, threshold))
        return settings


class Prepared:
    """Grey values of one image as the network wants them, at any scale; what was predicted is kept."""

    def __init__(self, segmenter: Segmenter, grey: Any, polarity: str, flips: bool | int):
        check_choice("polarity", polarity, ("auto", "bright", "dark"))
        self.segmenter, self.grey, self.polarity, self.flips = segmenter, grey, polarity, flips
        self.sizes = segmenter.card["diameter"]
        self._inverted: bool | None = {"bright": False, "dark": True}.get(polarity)
        trained = segmenter.card.get("polarity", "both")
        if trained == "both":
            self._inverted = False if polarity == "auto" else self._inverted
        elif trained == "dark" and self._inverted is not None:
            self._inverted = not self._inverted
        self._maps: dict[float, np.ndarray] = {}

    def find_scale(self, diameter: float | None = None) -> float:
        """Working scale: from a known diameter (px of the image), or by looking."""
        if diameter is not None:
            return scale_for_diameter(check_number("diameter", diameter, minimum=0, exclusive=True), self.sizes)
        return find_scale(self.look_at, self.sizes, smallest=_SMALLEST_SIDE / min(self.grey.shape))

    def input_view(self, scale: float) -> Any:
        """The image at a scale, stretched to 0..1: NumPy when the image is, lazy when it is lazy."""
        view = self._stretched(scale)
        return view[:, :] if isinstance(self.grey, np.ndarray) else view

    def _stretched(self, scale: float) -> StretchedView:
        array = self.grey if scale == 1 else ScaledView(self.grey, scale)
        if isinstance(self.grey, np.ndarray):
            array = np.asarray(array[:, :])
        limits = percentile_limits(array, *self.segmenter.card["contrast"])
        view = StretchedView(array, limits)
        if self._inverted is None and limits[0] < limits[1]:
            trials = [StretchedView(array, limits, inverted) for inverted in (False, True)]
            self._inverted = _second_is_better(*(self._probe(t)[..., self.segmenter.foreground] for t in trials))
        view.inverted = bool(self._inverted)
        return view

    def maps(self, scale: float) -> np.ndarray:
        """float32 maps of the whole image at a scale, in the steps of `quantize` (the same in memory and on disk)."""
        key = round(scale, 9)
        if key not in self._maps:
            self._maps[key] = self._predict(self.input_view(scale)[:, :])
        return self._maps[key]

    def relabel(self, scale: float, min_area: float | None, threshold: float | str | None) -> Relabel:
        """What `agreement.measure_stability` calls to segment a window again at a multiple of `scale`."""
        whole = self._stretched(scale)  # its limits hold for every window
        foreground = self.segmenter.foreground

        def relabel(window: tuple[slice, slice], factor: float) -> np.ndarray:
            shape = tuple(part.stop - part.start for part in window)
            if shape == tuple(self.grey.shape) and isinstance(self.grey, np.ndarray):
                maps = self.maps(scale * factor)
            else:
                view = ScaledView(self.grey[window], scale * factor)
                maps = self._predict(StretchedView(view, whole.limits, whole.inverted)[:, :])
            settings = self.segmenter.settings(scale * factor, min_area, threshold, maps[..., foreground])
            small = labels_from_maps(maps, self.segmenter.predictor.outputs, settings)
            return labels_at_full_size(small, maps[..., foreground], settings.threshold, shape)

        return relabel

    def look_at(self, scale: float) -> Look:
        """What the model finds at a scale; large images are judged by four windows."""
        shape = scaled_shape(self.grey.shape, scale)
        probes = self.maps(scale) if shape[0] * shape[1] <= PROBE_PIXELS else self._probe(self.input_view(scale))
        settings = DecodeSettings(**self.segmenter.card.get("decode", {}))
        outputs = self.segmenter.predictor.outputs
        return judge(probes, outputs, labels_from_maps(probes, outputs, settings))

    def _probe(self, view: Any) -> np.ndarray:
        """Maps of four windows of an image, put together as one array; of all of a small image."""
        size = [min(_PROBE_WINDOW, n) for n in view.shape]
        places = [(0.2, 0.8) if n > k else (0.0,) for n, k in zip(view.shape, size, strict=True)]
        starts = [[round((n - k) * part) for part in p] for n, k, p in zip(view.shape, size, places, strict=True)]
        windows = [[(slice(r, r + size[0]), slice(c, c + size[1])) for c in starts[1]] for r in starts[0]]
        parts = [[self._predict(view[window]) for window in row] for row in windows]
        return np.concatenate([np.concatenate(row, axis=1) for row in parts], axis=0)

    def _predict(self, view: Any) -> np.ndarray:
        segmenter = self.segmenter
        tile = segmenter.tile
        if tile is None and max(view.shape) <= _LOOK_SIDE:
            tile = LOOK_TILE  # one shape for all small scales, so that it is compiled once
        if not view.any():
            return np.zeros((*view.shape, len(segmenter.predictor.outputs)), np.float32)  # no contrast, no particle
        out = np.empty((*view.shape, len(segmenter.predictor.outputs)), np.uint8)
        predict_maps(segmenter.predictor, view, tile=tile, batch_size=segmenter.batch_size, flips=self.flips, out=out)
        return dequantize(out, segmenter.predictor.outputs)


def open_grey(image: Image | np.ndarray, info_bar: bool) -> tuple[Image, GreyView, int | None]:
    """An image or array as `Image`, its grey values above the info bar, and the bar's first row."""
    if not isinstance(image, Image):
        array = np.asarray(image)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4):
            raise UserError(f"`image` must have axes YX, or YXC with up to 4 channels. Received: shape={array.shape}")
        image = Image(array, "YX" if array.ndim == 2 else "YXC")
    bar = io.find_info_bar(image) if info_bar else None
    return image, GreyView(image, rows=bar), bar


def labels_at_full_size(
    labels: Any, foreground: Any, threshold: float, shape: tuple[int, int], window: tuple[slice, slice] | None = None
) -> np.ndarray:
    """Labels of the working scale on the pixels of the image.

    Reduced labels take the nearest pixel. Enlarged ones take their outline from the interpolated foreground map, and
    the number of the nearest particle within two pixels of the working scale.

    Args:
        labels: (H', W') int32, NumPy or lazy.
        foreground: (H', W') probability map, NumPy or lazy, 0..1.
        threshold: foreground threshold.
        shape: (H, W) of the image.
        window: part of the image to make; None = all.

    Returns:
        int32 labels of the window.
    """
    if tuple(labels.shape) == tuple(shape):
        return np.asarray(labels[window or (slice(None), slice(None))])
    window = window or (slice(0, shape[0]), slice(0, shape[1]))
    ratios = [n / full for n, full in zip(labels.shape, shape, strict=True)]
    margin = [2 * int(np.ceil(1 / ratio)) if ratio < 1 else 0 for ratio in ratios]
    padded = [slice(max(0, w.start - m), min(n, w.stop + m)) for w, m, n in zip(window, margin, shape, strict=True)]
    rows, columns = (
        np.minimum(((np.arange(part.start, part.stop) + 0.5) * ratio).astype(np.intp), n - 1)
        for part, ratio, n in zip(padded, ratios, labels.shape, strict=True)
    )
    needed = np.asarray(labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    found = needed[np.ix_(rows - rows[0], columns - columns[0])]
    if max(ratios) < 1:
        inside = ScaledView(foreground, shape=shape)[tuple(padded)] > threshold
        distance, nearest = ndimage.distance_transform_edt(found == 0, return_indices=True)
        found = np.where(inside & (distance <= max(margin)), found[tuple(nearest)], 0)
    crop = tuple(slice(w.start - p.start, w.stop - p.start) for w, p in zip(window, padded, strict=True))
    return found[crop].astype(np.int32)


def polarity_of(grey: np.ndarray, labels: np.ndarray) -> str | None:
    """`"bright"` when the particles' median grey value is above that of the ground, else `"dark"`."""
    inside = labels > 0
    if not inside.any() or inside.all():
        return None
    return "bright" if np.median(grey[inside]) >= np.median(grey[~inside]) else "dark"


def check_card(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The card as a dictionary, when it holds what inference needs; `FileError` names what is missing."""
    needed = {"outputs": list, "contrast": (list, tuple), "diameter": dict}
    wrong = [key for key, kind in needed.items() if not isinstance(card.get(key), kind)]
    if not wrong and {"typical", "minimum", "maximum"} - set(card["diameter"]):
        wrong = ["diameter"]
    if not wrong and "foreground" not in card["outputs"]:
        wrong = ["outputs"]
    from keras_microseg.models.saving import command_for

    command = command_for(card)
    if wrong and command not in (None, "segment"):
        raise FileError(name, f"is no model for particles on images, but one for `{command}`.", "Use that command.")
    if wrong:
        raise FileError(name, f"the card lacks {', '.join(wrong)}.", "Save the model again with a complete card.")
    try:
        DecodeSettings(**card.get("decode", {}))
    except TypeError as error:
        raise FileError(name, f"the card's decode settings do not fit: {error}.", "Use a newer package.") from None
    return dict(card)


def _second_is_better(first: np.ndarray, second: np.ndarray) -> bool:
    """Which of two foreground maps is nearer to 0 and 1; when alike, the one in more parts (particles, not ground)."""
    certainty = [float(np.abs(probability - 0.5).mean()) for probability in (first, second)]
    if abs(certainty[0] - certainty[1]) > 0.02:
        return certainty[1] > certainty[0]
    return bool(label_components(second > 0.5).max() > label_components(first > 0.5).max())


class Clock:
    """Wall time per step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())
