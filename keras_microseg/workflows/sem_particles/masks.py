"""Steps `outlines` and `masks`: where particles come from, and masks that resemble the images."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from skimage.transform import resize

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.simulation.masks import MaskSettings, Particles
from keras_microseg.simulation.outlines import read_outlines
from keras_microseg.workflows.match_masks import match_labels
from keras_microseg.workflows.outlines import FEWEST
from keras_microseg.workflows.sem_particles.look import read_facts, usable_images
from keras_microseg.workflows.sem_particles.settings import Settings
from keras_microseg.workflows.simulate_masks import simulate_masks
from keras_microseg.workflows.steps import RunFolder, plain, write_json

logger = logging.getLogger(__name__)

PARTICLES, OUTLINES, MASKS, MATCH = "particles.npz", "outlines", "masks", "masks.json"


def check_outlines(settings: Settings) -> None:
    """Read the outlines before anything else is done; `UserError` when there is nothing to learn from."""
    if settings.particles == "analytic":
        return
    outlines = read_outlines(settings.outlines)
    if settings.particles == "wgan" and len(outlines) < FEWEST:
        raise UserError(
            f"{settings.outlines}: {len(outlines)} usable outlines are too few to learn from; about 40 are a good "
            "number. Use them as they are (--particles outlines), or formulas (--particles analytic)."
        )


def make_outlines(folder: RunFolder) -> None:
    """Step `outlines`: the stock of particles, as `particles.npz`."""
    settings: Settings = folder.settings
    if settings.particles == "analytic":
        particles = Particles.analytic(seed=settings.seed)
        facts = {"source": "analytic shapes", "count": len(particles)}
    else:
        outlines = read_outlines(settings.outlines)
        problems = [f"{name}: {text}" for name, text in outlines.problems.items()]
        warn(folder, "outlines", problems)
        if settings.particles == "outlines":
            particles = Particles.from_outlines(outlines)
            facts = {"source": "outlines as they are", "count": len(particles)}
        else:
            from keras_microseg.training.outlines import outline_settings
            from keras_microseg.workflows.outlines import train_outlines

            wanted = {"epochs": settings.outline_epochs, "batch_size": settings.outline_batch_size}
            changes = {name: value for name, value in wanted.items() if value is not None}
            result = train_outlines(
                outlines,
                folder.directory(OUTLINES),
                outline_settings(settings.outline_preset, **changes),
                seed=settings.seed,
                resume=True,
                progress=folder.progress,
            )
            if result.collapsed:
                warn(folder, "outlines", [f"{result.collapsed} The outlines given are used as they are instead."])
                particles = Particles.from_outlines(outlines)
            else:
                particles = result.particles
            facts = {"source": "WGAN-GP", "count": len(particles), "outlines": len(outlines), "quality": result.quality}
    particles.save(folder.file(PARTICLES))
    write_json(folder.file("particles.json"), facts)


def make_masks(folder: RunFolder) -> None:
    """Step `masks`: masks with the coverage, sizes and clustering of the images, as files."""
    settings: Settings = folder.settings
    facts = read_facts(folder)
    particles = Particles.load(folder.path / PARTICLES)
    chosen: MaskSettings = settings.masks
    matched = None
    if settings.match_masks:
        images = []
        for _, entry in usable_images(folder):
            labels = np.asarray(io.read_labels(folder.path / entry["labels"]).data)
            if facts["scale"] != 1:
                shape = tuple(max(round(n * facts["scale"]), 1) for n in labels.shape)
                labels = resize(labels, shape, order=0, preserve_range=True, anti_aliasing=False).astype(np.int32)
            images.append(labels)
        match = match_labels(images, particles, base=chosen, tile=settings.translation.tile, seed=settings.seed)
        chosen, matched = match.settings, match.facts
    else:
        known = float(np.median(particles.diameters))
        factor = facts["diameter"] * facts["scale"] / known
        if settings.particles == "analytic":
            chosen = dataclasses.replace(chosen, scale_mean=chosen.scale_mean * factor)
    write_json(folder.file(MATCH), {"settings": plain(chosen), "match": matched})
    simulate_masks(
        folder.directory(MASKS),
        particles,
        chosen,
        settings.num_masks,
        seed=settings.seed,
        resume=True,
        progress=folder.progress,
    )


def warn(folder: RunFolder, step: str, texts: list[str]) -> None:
    """Note what the user should know; the warnings of a step replace those of its earlier run."""
    warnings = [entry for entry in folder.manifest.get("warnings", []) if not entry.startswith(f"{step}: ")]
    folder.manifest["warnings"] = warnings + [f"{step}: {text}" for text in texts]
    for text in texts:
        logger.warning("%s", text)
    folder.save(force=True)
