"""Training of `filament train` and `filament search`: labelled videos become a model file that `predict` uses."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_names, check_number
from keras_microseg.io.frames import FrameSeries
from keras_microseg.metrics.change import frame_matrices, published_f1
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, run_facts, write_json

MODEL, SETTINGS = "model.keras", "train_settings.json"
KINDS = ("delta_net", "frame_unet")
SELECTIONS = ("masks", "change")
SPLIT = {"train": ("102_R1", "102_R2", "302"), "validation": ("103", "301")}
"""The published split by video; 201 and 203 are for the test."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults are those of the published network without initial weights (preset `paper`).

    Attributes:
        train, validation: names of the videos.
        kind: "delta_net", or "frame_unet", the single-frame baseline.
        network: fields of `models.delta_net.NetworkSettings`.
        frame_input: fields of `data.frame_pairs.FrameInput`.
        augment: fields of `data.augment.FrameAugmentSettings`; None = none.
        size: edge of the crops, px; None = whole frames.
        partners, balance: which pairs are drawn, see `data.frame_pairs.FrameStore.pair_probabilities`.
        epochs, steps_per_epoch, batch_size: as they say; a batch of pairs holds twice as many frames.
        optimizer: fields of `training.schedules.OptimizerSettings`.
        gamma, smoothing: of the focal loss.
        weight_power: class weights are share ** -power; 1 = inverse frequency, 0 = none.
        weigh_valid: only pixels count where one of the frames shows the specimen.
        selection: "masks", mean over validation videos and tasks of the pooled macro F1 of the masks in backward mode;
            "change", of the four change classes over all pairs (the original criterion, on both videos).
        patience: stop after so many epochs without improvement.
        initial: file of a U-Net whose weights the branch starts from.
        mixed_precision: compute in bfloat16.
        seed: of start weights, pairs and augmentation.
    """

    train: tuple[str, ...] = SPLIT["train"]
    validation: tuple[str, ...] = SPLIT["validation"]
    kind: str = "delta_net"
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frame_input: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    size: int | None = None
    partners: Mapping[str, float] | None = None
    balance: float = 1.0
    epochs: int = 500
    steps_per_epoch: int = 382
    batch_size: int = 16
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "learning_rate": 9.551981358e-4,
            "schedule": "linear",
            "decay_start": 0.0,
            "final_factor": 1 / 501,
            "by_epoch": True,
            "weight_decay": 0.01,
            "decay_all": True,
            "options": {"epsilon": 1e-8},
        }
    )
    gamma: float = 2.0
    smoothing: float = 1e-5
    weight_power: float = 1.0
    weigh_valid: bool = False
    selection: str = "masks"
    patience: int | None = 50
    initial: str | None = None
    mixed_precision: bool = False
    seed: int = 8888

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("selection", self.selection, SELECTIONS)
        for name in ("epochs", "steps_per_epoch", "batch_size"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        for name in ("train", "validation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.train:
            raise UserError("`train` must name at least one video.")
        shared = sorted(set(self.train) & set(self.validation))
        if shared:
            raise UserError(f"Videos must not be in both `train` and `validation`. Received: {', '.join(shared)}")


_WIDE = {"zoom": (0.55, 1.7), "rotate": 20.0, "cut": 0.5, "noise": 6.0, "focus": True}
"""Training filaments are all 24 nm wide; those of other videos 14 to 37 nm, in narrower windows."""
_COSINE = {"learning_rate": 2e-3, "schedule": "cosine", "warmup_epochs": 1.0, "weight_decay": 0.01}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {
        "network": {"features": 16, "in_channels": 2, "stride": 2, "head": "product", "head_filters": (32, 16)},
        "frame_input": {"channels": 2, "normalization": "series"},
        "augment": _WIDE,
        "size": 160,
        "partners": {"any": 2.0, "first": 1.0, "last": 1.0},
        "balance": 0.25,
        "epochs": 12,
        "steps_per_epoch": 100,
        "batch_size": 8,
        "optimizer": _COSINE,
        "gamma": 1.0,
        "weight_power": 0.25,
        "weigh_valid": True,
        "patience": None,
    },
    "gpu": {
        "network": {"features": 32, "in_channels": 2, "head": "product"},
        "frame_input": {"channels": 2, "normalization": "series"},
        "augment": _WIDE,
        "partners": {"any": 2.0, "first": 1.0, "last": 1.0},
        "balance": 0.25,
        "epochs": 60,
        "optimizer": _COSINE | {"learning_rate": 1e-3},
        "gamma": 1.0,
        "weight_power": 0.25,
        "weigh_valid": True,
        "mixed_precision": True,
    },
}
"""`paper`: as published. `cpu`: quarter of the pixels, half the width, minutes. `gpu`: the full network, one GPU."""


def preset(name: str, **changes: Any) -> TrainSettings:
    """Settings of a preset with changes; a dotted name changes one entry, `"optimizer.learning_rate"`.

    Raises:
        UserError: unknown preset or setting.
    """
    return change_settings(TrainSettings(**PRESETS[check_choice("preset", name, PRESETS)]), changes)


def change_settings(settings: TrainSettings, changes: Mapping[str, Any]) -> TrainSettings:
    """`settings` with other values; dotted names reach into `network`, `augment`, `optimizer` and the like."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    for name, value in changes.items():
        whole, _, part = name.partition(".")
        check_names([whole], values)
        values[whole] = {**(values[whole] or {}), part: value} if part else value
    return TrainSettings(**values)


