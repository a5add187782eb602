"""3D U-Nets: exact sizes, what a voxel depends on, saving, options."""

import keras
import numpy as np
import pytest
from harness import check_model, randomize, sample, to_numpy

from keras_microseg import backend
from keras_microseg.checks import UserError
from keras_microseg.models.deep_supervision import main_maps
from keras_microseg.models.unet3d import PRESETS, receptive_field, total_stride, unet3d, unet25d
from keras_microseg.training.precision import in_bfloat16

pytestmark = pytest.mark.network
TINY = {"filters": (2, 3, 4), "pools": ((1, 2, 2), (2, 2, 2))}


@pytest.mark.parametrize(
    ("preset", "total", "trainable", "field"),
    [
        ("vfp_2level", 1_414_145, 1_412_865, (21, 44, 44)),
        ("vfp_4level", 23_544_065, 23_538_177, (37, 200, 200)),
        ("default", 290_081, 289_441, (96, 96, 96)),
        ("large", 4_671_425, 4_668_737, (104, 200, 200)),
    ],
)
def test_presets_have_the_specified_sizes(preset, total, trainable, field):
    model = unet3d(preset)
    assert model.count_params() == total
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == trainable
    assert receptive_field(PRESETS[preset]["pools"]) == field
    if preset == "vfp_2level":
        norm = model.get_layer("down0_a_norm")
        assert (norm.momentum, norm.epsilon) == (0.99, 1e-3)
        assert model.layers.index(norm) == model.layers.index(model.get_layer("down0_a")) + 1
        assert model.get_layer("down0_a").activation is keras.activations.relu


def test_saves_trains_and_runs_on_odd_depths():
    arguments = TINY | {"num_outputs": 3, "residual": True, "dropout": 0.2}
    shapes = {(2, 6, 8, 12, 1): (2, 6, 8, 12, 3), (1, 2, 4, 4, 1): (1, 2, 4, 4, 3)}
    check_model(unet3d, arguments, shapes)
    assert total_stride(TINY["pools"]) == (2, 4, 4)


def test_25d_takes_neighbouring_slices_as_channels():
    check_model(unet25d, {"num_slices": 3, "filters": (2, 4)}, {(2, 8, 6, 3): (2, 8, 6, 1)})
    with pytest.raises(UserError, match="odd"):
        unet25d(4)


def test_a_voxel_depends_on_its_receptive_field_only():
    model = unet3d(filters=(2, 2), pools=((1, 2, 2),), norm=None)
    randomize(model)
    field = receptive_field(((1, 2, 2),))
    assert field == (13, 18, 18)
    x = sample((1, 33, 40, 40, 1))
    y = to_numpy(model(x))
    for axis, reach in enumerate(field):
        changed = x.copy()
        where = [0, 16, 20, 20, 0]
        changed[tuple(where)] += 1
        moved = np.nonzero(np.abs(to_numpy(model(changed)) - y)[0, ..., 0])[axis]
        assert moved.max() - moved.min() + 1 <= reach


def test_deep_supervision_adds_channels_that_main_maps_removes():
    model = unet3d(**TINY, num_outputs=2, deep_supervision=1)
    x = sample((1, 4, 8, 8, 1))
    y = to_numpy(model(x))
    assert y.shape == (1, 4, 8, 8, 4)
    coarse = y[..., 2:]
    np.testing.assert_array_equal(coarse[:, :, ::2, ::2], coarse[:, :, 1::2, 1::2])  # made at half the resolution
    np.testing.assert_allclose(to_numpy(main_maps(model)(x)), y[..., :2], atol=1e-6)
    plain = unet3d(**TINY)
    assert main_maps(plain) is plain


@pytest.mark.parametrize("deep", [0, 1])
def test_mixed_precision_keeps_the_results_in_float32(deep):
    model = in_bfloat16(unet3d(**TINY, deep_supervision=deep))
    assert model.get_layer("down0_a").compute_dtype == "bfloat16"
    assert model.get_layer("maps").compute_dtype == "float32"
    y = model(sample((1, 2, 4, 4, 1)))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


@pytest.mark.parametrize("norm", ["instance", "group", None])
def test_other_normalizations(norm):
    model = unet3d(**TINY, norm=norm)
    y = backend.compile_predict(model)(sample((1, 2, 4, 4, 1)))
    assert np.isfinite(y).all() and y.shape == (1, 2, 4, 4, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": (2, 4), "pools": ((2, 2, 2),) * 2}, "one entry less"),
        ({"preset": "vfp_3level"}, "vfp_2level"),
        ({"norm": "layer"}, "norm"),
        ({"filters": (2, 4), "pools": (2,), "deep_supervision": 1}, "coarser levels"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        unet3d(**arguments)


def test_equal_on_all_backends():
    """One training step and the output after it, against numbers stored from one backend."""
    model = unet3d(filters=(4, 6, 8), pools=((1, 2, 2), (2, 2, 2)), activation="tanh", output_activation=None)
    randomize(model, seed=3)
    x = sample((2, 4, 8, 8, 1), seed=1)
    target = (sample((2, 4, 8, 8, 1), seed=2) > 0.5).astype("float32")
    optimizer = keras.optimizers.SGD(0.05)
    optimizer.build(model.trainable_variables)

    def step(x, y):
        def loss_fn():
            return keras.ops.mean(keras.ops.square(y - model(x, training=True)))

        value, gradients = backend.value_and_grad(
            loss_fn, model.trainable_variables, state=model.non_trainable_variables
        )
        backend.apply_gradients(optimizer, gradients, model.trainable_variables)
        return value

    loss = float(backend.compile_step(step, [*model.variables, *optimizer.variables])(x, target))
    y = backend.compile_predict(model)(x)
    found = [loss, float(y.mean()), float(y.std()), *y[1, 2, 3, 3:6, 0].tolist()]
    np.testing.assert_allclose(found, STORED, atol=2e-5)


STORED = [0.342496, 0.231348, 0.020396, 0.233158, 0.227621, 0.221344]
