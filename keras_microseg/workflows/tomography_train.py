"""Workflow `volume train`: a volume and its labels (or mask) become a model that `volume predict` uses."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, standardize_tuple
from keras_microseg.intensity import Normalizer
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json
from keras_microseg.workflows.tomography_settings import TrainVolumeSettings, listed

logger = logging.getLogger(__name__)

MODEL = "model.keras"
SETTINGS = "train_settings.json"
_FILES = (MODEL, "best.keras", "last.keras", "checkpoint.npz", "log.csv", "run.json", SETTINGS, "training_report.json")


@dataclasses.dataclass(frozen=True)
class TrainedVolumeModel:
    """Outcome of `train_volume`.

    Attributes:
        model_path: the model of the best epoch, ready for `predict`.
        scores: losses and scores of that epoch.
        history: one row per epoch.
        card: the facts stored in the model.
    """

    model_path: Path
    scores: dict[str, float]
    history: list[dict[str, float]]
    card: dict[str, Any]


def train_volume(
    settings: TrainVolumeSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedVolumeModel:
    """Train a 3D or 2.5D network on volumes with labels.

    Args:
        settings: what and how.
        out: folder for `model.keras`, logs, `training_report.json` and what `resume` needs.
        resume: go on with an interrupted training; it ends where an uninterrupted one does.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress("train", epochs done, epochs, losses)`.

    Raises:
        UserError: settings out of range, a volume thinner than a patch, no labelled voxel, another training in `out`.
        FileError: a label volume of another shape, unreadable volumes, unwritable folder.
    """
    out = Path(out)
    _check_folder(out, settings, resume=resume, overwrite=overwrite)

    from keras_microseg import backend

    backend.select()
    from keras_microseg.training.parallel import train_on_devices

    started = now()
    if overwrite and not resume:
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
    task = VolumeTraining(settings, out)
    earlier = read_json(out / SETTINGS).get("card") if resume and (out / SETTINGS).is_file() else None
    if earlier:
        task.card["made"] = earlier["made"]
    write_json(out / SETTINGS, {**plain(settings), "card": task.card})
    result = train_on_devices(task, settings.devices, out, resume=resume, progress=progress)
    best = result.history[(result.best_epoch or len(result.history)) - 1]
    _save_main(result.best_path, out / MODEL, task)
    scores = {key: float(value) for key, value in best.items() if key not in ("epoch", "seconds", "learning_rate")}
    write_json(
        out / SETTINGS,
        {**plain(settings), "card": task.card, "scores": scores, "sha256": file_hash(out / MODEL), "finished": now()},
    )
    write_json(out / "training_report.json", _report(settings, task, result, started))
    return TrainedVolumeModel(out / MODEL, scores, result.history, task.card)


class VolumeTraining:
    """Builds everything that one training needs, equally in every process that takes part in it."""

    def __init__(self, settings: TrainVolumeSettings, out: Path):
        from keras_microseg.models.unet3d import PRESETS, receptive_field, total_stride

        self.settings = settings
        chosen = PRESETS.get(settings.architecture, {})
        self.pools = settings.pools or chosen.get("pools")
        self.filters = settings.filters or chosen.get("filters") or (16, 32, 64, 128)
        if settings.architecture == "2.5d":
            stride = (1, *(2 ** (len(self.filters) - 1),) * 2)
            field = (settings.num_slices, *receptive_field(((1, 2, 2),) * (len(self.filters) - 1))[1:])
        else:
            stride, field = total_stride(self.pools), receptive_field(self.pools)
        size = standardize_tuple(settings.patch, 3, "patch")
        self.size = (settings.num_slices, *size[1:]) if settings.architecture == "2.5d" else size
        if any(n % m for n, m in zip(self.size, stride, strict=True)):
            fitting = tuple(-(-n // m) * m for n, m in zip(size, stride, strict=True))
            raise UserError(f"`patch` must be a multiple of {stride}. Received: patch={size}. Use {fitting}.")
        gap = field[0] if settings.gap is None else settings.gap
        pairs = [open_pair(*paths) for paths in zip(listed(settings.volume), listed(settings.labels), strict=True)]
        self.volumes, self.validation = [], []
        for number, (grey, labels) in enumerate(pairs):
            depth = grey.shape[0] if settings.slices is None else min(settings.slices, grey.shape[0])
            try:
                training, held = self._split(depth, gap, settings.seed + number, grey.name)
            except UserError as error:
                raise UserError(f"{grey.name}: {error}") from None
            scale = Normalizer.fit(grey.data, settings.normalization)
            self.volumes.append(self._labelled(grey, labels, scale, training))
            has_labels = settings.labelled is None or any(a <= z < b for z in settings.labelled for a, b in held)
            if held and has_labels:
                self.validation.append(self._labelled(grey, labels, scale, held))
        for grey, labels in (open_pair(*paths) for paths in settings.held):
            scale, depth = Normalizer.fit(grey.data, settings.normalization), grey.shape[0]
            known = None if settings.labelled is None else tuple(range(depth))
            self.validation.append(self._labelled(grey, labels, scale, ((0, depth),), labelled=known))
        self.outputs, self.num_classes = self._choose_outputs(pairs)
        lower, upper = 0.1, 99.9
        self.card = {
            "name": f"{settings.architecture} trained on {pairs[0][0].name}",
            "outputs": list(self.outputs),
            "normalization": {"mode": settings.normalization, "lower": lower, "upper": upper}
            | {key: getattr(self.volumes[0].normalizer, key) for key in ("low", "high")},
            "multiple_of": stride[1] if settings.architecture == "2.5d" else list(stride),
            "halo": min(field[1] // 4, 64)
            if settings.architecture == "2.5d"
            else [max(1, -(-n // 4 // m) * m) for n, m in zip(field, stride, strict=True)],
            "decode": {"seed_threshold": 0.6, "boundary_weight": 0.0},
            "voxel_size": plain(pairs[0][0].pixel_size),
            "training": {**plain(settings), "validation_slices": [plain(v.slices) for v in self.validation]},
            "made": {**run_facts(), "at": now()},
        }
        self.card |= {"num_slices": settings.num_slices} if settings.architecture == "2.5d" else {"ndim": 3}
        if self.num_classes:
            self.card["classes"] = self.num_classes

    def _labelled(self, grey: Any, labels: Any, scale: Normalizer, slices: Any, **changes: Any) -> Any:
        from keras_microseg.data.volumes import LabelledVolume

        settings = self.settings
        facts = {"labelled": settings.labelled, "ignore": settings.ignore, "name": grey.name, **changes}
        array = _AsMask(labels.data) if settings.labels_are == "mask" else labels.data
        return LabelledVolume(grey.data, array, scale, slices=slices, **facts)

    def _split(self, depth: int, gap: int, seed: int, name: str) -> tuple[Any, Any]:
        """`split_slices`; without validation where none was asked for and the volume is too thin for it."""
        from keras_microseg.data.volumes import split_slices

        share = self.settings.validation
        if share is None and self.settings.held:
            share = 0.0
        try:
            return split_slices(depth, 0.2 if share is None else share, gap, least=self.size[0], seed=seed)
        except UserError:
            if share is not None:
                raise
        logger.warning("%s: %d slices are too few for a part of its own for validation; there is none.", name, depth)
        return split_slices(depth, 0, gap, least=self.size[0])

    def _choose_outputs(self, pairs: Sequence[tuple[Any, Any]]) -> tuple[tuple[str, ...], int | None]:
        settings = self.settings
        if settings.labels_are == "classes":
            count = settings.num_classes
            if count is None:
                found = [int(_largest(labels.data, settings.ignore)) for _, labels in pairs]
                count = max(2, max(found) + 1)
            return tuple(f"class_{i}" for i in range(count)), count
        sparse = settings.labelled is not None or settings.ignore is not None
        if settings.outputs is None:
            plain_maps = settings.labels_are == "mask" or sparse or settings.architecture.startswith("vfp")
            return ("foreground",) if plain_maps else ("foreground", "boundary", "distance"), None
        return tuple(settings.outputs), None

    def build(self, workers: int = 1) -> dict[str, Any]:
        """Arguments of `training.supervised.train`: model, data, loss, ..."""
        from keras_microseg import backend, losses
        from keras_microseg.data.augment_volumes import VolumeAugmentSettings
        from keras_microseg.data.volumes import VolumePatches
        from keras_microseg.metrics.tracked import ForegroundDice
        from keras_microseg.models.unet3d import unet3d, unet25d
        from keras_microseg.training.epoch_files import EpochFiles
        from keras_microseg.training.schedules import OptimizerSettings

        s = self.settings
        seeds = [int(n) for n in np.random.SeedSequence(s.seed).generate_state(3)]
        batch = s.batch_size * s.devices
        options: dict[str, Any] = {"size": self.size, "outputs": self.outputs, "num_classes": self.num_classes}
        if s.architecture == "2.5d":
            options["num_slices"] = s.num_slices
        augment = scaled_augmentation(VolumeAugmentSettings(), s.augment)
        if s.architecture == "2.5d":
            augment = dataclasses.replace(augment, dropped_slices=0.0)
        training = VolumePatches(self.volumes, s.steps_per_epoch, batch, seeds[0], augment=augment, **options)
        validation = None
        if self.validation:
            count = max(1, s.steps_per_epoch // 5)
            validation = VolumePatches(self.validation, count, batch, seeds[1], fixed=True, **options)
        backend.seed_everything(seeds[2] % 2**31)
        maps = {
            "num_outputs": len(self.outputs),
            "output_activation": "softmax" if self.num_classes else "sigmoid",
        }
        if s.architecture == "2.5d":
            model = unet25d(s.num_slices, filters=self.filters, **maps)
        else:
            body = {"residual": s.residual, "dropout": s.dropout, "deep_supervision": s.deep_supervision}
            preset = None if s.filters or s.pools else s.architecture
            own = {} if preset else {"filters": self.filters, "pools": self.pools}
            model = unet3d(preset, norm=None if s.norm == "none" else s.norm, **own, **body, **maps)
        loss = self._loss(losses)
        if s.deep_supervision and s.architecture != "2.5d":
            loss = losses.DeepSupervision(loss, s.deep_supervision)
        channel = 1 if self.num_classes else 0
        weight = len(self.outputs) if training.is_sparse else None
        warmup = min(1.0, s.epochs / 10)
        return {
            "model": model,
            "train_data": training,
            "validation_data": validation,
            "loss": loss,
            "metrics": [ForegroundDice(channel, weight_channel=weight, name="dice")],
            "epochs": s.epochs,
            "optimizer": OptimizerSettings(
                "adam" if s.architecture.startswith("vfp") else "adamw",
                s.learning_rate,
                schedule="constant" if s.architecture.startswith("vfp") else "cosine",
                warmup_epochs=warmup,
                clip_norm=None if s.architecture.startswith("vfp") else 1.0,
            ),
            "seed": s.seed,
            "patience": s.patience,
            "mixed_precision": s.mixed_precision,
            "checkpoint_steps": 25,
            "workers": workers,
            "card": self.card,
            "callbacks": [EpochFiles()] if s.epoch_files else [],
        }

    def find_threshold(self, model: Any) -> float:
        """Probability above which the share of the foreground is that of the labels.

        Patches are drawn towards the foreground in training, which shifts probabilities; here they are drawn evenly,
        from the validation slices where there are any, and their middles count alone.
        """
        from keras_microseg.data.volumes import VolumePatches

        if self.num_classes or "foreground" not in self.outputs:
            return 0.5
        options = {"num_slices": self.settings.num_slices} if self.settings.architecture == "2.5d" else {}
        patches = VolumePatches(
            self.validation or self.volumes, 32, 1, self.settings.seed, fixed=True, size=self.size,
            outputs=self.outputs, foreground_share=0.0, **options,
        )  # fmt: skip
        channel = self.outputs.index("foreground")
        found, true = [], []
        for grey, targets in (patches[index] for index in range(len(patches))):
            middle = tuple(slice(n // 4, n - n // 4) for n in targets.shape[1:-1])
            known = targets[(0, *middle, -1)] > 0 if patches.is_sparse else slice(None)
            found.append(np.asarray(model.predict_on_batch(grey))[(0, *middle, channel)][known].ravel())
            true.append(targets[(0, *middle, channel)][known].ravel() > 0.5)
        share = np.concatenate(true).mean()
        if not 0 < share < 1:
            return 0.5
        return round(float(np.clip(np.quantile(np.concatenate(found), 1 - share), 0.02, 0.98)), 3)

    def _loss(self, losses: Any) -> Any:
        name = self.settings.loss
        if name == "auto" and not self.num_classes and self.outputs != ("foreground",):
            return losses.InstanceMapsLoss(self.outputs, weights={"distance": 2.0}, boundary_weight=5.0)
        if name in ("auto", "dice_crossentropy"):
            return losses.DiceCrossentropy(exclusive=bool(self.num_classes))
        if name == "crossentropy":
            return losses.DiceCrossentropy(exclusive=bool(self.num_classes), dice_weight=0.0)
        return losses.SoftDice() if name == "dice" else losses.FocalTversky()


def open_pair(volume: str | os.PathLike, labels: str | os.PathLike) -> tuple[Any, Any]:
    """A volume and its labels, both lazy.

    Raises:
        FileError: another shape, or labels that are no whole numbers; the message names the files.
    """
    grey, found = io.open_volume(volume), io.open_volume(labels)
    if grey.shape != found.shape:
        raise FileError(
            labels, f"has {found.shape} voxels, its volume {grey.name} has {grey.shape}.", "They must agree (z, y, x)."
        )
    if found.dtype.kind not in "bui":
        raise FileError(labels, f"holds {found.dtype} values.", "Labels and masks must be whole numbers.")
    return grey, found


def scaled_augmentation(settings: Any, strength: float) -> Any:
    """Augmentation settings with every amplitude times `strength`; flips stay unless it is 0."""
    if strength == 1:
        return settings
    values = dataclasses.asdict(settings)
    scaled = {
        key: value if isinstance(value, bool) else min(0.9, value * strength) if key == "contrast" else value * strength
        for key, value in values.items()
    }
    scaled["zoom"] = values["zoom"] ** strength
    scaled["flips"] = strength > 0
    scaled["dropped_slices"] = min(1.0, scaled["dropped_slices"])
    return type(settings)(**scaled)


class _AsMask:
    """Labels as 0 and 1, read window by window."""

    def __init__(self, labels: Any):
        self.labels, self.shape, self.dtype = labels, tuple(labels.shape), np.dtype(np.uint8)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (np.asarray(self.labels[key]) > 0).astype(np.uint8)


def _largest(labels: Any, ignore: int | None) -> int:
    largest = 0
    for z in range(labels.shape[0]):
        plane = np.asarray(labels[z : z + 1])
        plane = plane[plane != ignore] if ignore is not None else plane
        largest = max(largest, int(plane.max(initial=0)))
    return largest


def _save_main(best_path: Path, path: Path, task: VolumeTraining) -> None:
    """The model of the best epoch, without the extra outputs of deep supervision, with its threshold on the card."""
    from keras_microseg.models.deep_supervision import main_maps
    from keras_microseg.models.saving import load_model, save_model

    model, card = load_model(best_path)
    model = main_maps(model)
    task.card["decode"]["threshold"] = task.find_threshold(model)
    save_model(model, path, {**card, "decode": task.card["decode"]})


def _report(settings: TrainVolumeSettings, task: VolumeTraining, result: Any, started: str) -> dict[str, Any]:
    """The fields of the older scripts' report."""
    last = result.history[-1]
    names = {"train_loss": "loss", "train_dice_coefficient": "dice", "validation_loss": "val_loss",
             "validation_dice_coefficient": "val_dice"}  # fmt: skip
    losses = [row["val_loss"] for row in result.history if "val_loss" in row]
    dice = [row["val_dice"] for row in result.history if "val_dice" in row]
    return {
        "date": now(), "started": started, "input_image": settings.volume, "input_mask": settings.labels,
        "chunk_size": task.size[0], "patch": task.size, "epochs": len(result.history),
        "batch_size": settings.batch_size, "num_z_slices": settings.slices, "resize_factor": 1.0,
        "training_slices": [v.slices for v in task.volumes], "validation_slices": [v.slices for v in task.validation],
        "training_time": sum(row["seconds"] for row in result.history),
        **{f"final_{name}": last.get(key) for name, key in names.items()},
        "best_val_loss": min(losses, default=None), "best_val_dice_coefficient": max(dice, default=None),
        "best_epoch": result.best_epoch, **run_facts(),
    }  # fmt: skip


def _check_folder(out: Path, settings: TrainVolumeSettings, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with another training, unless asked to go on with it or to replace it."""
    path = out / SETTINGS
    if not path.is_file() or (overwrite and not resume):
        return
    if not resume:
        raise FileError(out, "already holds a training.", "Use --resume, --overwrite, or another folder.")
    earlier, asked = read_json(path), plain(settings)
    changed = [f"{key}={earlier[key]!r} -> {asked[key]!r}" for key in asked if earlier.get(key) != asked[key]]
    if changed:
        raise FileError(
            out, f"holds a training with other settings ({'; '.join(changed)}).", "Repeat them, or --overwrite."
        )
