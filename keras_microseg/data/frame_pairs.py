"""Frame pairs of videos as training data: sampled by index, labels computed on the fly, every frame stored once.

The label of a pixel of the pair (m, n) is 2 f + g, with f and g = 1 where frame m and frame n show foreground: 0 no
change, 1 appearing, 2 disappearing, 3 overlap. A video of N frames has N^2 ordered pairs; their class shares follow
exactly from the overlaps F F^T of its N masks, without a pass over the pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.data.augment import VALID, FrameAugmentSettings, augment_frames
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.io.frames import FrameSeries

PARTNERS = ("any", "first", "last")
NORMALIZATIONS = ("half", "series")
_GREY = 178  # fills the surroundings where a series names no fill of its own


@dataclasses.dataclass(frozen=True)
class FrameInput:
    """How grey frames become network input; the same at training and inference.

    Attributes:
        channels: 3 = the grey value three times, 1 = once, 2 = with the visible region (0 or 1) beside it.
        normalization: "half": (v / 255 - 0.5) / 0.5; "series": (v - median) / (interquartile range / 1.349) of the
            visible pixels of the whole video, and 0 where nothing is visible.
    """

    channels: int = 3
    normalization: str = "half"

    def __post_init__(self) -> None:
        check_choice("channels", self.channels, (1, 2, 3))
        check_choice("normalization", self.normalization, NORMALIZATIONS)

    def scale(self, images: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
        """(offset, divisor) for a video: (N, H, W) images and visible pixels."""
        if self.normalization == "half":
            return 127.5, 127.5
        values = images[valid][:: max(1, int(valid.sum()) // 1_000_000)]
        if not values.size:
            return 127.5, 127.5
        low, median, high = np.percentile(values, (25, 50, 75))
        return float(median), max(float(high - low) / 1.349, 1.0)

    def make(self, image: np.ndarray, valid: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
        """(..., H, W) grey values and visible pixels -> (..., H, W, channels) float32."""
        values = (image.astype(np.float32) - np.float32(scale[0])) / np.float32(scale[1])
        if self.normalization == "series":
            values = values * valid
        if self.channels == 2:
            return np.stack([values, valid.astype(np.float32)], axis=-1)
        return np.repeat(values[..., np.newaxis], self.channels, axis=-1)


class FrameStore:
    """Frames and masks of several videos in memory, one byte each per pixel, and the ways to pair them.

    Args:
        series: labelled videos; every frame given is used (pass `series.reaction` to leave out those before time 0).
        tasks: the masks to learn, up to 7.

    Raises:
        UserError: no video, a task without masks, frames that are not 8 bit, frames of different size.
    """

    def __init__(self, series: Sequence[FrameSeries], tasks: Sequence[str]):
        if not series:
            raise UserError("No video was given.")
        if not 1 <= len(tasks) <= 7:
            raise UserError(f"`tasks` must be 1 to 7 names. Received: tasks={tuple(tasks)}")
        self.tasks = tuple(tasks)
        self.names, self.images, self.codes, self.fills = [], [], [], []
        for video in series:
            if np.dtype(video.images.dtype) != np.uint8:
                raise UserError(
                    f"{video.name}: network input is 8 bit. Received: {video.images.dtype} frames. "
                    "Convert the video with: keras-microseg filament prepare"
                )
            images, valid = video.read_images(), video.read_valid()
            code = valid.astype(np.uint8) * VALID
            for bit, task in enumerate(self.tasks):
                code |= video.read_masks(task).astype(np.uint8) << bit
            self.names.append(video.name)
            self.images.append(images)
            self.codes.append(code)
            self.fills.append(_GREY if video.fill is None else int(video.fill))
        shapes = {images.shape[1:] for images in self.images}
        if len(shapes) > 1:
            found = ", ".join(f"{n}: {i.shape[1:]}" for n, i in zip(self.names, self.images, strict=True))
            raise UserError(f"All videos must have frames of one size ({found}). Cut them with: filament prepare")
        self.shape: tuple[int, int] = shapes.pop()
        self.lengths = [len(images) for images in self.images]

    @property
    def nbytes(self) -> int:
        """Memory of all frames and masks, bytes."""
        return sum(array.nbytes for array in (*self.images, *self.codes))

    def pair_probabilities(self, partners: Mapping[str, float] | None = None, balance: float = 1.0) -> list[np.ndarray]:
        """(N, N) probability of every ordered pair (first, second) of every video; they sum to 1.

        Args:
            partners: weights of the ways to choose the other frame of a pair: "any" frame, the "first" or the "last" of
                the video; with the last two, the pair is turned round with probability 1/2. None = any.
            balance: a video of N frames is drawn in proportion to N^(2 balance): 1 = every pair alike, 0 = every video
                alike.
        """
        partners = dict(partners or {"any": 1.0})
        for name, weight in partners.items():
            check_choice("partners", name, PARTNERS)
            check_number(f"partners[{name!r}]", weight, minimum=0)
        total = sum(partners.values())
        check_number("partners", total, minimum=0, exclusive=True)
        shares = np.array(self.lengths, float) ** (2 * balance)
        tables = []
        for count, share in zip(self.lengths, shares / shares.sum(), strict=True):
            table = np.full((count, count), partners.get("any", 0) / count**2)
            for name, place in (("first", 0), ("last", -1)):
                table[:, place] += partners.get(name, 0) / (2 * count)
                table[place, :] += partners.get(name, 0) / (2 * count)
            tables.append(table / total * share)
        return tables

    def class_shares(self, probabilities: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Exact shares of the four change classes among the pixels of all pairs, from mask overlaps in closed form.

        Args:
            probabilities: of `pair_probabilities`; None = every ordered pair alike.

        Returns:
            task -> (4,) float64, sum 1.
        """
        probabilities = self.pair_probabilities() if probabilities is None else probabilities
        shares = {task: np.zeros(4) for task in self.tasks}
        for bit, task in enumerate(self.tasks):
            for code, table in zip(self.codes, probabilities, strict=True):
                masks = (code >> bit & 1).reshape(len(code), -1).astype(np.float32)
                both = (masks @ masks.T).astype(np.float64)  # exact: counts below 2^24
                area = np.diagonal(both)
                first, second = area[:, np.newaxis] - both, area[np.newaxis, :] - both
                pixels = masks.shape[1]
                parts = (pixels - both - first - second, second, first, both)
                shares[task] += [float((table * part).sum()) / pixels for part in parts]
        return shares

    def frame_shares(self) -> dict[str, np.ndarray]:
        """Shares of background and foreground among the pixels of all frames: task -> (2,)."""
        pixels = sum(code.size for code in self.codes)
        found = {task: sum(int((code >> bit & 1).sum()) for code in self.codes) for bit, task in enumerate(self.tasks)}
        return {task: np.array([1 - n / pixels, n / pixels]) for task, n in found.items()}

    def fingerprint(self) -> str:
        """Stands for names, frames and masks."""
        digest = hashlib.sha256(repr((self.names, self.tasks)).encode())
        for array in (*self.images, *self.codes):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]