@dataclasses.dataclass(frozen=True)
class TrainedChangeModel:
    """Outcome of `train`.

    Attributes:
        model_path: the model of the best epoch.
        scores: its validation scores.
        history: one row per epoch.
        card: the facts stored in the model.
    """

    model_path: Path
    scores: dict[str, float]
    history: list[dict[str, float]]
    card: dict[str, Any]


def open_videos(data: str | os.PathLike, names: Sequence[str]) -> list[FrameSeries]:
    """Labelled videos in memory, from time 0 on."""
    from keras_microseg.io.frame_layouts import open_series_set

    return [series.reaction.load() for series in open_series_set(data, names)] if names else []


def train(
    data: str | os.PathLike,
    out: str | os.PathLike,
    settings: TrainSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> TrainedChangeModel:
    """Train a delta-net, or the baseline, on labelled videos.

    Args:
        data: folder of the videos (one folder each, see `io.frame_layouts.open_series`).
        out: folder for `model.keras`, logs and what `resume` needs.
        settings: see `TrainSettings` and `preset`.
        resume: go on with an interrupted training.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress("train", epochs done, epochs, scores)`.
        callbacks: further Keras callbacks (pruning of a search).

    Raises:
        UserError: videos without masks, settings that do not fit together, a folder that holds another training.
    """
    from keras_microseg import backend

    backend.select()

    from keras_microseg import losses
    from keras_microseg.data.augment import FrameAugmentSettings
    from keras_microseg.data.frame_pairs import FrameInput, FramePairs, FrameStore, SingleFrames, class_weights
    from keras_microseg.models import delta_net as networks
    from keras_microseg.models.saving import load_model
    from keras_microseg.training import supervised
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import OptimizerSettings

    out = Path(out)
    if overwrite and not resume:
        for name in (MODEL, SETTINGS, "best.keras", "last.keras", "checkpoint.npz", "log.csv", "run.json"):
            (out / name).unlink(missing_ok=True)
    network = networks.NetworkSettings(**settings.network)
    frame_input = FrameInput(**settings.frame_input)
    if network.in_channels != frame_input.channels:
        raise UserError(
            f"`network.in_channels` must be `frame_input.channels`. Received: {network.in_channels} and "
            f"{frame_input.channels}"
        )
    store = FrameStore(open_videos(data, settings.train), network.tasks)
    held = open_videos(data, settings.validation)
    seeds = [int(s) for s in np.random.SeedSequence(settings.seed).generate_state(2)]
    options = {
        "frame_input": frame_input,
        "size": settings.size,
        "augment": None if settings.augment is None else FrameAugmentSettings(**settings.augment),
        "weigh_valid": settings.weigh_valid,
    }
    amount = (store, settings.steps_per_epoch, settings.batch_size, seeds[0])
    backend.seed_everything(seeds[1] % 2**31)
    if settings.kind == "delta_net":
        model = networks.delta_net(network)
        pairs = FramePairs(*amount, partners=settings.partners, balance=settings.balance, **options)
        training, shares = pairs, store.class_shares(pairs.probabilities)
    else:
        model = networks.frame_unet(network)
        training, shares = SingleFrames(*amount, **options), store.frame_shares()
    copied = networks.transfer_branch(load_model(settings.initial)[0], model) if settings.initial else []
    card = {
        "name": f"{settings.kind} trained on {', '.join(settings.train)}",
        "kind": settings.kind,
        "network": plain(network),
        "frame_input": plain(frame_input),
        "outputs": list(network.tasks),
        "training": plain(settings),
        "class_shares": plain(shares),
        "layers_from_initial": len(copied),
        "made": {**run_facts(), "at": now()},
    }
    score = VideoScores(card, held, settings.selection, visible=settings.weigh_valid) if held else None
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, {**plain(settings), "card": card})
    result = supervised.train(
        model,
        training,
        loss=losses.FocalClassLoss(
            network.tasks, class_weights(shares, settings.weight_power), settings.gamma, settings.smoothing
        ),
        epochs=settings.epochs,
        out_dir=out,
        scorers=[score] if score else [],
        monitor="val_f1" if score else None,
        optimizer=OptimizerSettings(**settings.optimizer),
        seed=settings.seed,
        resume=resume,
        patience=settings.patience,
        mixed_precision=settings.mixed_precision,
        callbacks=[*callbacks, *([EpochProgress(progress, shown=("loss", "val_f1"))] if progress else [])],
        checkpoint_steps=50,
        card=card,
    )
    with io.atomic_path(out / MODEL) as temporary:
        shutil.copyfile(result.best_path, temporary)
    best = result.history[(result.best_epoch or len(result.history)) - 1]
    scores = {name: float(value) for name, value in best.items() if "loss" in name or name.startswith("val_")}
    finished = {"scores": scores, "sha256": file_hash(out / MODEL), "finished": now()}
    write_json(out / SETTINGS, {**plain(settings), "card": card, **finished})
    return TrainedChangeModel(out / MODEL, scores, result.history, card)


