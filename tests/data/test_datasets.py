import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

keras = pytest.importorskip("keras")
from keras_microseg.checks import FileError, UserError  # noqa: E402
from keras_microseg.data.augment import AugmentSettings, crop_pair, vary_grey  # noqa: E402
from keras_microseg.data.datasets import LabelledImages, SimulatedMicrographs  # noqa: E402
from keras_microseg.io.pairing import pair_files  # noqa: E402

pytestmark = pytest.mark.network


def labelled(seed=0, shape=(70, 90)):
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    labels[10:30, 10:40] = 1
    labels[35:60, 50:80] = 2
    return (labels > 0) * 0.6 + rng.normal(0, 0.02, shape), labels


def test_batches_depend_on_seed_epoch_and_index_alone():
    first = SimulatedMicrographs(3, 2, seed=4, size=(64, 64))
    batches = [first[i] for i in range(3)]
    first.on_epoch_end()
    later = first[1]
    second = SimulatedMicrographs(3, 2, seed=4, size=(64, 64))
    np.testing.assert_array_equal(second[2][0], batches[2][0])  # out of order
    second.set_epoch(1)
    np.testing.assert_array_equal(second[1][0], later[0])
    np.testing.assert_array_equal(second[1][1], later[1])
    assert not np.array_equal(later[0], batches[1][0])
    fixed = SimulatedMicrographs(3, 2, seed=4, size=(64, 64), fixed=True)
    fixed.on_epoch_end()
    np.testing.assert_array_equal(fixed[0][0], batches[0][0])


def test_shapes_and_ranges():
    images, maps = SimulatedMicrographs(1, 2, seed=0, size=(48, 80), outputs=("foreground", "distance"))[0]
    assert images.shape == (2, 48, 80, 1) and maps.shape == (2, 48, 80, 2)
    assert images.dtype == maps.dtype == np.float32
    assert 0 <= images.min() and images.max() <= 1


@given(st.integers(0, 10_000), st.floats(1, 1.5), st.booleans(), st.booleans(), st.floats(0.4, 2.5))
@settings(max_examples=40, deadline=None)
def test_image_and_labels_move_together(seed, zoom, rotate, flips, scale):
    image, labels = labelled()
    clean = (labels > 0).astype(np.float32)
    augment = AugmentSettings(flips=flips, zoom=zoom, rotate=rotate)
    moved, moved_labels = crop_pair(np.random.default_rng(seed), clean, labels, (48, 48), augment, scale=scale)
    assert moved.shape == moved_labels.shape == (48, 48)
    assert set(np.unique(moved_labels)) <= {0, 1, 2}
    # linear and nearest interpolation agree but for pixels on the edge, about a pixel wide
    assert np.mean((moved > 0.5) != (moved_labels > 0)) < 0.03


def test_small_images_are_reflected():
    image, labels = labelled(shape=(64, 84))
    crop, crop_labels = crop_pair(np.random.default_rng(0), image, labels, (128, 128))
    assert crop.shape == crop_labels.shape == (128, 128)


def test_grey_variation_stays_in_range():
    image = labelled()[0].astype(np.float32)
    for seed in range(5):
        varied = vary_grey(np.random.default_rng(seed), image, AugmentSettings(invert=0.5))
        assert varied.dtype == np.float32 and varied.min() >= 0 and varied.max() <= 1


def test_labelled_arrays():
    data = LabelledImages([labelled()], 2, 3, seed=1, size=(32, 48))
    images, maps = data[1]
    assert images.shape == (3, 32, 48, 1) and maps.shape == (3, 32, 48, 5)
    np.testing.assert_array_equal(data[1][0], images)


def test_files_are_paired_by_name(tmp_path):
    from keras_microseg import io

    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image, labels = labelled()
    for name in ("a", "b", "c"):
        io.write_image(tmp_path / "images" / f"{name}.tif", (image * 255).clip(0, 255).astype(np.uint8), axes="YX")
    io.write_labels(tmp_path / "masks" / "a_mask.tif", labels)
    io.write_labels(tmp_path / "masks" / "c.tif", labels)
    pairs = pair_files(tmp_path)
    assert [(p.image.name, p.labels.name) for p in pairs] == [("a.tif", "a_mask.tif"), ("c.tif", "c.tif")]
    images, _ = LabelledImages(pairs, 1, 2, seed=0, size=(32, 32))[0]
    assert images.shape == (2, 32, 32, 1)
    io.write_labels(tmp_path / "masks" / "c.tif", labels[:, :50])
    with pytest.raises(FileError, match="c.tif.*they must agree|c.tif: has"):
        LabelledImages(pairs[1:], 1, 1, seed=0, size=(32, 32))[0]
    with pytest.raises(UserError, match="images/"):
        pair_files(tmp_path / "images")


@pytest.mark.parametrize("outside", [None, 0.25])
@pytest.mark.parametrize("zoom", [0.5, 1.7])
def test_a_crop_is_what_the_whole_image_gives(outside, zoom):
    """Only a window of the image is worked on; in a corner, where the crop leaves the image, nothing shows that."""
    rng = np.random.default_rng(3)
    image = rng.random((150, 130), dtype=np.float32)
    labels = rng.integers(0, 9, image.shape)
    settings = AugmentSettings(flips=False, zoom=1.0, rotate=True, contrast=0, gamma=0, noise=0, blur=0)
    for seed in range(8):
        made = crop_pair(np.random.default_rng(seed), image, labels, (64, 48), settings, scale=zoom, outside=outside)
        draws = np.random.default_rng(seed)
        draws.uniform(-1, 1)
        angle = draws.uniform(0, 2 * np.pi)
        centre = [
            (n - max(n - size / zoom, 0)) / 2 + draws.uniform(0, max(n - size / zoom, 0)) - 0.5
            for n, size in zip(image.shape, (64, 48), strict=True)
        ]
        y, x = np.mgrid[:64, :48] - np.array([31.5, 23.5])[:, None, None]
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        grid = [centre[0] + cos * y - sin * x, centre[1] + sin * y + cos * x]
        whole = ndimage.gaussian_filter(image, 0.4 / zoom) if zoom < 0.8 else image
        beyond = {"mode": "mirror"} if outside is None else {"mode": "constant", "cval": outside}
        np.testing.assert_allclose(made[0], ndimage.map_coordinates(whole, grid, order=1, **beyond), atol=1e-5)
        beyond = {"mode": "mirror"} if outside is None else {"mode": "constant", "cval": 0}
        assert (made[1] == ndimage.map_coordinates(labels, grid, order=0, **beyond)).mean() > 0.999