def class_weights(shares: Mapping[str, np.ndarray], power: float = 1.0) -> dict[str, list[float]]:
    """Weights `share ** -power` per task and class; power 1 is the inverse frequency, 0 no weighting.

    A class that does not occur gets the weight 0.
    """
    check_number("power", power, minimum=0, maximum=2)
    return {task: [float(share**-power) if share > 0 else 0.0 for share in values] for task, values in shares.items()}


class _Frames(SeededDataset):
    """What pairs and single frames have in common; see `FramePairs` for the arguments."""

    def __init__(
        self,
        store: FrameStore,
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        frame_input: FrameInput = FrameInput(),  # noqa: B008  (frozen)
        size: int | tuple[int, int] | None = None,
        augment: FrameAugmentSettings | None = None,
        weigh_valid: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.store, self.frame_input, self.augment, self.weigh_valid = store, frame_input, augment, weigh_valid
        self.size = store.shape if size is None else standardize_tuple(size, 2, "size")
        if augment is None and self.size != store.shape:
            raise UserError(f"`size` needs `augment`. Received: size={self.size}, frames of {store.shape}")
        self._scales = [
            frame_input.scale(images, codes & VALID > 0)
            for images, codes in zip(store.images, store.codes, strict=True)
        ]

    def fingerprint(self) -> str:
        facts = (self.store.fingerprint(), len(self), self.batch_size, self.seed, self.size, self.augment)
        return hashlib.sha256(repr((*facts, self.frame_input, self.weigh_valid)).encode()).hexdigest()[:16]

    def _read(self, rng: np.random.Generator, video: int, numbers: Sequence[int]) -> tuple[list, list]:
        """Network input (H, W, c) and code (H, W) of frames of one video, augmented together."""
        frames = [self.store.images[video][i] for i in numbers]
        codes = [self.store.codes[video][i] for i in numbers]
        if self.augment is not None:
            frames, codes = augment_frames(rng, frames, codes, self.size, self.augment, self.store.fills[video])
        scale = self._scales[video]
        return [
            self.frame_input.make(frame, code & VALID > 0, scale) for frame, code in zip(frames, codes, strict=True)
        ], codes

    def _weighted(self, labels: list[np.ndarray], codes: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W, T) float32 labels, and where asked for a channel that is 1 where a frame shows the specimen."""
        if self.weigh_valid:
            labels = [*labels, np.bitwise_or.reduce(codes) >> 7]
        return np.stack(labels, axis=-1).astype(np.float32)


class FramePairs(_Frames):
    """Batches of frame pairs: x (B, H, W, 2 c), first frame then second, y (B, H, W, T) labels 2 f + g.

    With `weigh_valid`, y has one channel more: 1 where one of the two frames shows the specimen, see
    `losses.FocalClassLoss`. With `partners=None` and `balance=1` an epoch goes through the pairs in random order
    without repetition, as far as it has so many batches; otherwise pairs are drawn with their probabilities.

    Args:
        store: the videos.
        num_batches, batch_size, seed: see `SeededDataset`.
        partners, balance: see `FrameStore.pair_probabilities`.
        frame_input: channels and normalization.
        size: (height, width) of the crops; None = whole frames.
        augment: None = none.
        weigh_valid: see above.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        store: FrameStore,
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        partners: Mapping[str, float] | None = None,
        balance: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(store, num_batches, batch_size, seed, **kwargs)
        self.partners, self.balance = dict(partners) if partners else None, balance
        self.probabilities = store.pair_probabilities(partners, balance)
        self._flat = np.concatenate([table.ravel() for table in self.probabilities])
        self._starts = np.cumsum([0] + [count**2 for count in store.lengths])
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def fingerprint(self) -> str:
        return f"{super().fingerprint()}-{sorted((self.partners or {}).items())}-{self.balance}"

    def pair(self, position: int, epoch: int) -> tuple[int, int, int]:
        """(video, first, second) of sample number `position` of an epoch."""
        total = len(self._flat)
        if self.partners is None and self.balance == 1:
            lap = position // total
            if self._order is None or self._order[0] != (epoch, lap):
                order = np.random.default_rng([self.seed, epoch, lap, 1]).permutation(total)
                self._order = ((epoch, lap), order)
            number = int(self._order[1][position % total])
        else:
            number = int(np.random.default_rng([self.seed, epoch, position, 2]).choice(total, p=self._flat))
        video = int(np.searchsorted(self._starts, number, side="right")) - 1
        return video, *divmod(number - int(self._starts[video]), self.store.lengths[video])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch = 0 if self.fixed else self.epoch
        x, y = [], []
        for place in range(self.batch_size):
            video, *numbers = self.pair(index * self.batch_size + place, epoch)
            frames, codes = self._read(np.random.default_rng([self.seed, epoch, index, place]), video, numbers)
            labels = [2 * (codes[0] >> bit & 1) + (codes[1] >> bit & 1) for bit in range(len(self.store.tasks))]
            x.append(np.concatenate(frames, axis=-1))
            y.append(self._weighted(labels, codes))
        return np.stack(x), np.stack(y)


class SingleFrames(_Frames):
    """Batches of frames for the U-Net baseline: x (B, H, W, c), y (B, H, W, T) with 1 = foreground.

    Every epoch goes through the frames in random order without repetition, as far as it has so many batches.
    Arguments as for `FramePairs`.
    """

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch = 0 if self.fixed else self.epoch
        owners = np.repeat(np.arange(len(self.store.lengths)), self.store.lengths)
        numbers = np.concatenate([np.arange(count) for count in self.store.lengths])
        x, y = [], []
        for place in range(self.batch_size):
            lap, position = divmod(index * self.batch_size + place, len(owners))
            i = np.random.default_rng([self.seed, epoch, lap, 1]).permutation(len(owners))[position]
            rng = np.random.default_rng([self.seed, epoch, index, place])
            (frame,), codes = self._read(rng, int(owners[i]), [int(numbers[i])])
            x.append(frame)
            y.append(self._weighted([codes[0] >> bit & 1 for bit in range(len(self.store.tasks))], codes))
        return np.stack(x), np.stack(y)
