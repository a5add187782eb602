"""Step `look`: what the micrographs are like, before hours are spent on them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.inference.scale import diameter_of_areas
from keras_microseg.segmentation.classical import segment_classical
from keras_microseg.workflows.sem_particles.settings import Settings
from keras_microseg.workflows.steps import RunFolder, item_names, read_json, write_json
from keras_microseg.workflows.train_segmentation import working_scale

logger = logging.getLogger(__name__)

FACTS = "images.json"
_FEWEST_IMAGES = 3
_FEWEST_PARTICLES = 20


def look_at_images(folder: RunFolder) -> None:
    """Find particles in every image, roughly; agree on polarity and scale; refuse what cannot work."""
    settings: Settings = folder.settings
    find = _make_finder(settings)
    inputs = item_names(io.find_images(list(settings.images)))

    def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        image = io.open_image(path)
        row = io.find_info_bar(image) if settings.info_bar == "auto" else settings.info_bar
        grey = np.asarray(io.read_grey(image), np.float32)[:row]
        finite = grey[np.isfinite(grey)]
        if not finite.size or finite.max() == finite.min():
            raise UserError(f"{path}: the image has one grey value only. Leave it out.")
        labels = find(grey)
        areas = np.bincount(labels.ravel())[1:]
        inside = labels > 0
        brighter = None
        if inside.any() and not inside.all():
            brighter = bool(np.nanmean(grey[inside]) > np.nanmean(grey[~inside]))
        target = folder.file("look", f"{name}.tif")
        io.write_labels(target, labels)
        return {
            "path": str(path), "labels": f"look/{name}.tif", "info_bar": row, "shape": list(grey.shape),
            "dtype": str(image.data.dtype), "coverage": float(inside.mean()), "particles": int((areas > 0).sum()),
            "diameter": diameter_of_areas(areas[areas > 0]), "brighter": brighter,
        }, [target]  # fmt: skip

    folder.for_each("look", inputs, work)
    write_json(folder.file(FACTS), summarize(folder.facts("look"), settings))


def summarize(images: dict[str, dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Facts about the set of images that later steps need.

    Raises:
        UserError: too few images, no particles, or a polarity other than the one asked for.
    """
    if len(images) < _FEWEST_IMAGES:
        raise UserError(
            f"{len(images)} usable images are too few to learn from; {_FEWEST_IMAGES} are the least, "
            "20 or more are good. Add images of the same kind, or use `keras-microseg segment`: it needs no training."
        )
    votes = [entry["brighter"] for entry in images.values() if entry["brighter"] is not None]
    share = float(np.mean(votes)) if votes else 0.5
    particles = sum(entry["particles"] for entry in images.values())
    if particles < _FEWEST_PARTICLES:
        raise UserError(
            f"Only {particles} particles were found in {len(images)} images by a first look. Check the images and the "
            "info bar (info_bar=...); where particles are darker than the ground, say polarity='dark'."
        )
    seen = "bright" if share >= 0.5 else "dark"
    if settings.polarity not in ("auto", seen) and max(share, 1 - share) > 0.8:
        raise UserError(
            f"Particles look {seen} in {max(share, 1 - share):.0%} of the images, but polarity={settings.polarity!r} "
            f"was asked for. Use polarity={seen!r}"
            + (" (DARK_BACKGROUND=True)." if seen == "bright" else " (DARK_BACKGROUND=False).")
        )
    diameters = [entry["diameter"] for entry in images.values() if entry["diameter"]]
    diameter = float(np.median(diameters))
    scale, _ = working_scale(diameter)
    tile = settings.translation.tile
    small = [name for name, entry in images.items() if min(max(round(n * scale), 1) for n in entry["shape"]) < tile]
    if len(images) - len(small) < _FEWEST_IMAGES:
        raise UserError(
            f"{len(small)} of {len(images)} images are smaller than the training tile of {tile} px (enlarged by "
            f"{scale:.2g}). Use a smaller tile (translation_tile=...)."
        )
    if small:
        logger.warning("Smaller than a tile of %d px and left out of the training: %s", tile, ", ".join(small))
    return {
        "images": images,
        "polarity": seen if settings.polarity == "auto" else settings.polarity,
        "polarity_share": share,
        "diameter": diameter,
        "scale": scale,
        "coverage": float(np.mean([entry["coverage"] for entry in images.values()])),
        "particles": particles,
        "too_small": small,
    }


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """What `look_at_images` found out."""
    path = folder.path / FACTS
    if not path.is_file():
        raise FileError(path, "is missing.", "Run the step 'look' first.")
    return read_json(path)


def usable_images(folder: RunFolder) -> list[tuple[Path, dict[str, Any]]]:
    """(path, facts) of the images that are large enough for a tile."""
    facts = read_facts(folder)
    left_out = set(facts["too_small"])
    return [(Path(entry["path"]), entry) for name, entry in facts["images"].items() if name not in left_out]


def _make_finder(settings: Settings) -> Any:
    """`find(grey) -> labels`: the model that ships with the package, or no network where it shall not be used."""
    if settings.network.start == "none" and settings.pairs.check != "network":
        return segment_classical
    from keras_microseg import backend
    from keras_microseg.inference import Segmenter

    backend.configure_device(deterministic=True)  # a resumed run shall end with the same numbers
    segmenter = Segmenter("default")
    return lambda grey: segmenter.segment(grey, polarity="auto", info_bar=False).labels
