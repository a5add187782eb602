"""Networks over volumes: no seams, bounded slabs, resumed runs, averages over copies and planes, clear errors."""

import keras
import numpy as np
import pytest
from harness import randomize

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.inference.prediction import Predictor, predict_maps
from keras_microseg.inference.volumes import (
    SlicePredictor,
    binary_entropy,
    choose_window,
    open_volume_predictor,
    predict_volume,
    working_scale,
    working_set,
)
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.models.unet3d import receptive_field, total_stride, unet3d, unet25d

pytestmark = pytest.mark.network
POOLS = ((1, 2, 2),)
OUTPUTS = ["foreground", "distance"]
FIELD = receptive_field(POOLS)  # 13, 18, 18
CARD = {
    "ndim": 3, "outputs": OUTPUTS, "multiple_of": total_stride(POOLS), "halo": [n // 2 for n in FIELD],
    "normalization": {"mode": "percentile", "lower": 0.1, "upper": 99.9}, "name": "test",
    "diameter": {"typical": 8.0, "minimum": 5.0, "maximum": 12.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor():
    return Predictor(draw_kernels(unet3d(num_outputs=2, filters=(2, 3), pools=POOLS), seed=0), CARD)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype("float32")


@pytest.mark.parametrize("shape", [(31, 30, 26), (5, 24, 50)])
def test_windows_equal_one_window_when_the_halo_is_half_the_receptive_field(predictor, shape):
    volume = random_volume(shape)
    whole = predict_maps(predictor, volume, tile=(48, 96, 96))
    tiled = predict_maps(predictor, volume, tile=(20, 28, 32), batch_size=2)
    assert whole.shape == (*shape, 2) and whole.std() > 0.003
    np.testing.assert_allclose(tiled, whole, atol=5e-6)
    narrow = predict_maps(predictor, volume, tile=(20, 28, 32), halo=(2, 2, 2))
    assert np.abs(narrow - whole).max() > 5e-5  # so the agreement above is not for nothing


@pytest.mark.parametrize("blend", ["linear", "hann", "gaussian"])
def test_blended_windows_join_and_go_on_after_a_stop(predictor, blend):
    volume = random_volume((29, 20, 20))
    whole = predict_maps(predictor, volume, tile=(48, 48, 48))
    options = {"tile": (16, 28, 28), "halo": (5, 7, 7), "blend": blend, "batch_size": 3}
    blended = predict_maps(predictor, volume, **options)
    np.testing.assert_allclose(blended, whole, atol=0.06)

    class Planes:
        """Takes whole planes once each, in order."""

        shape, dtype, next = (29, 20, 20, 2), np.dtype("float32"), 0
        data = np.full((29, 20, 20, 2), np.nan, "float32")

        def __setitem__(self, key, values):
            assert key.start == self.next
            self.next = key.stop
            self.data[key] = values

    out, done = Planes(), np.zeros(50, np.uint8)

    def stop(number, total):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_maps(predictor, volume, out=out, done=done, progress=stop, **options)
    assert done.sum() == 2 and np.isnan(out.data).any()
    predict_maps(predictor, volume, out=out, done=done, **options)
    np.testing.assert_array_equal(out.data, blended)
    assert out.next == 29


class Disagreeing:
    """Every window gives another constant."""

    ndim, outputs, multiple_of, halo, shapes, calls = 3, ["foreground"], 1, 4, (), 0

    def __call__(self, batch):
        self.calls += 1
        return np.full((*batch.shape[:-1], 1), self.calls % 2, np.float32)


def test_blended_windows_leave_no_step():
    volume = np.zeros((40, 12, 12), np.float32)
    steps = {}
    for blend in (None, "linear", "hann", "gaussian"):
        maps = predict_maps(Disagreeing(), volume, tile=(20, 20, 20), blend=blend)
        steps[blend] = np.abs(np.diff(maps, axis=0)).max()
    assert steps[None] == 1 and steps["linear"] <= 1 / 8 + 1e-6  # a ramp over twice the halo
    assert steps["hann"] < 0.3 and steps["gaussian"] < 0.5


def test_blending_a_constant_gives_the_constant():
    inputs = keras.Input((None, None, None, 1))
    same = keras.Model(inputs, keras.layers.Conv3D(1, 1, kernel_initializer="ones", name="maps")(inputs))
    card = {"ndim": 3, "outputs": ["foreground"], "multiple_of": 1, "halo": 3}
    volume = random_volume((20, 11, 17))
    for blend in (None, "linear", "hann", "gaussian"):
        maps = predict_maps(Predictor(same, card), volume, tile=9, blend=blend)
        np.testing.assert_allclose(maps[..., 0], volume, atol=1e-6)


@pytest.mark.parametrize("flips", [4, 8, 16])
def test_averaged_maps_turn_with_the_volume(predictor, flips):
    volume = random_volume((12, 20, 20))
    options = {"tile": (26, 40, 40), "flips": flips}
    maps = predict_maps(predictor, volume, **options)
    np.testing.assert_allclose(predict_maps(predictor, volume[:, ::-1], **options)[:, ::-1], maps, atol=1e-5)
    if flips >= 8:
        np.testing.assert_allclose(predict_maps(predictor, volume[::-1], **options)[::-1], maps, atol=1e-5)
    if flips == 16:
        turned = predict_maps(predictor, volume.swapaxes(1, 2), **options)
        np.testing.assert_allclose(turned.swapaxes(1, 2), maps, atol=1e-5)
    assert np.abs(predict_maps(predictor, volume, tile=(26, 40, 40)) - maps).max() > 1e-3


def test_spread_is_the_disagreement_of_the_copies(predictor):
    volume = random_volume((12, 20, 20))
    maps = predict_maps(predictor, volume, tile=(26, 40, 40), flips=4, spread=True)
    assert maps.shape[-1] == 3 and maps[..., 2].min() >= 0 and maps[..., 2].max() > 1e-3
    single = predict_maps(predictor, volume, tile=(26, 40, 40))
    symmetric = np.broadcast_to(volume[:1, :1, :1], volume.shape)
    assert predict_maps(predictor, symmetric, tile=(26, 40, 40), flips=4, spread=True)[..., 2].max() < 1e-3
    assert single.shape[-1] == 2
    with pytest.raises(UserError, match="needs `flips`"):
        predict_maps(predictor, volume, spread=True)
    np.testing.assert_allclose(binary_entropy(np.array([0.0, 0.5, 1.0])), [0, 1, 0], atol=1e-4)


def test_slices_and_three_planes():
    keras.utils.set_random_seed(0)
    model = unet25d(3, filters=(2, 3))
    randomize(model, 2)
    card = {"num_slices": 3, "outputs": ["foreground"], "multiple_of": 2, "halo": 9}
    slices = open_volume_predictor(model, card=card)
    assert isinstance(slices, SlicePredictor) and slices.halo == (1, 9, 9)
    volume = random_volume((9, 20, 18))
    maps = predict_maps(slices, volume, tile=(16, 38, 38))
    stack = np.stack([volume[3:6]] * 1).transpose(0, 2, 3, 1)
    expected = predict_maps(Predictor(model, card | {"num_slices": 3}), stack[0], tile=(64, 64))
    np.testing.assert_allclose(maps[4], expected, atol=1e-5)
    tiled = predict_maps(slices, volume, tile=(5, 26, 28))
    np.testing.assert_allclose(tiled, maps, atol=1e-5)
    planes = open_volume_predictor(model, card=card, planes=3)
    cube = random_volume((14, 14, 14))
    maps = predict_maps(planes, cube, tile=32)
    turned = predict_maps(planes, cube.transpose(1, 2, 0), tile=32)
    assert turned.shape == maps.shape and planes.halo == (9, 9, 9)
    two_d = {"outputs": ["foreground"], "name": "particles"}
    with pytest.raises(UserError, match="particles works on images"):
        open_volume_predictor(model, card=two_d)


def test_files_are_resumed_and_know_their_voxel_size(predictor, tmp_path):
    grey = (random_volume((44, 24, 26)) * 1000).astype("uint16")
    image = Image(grey, "ZYX", PixelSize((2.0, 0.5, 0.5), "um"), path=str(tmp_path / "scan.tif"))
    options = {"tile": (28, 30, 32), "flips": 4, "spread": True}
    seen = []

    def stop(number, total):
        seen.append(number)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_volume(predictor, image, tmp_path / "a", progress=stop, **options)
    assert not (tmp_path / "a" / "foreground.zarr").exists()
    calls = []
    done = predict_volume(predictor, image, tmp_path / "a", resume=True, progress=lambda *c: calls.append(c), **options)
    whole = predict_volume(predictor, image, tmp_path / "b", **options)
    assert set(done.paths) == {"foreground", "distance", "spread"} and calls[0][0] == 2 and seen == [1, 2]
    for name in done.paths:
        first, second = (io.open_volume(result.paths[name]) for result in (done, whole))
        np.testing.assert_array_equal(np.asarray(first.data[...]), np.asarray(second.data[...]))
        assert first.pixel_size.size == (2.0, 0.5, 0.5) and first.shape == (44, 24, 26)
        assert np.asarray(first.data[...]).std() > 0
    again = predict_volume(predictor, image, tmp_path / "a", resume=True, **options)  # nothing to do
    assert again.paths == done.paths
    tif = predict_volume(predictor, image, tmp_path / "c", suffix=".tif", maps=["foreground"], **options)
    np.testing.assert_array_equal(
        np.asarray(io.open_volume(tif.paths["foreground"]).data[...]),
        np.asarray(io.open_volume(done.paths["foreground"]).data[...]),
    )


def test_working_scale_brings_objects_to_the_trained_size(predictor, tmp_path):
    assert working_scale(CARD, 8) == working_scale(CARD, None) == 1 and working_scale(CARD, 4) == 2
    assert working_scale(CARD, 32) == pytest.approx(0.9 * 12 / 32)
    z, y, x = np.indices((24, 32, 40))
    image = Image((np.hypot(y - 16, x - 20) < 10).astype("uint8"), "ZYX")
    result = predict_volume(predictor, image, tmp_path, diameter=21.6, maps=["foreground"])
    assert result.scale == 0.5 and list(tmp_path.iterdir()) == [result.paths["foreground"]]
    found = io.open_volume(result.paths["foreground"])
    assert found.shape == (24, 32, 40)
    small = predict_volume(predictor, Image(np.asarray(image.data)[::1], "ZYX"), tmp_path / "x", maps=["foreground"])
    assert small.scale == 1


def test_bad_input(predictor, tmp_path):
    volume = Image(random_volume((8, 16, 16)), "ZYX")
    with pytest.raises(UserError, match="max_ram"):
        predict_volume(predictor, volume, tmp_path, max_ram="10kB")
    with pytest.raises(UserError, match="axes=YX"):
        predict_volume(predictor, Image(random_volume((16, 16)), "YX"), tmp_path)
    with pytest.raises(UserError, match="multiple of"):
        predict_volume(predictor, volume, tmp_path, tile=(20, 33, 32))
    with pytest.raises(UserError, match="maps"):
        predict_volume(predictor, volume, tmp_path, maps=["flow"])
    with pytest.raises(UserError, match="2D and 2.5D"):
        open_volume_predictor(unet3d(filters=(2, 2), pools=POOLS), card=CARD, planes=3)
    tile, halo = choose_window(predictor, (1024, 2048, 2048), None, None, 1, "linear", "4GB")
    assert working_set(predictor, (1024, 2048, 2048), tile, halo, 1, "linear") < 4e9
