import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.simulation import MaskSettings, Particles, simulate_mask
from keras_microseg.workflows.match_masks import describe_labels, match_labels, match_settings

PARTICLES = Particles.analytic(seed=1, count=60)
TRUE = MaskSettings.sem(
    size=(160, 200), coverage=(0.1, 0.4), diameter=(17.0, 0.25), touch=0.8, cluster_size=15, scale_spread=0.0
)
LABELS = [simulate_mask(np.random.default_rng([7, i]), PARTICLES, TRUE).labels for i in range(12)]


def test_settings_of_simulated_images_are_found_again():
    base = MaskSettings.sem(size=(160, 200))
    # few masks are drawn for comparison here, so the tolerances are wide
    match = match_labels(LABELS, PARTICLES, base=base, tile=160, trials=3)
    median, spread = match.settings.diameter
    assert abs(median - 17) < 1.5 and abs(spread - 0.25) < 0.1
    assert abs(match.masks.coverage - match.images.coverage) < 0.03
    assert abs(match.masks.contact - match.images.contact) < 0.15
    np.testing.assert_allclose(match.masks.clustering, match.images.clustering, atol=0.2)
    assert match.settings.max_overlap >= 0.2 and match.settings.size == (160, 200)
    assert set(match.facts) == {
        "coverage", "coverage_quantiles", "diameters", "fragments", "contact", "clustering", "particles"
    }  # fmt: skip


def test_images_are_segmented_by_the_function_given():
    images = [(labels > 0).astype(np.float32) for labels in LABELS[:4]]
    seen = []

    def segment(grey):
        seen.append(grey.shape)
        return LABELS[len(seen) - 1]

    match = match_settings(
        images, PARTICLES, segment=segment, base=MaskSettings(size=(160, 200), mode="cubic"), trials=2
    )
    assert seen == [(160, 200)] * 4 and match.settings.mode == "cubic"


def test_statistics_of_a_known_image():
    labels = np.zeros((40, 40), np.int32)
    labels[10:20, 10:20], labels[10:20, 20:30] = 1, 2
    found = describe_labels([labels], tile=40, lags=[10])
    # two squares of side 10: 20 of 80 edge pixels face the other one; corners count once per side
    assert found.contact == 0.25 and found.coverage == 0.125 and found.particles == 2
    np.testing.assert_allclose(found.diameters, np.sqrt(400 / np.pi))
    # lag 10: along x half of the points find the neighbour, along y none, diagonally by 7: 3/10 x 13/20
    assert abs(found.clustering[0] - (0 + 0.5 + 2 * 0.3 * 0.65) / 4) < 1e-9


def test_images_without_particles():
    with pytest.raises(UserError, match="No particles"):
        match_labels([np.zeros((64, 64), np.int32)], PARTICLES)
