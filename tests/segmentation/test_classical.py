import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.metrics.instance import match
from keras_microseg.segmentation import classical
from keras_microseg.segmentation.basins import merge_basins


def scene(radius, polarity="bright", noise=6.0, tilt=0.0, seed=0):
    """Discs of one radius, some pairs touching, with exact labels."""
    rng = np.random.default_rng(seed)
    step = int(2.6 * radius)
    size = 5 * step
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size), np.int32)
    for row in range(5):
        for column in range(5):
            # every second disc of a row moves until it touches its neighbour
            shift = step - 1.98 * radius if column % 2 else 0.0
            inside = np.hypot(y - (row + 0.5) * step, x - (column + 0.5) * step + shift) < radius
            truth[inside & (truth == 0)] = 5 * row + column + 1
    grey = 60 + 90 * ndimage.gaussian_filter((truth > 0).astype(np.float32), 1) + tilt * x / size
    grey = grey + rng.normal(0, noise, grey.shape)
    return (255 - grey if polarity == "dark" else grey).clip(0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("radius", [5, 12, 50])
@pytest.mark.parametrize("polarity", ["bright", "dark"])
def test_touching_discs_of_any_size_and_polarity(radius, polarity):
    image, truth = scene(radius, polarity)
    assert classical.find_polarity(image.astype(np.float32)) == polarity
    result = match(truth, classical.segment_classical(image))
    assert result.f1 > 0.95 and result.mean_iou > 0.85


def test_values_and_types_do_not_matter():
    image, _ = scene(10)
    expected = classical.segment_classical(image)
    assert expected.dtype == np.int32 and expected.max() == len(np.unique(expected)) - 1
    for other in (image.astype(np.uint16) * 200, image.astype(np.float64) * 1e-6 - 3, image.astype(np.int32)):
        assert np.mean((classical.segment_classical(other) > 0) != (expected > 0)) < 0.002


def test_uneven_background_is_subtracted():
    image, truth = scene(10, tilt=90.0, noise=3.0)
    plain = match(truth, classical.segment_classical(image, polarity="bright"))
    flattened = match(truth, classical.segment_classical(image, polarity="bright", background=60))
    assert flattened.f1 > 0.95 and flattened.f1 > plain.f1


def test_invalid_pixels_count_as_background():
    image, truth = scene(10)
    image = image.astype(np.float32)
    image[:20, :20], image[25, 40], image[60:70, 60:70] = np.nan, np.inf, -np.inf
    labels = classical.segment_classical(image)
    assert not labels[~np.isfinite(image)].any() and match(truth, labels).f1 > 0.8


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 50), np.uint8),
        np.full((40, 50), np.nan),
        np.zeros((0, 5)),
        np.ones((1, 1)),
        np.arange(3000.0).reshape(1, 3000),
        np.tile(np.sin(np.arange(3000) / 9), (7, 1)),
    ],
)
@pytest.mark.parametrize("function", [classical.segment_classical, classical.segment_floor])
def test_images_without_particles_and_odd_sizes(function, image):
    labels = function(image)
    assert labels.shape == image.shape and labels.dtype == np.int32
    if image.size < 2001:
        assert not labels.any()


def test_fixed_threshold_is_in_grey_values():
    image, truth = scene(12, noise=2.0)
    result = match(truth, classical.segment_classical(image, polarity="bright", threshold=105.0))
    dark = match(truth, classical.segment_classical(255 - image, polarity="dark", threshold=150.0))
    assert result.f1 > 0.95 and dark.f1 > 0.95
    assert not classical.segment_classical(image, polarity="bright", threshold=300.0).any()


def test_basins_are_joined_by_the_relative_depth_of_the_neck():
    height = np.array([[0, 4, 8, 7, 9, 3, 6, 0]], float)
    labels = np.array([[0, 1, 1, 2, 2, 3, 3, 0]], np.int32)
    assert merge_basins(labels, height, 0.8).tolist() == [[0, 2, 2, 2, 2, 3, 3, 0]]  # 7 / 8 joins, 3 / 6 not
    assert merge_basins(labels, height, 0.4).max() == 2 and classical.merge_basins(labels, height, 1).max() == 3


def test_arguments_are_checked():
    with pytest.raises(UserError, match="must be 2D"):
        classical.segment_classical(np.zeros((3, 3, 3)))
    with pytest.raises(UserError, match="polarity"):
        classical.segment_classical(np.zeros((3, 3)), polarity="light")
    with pytest.raises(UserError, match="merge_ratio"):
        classical.segment_classical(np.eye(3), merge_ratio=2)


@pytest.mark.parametrize("seed", range(3))
def test_noise_holds_no_particles(seed):
    rng = np.random.default_rng(seed)
    assert classical.segment_classical(rng.integers(0, 256, (256, 256)).astype(np.uint8)).max() == 0
    assert classical.segment_classical(rng.normal(100, 20, (200, 300))).max() == 0


def test_discs_in_strong_noise_are_found():
    rows, columns = np.indices((160, 160))
    inside = ((rows % 40) - 20) ** 2 + ((columns % 40) - 20) ** 2 < 100
    image = inside * 1.0 + np.random.default_rng(0).normal(0, 0.5, inside.shape)
    assert abs(classical.segment_classical(image).max() - 16) <= 1
