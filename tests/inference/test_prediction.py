import keras
import numpy as np
import pytest
from keras import layers as L

from keras_microseg.checks import UserError
from keras_microseg.inference.prediction import Predictor, choose_tile, predict_maps
from keras_microseg.inference.views import dequantize, quantize
from keras_microseg.tiling import TileGrid

pytestmark = pytest.mark.network
OUTPUTS = ["foreground", "flow_y", "flow_x"]
CARD = {"outputs": OUTPUTS, "multiple_of": 2, "halo": 10}


@pytest.fixture(scope="module")
def predictor():
    """A small U-Net: 3x3 (1 px), at half size 3x3 twice (4 px), 3x3 (1 px), and 1 px for pooling: 7 px to each side."""
    keras.utils.set_random_seed(0)
    inputs = L.Input((None, None, 1))
    fine = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", activation="tanh")(inputs))
    coarse = L.Conv2D(4, 3, padding="same", activation="tanh")(L.MaxPooling2D()(fine))
    coarse = L.UpSampling2D()(L.Conv2D(4, 3, padding="same", activation="tanh")(coarse))
    x = L.Conv2D(3, 3, padding="same", activation="tanh")(L.Concatenate()([fine, coarse]))
    return Predictor(keras.Model(inputs, x), CARD)


def random_image(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype("float32")


@pytest.mark.parametrize(("shape", "tile"), [((61, 47), (32, 40)), ((30, 90), (40, 32)), ((5, 3), (32, 40))])
def test_tiled_equals_whole_when_the_halo_covers_the_receptive_field(predictor, shape, tile):
    image = random_image(shape)
    whole = predict_maps(predictor, image, tile=(128, 128))
    tiled = predict_maps(predictor, image, tile=tile, batch_size=4)
    assert whole.shape == (*shape, 3) and whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=2e-6)
    if shape[1] > 40:
        narrow = predict_maps(predictor, image, tile=tile, halo=2)
        assert np.abs(narrow - whole).max() > 1e-4  # so the agreement above is not for nothing


@pytest.mark.parametrize("flips", [4, 8])
def test_averaged_maps_turn_with_the_image(predictor, flips):
    image = random_image((24, 24))
    maps = predict_maps(predictor, image, tile=(44, 44), flips=flips)
    mirrored = predict_maps(predictor, image[::-1], tile=(44, 44), flips=flips)
    np.testing.assert_allclose(mirrored[::-1] * [1, -1, 1], maps, atol=1e-5)
    if flips == 8:
        turned = predict_maps(predictor, image.T, tile=(44, 44), flips=flips)
        np.testing.assert_allclose(turned.swapaxes(0, 1)[..., [0, 2, 1]], maps, atol=1e-5)
    plain = predict_maps(predictor, image, tile=(44, 44))
    assert np.abs(plain - maps).max() > 1e-3


def test_an_interrupted_run_goes_on(predictor):
    image, tile = random_image((70, 60)), (32, 32)
    expected = predict_maps(predictor, image, tile=tile, out=np.zeros((70, 60, 3), np.uint8))
    out, done = np.zeros_like(expected), np.zeros(100, np.uint8)

    def stop(number, total):
        if number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_maps(predictor, image, tile=tile, out=out, done=done, progress=stop)
    assert done.sum() == 5 and not (out == expected).all()
    calls = []
    predict_maps(predictor, image, tile=tile, out=out, done=done, progress=lambda *c: calls.append(c))
    np.testing.assert_array_equal(out, expected)
    assert calls[-1][0] == calls[-1][1] == done.sum()


def test_maps_as_bytes():
    maps = np.random.default_rng(0).uniform([0, -1, -1], 1, (50, 50, 3)).astype("float32")
    maps[0, 0] = 0
    back = dequantize(quantize(maps, OUTPUTS), OUTPUTS)
    assert np.abs(back - maps).max(axis=(0, 1)) == pytest.approx([1 / 510, 1 / 254, 1 / 254], rel=0.05)
    assert (back[0, 0] == 0).all()
    np.testing.assert_array_equal(quantize(back, OUTPUTS), quantize(maps, OUTPUTS))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3000), (300, 400), (703, 1024), (2048, 2048), (500, 5000)])
def test_chosen_tiles_waste_little(shape):
    halo, multiple = 32, 16
    tile = choose_tile(shape, halo, multiple)
    computed = len(TileGrid.cover(shape, tile, halo, multiple)) * np.prod(tile)
    needed = np.prod([n + 2 * halo + multiple for n in shape])
    assert max(tile) < 800 and computed < 1.35 * needed


def test_many_images_share_few_shapes():
    rng = np.random.default_rng(0)
    used = []
    for shape in rng.integers(50, 3000, (40, 2)):
        tile = choose_tile(tuple(shape), 32, 16, used=used)
        used += [tile] if tile not in used else []
    assert len(used) <= 4


def test_a_card_of_another_model_is_noticed(predictor):
    keras.utils.set_random_seed(0)
    inputs = L.Input((None, None, 1))
    other = Predictor(keras.Model(inputs, L.Conv2D(2, 1)(inputs)), CARD)
    with pytest.raises(UserError, match="card names 3 outputs"):
        predict_maps(other, random_image((8, 8)))
    with pytest.raises(UserError, match="square"):
        predict_maps(predictor, random_image((8, 8)), tile=(32, 40), flips=8)
