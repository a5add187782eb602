import keras
import numpy as np
import pytest
from keras import layers as L

from keras_microseg.checks import FileError, UserError
from keras_microseg.data.targets import instance_maps
from keras_microseg.image import Image
from keras_microseg.inference import Segmenter, find_scale, segment_large
from keras_microseg.inference.scale import Look, judge, median_diameter, scale_for_diameter
from keras_microseg.inference.segmenter import labels_at_full_size
from keras_microseg.models.saving import save_model

pytestmark = pytest.mark.network
SIZES = {"typical": 16, "minimum": 8, "maximum": 26}
CARD = {
    "outputs": ["foreground", "distance"],
    "contrast": [0.5, 99.5],
    "diameter": SIZES,
    "multiple_of": 4,
    "halo": 16,
    "polarity": "bright",
    "decode": {"seed_threshold": 0.85, "min_area": 12},
}


def blur_model():
    """Foreground: blurred a little, cut at one half. Distance: blurred more, so that touching discs have two hills."""
    inputs = L.Input((None, None, 1))
    parts = []
    for size, sigma, gain in ((5, 1.0, 30), (15, 3.0, 6)):
        line = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
        kernel = np.outer(line, line)[..., None, None] / line.sum() ** 2 * gain
        conv = L.Conv2D(1, size, padding="same", activation="sigmoid")
        parts.append(conv(inputs))
        conv.set_weights([kernel.astype("float32"), np.float32([-gain / 2])])
    return keras.Model(inputs, L.Concatenate()(parts))


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(blur_model(), card=CARD)


