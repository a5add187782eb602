"""Steps `train` and `segment`: a network learns from the generated pairs and segments the real images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import backend, io
from keras_microseg.checks import FileError
from keras_microseg.workflows import segment_images
from keras_microseg.workflows.sem_particles.look import read_facts
from keras_microseg.workflows.sem_particles.settings import Settings
from keras_microseg.workflows.sem_particles.translation import kept_pairs
from keras_microseg.workflows.steps import RunFolder, now, plain, run_facts
from keras_microseg.workflows.train_segmentation import split_pairs, working_scale
from keras_microseg.workflows.training_folders import epoch_progress

INSTANCES, BINARY = ("foreground", "boundary", "distance"), ("foreground",)
MODEL, NETWORK, SEGMENTATION = "model.keras", "network", "segmentation"
_VALIDATION_SHARE = 0.1


def start_network(settings: Settings, facts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The network before training, and its card."""
    from keras_microseg.inference.segmenter import DEFAULT_MODEL
    from keras_microseg.models import multires_unet, unet
    from keras_microseg.models.initialization import draw_kernels
    from keras_microseg.models.saving import load_model

    chosen = settings.network
    _, sizes = working_scale(facts["diameter"])
    card: dict[str, Any] = {
        "outputs": list(INSTANCES if chosen.outputs == "instances" else BINARY),
        "contrast": list(settings.contrast),
        "diameter": sizes,
        "polarity": facts["polarity"],
        "multiple_of": 16,
    }
    if chosen.start != "none":
        path = DEFAULT_MODEL if chosen.start == "default" else Path(chosen.start)
        model, earlier = load_model(path)
        if earlier.get("outputs") != card["outputs"]:
            raise FileError(
                path,
                f"predicts {earlier.get('outputs')}, not {card['outputs']}.",
                "Start from another model or 'none'.",
            )
        card = {**earlier, **({} if settings.network.rendered else {"polarity": facts["polarity"]})}
    else:
        if chosen.architecture == "multires_unet":
            model = multires_unet(
                num_outputs=len(card["outputs"]),
                filters=chosen.filters,
                activation="sigmoid",
                legacy=chosen.outputs == "binary",
            )
        else:
            filters = tuple(chosen.filters * 2**level for level in range(5))
            model = unet(num_outputs=len(card["outputs"]), filters=filters)
        draw_kernels(model, int(np.random.SeedSequence([settings.seed, 6]).generate_state(1)[0]))
    if chosen.outputs == "binary":
        card["decode"] = {"by_shape": True}
    card.update(
        name="particles without labels",
        description="Trained on micrographs that a CycleGAN made of simulated masks.",
        training=plain(settings),
        made=run_facts(),
    )
    card.pop("licence", None)
    return model, card


def train_network(folder: RunFolder) -> None:
    """Step `train`."""
    from keras_microseg.data.datasets import LabelledImages, Mixture, SimulatedMicrographs
    from keras_microseg.losses import InstanceMapsLoss, WeightedBinaryCrossentropy
    from keras_microseg.training import supervised
    from keras_microseg.training.previews import PreviewPictures
    from keras_microseg.training.schedules import OptimizerSettings

    settings: Settings = folder.settings
    chosen, facts = settings.network, read_facts(folder)
    model, card = start_network(settings, facts)
    outputs = tuple(card["outputs"])
    training, held = split_pairs(kept_pairs(folder), _VALIDATION_SHARE, settings.seed)
    seeds = [int(n) for n in np.random.SeedSequence([settings.seed, 5]).generate_state(4)]
    options = {"size": (chosen.tile, chosen.tile), "outputs": outputs}
    pictures = LabelledImages(training, 1, 1, seeds[0], contrast=tuple(card["contrast"]), **options)
    data: Any = Mixture(
        [(pictures, 1 - chosen.rendered), (SimulatedMicrographs(1, 1, seeds[1], **options), chosen.rendered)],
        chosen.steps_per_epoch, chosen.batch_size, seeds[2],
    )  # fmt: skip
    steps = max(1, min(16, len(held) // chosen.batch_size))
    validation = LabelledImages(
        held, steps, chosen.batch_size, seeds[3], contrast=tuple(card["contrast"]), fixed=True, **options
    )
    if chosen.outputs == "binary":
        covered = [np.mean(np.asarray(io.read_labels(pair.labels).data) > 0) for pair in training[:100]]
        loss: Any = WeightedBinaryCrossentropy((1 - np.mean(covered)) / max(np.mean(covered), 1e-3))
    else:
        loss = InstanceMapsLoss(outputs, weights={"distance": 2.0}, boundary_weight=5.0)
    out = folder.directory(NETWORK)
    result = supervised.train(
        model,
        data,
        validation_data=validation,
        loss=loss,
        epochs=chosen.epochs,
        out_dir=out,
        optimizer=OptimizerSettings(
            learning_rate=chosen.learning_rate, warmup_epochs=min(0.5, chosen.epochs / 10), weight_decay=1e-4,
            clip_norm=1.0,
        ),
        seed=settings.seed,
        resume=True,
        mixed_precision=chosen.mixed_precision,
        callbacks=[
            PreviewPictures(validation[0], out / "previews"),
            *epoch_progress(folder, "train"),
        ],
        checkpoint_steps=25,
        workers=1,
        card={**card, "made": {**run_facts(), "at": folder.manifest["started"]}},
    )  # fmt: skip
    with io.atomic_path(folder.file(MODEL)) as temporary:
        shutil.copyfile(result.last_path, temporary)
    folder.manifest["trained"] = {"epochs": len(result.history), "at": now()}


def segment_real_images(folder: RunFolder) -> None:
    """Step `segment`: labels, tables and the particle report of the real images."""
    settings: Settings = folder.settings
    model = folder.path / MODEL
    if not model.is_file():
        raise FileError(model, "is missing.", "Run the step 'train' first.")
    backend.configure_device(deterministic=True)
    results = segment_images.segment(
        list(settings.images),
        folder.directory(SEGMENTATION),
        model=str(model),
        pixel_size=settings.pixel_size,
        info_bar=settings.info_bar,
        quality=True,
        resume=True,
        progress=folder.progress,
    )
    folder.manifest["segmentation"] = {
        "particles": len(results.table),
        "quality": results.quality(),
        "highlights": results.highlights(),
        "failures": [failure.message for failure in results.failures],
    }
