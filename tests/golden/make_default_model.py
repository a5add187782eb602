"""Writes `default_model.npz`: a simulated image and what the shipped model makes of it. Run after the model changed.

KERAS_BACKEND=tensorflow python tests/golden/make_default_model.py
"""

from pathlib import Path

import numpy as np

from keras_microseg.inference.segmenter import DEFAULT_MODEL
from keras_microseg.models.saving import load_model, sha256
from keras_microseg.simulation import simulate_micrograph


def main() -> None:
    image = simulate_micrograph(np.random.default_rng(11), (64, 96), "sem", diameter=(16, 20), captions=False).image
    model, _ = load_model(DEFAULT_MODEL)
    maps = np.asarray(model.predict(image[None, ..., None], verbose=0))[0]
    np.savez_compressed(
        Path(__file__).with_name("default_model.npz"), image=image, maps=maps, model=np.array(sha256(DEFAULT_MODEL))
    )


if __name__ == "__main__":
    main()