class VideoScores:
    """Scores the network on whole labelled videos after every epoch, all videos alike.

    Args:
        card: of the model.
        videos: labelled, in memory.
        selection: see `TrainSettings`.
        visible: only the visible region is predicted; what a network says elsewhere that was not trained there is void.
    """

    def __init__(
        self, card: Mapping[str, Any], videos: Sequence[FrameSeries], selection: str = "masks", visible: bool = False
    ):
        self.card, self.videos, self.selection = dict(card), list(videos), selection
        self.visible = visible
        self._predictor: Any = None

    def __call__(self, model: Any, epoch: int) -> dict[str, float]:
        """`val_f1`, the mean over tasks and videos, and `val_TASK_VIDEO` of each."""
        from keras_microseg.inference.change import ChangePredictor, ModeSettings, count_changes, predict_series

        if self._predictor is None:
            self._predictor = ChangePredictor(model, self.card)
        else:
            self._predictor.update(model)
        scores = {}
        for video in self.videos:
            if self.selection == "masks":
                settings = dataclasses.replace(ModeSettings.published(), visible=self.visible)
                found = predict_series(self._predictor, video, settings).masks
                matrices = {task: frame_matrices(video.read_masks(task), m).sum(axis=0) for task, m in found.items()}
            else:
                matrices = count_changes(self._predictor, video, visible=self.visible)
            for task, matrix in matrices.items():
                scores[f"val_{task}_{video.name}"] = published_f1(matrix)
        return {"val_f1": float(np.mean(list(scores.values()))), **scores}
