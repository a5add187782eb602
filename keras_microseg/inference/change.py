"""Masks of every frame of a video from a delta-net: pairing modes, ensembles, and each frame encoded once."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_microseg import backend
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.data.frame_pairs import FrameInput
from keras_microseg.io.frames import FrameSeries
from keras_microseg.metrics.change import change_matrix
from keras_microseg.metrics.pixel import confusion_matrix
from keras_microseg.models.delta_net import NetworkSettings, PairNetwork
from keras_microseg.models.folding import fold_batch_norm
from keras_microseg.tiling import round_up

MODES = ("ensemble", "backward", "forward", "consecutive")
VOTES = ("soft", "hard")
KINDS = ("delta_net", "frame_unet")
_PROJECTIONS = 600_000_000  # bytes of projected frames kept
_FIRST, _SECOND = 0, 1

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ModeSettings:
    """How masks are read from pairs. The published masks are those of mode="backward", votes="hard", all else off.

    Attributes:
        mode: the partner of a frame: "forward", the first frame; "backward", the last; "consecutive", the next one (the
            last: itself); "ensemble", every frame. Partners come from the frames at t >= 0.
        votes: "soft" averages probabilities, "hard" the masks of the likeliest class; carbon where the mean is > 1/2.
        swapped: also compare (partner, frame) and read the frame as the second of the pair.
        second: read both frames of every pair that is computed, not only the one it was made for.
        num_partners: in an ensemble, so many partners evenly spread over the video; None = all.
        flips: average over the frame and its mirror images: 1 (off), 4, or 8 with turns (square frames).
        inside: remove from A2 what is not in A1.
        visible: remove what lies outside the visible region.
        batch_size: pairs per call.
    """

    mode: str = "ensemble"
    votes: str = "soft"
    swapped: bool = True
    second: bool = True
    num_partners: int | None = None
    flips: int = 1
    inside: bool = True
    visible: bool = True
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("votes", self.votes, VOTES)
        check_choice("flips", self.flips, (1, 4, 8))
        check_number("batch_size", self.batch_size, minimum=1, integer=True)
        if self.num_partners is not None:
            check_number("num_partners", self.num_partners, minimum=1, integer=True)

    @classmethod
    def published(cls, mode: str = "backward", **options: Any) -> ModeSettings:
        """The settings of MultiTaskDeltaNet."""
        return cls(mode, "hard", swapped=False, second=False, inside=False, visible=False, **options)


@dataclasses.dataclass
class SeriesPrediction:
    """What a network says about a video.

    Attributes:
        masks: task -> (N, H, W) bool, True = carbon.
        probabilities: task -> (N, H, W) float32, mean over members; with hard votes the share of votes.
        member_areas: task -> (N, M) float64, carbon pixels of each frame according to each member of the ensemble
            (partner, order, mirror image); NaN where there is no such member.
    """

    masks: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    member_areas: dict[str, np.ndarray]


class ChangePredictor:
    """A delta-net, or the single-frame baseline, ready for inference.

    Args:
        model: `models.delta_net.delta_net` or `frame_unet`, trained.
        card: its card with `kind`, `network` and `frame_input`.
    """

    def __init__(self, model: keras.Model, card: Mapping[str, Any]):
        self.kind = check_choice("card['kind']", card.get("kind"), KINDS)
        self.settings = NetworkSettings.from_card(card)
        self.frame_input = FrameInput(**card["frame_input"])
        self.pairs = self.frames = None
        if self.kind == "delta_net":
            self.pairs = PairNetwork(model, self.settings)
        else:
            self._folded = fold_batch_norm(model)
            self.frames = backend.compile_predict(self._folded)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.settings.tasks

    def update(self, model: keras.Model) -> None:
        """Take over the present weights of `model`."""
        if self.pairs is not None:
            self.pairs.update(model)
        else:
            self._folded.set_weights(fold_batch_norm(model).get_weights())


def predict_series(
    predictor: ChangePredictor,
    series: FrameSeries,
    settings: ModeSettings = ModeSettings(),  # noqa: B008  (frozen)
    *,
    progress: Progress | None = None,
) -> SeriesPrediction:
    """Masks of all frames of a video.

    Every frame is encoded once per mirror image; only what is left of the heads runs per pair.

    Args:
        predictor: the network.
        series: the video; frames before time 0 get masks too but are nobody's partner.
        settings: see `ModeSettings`; what concerns pairs is not used by the single-frame baseline.
        progress: called with (pairs done, pairs in all).

    Raises:
        UserError: frames that are not 8 bit, `flips=8` for frames that are not square.
    """
    if np.dtype(series.images.dtype) != np.uint8:
        raise UserError(
            f"{series.name}: network input is 8 bit. Received: {series.images.dtype} frames. "
            "Convert the video with: keras-microseg filament prepare"
        )
    images, valid = series.read_images(), series.read_valid()
    height, width = images.shape[1:]
    if settings.flips == 8 and height != width:
        raise UserError(f"`flips=8` turns frames and needs square ones. Received: {height} x {width} px")
    candidates = np.flatnonzero(series.times >= 0)
    candidates = candidates if len(candidates) else np.arange(len(series))
    scale = predictor.frame_input.scale(images[candidates], valid[candidates])
    frames = _pad(predictor.frame_input.make(images, valid, scale), predictor.settings.multiple_of)

    reads = _reads(len(series), candidates, settings) if predictor.kind == "delta_net" else None
    jobs = len(images) if reads is None else len(reads)
    views = _views(settings.flips)
    tally = _Tally(predictor.tasks, images.shape, settings, valid)
    for number, view in enumerate(views):
        found = (
            _single(predictor, frames, view, settings)
            if reads is None
            else _pairwise(predictor, frames, view, reads, settings)
        )
        for done, (frame, member, answers) in enumerate(found, start=1):
            tally.add(frame, (number, member), {task: maps[:height, :width] for task, maps in answers.items()})
            if progress is not None and (done % 16 == 0 or done == jobs):
                progress(number * jobs + done, len(views) * jobs)
    return tally.result()


def count_changes(
    predictor: ChangePredictor, series: FrameSeries, *, visible: bool = False, batch_size: int = 4
) -> dict[str, np.ndarray]:
    """(4, 4) confusion matrix per task of the change classes over all ordered pairs of a labelled video.

    Row = truth 2 f + g. The single-frame baseline predicts by pairs of its masks. With `visible`, nothing is predicted
    outside the visible region of either frame.
    """
    settings = dataclasses.replace(ModeSettings.published("ensemble", batch_size=batch_size), visible=visible)
    truth = {task: series.read_masks(task) for task in predictor.tasks}
    if predictor.kind == "frame_unet":
        found = predict_series(predictor, series, settings).masks
        return {task: change_matrix(masks, found[task]) for task, masks in truth.items()}
    images, valid = series.read_images(), series.read_valid()
    frames = predictor.frame_input.make(images, valid, predictor.frame_input.scale(images, valid))
    frames = _pad(frames, predictor.settings.multiple_of)
    count, (height, width) = len(images), images.shape[1:]
    reads = [(a, b, (_FIRST, _SECOND)) for a in range(count) for b in range(count)]
    found = _pairwise(predictor, frames, (False, False, False), reads, settings)
    matrices = {task: np.zeros((4, 4), np.int64) for task in truth}
    for (a, first, seen), (b, _, seen_too) in zip(found, found, strict=True):  # two answers follow from every pair
        assert first == b, "both roles of one pair"
        for task, masks in truth.items():
            f, g = (votes[task][:height, :width, 1].astype(np.int64) for votes in (seen, seen_too))
            votes = 2 * f * valid[a] + g * valid[b] if visible else 2 * f + g
            matrices[task] += confusion_matrix(2 * masks[a].astype(np.int64) + masks[b], votes, 4)
    return matrices


class _Tally:
    """Sums of votes, and the areas that each member finds."""

    def __init__(self, tasks: tuple[str, ...], shape: tuple[int, ...], settings: ModeSettings, valid: np.ndarray):
        self.tasks, self.settings, self.valid = tasks, settings, valid
        self.sums = {task: np.zeros(shape, np.float32) for task in tasks}
        self.counts = np.zeros(shape[0], np.int64)
        self.areas: dict[tuple, dict[int, dict[str, int]]] = {}

    def add(self, frame: int, member: tuple, answers: dict[str, np.ndarray]) -> None:
        """(H, W, 2) of each task: probability and vote of one member about one frame."""
        self.counts[frame] += 1
        masks = {}
        for task, maps in answers.items():
            soft, hard = maps[..., 0], maps[..., 1]
            self.sums[task][frame] += soft if self.settings.votes == "soft" else hard
            masks[task] = (soft if self.settings.votes == "soft" else hard) > 0.5
        masks = self._clean(masks, self.valid[frame])
        areas = self.areas.setdefault(member, {}).setdefault(frame, {})
        areas |= {task: int(mask.sum()) for task, mask in masks.items()}

    def result(self) -> SeriesPrediction:
        members = sorted(self.areas)
        number = {member: j for j, member in enumerate(members)}
        areas = {task: np.full((len(self.counts), len(members)), np.nan) for task in self.tasks}
        for member, frames in self.areas.items():
            for frame, found in frames.items():
                for task, area in found.items():
                    areas[task][frame, number[member]] = area
        if self.settings.mode != "ensemble":  # partners differ from frame to frame
            areas = {task: _pack(table) for task, table in areas.items()}
        counts = np.maximum(self.counts, 1)[:, None, None].astype(np.float32)
        probabilities = {task: total / counts for task, total in self.sums.items()}
        masks = self._clean({task: p > 0.5 for task, p in probabilities.items()}, self.valid)
        return SeriesPrediction(masks, probabilities, areas)

    def _clean(self, masks: dict[str, np.ndarray], valid: np.ndarray) -> dict[str, np.ndarray]:
        if self.settings.visible:
            masks = {task: mask & valid for task, mask in masks.items()}
        if self.settings.inside and {"A1", "A2"} <= set(masks):
            masks["A2"] = masks["A2"] & masks["A1"]
        return masks


def _pack(table: np.ndarray) -> np.ndarray:
    """Entries that are not NaN moved to the left, empty columns left out."""
    known = np.isfinite(table)
    order = np.argsort(~known, axis=1, kind="stable")
    return np.take_along_axis(table, order, axis=1)[:, : max(1, int(known.sum(axis=1).max(initial=0)))]


def _reads(count: int, candidates: np.ndarray, settings: ModeSettings) -> list[tuple[int, int, tuple[int, ...]]]:
    """(first, second, roles to read) of every pair to be computed, each once."""
    first, last = int(candidates[0]), int(candidates[-1])
    roles: dict[tuple[int, int], set[int]] = {}

    def ask(frame: int, partner: int) -> None:
        roles.setdefault((frame, partner), set()).add(_FIRST)
        if settings.swapped:
            roles.setdefault((partner, frame), set()).add(_SECOND)

    for frame in range(count):
        if settings.mode == "ensemble":
            amount = min(settings.num_partners or len(candidates), len(candidates))
            places = np.unique(np.linspace(0, len(candidates) - 1, amount).round().astype(int))
            for partner in candidates[places]:
                ask(frame, int(partner))
        else:
            following = min(frame + 1, count - 1)
            ask(frame, {"forward": first, "backward": last, "consecutive": following}[settings.mode])
    if settings.second:
        for found in roles.values():
            found.update((_FIRST, _SECOND))
    return [(a, b, tuple(sorted(found))) for (a, b), found in roles.items()]


def _pairwise(
    predictor: ChangePredictor, frames: np.ndarray, view: tuple, reads: list, settings: ModeSettings
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(frame, member, answers) of every read; answers are (H, W, 2) per task, turned back."""
    network = predictor.pairs
    count, size = len(frames), settings.batch_size
    features: dict[int, np.ndarray] = {}
    kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def encoded(i: int) -> np.ndarray:
        if i not in features:
            features[i] = network.encode(_turn(frames[i : i + 1], view))[0]
        return features[i]

    limit = 0

    def projected(i: int) -> np.ndarray:
        nonlocal limit
        if i not in kept:
            kept[i] = network.project(encoded(i)[None])[0]
            limit = limit or max(4, 2 * size, int(_PROJECTIONS // kept[i].nbytes))
        kept.move_to_end(i)
        while len(kept) > limit:
            kept.popitem(last=False)
        return kept[i]

    projected(reads[0][0])
    block = max(1, limit - 2)  # partners of one block stay in memory while all frames pass
    ordered = sorted(reads, key=lambda read: (read[1] // block, read[0], read[1]))
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        joined = [network.join(projected(a), projected(b)) for a, b, _ in batch]
        joined += joined[-1:] * (size - len(batch) if len(ordered) > size else 0)  # one compiled shape
        maps = {task: _turn_back(values, view) for task, values in network.read(np.stack(joined)).items()}
        for i, (a, b, roles) in enumerate(batch):
            for role in roles:
                answers = {task: values[i][..., [role, 2 + role]] for task, values in maps.items()}
                yield (a, b, answers) if role == _FIRST else (b, count + a, answers)


def _single(
    predictor: ChangePredictor, frames: np.ndarray, view: tuple, settings: ModeSettings
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    for i in range(len(frames)):
        answers = {}
        for task, logits in predictor.frames(np.ascontiguousarray(_turn(frames[i : i + 1], view))).items():
            margin = _turn_back(logits, view)[0]
            margin = margin[..., 1] - margin[..., 0]
            soft = 0.5 * (1 + np.tanh(0.5 * margin))
            answers[task] = np.stack([soft, (margin > 0).astype(np.float32)], axis=-1)
        yield i, 0, answers


def _views(flips: int) -> list[tuple[bool, bool, bool]]:
    """(transpose, flip y, flip x)."""
    mirrored = [(False, y, x) for y in (False, True) for x in (False, True)]
    return {1: mirrored[:1], 4: mirrored, 8: mirrored + [(True, y, x) for _, y, x in mirrored]}[flips]


def _turn(batch: np.ndarray, view: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, flip_y, flip_x = view
    batch = batch.swapaxes(1, 2) if transpose else batch
    return batch[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _turn_back(batch: np.ndarray, view: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, flip_y, flip_x = view
    batch = batch[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return batch.swapaxes(1, 2) if transpose else batch


def _pad(frames: np.ndarray, multiple: int) -> np.ndarray:
    """(N, H, W, c) with height and width a multiple, by repeating the lower and right border."""
    extra = [round_up(n, multiple) - n for n in frames.shape[1:3]]
    return np.pad(frames, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)), mode="edge") if any(extra) else frames
