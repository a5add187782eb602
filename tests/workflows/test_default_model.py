import numpy as np
import pytest

pytest.importorskip("keras")
from keras_microseg.models.saving import load_model  # noqa: E402
from keras_microseg.simulation import simulate_micrograph  # noqa: E402
from keras_microseg.workflows.default_model import train_default  # noqa: E402

pytestmark = pytest.mark.network


def test_a_tiny_default_model_is_trained_and_complete(tmp_path):
    path = train_default(
        tmp_path, epochs=1, steps_per_epoch=2, batch_size=2, size=64, filters=(4, 8), mixed_precision=False
    )
    model, card = load_model(path)
    assert card["outputs"] == ["foreground", "boundary", "distance"]
    assert card["training"]["seed"] == 1 and "Apache" in card["licence"]
    image = simulate_micrograph(np.random.default_rng(0), (32, 32)).image[None, ..., None]
    assert model.predict(image, verbose=0).shape == (1, 32, 32, 3)
