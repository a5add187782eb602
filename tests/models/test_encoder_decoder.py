"""Networks for class maps: exact numbers of weights, levels, equality of backends, frozen encoders, weight files."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import check_layer, check_model, sample, to_numpy

from keras_microseg import backend, layers
from keras_microseg.checks import FileError, UserError
from keras_microseg.models import backbones, small_networks
from keras_microseg.models.deep_supervision import main_maps
from keras_microseg.models.encoder_decoder import (
    backbone_linknet,
    backbone_unet,
    class_map_network,
    freeze_encoder,
    total_stride,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
slow = pytest.mark.slow
# encoder; U-Net total, trainable; LinkNet total, trainable; trainable with a frozen encoder: U-Net, LinkNet
COUNTS = {
    "vgg16": (14714688, 23752708, 23748676, 20325572, 20318756, 9033988, 5604068),
    "vgg19": (20024384, 29062404, 29058372, 25635268, 25628452, 9033988, 5604068),
    "resnet18": (11186889, 14341005, 14331079, 11522125, 11512103, 3160071, 341095),
    "inceptionv3": (21802784, 29933540, 29897124, 26268836, 26228388, 8145988, 4477252),
    "inceptionresnetv2": (54336736, 62061988, 61999460, 57869156, 57802052, 7753540, 3556132),
    "efficientnetb3": (10783535, 17868275, 17778988, 13761427, 13668236, 7170052, 3059300),
    "efficientnetb4": (17673823, 25735459, 25608268, 21718659, 21586732, 8184852, 4163316),
}
CHANNELS = {  # P1 to P5
    "vgg16": (128, 256, 512, 512, 512),
    "vgg19": (128, 256, 512, 512, 512),
    "resnet18": (64, 64, 128, 256, 512),
    "inceptionv3": (64, 192, 288, 768, 2048),
    "inceptionresnetv2": (64, 192, 320, 1088, 1536),
    "efficientnetb3": (144, 192, 288, 816, 1536),
    "efficientnetb4": (144, 192, 336, 960, 1792),
}
FAST = ("resnet18",)
NAMES = [name if name in FAST else pytest.param(name, marks=slow) for name in COUNTS]


def weights_of(model) -> tuple[int, int]:
    return model.count_params(), sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.fixture
def undrawn(monkeypatch):
    """Start values are zeros: drawing them costs JAX a compilation per shape, and numbers do not depend on them."""

    def zeros(self, shape, dtype=None, **kwargs):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"))

    for name in ("GlorotUniform", "HeUniform", "HeNormal", "VarianceScaling"):
        monkeypatch.setattr(getattr(keras.initializers, name), "__call__", zeros)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("undrawn")
def test_numbers_of_weights_and_levels_are_exact(name):
    encoder, *expected = COUNTS[name]
    built = backbones.backbone(name, 3, size=(256, 256))
    assert built.model.count_params() == encoder
    for level, channels in enumerate(CHANNELS[name], start=1):
        assert built.pyramid[f"P{level}"].shape[1:] == (256 >> level, 256 >> level, channels)
    found = []
    networks = backbone_unet(name, 4), backbone_linknet(name, 4)
    for model in networks:
        found += weights_of(model)
    for model in networks:
        freeze_encoder(model)
        found.append(weights_of(model)[1])
        freeze_encoder(model, frozen=False)
    assert found == expected
    assert found[:4] == [n for model in networks for n in weights_of(model)]  # free again


@pytest.mark.usefixtures("undrawn")
def test_five_classes_have_145_weights_more():
    assert backbone_unet("resnet18", 5).count_params() == COUNTS["resnet18"][1] + 145
    assert backbone_linknet("resnet18", 5).count_params() == COUNTS["resnet18"][3] + 145


@pytest.mark.usefixtures("undrawn")
def test_small_networks_have_the_published_numbers_of_weights():
    custom, segnet, resunet = small_networks.custom, small_networks.segnet, small_networks.resunet
    assert [custom((None, None, c)).count_params() for c in (1, 3)] == [242596, 242884]

    def unet(*arguments):
        return small_networks.custom_unet(*arguments, reference=True)

    one, three = (None, None, 1), (None, None, 3)
    assert weights_of(unet(one, 1, 16)) == (966145, 963201)
    assert [unet(one, k, 16).count_params() for k in (4, 5)] == [966196, 966213]
    assert [unet(one, k, 32).count_params() for k in (1, 4, 5)] == [3849217, 3849316, 3849349]
    assert [unet(three, 1, f).count_params() for f in (16, 32)] == [966145 + 128, 3849217 + 256]
    assert weights_of(segnet(one, 1, reference=True)) == (496273, 493585)
    assert [segnet(one, k, reference=True).count_params() for k in (4, 5)] == [496324, 496341]
    assert segnet(three, 1, reference=True).count_params() == 496273 + 128
    assert weights_of(resunet(three, 5)) == (4723189, 4715893)
    assert weights_of(resunet(three, 5, (32, 64, 128, 256, 512))) == (18855397, 18840805)


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("make_class_networks", GOLDEN / "make_class_networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, np.load(GOLDEN / "class_networks.npz")


@pytest.mark.parametrize(
    "name",
    [
        "unet", "resunet", "segnet", "custom_unet", "custom", "two_branch", "deep_unet", "unet_resnet18",
        "linknet_resnet18",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("undrawn")
def test_all_backends_give_the_stored_predictions(golden, name):
    module, stored = golden
    assert stored[name].std() > 0.05  # not constant
    np.testing.assert_allclose(module.predict(name), stored[name], atol=1e-4)


def test_even_kernels_give_the_same_on_all_backends():
    """2 x 2 kernels: "same" padding adds at the lower right; compared with NumPy."""
    x = sample((1, 5, 4, 1))
    layer = layers.Conv2D(1, 2, padding="same", use_bias=False)
    layer.build(x.shape)
    kernel = np.arange(1.0, 5.0, dtype="f").reshape(2, 2, 1, 1)
    layer.set_weights([kernel])
    padded = np.pad(x[0, ..., 0], ((0, 1), (0, 1)))
    expected = sum(kernel[i, j, 0, 0] * padded[i : i + 5, j : j + 4] for i in (0, 1) for j in (0, 1))
    np.testing.assert_allclose(to_numpy(layer(x))[0, ..., 0], expected, rtol=1e-5)


def test_models_save_train_and_predict():
    check_model(
        class_map_network,
        {"architecture": "unet", "num_classes": 3, "filters": (4, 8), "dropout": 0.2},
        {(2, 16, 24, 1): (2, 16, 24, 3)},
    )
    check_model(
        class_map_network,
        {"architecture": "two_branch", "num_classes": 3, "filters": (4, 6, 8)},
        {(2, 16, 24, 1): (2, 16, 24, 3)},
    )
    # one image of 16 x 16 pixels makes the oneDNN kernels of TensorFlow 2.x write outside of their memory in `fit`
    check_model(small_networks.resunet, {"num_outputs": 3, "filters": (4, 8)}, {(2, 32, 16, 1): (2, 32, 16, 3)})


def test_results_of_coarser_levels_are_cut_off_again():
    model = class_map_network("unet", 3, filters=(4, 8, 8), deep_supervision=1)
    x = sample((1, 16, 16, 1))
    y = to_numpy(model(x, training=False))
    assert y.shape == (1, 16, 16, 6)
    np.testing.assert_array_equal(y[:, ::2, ::2, 3:], y[:, 1::2, 1::2, 3:])  # made at half the resolution
    np.testing.assert_allclose(to_numpy(main_maps(model)(x, training=False)), y[..., :3], atol=1e-6)
    with pytest.raises(UserError, match="can use 1 coarser levels"):
        class_map_network("unet", 3, filters=(4, 8, 8), deep_supervision=2)
    with pytest.raises(UserError, match="is for unet, linknet"):
        class_map_network("segnet", 3, deep_supervision=1)


@slow
@pytest.mark.parametrize("build", [backbone_unet, backbone_linknet])
def test_results_of_coarser_levels_with_a_backbone(build):
    model = build("resnet18", 3, 1, deep_supervision=2)
    y = to_numpy(model(sample((1, 64, 64, 1)), training=False))
    assert y.shape == (1, 64, 64, 9)
    for level in (1, 2):
        coarse, step = y[..., 3 * level : 3 * level + 3], 2**level
        np.testing.assert_array_equal(coarse, coarse[:, ::step, ::step].repeat(step, 1).repeat(step, 2))
    freeze_encoder(model)
    heads = [layer for layer in model.layers if layer.name.startswith("maps") and layer.weights]
    assert sorted(layer.name for layer in heads) == ["maps", "maps_level1", "maps_level2"]
    assert all(layer.trainable for layer in heads)


def test_context_reaches_further_than_the_levels_of_a_plain_network():
    """One changed pixel moves results up to several coarse pixels (of 4 px) away."""
    model = class_map_network("two_branch", 3, filters=(4, 8, 8))
    assert total_stride(model) == 8
    x = sample((1, 96, 96, 1))
    changed = x.copy()
    changed[0, 48, 48] += 5
    moved = np.abs(to_numpy(model(changed, training=False)) - to_numpy(model(x, training=False)))[0].max(axis=-1)
    rows = np.flatnonzero(moved.max(axis=1) > 1e-7)
    assert rows.max() - rows.min() > 50
    with pytest.raises(UserError, match="two or more of the coarse"):
        class_map_network("two_branch", 3, filters=(4, 8))


@slow
def test_attention_and_transposed_convolutions():
    model = backbone_unet("resnet18", 3, 1, attention=True, upsampling="transpose", filters=(16, 8, 8, 4, 4))
    y = to_numpy(model(sample((1, 32, 64, 1)), training=False))
    assert y.shape == (1, 32, 64, 3)
    np.testing.assert_allclose(y.sum(axis=-1), 1, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused_with_the_right_one():
    model = small_networks.custom(num_outputs=3, filters=2)
    with pytest.raises(Exception, match="multiples of 8. Received: 20 x 24. Use 24 x 24"):
        model(sample((1, 20, 24, 1)))
    with pytest.raises(UserError, match="multiples of 32. Received: 100 x 64. Use 128 x 64"):
        backbones.backbone("resnet18", size=(100, 64))
    assert total_stride(model) == 8 and total_stride(class_map_network("multires_unet", 2, filters=4)) == 1
    assert total_stride(class_map_network("unet", 2, filters=(4, 8, 16))) == 4
    with pytest.raises(UserError, match="takes no backbone"):
        class_map_network("segnet", 3, backbone="resnet18")
    with pytest.raises(UserError, match="needs a backbone"):
        class_map_network("linknet", 3)
    with pytest.raises(UserError, match="no backbone to freeze"):
        freeze_encoder(model)


def step(model, x, y):
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    def update(x, y):
        variables = model.trainable_variables
        _, gradients = backend.value_and_grad(
            lambda: keras.ops.mean(keras.ops.square(model(x, training=True) - y)),
            variables,
            state=model.non_trainable_variables,
        )
        backend.apply_gradients(optimizer, gradients, variables)
        return keras.ops.zeros(())

    backend.compile_step(update, [*model.variables, *optimizer.variables])(x, y)


@pytest.mark.parametrize("train_batch_norm", [True, pytest.param(False, marks=slow)])
def test_a_frozen_encoder_keeps_its_kernels(train_batch_norm):
    model = backbone_linknet("resnet18", 2, 1)
    freeze_encoder(model, train_batch_norm=train_batch_norm)
    before = {v.path: to_numpy(v.value).copy() for v in model.variables}
    x = sample((2, 32, 32, 1))
    step(model, x, np.zeros((2, 32, 32, 2), "f"))
    changed = {v.path for v in model.variables if not np.array_equal(before[v.path], to_numpy(v.value))}
    encoder = {path for path in changed if path.startswith(("stage", "conv0", "bn"))}
    assert any(path.startswith("decoder") for path in changed) and any("maps" in path for path in changed)
    if train_batch_norm:
        assert encoder and all("bn" in path for path in encoder)  # scale, shift, statistics; no kernel
        assert any("moving" in path for path in encoder) and any("gamma" in path for path in encoder)
    else:
        assert not encoder


@pytest.mark.usefixtures("undrawn")
def test_weight_files(tmp_path, monkeypatch):
    """New and legacy files load; grey and many channels; a missing file is explained."""
    encoder = backbones.backbone("resnet18", 3).model
    rng = np.random.default_rng(0)
    encoder.set_weights([rng.normal(0, 0.05, w.shape).astype("f") ** 2 + 0.01 for w in encoder.get_weights()])
    new, legacy = tmp_path / "a.weights.h5", tmp_path / "b.h5"
    encoder.save_weights(new)
    from keras.src.legacy.saving import legacy_h5_format

    legacy_h5_format.save_model_to_hdf5(encoder, legacy, include_optimizer=False)
    x = sample((1, 32, 32, 3))
    expected = to_numpy(encoder(x, training=False))
    for path in (new, legacy):
        loaded = backbones.backbone("resnet18", 3, path)
        np.testing.assert_allclose(to_numpy(loaded.model(x, training=False)), expected, rtol=1e-5)
    # grey images are three equal channels; for five the first kernel spreads its sum
    grey = backbones.backbone("resnet18", 1, new).model
    same = to_numpy(encoder(np.repeat(x[..., :1], 3, axis=-1), training=False))
    np.testing.assert_allclose(to_numpy(grey(x[..., :1], training=False)), same, rtol=1e-4)
    many = backbones.backbone("resnet18", 5, new).model.get_layer("conv0").get_weights()[0]
    three = encoder.get_layer("conv0").get_weights()[0]
    np.testing.assert_allclose(many.sum(axis=2), three.sum(axis=2), rtol=1e-5)

    with pytest.raises(FileError, match="no weights of this backbone"):
        backbones.backbone("resnet50", 3, new)
    with pytest.raises(FileError, match="does not exist"):
        backbones.backbone("resnet18", 3, tmp_path / "none.h5")
    monkeypatch.setenv(backbones.CACHE_VARIABLE, str(tmp_path / "cache"))

    def offline(url, path):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones, "_download", offline)
    with pytest.raises(FileError) as error:
        backbones.backbone("resnet18", 3, "imagenet")
    text = str(error.value)
    assert "resnet18_imagenet_1000_no_top.h5" in text and "https://github.com/qubvel" in text
    assert str(tmp_path / "cache") in text and "MICROSEG_WEIGHTS" in text
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "resnet18_imagenet_1000_no_top.h5").write_bytes(b"cut off")
    with pytest.raises(FileError, match="damaged .MD5"):
        backbones.backbone("resnet18", 3, "imagenet")
    with pytest.raises(UserError, match="name the file"):
        backbones.backbone("resnet50", 3, "imagenet")


def test_scaling_is_that_of_the_pretrained_weights():
    """From 0..1 to BGR minus means (VGG), -1..1 (Inception), 0..255 (ResNet-18), normalized (EfficientNet)."""
    x = sample((1, 2, 2, 3))

    def scaled(kind, pretrained=True):
        return to_numpy(backbones._scaling(kind, 3, 3, pretrained)(x))

    np.testing.assert_allclose(
        scaled("caffe"), 255 * x[..., ::-1] - np.array([103.939, 116.779, 123.68]), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(scaled("tf"), 255 * x / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(scaled("raw"), 255 * x, rtol=1e-6)
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    # keras.applications divides by 255, then by the root of the stored "variance", which is the spread
    network = (scaled("efficientnet") / 255 - mean) / np.sqrt(spread)
    np.testing.assert_allclose(network, (x - mean) / spread, atol=1e-4)
    grey = backbones._scaling("caffe", 3, 1, True)(x[..., :1])
    np.testing.assert_allclose(to_numpy(grey)[..., 0], 255 * x[..., 0] - 103.939, rtol=1e-4, atol=1e-4)


@slow
@pytest.mark.parametrize("name", ["inceptionv3", "inceptionresnetv2"])
def test_inception_with_same_padding_is_the_original_but_for_the_borders(name):
    """The same weights in the same order; with "valid" windows inside, the first convolutions agree exactly."""
    built = backbones.backbone(name, 3, size=(128, 128))
    cls = keras.applications.InceptionV3 if name == "inceptionv3" else keras.applications.InceptionResNetV2
    original = cls(include_top=False, weights=None, input_shape=(128, 128, 3))
    original.set_weights(built.model.get_weights())
    x = sample((1, 128, 128, 3))
    # first convolution: stride 2; "valid" starts at pixel 0, "same" on even sizes pads at the end only
    first = keras.Model(original.input, original.layers[3].output)(2 * x - 1, training=False)
    convolved = built.model.layers[[layer.name for layer in built.model.layers].index("scale") + 3].output
    ours = keras.Model(built.input, convolved)(x, training=False)
    np.testing.assert_allclose(to_numpy(ours)[:, :63, :63], to_numpy(first), atol=1e-5)


@slow
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenetv2", "efficientnetv2b0", "resnet50v2"])
def test_further_families_give_five_levels(name):
    built = backbones.backbone(name, 1)
    assert list(built.pyramid) == ["P1", "P2", "P3", "P4", "P5"]
    model = class_map_network("unet", 3, backbone=name)
    y = to_numpy(model(sample((1, 64, 64, 1)), training=False))
    assert y.shape == (1, 64, 64, 3) and np.isfinite(y).all()


def test_layers():
    check_layer(layers.ScaleInput, {"scale": 2.0, "offset": -1.0, "repeat": 3}, (2, 4, 4, 1), (2, 4, 4, 3))
    check_layer(layers.RequireMultiple, {"multiple": 2}, (1, 4, 6, 1), (1, 4, 6, 1))


def test_he_uniform_kernels_drawn_by_numpy_have_the_spread_of_the_formula():
    layer = layers.Conv2D(64, 3, kernel_initializer="he_uniform")
    layer.build((None, 8, 8, 32))
    kernel = layer.get_weights()[0]
    limit = np.sqrt(6 / (9 * 32))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
