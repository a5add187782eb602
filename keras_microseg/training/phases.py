"""What a system of networks trained against each other is made of: phases, the protocol, the pool of past images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from keras_microseg.checks import UserError, check_number
from keras_microseg.training.schedules import OptimizerSettings

ADAM = OptimizerSettings("adam", 2e-4, schedule="constant", options={"beta_1": 0.5})


@dataclasses.dataclass
class Step:
    """What the host knows when a phase begins.

    Attributes:
        batch: arrays of the data, or tensors where the data give them.
        rng: random numbers of this phase; a pure function of (seed, step of the training, phase, repeat).
        outputs: tensors that earlier phases of this step returned, by name.
    """

    batch: tuple[Any, ...]
    rng: np.random.Generator
    outputs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One optimization inside an adversarial step.

    Attributes:
        name: in logs.
        updates: names of the networks that are changed.
        loss: `loss(*arrays)` on tensors, in `keras.ops`; returns `(loss, logs)` or `(loss, logs, outputs)`: a scalar, a
            dictionary of scalars, a dictionary of tensors for the phases after.
        repeats: times per step.
        before: runs on the host and returns the arrays for `loss`; None = those of the batch. Random numbers and pools
            belong here: what enters as data is equal on all backends.
        optimizer: of each network in `updates`, which each has one of its own.
    """

    name: str
    updates: Sequence[str]
    loss: Callable[..., tuple]
    repeats: int = 1
    before: Callable[[Step], Sequence[Any]] | None = None
    optimizer: OptimizerSettings = ADAM

    def __post_init__(self) -> None:
        check_number("repeats", self.repeats, minimum=1, integer=True)
        if isinstance(self.updates, str) or not self.updates:
            raise UserError(f"`updates` must be a list of names of networks. Received: updates={self.updates!r}")


class System(Protocol):
    """What `train_adversarial` trains.

    Attributes:
        networks: by name; the loop may replace them by copies in another precision, so losses look them up here.
        pools: image pools by name; their content is part of the checkpoint.
        settings: JSON values of the losses, which a resumed run must share.
    """

    networks: dict[str, keras.Model]
    pools: dict[str, ImagePool]
    settings: dict[str, Any]

    def phases(self) -> list[Phase]:
        """In the order in which they run."""

    def samples(self, predict: Callable[[str, np.ndarray], np.ndarray], *inputs: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of panels (H, W) in -1..1 for `training.previews.SamplePictures`; `predict(network, array)`."""


class ImagePool:
    """Past generated images, so that a discriminator does not forget them (Shrivastava et al. 2017).

    Args:
        size: images to keep; 0 gives every image back as it comes.
    """

    def __init__(self, size: int = 50):
        self.size = check_number("size", size, minimum=0, integer=True)
        self._images: list[Any] = []

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, images: Any, rng: np.random.Generator) -> Any:
        """Store images and give back as many, new or old.

        Until the pool is full it keeps and returns each image. Then, with probability 1/2, an image takes the place of
        a random stored one, which is returned instead. Tensors stay on their device: nothing waits for their values.

        Args:
            images: (N, ...) array or tensor.
            rng: random numbers.

        Returns:
            (N, ...) array or tensor, as `images`.
        """
        if self.size == 0:
            return images
        chosen = []
        for i in range(images.shape[0]):
            image = _take_copy(images, i)
            if len(self._images) < self.size:
                self._images.append(image)
            elif rng.random() < 0.5:
                place = int(rng.integers(self.size))
                image, self._images[place] = self._images[place], image
            chosen.append(image)
        return np.stack(chosen) if isinstance(images, np.ndarray) else ops.stack(chosen)

    def get_state(self) -> np.ndarray:
        """Stored images, (n, ...); n = 0 when there are none yet."""
        if not self._images:
            return np.zeros(0, np.float32)
        return np.stack([ops.convert_to_numpy(image) for image in self._images])

    def set_state(self, images: np.ndarray) -> None:
        """Take over the images of `get_state`."""
        if len(images) > self.size:
            raise UserError(f"The pool holds {self.size} images. Received: {len(images)} stored ones")
        self._images = [np.array(image) for image in images]


def _take_copy(images: Any, index: int) -> Any:
    """One image in memory of its own, so that a pool does not keep whole batches alive."""
    return images[index].copy() if isinstance(images, np.ndarray) else ops.copy(images[index])
