"""A small run of the label-free workflow; as a script it kills itself: `small_sem_run.py FOLDER STEP`."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from keras_microseg import io
from keras_microseg.simulation import simulate_micrograph
from keras_microseg.simulation.masks import MaskSettings, Particles, simulate_mask
from keras_microseg.workflows import sem_particles

SMALL = {
    "outline_epochs": 2,
    "outline_batch_size": 4,
    "masks_size": (96, 96),
    "num_masks": 12,
    "translation_tile": 64,
    "translation_filters": 4,
    "translation_num_blocks": 1,
    "translation_discriminator_filters": 4,
    "translation_guide_steps": 3,
    "translation_epochs": 2,
    "translation_steps_per_epoch": 3,
    "translation_mixed_precision": False,
    "pairs_count": 12,
    "pairs_check": "classical",
    "pairs_min_agreement": 0.0,
    "network_start": "none",
    "network_architecture": "unet",
    "network_filters": 4,
    "network_tile": 64,
    "network_batch_size": 2,
    "network_epochs": 2,
    "network_steps_per_epoch": 2,
    "network_mixed_precision": False,
}


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """Six micrographs of two sizes and depths, and eight outlines."""
    images, outlines = folder / "images", folder / "outlines"
    for number in range(6):
        shape = (128, 160) if number % 2 else (144, 128)
        made = simulate_micrograph(np.random.default_rng([7, number]), shape, "sem", diameter=(16, 24))
        grey = made.image.astype(np.float32)
        grey = (grey - grey.min()) / (grey.max() - grey.min())
        kind, top = (np.uint16, 65535) if number % 2 else (np.uint8, 255)
        io.write_image(images / f"{number}.tif", (grey * top).astype(kind), axes="YX")
    alone = MaskSettings(size=(48, 48), count=(1, 1), mode="random", diameter=(18, 0.2))
    stock, made, seed = Particles.analytic(count=50), 0, 0
    while made < 8:
        labels = simulate_mask(np.random.default_rng([3, seed]), stock, alone).labels
        mask, seed = labels == 1, seed + 1
        if labels.max() == 1 and not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            io.write_image(outlines / f"{made}.png", mask.astype(np.uint8) * 255, axes="YX")
            made += 1
    return images, outlines


def run(folder: Path, out: Path, kill_in: str | None = None, **options):
    """Run in `out` on the inputs in `folder`, with SIGKILL in the middle of a step."""

    def progress(step, done, total, item):
        if step == kill_in and done >= total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    changes = SMALL | {name: options.pop(name) for name in list(options) if name.split("_")[0] in _PARTS}
    settings = sem_particles.Settings.from_preset("fast", folder / "images", folder / "outlines", **changes)
    return sem_particles.run(settings, out, progress=progress, **options)


_PARTS = ("masks", "translation", "pairs", "network", "outline", "num", "particles", "polarity", "seed")

if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), kill_in=sys.argv[3], resume=True)
