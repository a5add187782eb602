"""The model that ships with the package, as users meet it."""

from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras_microseg.inference import Segmenter  # noqa: E402
from keras_microseg.inference.segmenter import DEFAULT_MODEL  # noqa: E402
from keras_microseg.metrics.instance import match, pool  # noqa: E402
from keras_microseg.models.saving import load_model, sha256  # noqa: E402
from keras_microseg.simulation import simulate_micrograph  # noqa: E402

pytestmark = pytest.mark.network
GOLDEN = Path(__file__).parents[1] / "golden" / "default_model.npz"


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter()


def discs(radius, count=6, dark=False):
    """Separate discs on a lattice, slightly noisy, and their number."""
    step = 3 * radius
    rows, columns = np.indices((count * step, count * step), dtype=np.float32)
    distance = np.hypot((rows % step) - step / 2, (columns % step) - step / 2)
    image = 0.25 + 0.5 / (1 + np.exp(distance - radius))
    image += np.random.default_rng(0).normal(0, 0.02, image.shape)
    return (1 - image if dark else image), count * count


def test_outputs_are_the_same_on_every_backend():
    golden = np.load(GOLDEN)
    assert str(golden["model"]) == sha256(DEFAULT_MODEL), "run tests/golden/make_default_model.py"
    model, card = load_model(DEFAULT_MODEL)
    maps = np.asarray(model.predict(golden["image"][None, ..., None], verbose=0))[0]
    assert maps.shape[-1] == len(card["outputs"])
    np.testing.assert_allclose(maps, golden["maps"], atol=1e-4)


def test_size_and_card():
    assert DEFAULT_MODEL.stat().st_size < 12 * 2**20
    _, card = load_model(DEFAULT_MODEL)
    assert "simulated" in card["description"] and card["training"]["seed"] is not None
    assert DEFAULT_MODEL.with_suffix(".md").is_file()


@pytest.mark.parametrize("radius", [5, 10, 25, 60])
@pytest.mark.parametrize("dark", [False, True])
def test_discs_of_any_size_and_polarity(segmenter, radius, dark):
    image, count = discs(radius, 5 if radius > 20 else 8, dark)
    result = segmenter.segment((image * 40000).astype(np.uint16))
    assert abs(result.labels.max() - count) <= 0.05 * count
    assert result.polarity == ("dark" if dark else "bright")
    # soft edges: outlines lie up to 0.7 px outside for the smallest discs (see the model card)
    assert result.diameter == pytest.approx(2 * radius, rel=0.02, abs=1.6)


def test_simulated_particles_are_found(segmenter):
    matches = []
    for seed, preset in enumerate(["sem", "sem", "tem", "stem", "powder"]):
        made = simulate_micrograph(
            np.random.default_rng([50, seed]), (256, 256), preset, diameter=(16, 30), captions=False
        )
        matches.append(match(made.labels, segmenter.segment(made.image).labels))
    assert pool(matches).f1 > 0.7
