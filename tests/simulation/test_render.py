import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.simulation import PRESETS, simulate_micrograph


@pytest.mark.parametrize("preset", PRESETS)
def test_images_and_truth(preset):
    for seed in range(4):
        made = simulate_micrograph(np.random.default_rng(seed), (96, 130), preset, diameter=(10, 30))
        assert made.image.shape == made.labels.shape == (96, 130)
        assert made.image.dtype == np.float32 and made.labels.dtype == np.int32
        assert np.isfinite(made.image).all() and made.image.min() >= 0 and made.image.max() <= 1
        assert set(np.unique(made.labels)) == set(range(made.facts["particles"] + 1))


def test_equal_seeds_give_equal_images():
    one, two = (simulate_micrograph(np.random.default_rng(5), (64, 64)) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.labels, two.labels)


def test_modalities_have_their_polarity():
    def share_dark(preset):
        made = [simulate_micrograph(np.random.default_rng(s), (96, 96), preset, diameter=(12, 24)) for s in range(24)]
        return np.mean([m.facts["polarity"] == "dark" for m in made])

    assert share_dark("tem") > 0.7 > 0.3 > share_dark("stem")


def test_unknown_preset_is_refused():
    with pytest.raises(UserError, match="preset"):
        simulate_micrograph(np.random.default_rng(0), (32, 32), "xray")