def discs(shape, radius, spacing=None, seed=0):
    """Image of bright discs on a lattice, and its labels."""
    spacing = spacing or 3 * radius
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for y in range(spacing // 2, shape[0] - spacing // 2 + 1, spacing):
        for x in range(spacing // 2, shape[1] - spacing // 2 + 1, spacing):
            labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = labels.max() + 1
    noise = np.random.default_rng(seed).normal(0, 0.05, shape)
    return (40 + 150 * (0.9 * (labels > 0) + noise)).clip(0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("radius", [5, 8, 12, 30])
def test_discs_of_a_known_size_are_brought_to_the_typical_one(segmenter, radius):
    image, truth = discs((48 * radius // 2, 40 * radius // 2), radius)
    result = segmenter.segment(image, diameter=2 * radius)
    assert result.labels.dtype == np.int32 and result.labels.shape == image.shape
    assert result.labels.max() == truth.max()
    assert result.diameter == pytest.approx(2 * radius, abs=0.15 * 2 * radius + 0.5)
    assert SIZES["minimum"] <= result.diameter * result.scale <= SIZES["maximum"]
    assert np.mean((result.labels > 0) != (truth > 0)) < 0.03
    assert result.polarity == "bright" and result.info_bar_row is None


def test_touching_discs_are_separated(segmenter):
    image, truth = discs((180, 180), 8, spacing=18)
    assert segmenter.segment(image, scale=1).labels.max() == truth.max() == 100


@pytest.mark.parametrize("polarity", ["auto", "dark"])
def test_dark_particles(segmenter, polarity):
    image, truth = discs((180, 150), 8)
    result = segmenter.segment(255 - image, polarity=polarity, flips=True)
    assert result.polarity == "dark" and result.labels.max() == truth.max()


def test_type_colour_offset_and_bad_pixels_do_not_matter(segmenter):
    image, _ = discs((120, 120), 8)
    expected = segmenter.segment(image, scale=1).labels
    rgb = np.repeat(image[..., None], 3, axis=2)
    for same in (image.astype(np.uint16) * 200, image - 1e4, rgb, np.dstack([rgb, np.full_like(image, 255)])):
        np.testing.assert_array_equal(segmenter.segment(same, scale=1).labels, expected)
    spoilt = image.astype(np.float32)
    spoilt[3, 3:6] = np.nan, np.inf, -np.inf
    assert np.mean(segmenter.segment(spoilt, scale=1).labels != expected) < 0.001


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 600), (40, 3)])
@pytest.mark.parametrize("fill", ["black", "noise"])
def test_odd_images_give_labels_or_none(segmenter, shape, fill):
    image = np.zeros(shape, np.uint8) if fill == "black" else np.random.default_rng(0).random(shape)
    result = segmenter.segment(image)
    assert result.labels.shape == shape
    if fill == "black":
        assert result.labels.max() == 0 and result.diameter is None and result.polarity is None


def test_settings_of_the_caller(segmenter):
    image, truth = discs((100, 100), 8)
    assert segmenter.segment(image, diameter=16, min_area=150).labels.max() == truth.max()
    assert segmenter.segment(image, diameter=16, min_area=300).labels.max() == 0
    result = segmenter.segment(image, diameter=16, threshold="otsu", return_maps=True)
    assert result.scale == 1 and 0.2 < result.threshold < 0.8 and result.maps.shape == (100, 100, 2)
    assert set(result.seconds) == {"read", "scale", "network", "labels", "fine"}
    for wrong in ({"polarity": "up"}, {"diameter": -3}, {"scale": 0}, {"flips": 3}, {"min_area": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            segmenter.segment(image, **wrong)
    with pytest.raises(UserError, match="YX"):
        segmenter.segment(np.zeros((5, 5, 5, 5)))


def test_models_come_from_files(tmp_path):
    path = save_model(blur_model(), tmp_path / "blur.keras", CARD)
    segmenter = Segmenter(path)
    image, truth = discs((80, 80), 8)
    assert segmenter.segment(image).labels.max() == truth.max()
    assert segmenter.source["path"] == "blur.keras" and len(segmenter.source["sha256"]) == 64
    with pytest.raises(FileError, match="lacks diameter"):
        Segmenter(save_model(blur_model(), tmp_path / "half.keras", {**CARD, "diameter": None}))
    with pytest.raises(UserError, match="card"):
        Segmenter(blur_model())


@pytest.mark.parametrize(("radius", "scale"), [(8, 1.0), (20, 0.4), (8, 0.7), (4, 2.0)])
def test_large_images_equal_small_ones(segmenter, tmp_path, radius, scale):
    image, _ = discs((300, 260), radius, spacing=2 * radius + 2)
    kinds = [segmenter.segment(image, scale=scale, min_area=20, info_bar=False, fine=False)]
    kinds.append(
        segment_large(
            segmenter, Image(image, "YX"), tmp_path, scale=scale, min_area=20, info_bar=False, block=100, halo=40
        )
    )
    small, large = kinds
    assert small.labels.max() > 10
    # equal heights of 8-bit maps are flooded in no defined order: single pixels between touching particles differ
    assert np.mean(large.labels[...] != small.labels) < 5e-4
    assert (large.scale, large.threshold, large.polarity) == (small.scale, small.threshold, small.polarity)
    assert large.diameter == pytest.approx(small.diameter, rel=0.05)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.dat"]


def test_an_interrupted_large_image_goes_on(segmenter, tmp_path):
    image = Image(discs((300, 260), 8)[0], "YX")

    def stop(number, total):
        if number == 3:
            raise KeyboardInterrupt

    arguments = {"scale": 1.0, "block": 100}
    tiled = Segmenter(blur_model(), card=CARD, tile=100)
    with pytest.raises(KeyboardInterrupt):
        segment_large(tiled, image, tmp_path, progress=stop, **arguments)
    calls = []
    predict = tiled.predictor._predict
    tiled.predictor._predict = lambda batch: calls.append(1) or predict(batch)
    labels = segment_large(tiled, image, tmp_path, **arguments).labels[...]
    np.testing.assert_array_equal(labels, tiled.segment(image, scale=1.0).labels)
    assert 0 < len(calls) and labels.max() > 50


def test_scratch_files_go_with_the_result(segmenter):
    result = segment_large(segmenter, Image(discs((90, 90), 8)[0], "YX"), scale=1.0)
    path = result.labels.path
    assert path.is_file() and result.labels[...].max() == 9
    del result
    assert not path.parent.exists()


def test_scale_search_on_known_sizes():
    """A model that agrees with itself best at the typical size brings every size near to it."""

    def seen(size):
        def look_at(scale):
            diameter = size * scale
            fits = np.exp(-(np.log(diameter / SIZES["typical"]) ** 2))
            return Look(diameter if diameter > 3 else None, 0.8 + 0.15 * fits)

        return look_at

    for size in (8.0, 12.0, 20.0, 100.0, 300.0):
        scale = find_scale(seen(size), SIZES)
        assert abs(np.log(size * scale / SIZES["typical"])) < np.log(2) * 0.51 or scale == 2.0, size
    looked = []
    assert find_scale(lambda s: looked.append(s) or Look(None), SIZES, smallest=0.3) == 1.0
    np.testing.assert_allclose(looked, [2**-1.5, 0.5, 0.5**0.5, 1.0])
    assert looked[1] == 0.5, "halves are exact"


def test_fine_scales_of_large_particles_are_not_looked_at():
    looked = []

    def look_at(scale):
        looked.append(scale)
        return Look(200 * scale, 0.9 - 0.1 * abs(np.log(200 * scale / SIZES["typical"])))

    find_scale(look_at, SIZES)
    assert max(looked) <= 0.5


def test_known_diameter():
    typical = SIZES["typical"]
    assert scale_for_diameter(1.2 * typical, SIZES) == 1 and scale_for_diameter(8 * typical, SIZES) == 0.125


def test_true_maps_agree_with_themselves():
    labels = discs((90, 90), 10)[1]
    outputs = ("foreground", "boundary", "distance")
    maps = instance_maps(labels, outputs)
    look = judge(maps, outputs, labels)
    assert look.agreement == 1
    assert abs(look.diameter - 20) < 1
    melted = judge(maps, outputs, (labels > 0).astype(np.int32))
    assert melted.agreement < look.agreement + 1e-9
    assert judge(maps, outputs, np.zeros_like(labels)).diameter is None


def test_median_diameter_is_weighted_by_area():
    _, labels = discs((100, 100), 8)
    labels[:5, :5] = labels.max() + 1  # at the frame
    assert median_diameter(labels) == pytest.approx(16, abs=0.3)
    assert median_diameter(np.zeros((4, 4), np.int32)) is None


def test_labels_between_scales():
    labels = np.int32([[0, 1], [2, 2]])
    big = labels_at_full_size(labels, (labels > 0).astype(np.float32), 0.5, (8, 8))
    assert big[0, 7] == 1 and big[7, 0] == 2 and big[0, 0] == 0
    windows = [[(slice(r, r + 4), slice(c, c + 4)) for c in (0, 4)] for r in (0, 4)]
    foreground = (labels > 0).astype(np.float32)
    parts = np.block([[labels_at_full_size(labels, foreground, 0.5, (8, 8), w) for w in row] for row in windows])
    np.testing.assert_array_equal(parts, big)
    np.testing.assert_array_equal(labels_at_full_size(big, (big > 0) * 1.0, 0.5, (2, 2))[1], [2, 2])


def test_quality_of_clear_and_of_buried_particles(segmenter):
    image, truth = discs((180, 200), 9)
    clear = segmenter.segment(image, scale=1.0, quality=True).stability
    np.testing.assert_array_equal(clear.ids, np.arange(1, truth.max() + 1))
    assert clear.f1 > 0.9 and clear.particles.min() > 0.6
    noise = np.random.default_rng(1).normal(0, 20, image.shape)
    buried = segmenter.segment((image * 0.3 + 90 + noise).clip(0, 255), scale=1.0, quality=True)
    assert buried.stability.f1 < clear.f1 - 0.1
    assert segmenter.segment(image, scale=1.0).stability is None


def test_quality_of_large_images_is_that_of_small_ones(segmenter, tmp_path):
    image, _ = discs((240, 200), 9)
    small = segmenter.segment(image, scale=1.0, quality=True).stability
    large = segment_large(segmenter, Image(image, "YX"), tmp_path, scale=1.0, quality=True, block=96).stability
    np.testing.assert_array_equal(small.ids, large.ids)
    # windows keep the contrast limits of the working scale, whole images take those of every scale
    np.testing.assert_allclose(small.particles, large.particles, atol=0.02)
