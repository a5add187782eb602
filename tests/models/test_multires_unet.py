import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras_microseg.models import multires_unet, unet  # noqa: E402

pytestmark = pytest.mark.network


def test_parameter_counts_of_the_source():
    assert multires_unet(legacy=True, filters=16).count_params() == 2_429_491


def test_any_size_comes_back():
    model = multires_unet(filters=4, num_outputs=2, input_shape=(None, None, 3))
    for size in ((37, 50), (1, 7)):
        out = keras.ops.convert_to_numpy(model(np.random.default_rng(0).random((1, *size, 3), np.float32)))
        assert out.shape == (1, *size, 2)
        np.testing.assert_allclose(out.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("build", [lambda: multires_unet(filters=4), lambda: unet(filters=(4, 8, 12), num_outputs=5)])
def test_train_save_load(build, tmp_path):
    keras.utils.set_random_seed(0)
    model = build()
    x = np.random.default_rng(1).random((2, 32, 32, 1), np.float32)
    y = np.repeat(x > 0.5, model.output_shape[-1], axis=-1).astype(np.float32)
    model.compile("adam", "binary_crossentropy")
    first = model.train_on_batch(x, y)
    for _ in range(4):
        last = model.train_on_batch(x, y)
    assert last < first
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), again.predict(x, verbose=0), atol=1e-6)


def test_half_precision_computes_outputs_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = unet(filters=(4, 8), num_outputs=2)
        assert model.output.dtype == "float32"
    finally:
        keras.mixed_precision.set_global_policy("float32")
