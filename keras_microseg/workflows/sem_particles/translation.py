"""Steps `translate` and `pairs`: a CycleGAN learns how micrographs look, and gives every simulated mask one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.image import Image
from keras_microseg.segmentation.classical import segment_classical
from keras_microseg.segmentation.filtering import filter_by_brightness
from keras_microseg.segmentation.labeling import cut_touching
from keras_microseg.workflows.sem_particles.look import read_facts, usable_images
from keras_microseg.workflows.sem_particles.settings import Settings, TranslationSettings
from keras_microseg.workflows.steps import RunFolder, read_json, write_json
from keras_microseg.workflows.training_folders import epoch_progress

logger = logging.getLogger(__name__)

SCORED_TILES = 48
GENERATOR, PAIRS, TRANSLATION = "generator_b.keras", "pairs", "translation"


def build_system(settings: TranslationSettings, seed: int) -> Any:
    """The four networks and their phases, from random weights drawn on the host: equal on all backends."""
    from keras_microseg.models.discriminators import patchgan_discriminator
    from keras_microseg.models.generators import resnet_generator
    from keras_microseg.models.initialization import draw_kernels
    from keras_microseg.training.cyclegan import CycleGAN
    from keras_microseg.training.schedules import OptimizerSettings

    shape = {
        "filters": settings.filters, "num_blocks": settings.num_blocks, "num_levels": settings.num_levels,
        "skip": settings.skip, "resize_convolution": settings.resize_convolution,
    }  # fmt: skip
    judge = {"filters": settings.discriminator_filters, "noise": settings.discriminator_noise}
    channels = 2 if settings.noise_input else 1
    activation = "sigmoid" if settings.cross_entropy else "tanh"
    networks = [
        resnet_generator(**shape, activation=activation, name="micrograph_to_mask"),
        resnet_generator((None, None, channels), **shape, name="mask_to_micrograph"),
        patchgan_discriminator(**judge, name="micrograph_judge"),
        patchgan_discriminator(**judge, name="mask_judge"),
    ]
    for number, network in enumerate(networks):
        draw_kernels(network, seed + number)
    optimizer = OptimizerSettings(
        "adam", settings.learning_rate, schedule="linear", decay_start=settings.decay_start, options={"beta_1": 0.5}
    )
    return CycleGAN(
        *networks,
        cycle_weight=settings.cycle_weight,
        identity_weights=settings.identity_weights,
        label_smoothing=settings.label_smoothing,
        pool_size=settings.pool_size,
        cross_entropy=settings.cross_entropy,
        optimizer=optimizer,
    )


def train_translation(folder: RunFolder) -> None:
    """Step `translate`."""
    from keras_microseg.data.unpaired import GuideTiles, UnpairedTiles, read_micrograph
    from keras_microseg.training.adversarial import train_adversarial
    from keras_microseg.training.cyclegan import GuidedStart
    from keras_microseg.training.monitors import StopOnDrift, TranslationScores
    from keras_microseg.training.previews import SamplePictures
    from keras_microseg.training.schedules import OptimizerSettings

    settings: Settings = folder.settings
    chosen, facts = settings.translation, read_facts(folder)
    micrographs = [
        read_micrograph(
            path, info_bar=entry["info_bar"], contrast=settings.contrast, polarity=facts["polarity"],
            scale=facts["scale"],
            foreground=cut_touching(np.asarray(io.read_labels(folder.path / entry["labels"]).data)),
        )
        for path, entry in usable_images(folder)
    ]  # fmt: skip
    masks = [np.asarray(io.open_image(path).data) > 0 for path in io.find_images(folder.path / "masks" / "masks")]
    seeds = [int(n) for n in np.random.SeedSequence([settings.seed, 3]).generate_state(4)]
    options = {
        "size": (chosen.tile, chosen.tile), "min_foreground": chosen.min_foreground,
        "match_coverage": chosen.match_coverage, "low": 0.0 if chosen.cross_entropy else -1.0,
    }  # fmt: skip
    data = UnpairedTiles(micrographs, masks, chosen.steps_per_epoch, chosen.batch_size, seeds[0], **options)
    judged = UnpairedTiles(micrographs, masks, 1, SCORED_TILES, seeds[1], fixed=True, **options)[0]
    system = build_system(chosen, seeds[2] % 2**31)
    names = ("generator_a", "generator_b")
    scores = TranslationScores(*judged, prepare=system.with_noise, polarity=facts["polarity"])
    out = folder.directory(TRANSLATION)
    if chosen.guide_steps:
        guide = GuidedStart(
            system.networks["generator_a"],
            system.networks["generator_b"],
            optimizer=OptimizerSettings("adam", 1e-3, schedule="constant"),
        )
        tiles = GuideTiles(micrographs, masks, chosen.guide_steps, chosen.batch_size, seeds[3], **options)
        train_adversarial(
            guide,
            tiles,
            epochs=1,
            out_dir=out / "guide",
            seed=settings.seed,
            resume=True,
            mixed_precision=chosen.mixed_precision,
            callbacks=[SamplePictures([array[:4] for array in judged], out / "guide")],
            checkpoint_steps=50,
        )
    result = train_adversarial(
        system,
        data,
        epochs=chosen.epochs,
        out_dir=out,
        steps_per_epoch=chosen.steps_per_epoch,
        seed=settings.seed,
        resume=True,
        average={name: chosen.average for name in names} if chosen.average else None,
        mixed_precision=chosen.mixed_precision,
        scorers=[scores],
        callbacks=[
            SamplePictures([array[:4] for array in judged], out / "previews"),
            StopOnDrift(),
            *epoch_progress(folder, "translate"),
        ],
        checkpoint_steps=50,
        workers=1,
        cards={name: {"name": name, "scale": facts["scale"], "polarity": facts["polarity"]} for name in names},
    )
    last = result.history[-1]
    write_json(
        folder.file("translation.json"),
        {
            "texture_distance": last.get("texture_distance"),
            "texture_reference": scores.reference,
            "variety": last.get("variety"),
            "contrast": last.get("contrast"),
            "epochs": len(result.history),
            "seconds": sum(row["seconds"] for row in result.history),
            "stopped": result.stop_reason,
        },
    )
    if result.stop_reason:
        raise UserError(f"The translation was stopped after epoch {len(result.history)}: {result.stop_reason}")


def make_pairs(folder: RunFolder) -> None:
    """Step `pairs`: a micrograph for every mask, checked by a segmentation that has not seen the mask."""
    from keras_microseg import backend
    from keras_microseg.models.saving import load_model

    settings: Settings = folder.settings
    facts = read_facts(folder)
    path = folder.path / TRANSLATION / GENERATOR
    if not path.is_file():
        raise FileError(path, "is missing: micrographs need a trained translation.", "Run the step 'translate' first.")
    backend.configure_device(deterministic=True)
    generator, _ = load_model(path)
    predict = backend.compile_predict(generator)
    uses_noise = generator.input_shape[-1] == 2
    find = make_checker(settings.pairs.check, facts["polarity"])
    low = 0.0 if settings.translation.cross_entropy else -1.0

    def work(name: str, mask_path: Path) -> tuple[dict[str, Any], list[Path]]:
        mask = np.asarray(io.open_image(mask_path).data) > 0
        labels = np.asarray(io.read_labels(folder.path / "masks" / "labels" / mask_path.name).data)
        inputs = np.where(mask, 1, low).astype(np.float32)[None, ..., None]
        if uses_noise:
            rng = np.random.default_rng([settings.seed, 4, int(name)])
            inputs = np.concatenate([inputs, rng.standard_normal(inputs.shape, np.float32)], axis=-1)
        image = np.clip(predict(inputs)[0, ..., 0] / 2 + 0.5, 0, 1)
        if settings.pairs.blur:
            image = ndimage.gaussian_filter(image, settings.pairs.blur)
        image = np.rint(image * 255).astype(np.uint8)
        kept = labels
        if settings.pairs.drop_unpainted and labels.any():
            kept = filter_by_brightness(labels, image, polarity=facts["polarity"]).labels
        found = find(image)
        union = np.count_nonzero((found > 0) | (kept > 0))
        agreement = np.count_nonzero((found > 0) & (kept > 0)) / union if union else 1.0
        files = [folder.file(PAIRS, "images", f"{name}.tif"), folder.file(PAIRS, "labels", f"{name}.tif")]
        io.write_image(files[0], image, axes="YX")
        io.write_labels(files[1], kept)
        drawn = len(np.unique(labels)) - 1
        return {"agreement": agreement, "particles": drawn, "unpainted": drawn - (len(np.unique(kept)) - 1)}, files

    paths = io.find_images(folder.path / "masks" / "masks")[: settings.pairs.count]
    folder.for_each("pairs", {path.stem: path for path in paths}, work)
    summary = judge_pairs(folder.facts("pairs"), settings.pairs.min_agreement, settings.pairs.check)
    write_json(folder.file("pairs.json"), summary)
    logger.info("%d of %d pairs kept (agreement >= %.2f).", len(summary["kept"]), len(paths), summary["limit"])


def make_checker(check: str, polarity: str) -> Any:
    """`find(image) -> labels` that knows nothing of the generator."""
    if check == "none":
        return lambda image: np.zeros(image.shape, np.int32)
    if check == "classical":
        return lambda image: segment_classical(image, polarity=polarity)
    from keras_microseg.inference import Segmenter

    segmenter = Segmenter("default")
    return lambda image: segmenter.segment(Image(image, "YX"), polarity=polarity, info_bar=False).labels


def judge_pairs(facts: dict[str, dict[str, Any]], least: float | None, check: str) -> dict[str, Any]:
    """Which pairs are good enough to learn from.

    Args:
        facts: of the step `pairs`, by name.
        least: see `PairSettings.min_agreement`.
        check: how agreement was found; with "none" all pairs are kept.

    Raises:
        UserError: fewer than ten pairs are left.
    """
    if not facts:
        raise UserError("No micrograph could be made of any mask; manifest.json says why.")
    values = np.array([entry["agreement"] for entry in facts.values()])
    if check == "none":
        limit = 0.0
        kept = [name for name, entry in facts.items() if entry["particles"] > entry["unpainted"]]
    else:
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - middle)))
        limit = max(0.5, middle - 3 * spread) if least is None else least
        kept = [name for name, entry in facts.items() if entry["agreement"] >= limit]
    if len(kept) < 10:
        raise UserError(
            f"Only {len(kept)} of {len(facts)} generated micrographs show the particles of their masks (median overlap "
            f"{np.median(values):.2f}, limit {limit:.2f}). Look at pairs/images: train the translation longer, or "
            "check that the masks look like the images (coverage, size, polarity)."
        )
    return {
        "kept": kept,
        "dropped": sorted(set(facts) - set(kept)),
        "limit": limit,
        "median_agreement": float(np.median(values)),
        "unpainted_particles": int(sum(entry["unpainted"] for entry in facts.values())),
        "particles": int(sum(entry["particles"] for entry in facts.values())),
    }


def kept_pairs(folder: RunFolder) -> list[Any]:
    """Files of the pairs that passed the check."""
    from keras_microseg.data.datasets import Pair

    names = read_json(folder.path / "pairs.json")["kept"]
    root = folder.path / PAIRS
    return [Pair(root / "images" / f"{name}.tif", root / "labels" / f"{name}.tif") for name in names]
