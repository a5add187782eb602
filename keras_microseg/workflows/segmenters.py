"""What finds the particles of one micrograph (classical steps, a network of maps, a detector), and its description."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_microseg import io
from keras_microseg.image import Image

if TYPE_CHECKING:
    from keras_microseg.workflows.segment_images import SegmentSettings

LARGE_PIXELS = 36_000_000
"""Images with more pixels are segmented on disk instead of in memory (network only)."""

SegmentPlane = Callable[[Image, float | None, float | None], tuple[Any, dict[str, Any]]]
"""`(image, diameter in px, min_area in px) -> (labels, facts)`."""


def make_segmenter(
    settings: SegmentSettings, ready: Any = None, scratch: Path | None = None
) -> tuple[SegmentPlane, dict[str, Any]]:
    """What segments one plane, and the facts to record about it (model, device).

    Args:
        settings: how.
        ready: a loaded `inference.Segmenter`, instead of the model of the settings.
        scratch: folder for the scratch files of large images; None takes the system's.
    """
    if settings.method == "classical":
        from keras_microseg.segmentation.classical import segment_classical

        def classical(image: Image, diameter: float | None, min_area: float | None) -> tuple[Any, dict[str, Any]]:
            options = {} if min_area is None else {"min_area": min_area}
            if diameter is not None:
                options["min_distance"] = max(2, round(diameter / 6))  # a third of the radius
            grey = io.read_grey(image)
            labels = segment_classical(grey, polarity=settings.polarity, **options)
            if not settings.quality:
                return labels, {}
            from keras_microseg.inference.agreement import rescaled_runs

            def again(part: np.ndarray, factor: float) -> np.ndarray:
                scaled = {name: value * factor ** (2 if name == "min_area" else 1) for name, value in options.items()}
                if "min_distance" in scaled:
                    scaled["min_distance"] = max(2, round(scaled["min_distance"]))
                return segment_classical(part, polarity=settings.polarity, **scaled)

            return labels, {"stability": rescaled_runs(labels, grey, again)}

        return classical, {}

    from keras_microseg import backend

    backend.select()
    from keras_microseg import inference

    device = backend.configure_device()
    if ready is None and is_detector(settings.model):
        return _detector(settings, str(device))
    segmenter = inference.Segmenter(settings.model) if ready is None else ready

    def network(image: Image, diameter: float | None, min_area: float | None) -> tuple[Any, dict[str, Any]]:
        options = {
            "polarity": settings.polarity, "diameter": diameter, "min_area": min_area, "flips": settings.flips,
            "info_bar": False, "quality": settings.quality,
        }  # fmt: skip
        if math.prod(image.spatial_shape) > LARGE_PIXELS:
            key = hashlib.sha256(f"{image.path} {image.origin} {image.metadata.get('plane')}".encode()).hexdigest()[:12]
            found = inference.segment_large(segmenter, image, None if scratch is None else scratch / key, **options)
        else:
            found = segmenter.segment(image, **options)
        facts = {"scale": found.scale, "polarity": found.polarity, "threshold": found.threshold}
        facts |= {} if found.stability is None else {"stability": found.stability}
        return found.labels, facts

    return network, {"model": segmenter.source or {"path": settings.model}, "device": str(device)}


def is_detector(model: str) -> bool:
    """Whether a model file holds a detector (`particles train`) and no network of maps."""
    if model == "default" or not Path(model).is_file():
        return False
    from keras_microseg.models.saving import read_card

    return (read_card(model) or {}).get("kind") == "detector"


def _detector(settings: SegmentSettings, device: str) -> tuple[SegmentPlane, dict[str, Any]]:
    """The same with a Mask R-CNN; every particle has a score and a class."""
    from keras_microseg.data.boxes import read_channels
    from keras_microseg.inference.instances import InstancePredictor
    from keras_microseg.models.saving import sha256

    predictor = InstancePredictor(settings.model)
    names = list(predictor.card.get("categories") or ["particle"])

    def detect(image: Image, diameter: float | None, min_area: float | None) -> tuple[Any, dict[str, Any]]:
        scale = float(predictor.card.get("scale", 1.0))
        typical = predictor.card.get("diameter", {}).get("typical")
        if diameter is not None and typical:
            scale = typical / diameter
        score = settings.min_score if settings.min_score is not None else predictor.card.get("min_score", 0.5)
        found = predictor(read_channels(image, predictor.channels), min_score=score, scale=scale)
        labels, table = found.labels, found.table
        if min_area is not None:
            small = table["area"].to_numpy() < min_area
            labels = np.where(np.concatenate([[False], small])[labels], 0, labels)
        columns = table[["label", "score", "cut"]].copy()
        if len(names) > 1:
            columns["class"] = [names[number - 1] for number in table["class"]]
        facts = {"scale": round(scale, 4), "min_score": score, "full_tiles": found.full_tiles,
                 "network_seconds": round(found.seconds["network"], 3), "post_seconds": round(found.seconds["post"], 3),
                 "columns": columns}  # fmt: skip
        return labels, facts

    source = {"path": settings.model, "sha256": sha256(settings.model), "kind": "detector"}
    return detect, {"model": source, "device": device}


def describe_method(settings: SegmentSettings, facts: Mapping[str, Any]) -> str:
    """What was done, in sentences for report and tables."""
    bar = {"auto": "Info bars were looked for and left out.", None: "No info bar was left out."}
    bar_text = bar.get(settings.info_bar, f"Rows from {settings.info_bar} on were left out as info bar.")
    if settings.quality:
        bar_text += (
            " Every image was segmented again at 0.71 and 1.41 times the scale: agreement is the F1 (IoU > 0.5) of "
            "these runs with the first, stability the mean best IoU of a particle. Both are signs, no proof."
        )
    if settings.method == "classical":
        return (
            "Particles were found without a trained model: smoothing, a threshold taken from every image, and a "
            f"watershed that separates touching particles. {bar_text}"
        )
    model = facts.get("model") or {}
    if model.get("kind") == "detector":
        return (
            f"Particles were found by the Mask R-CNN {model.get('path', settings.model)} (SHA-256 "
            f"{str(model.get('sha256', 'unknown'))[:12]}) on {facts.get('backend')}: boxes and masks in overlapping "
            "tiles, joined by their masks; where particles overlap, the smaller one lies on top. `score` is the "
            f"network's probability, `cut` marks particles that no tile showed whole. {bar_text}"
        )
    flips = " Predictions were averaged over mirrored images." if settings.flips else ""
    return (
        f"Particles were found by the network {model.get('path', settings.model)} "
        f"(SHA-256 {str(model.get('sha256', 'unknown'))[:12]}) on {facts.get('backend')}: maps of foreground and "
        f"separation, then a seeded watershed.{flips} {bar_text}"
    )


def default_model_path() -> Path:
    """Where the model of the package lies."""
    return Path(__file__).parents[1] / "models" / "weights" / "default.keras"
