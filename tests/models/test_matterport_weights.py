"""Weight files of the Matterport layout: written here by hand, read, and the network's numbers against NumPy.

The reference network below is written from the layout alone: convolutions by matrix product, batch normalization by its
stored statistics, stride on the first 1x1 convolution, nearest up-sampling, corner-aligned crops.
"""

import h5py
import keras
import numpy as np
import pytest
from harness import to_numpy

from keras_microseg.models.mask_rcnn import MaskRCNN, MaskRCNNSettings
from keras_microseg.models.matterport_weights import (
    load_matterport_weights,
    model_from_matterport,
    read_layers,
    write_matterport_weights,
)
from keras_microseg.models.resnet_fpn import feature_pyramid

SIZE, CLASSES = 64, 2
BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}
FILTERS = {2: 64, 3: 128, 4: 256, 5: 512}
MEANS = np.array([123.7, 116.8, 103.9], "f")


def layout(classes=CLASSES):
    """{layer: shapes} of a ResNet-50 file, (kernel, bias) or, for normalizations, the number of channels."""
    shapes = {"conv1": (7, 7, 3, 64), "bn_conv1": 64}
    width = 64
    for stage, blocks in BLOCKS.items():
        f = FILTERS[stage]
        for block in blocks:
            name = f"{stage}{block}"
            shapes[f"res{name}_branch2a"], shapes[f"bn{name}_branch2a"] = (1, 1, width, f), f
            shapes[f"res{name}_branch2b"], shapes[f"bn{name}_branch2b"] = (3, 3, f, f), f
            shapes[f"res{name}_branch2c"], shapes[f"bn{name}_branch2c"] = (1, 1, f, 4 * f), 4 * f
            if block == "a":
                shapes[f"res{name}_branch1"], shapes[f"bn{name}_branch1"] = (1, 1, width, 4 * f), 4 * f
            width = 4 * f
        shapes[f"fpn_c{stage}p{stage}"], shapes[f"fpn_p{stage}"] = (1, 1, width, 256), (3, 3, 256, 256)
    shapes |= {"rpn_conv_shared": (3, 3, 256, 512), "rpn_class_raw": (1, 1, 512, 6), "rpn_bbox_pred": (1, 1, 512, 12)}
    shapes |= {"mrcnn_class_conv1": (7, 7, 256, 1024), "mrcnn_class_bn1": 1024}
    shapes |= {"mrcnn_class_conv2": (1, 1, 1024, 1024), "mrcnn_class_bn2": 1024}
    shapes |= {"mrcnn_class_logits": (1024, classes), "mrcnn_bbox_fc": (1024, 4 * classes)}
    for i in range(1, 5):
        shapes[f"mrcnn_mask_conv{i}"], shapes[f"mrcnn_mask_bn{i}"] = (3, 3, 256, 256), 256
    return shapes | {"mrcnn_mask_deconv": (2, 2, 256, 256), "mrcnn_mask": (1, 1, 256, classes)}


def random_weights(classes=CLASSES, seed=0):
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in layout(classes).items():
        if isinstance(shape, int):
            vectors = rng.normal(1, 0.2, shape), rng.normal(0, 0.2, shape), rng.normal(0, 0.2, shape)
            values = dict(zip(("gamma", "beta", "moving_mean"), vectors, strict=True))
            values["moving_variance"] = rng.uniform(0.5, 2, shape)
        else:
            fan = np.prod(shape[:-1])
            filters = shape[-2] if name == "mrcnn_mask_deconv" else shape[-1]
            values = {"kernel": rng.normal(0, 1, shape) * (1.5 / fan) ** 0.5, "bias": rng.normal(0, 0.1, filters)}
        weights[name] = {kind: value.astype(np.float32) for kind, value in values.items()}
    weights["conv1"]["kernel"] /= 100  # the input has values of hundreds
    for name in ("rpn_class_raw", "rpn_bbox_pred", "mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask"):
        weights[name]["kernel"] /= 10  # probabilities away from 0 and 1
    return weights


def write_file(path, weights, *, whole_model=False, old_names=False, scope=""):
    """As Keras 2 (or, with `old_names`, Keras 1) wrote it, with layers that have no weights among them."""
    old = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        groups = ["input_image", "zero_padding2d_1"]
        for name in groups:
            root.create_group(name).attrs["weight_names"] = np.array([], "S1")
        for layer, values in weights.items():
            group = "rpn_model" if layer.startswith("rpn_") else layer
            if group not in groups:
                groups.append(group)
                root.create_group(group).attrs["weight_names"] = np.array([], "S1")
            for kind, value in values.items():
                name = f"{layer}_{old.get(kind, kind)}:0" if old_names else f"{scope}{layer}/{kind}:0"
                root[group][name] = value
                names = [*root[group].attrs["weight_names"], name.encode()]
                root[group].attrs["weight_names"] = np.array(names)
        root.attrs["layer_names"] = np.array([name.encode() for name in groups])
        root.attrs["keras_version"], root.attrs["backend"] = b"2.2.5", b"tensorflow"
    return path


def conv(x, w, stride=1, same=False):
    kernel = w["kernel"]
    size = kernel.shape[0]
    if same:
        x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * x.shape[-1])
    return (columns @ kernel.reshape(-1, kernel.shape[-1])).reshape(*windows.shape[:3], -1) + w["bias"]


def norm(x, w):
    return (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-3) * w["gamma"] + w["beta"]


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_pyramid(image, w):
    """P2..P6 of mean-subtracted images."""
    x = np.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = relu(norm(conv(x, w["conv1"], 2), w["bn_conv1"]))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))
    stages = {}
    for stage, blocks in BLOCKS.items():
        for block in blocks:
            name, stride = f"{stage}{block}_branch", 2 if block == "a" and stage > 2 else 1
            y = relu(norm(conv(x, w[f"res{name}2a"], stride), w[f"bn{name}2a"]))
            y = relu(norm(conv(y, w[f"res{name}2b"], same=True), w[f"bn{name}2b"]))
            y = norm(conv(y, w[f"res{name}2c"]), w[f"bn{name}2c"])
            shortcut = norm(conv(x, w[f"res{name}1"], stride), w[f"bn{name}1"]) if block == "a" else x
            x = relu(y + shortcut)
        stages[stage] = x
    sums = {5: conv(stages[5], w["fpn_c5p5"])}
    for stage in (4, 3, 2):
        above = sums[stage + 1].repeat(2, axis=1).repeat(2, axis=2)
        sums[stage] = above + conv(stages[stage], w[f"fpn_c{stage}p{stage}"])
    levels = [conv(sums[stage], w[f"fpn_p{stage}"], same=True) for stage in (2, 3, 4, 5)]
    return [*levels, levels[-1][:, ::2, ::2]]


def reference_rpn(levels, w):
    logits, deltas = [], []
    for level in levels:
        shared = relu(conv(level, w["rpn_conv_shared"], same=True))
        logits.append(conv(shared, w["rpn_class_raw"]).reshape(len(level), -1, 2))
        deltas.append(conv(shared, w["rpn_bbox_pred"]).reshape(len(level), -1, 4))
    return softmax(np.concatenate(logits, axis=1)), np.concatenate(deltas, axis=1)


def crop(level, box, size):
    """One corner-aligned crop (size, size, C) of a level (H, W, C), zero outside."""
    height, width, _ = level.shape
    out = np.zeros((size, size, level.shape[-1]))
    for p in range(size):
        for q in range(size):
            y = (box[0] + p * (box[2] - box[0]) / (size - 1)) * (height - 1)
            x = (box[1] + q * (box[3] - box[1]) / (size - 1)) * (width - 1)
            if -1e-4 <= y <= height - 1 + 1e-4 and -1e-4 <= x <= width - 1 + 1e-4:
                y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                i, j = int(y), int(x)
                k, m = min(i + 1, height - 1), min(j + 1, width - 1)
                rows = level[[i, k]][:, [j, m]]
                out[p, q] = np.einsum("r,c,rcf->f", [1 - y + i, y - i], [1 - x + j, x - j], rows)
    return out


def reference_heads(levels, box, w):
    """Probabilities, deltas (class, 4) and mask probabilities (28, 28, class) of one box of the first image."""
    size = np.sqrt((box[2] - box[0]) * (box[3] - box[1])) / (224 / SIZE)
    level = levels[int(np.clip(4 + np.round(np.log2(size)), 2, 5)) - 2][0]
    x = crop(level, box, 7)[None].astype(np.float32)
    x = relu(norm(conv(x, w["mrcnn_class_conv1"]), w["mrcnn_class_bn1"]))
    x = relu(norm(conv(x, w["mrcnn_class_conv2"]), w["mrcnn_class_bn2"]))[0, 0, 0]
    logits, deltas = (x @ w[n]["kernel"] + w[n]["bias"] for n in ("mrcnn_class_logits", "mrcnn_bbox_fc"))
    m = crop(level, box, 14)[None].astype(np.float32)
    for i in range(1, 5):
        m = relu(norm(conv(m, w[f"mrcnn_mask_conv{i}"], same=True), w[f"mrcnn_mask_bn{i}"]))
    kernel, bias = w["mrcnn_mask_deconv"]["kernel"], w["mrcnn_mask_deconv"]["bias"]
    grown = np.einsum("nyxi,hwoi->nyhxwo", m, kernel).reshape(1, 28, 28, -1)
    masks = 1 / (1 + np.exp(-conv(relu(grown + bias), w["mrcnn_mask"])[0]))
    return softmax(logits), deltas.reshape(-1, 4), masks


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    weights = random_weights()
    return write_file(tmp_path_factory.mktemp("weights") / "mask_rcnn_particle.h5", weights), weights


@pytest.fixture(scope="module")
def loaded(file):
    return model_from_matterport(
        file[0], tile_size=SIZE, min_score=0.0, proposals=12, train_proposals=12, detections=4, pre_nms=200
    )


def test_every_layer_is_found(loaded):
    model, report = loaded
    assert model.settings.backbone == "resnet50" and model.settings.num_classes == 2 and model.settings.legacy
    assert len(report.loaded) == 133 and not (report.missing or report.mismatched or report.unused)
    assert str(report).endswith("133 layers loaded.")


def test_network_gives_the_numbers_of_the_reference(loaded, file):
    model, weights = loaded[0], file[1]
    image = np.random.default_rng(1).random((1, SIZE, SIZE, 3), dtype="f")
    levels = reference_pyramid(255 * image - MEANS, weights)
    for ours, theirs in zip(model.pyramid(image, training=False), levels, strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, atol=1e-4 * np.abs(theirs).max())
    stages = model.inspect(image)
    scores, deltas = reference_rpn(levels, weights)
    np.testing.assert_allclose(stages["rpn_scores"], scores[..., 1], atol=1e-4)
    np.testing.assert_allclose(stages["rpn_deltas"], deltas, atol=1e-4 * max(1, np.abs(deltas).max()))

    # proposals: the best anchors in the original's units, moved and clipped
    unit = np.array([0, 0, 1, 1])
    anchors = (model.anchors.astype(float) * SIZE - unit) / (SIZE - 1)
    best = np.argsort(-scores[0, :, 1], kind="stable")[:200]
    a, d = anchors[best], deltas[0, best] * [0.1, 0.1, 0.2, 0.2]
    side = a[:, 2:] - a[:, :2]
    centre = a[:, :2] + side / 2 + d[:, :2] * side
    side = side * np.exp(np.minimum(d[:, 2:], np.log(1000 / 16)))
    boxes = np.clip(np.concatenate([centre - side / 2, centre + side / 2], axis=1), 0, 1)
    plain = np.clip((boxes * (SIZE - 1) + unit) / SIZE, 0, 1)
    np.testing.assert_allclose(stages["candidates"][0], plain, atol=1e-4)

    # heads: class, box and mask of the proposals
    for i in range(3):
        box = (stages["proposals"][0, i].astype(float) * SIZE - unit) / (SIZE - 1)
        probabilities, moves, _ = reference_heads(levels, box, weights)
        np.testing.assert_allclose(stages["class_probabilities"][0, i], probabilities, atol=1e-4)
        d = moves[probabilities.argmax()] * [0.1, 0.1, 0.2, 0.2]
        side = (box[2:] - box[:2]) * np.exp(np.minimum(d[2:], np.log(1000 / 16)))
        middle = (box[:2] + box[2:]) / 2 + d[:2] * (box[2:] - box[:2])
        moved = np.clip(np.concatenate([middle - side / 2, middle + side / 2]), 0, 1)
        np.testing.assert_allclose(
            stages["refined"][0, i], np.clip((moved * (SIZE - 1) + unit) / SIZE, 0, 1), atol=1e-4
        )
    checked = 0
    for i in np.flatnonzero(stages["valid"][0])[:2]:
        box = (stages["boxes"][0, i].astype(float) * SIZE - unit) / (SIZE - 1)
        mask = reference_heads(levels, box, weights)[2][..., stages["classes"][0, i]]
        np.testing.assert_allclose(stages["masks"][0, i], mask, atol=1e-3)  # the crop's corner moves by rounding
        checked += 1
    assert checked


def test_grey_images_are_repeated(loaded):
    model = loaded[0]
    s = model.settings
    grey = feature_pyramid("light", 32, 1, input_scale=s.input_scale, input_mean=s.input_mean)
    image = np.random.default_rng(2).random((1, 32, 32, 1), dtype="f")
    found = to_numpy(keras.Model(grey.input, grey.get_layer("input_scale").output)(image))
    np.testing.assert_allclose(found, 255 * np.repeat(image, 3, axis=-1) - MEANS, atol=1e-3)


def test_files_of_whole_models_and_of_keras_1_are_read(file, tmp_path):
    _, weights = file
    few = {name: weights[name] for name in ("conv1", "bn_conv1", "rpn_class_raw")}
    for number, options in enumerate(({"whole_model": True}, {"old_names": True}, {"scope": "mask_rcnn/"})):
        found = read_layers(write_file(tmp_path / f"{number}.h5", few, **options))
        assert set(found) == set(few)
        for name, values in few.items():
            assert all(np.array_equal(found[name][kind], value) for kind, value in values.items())


def test_backbone_alone_adapts_the_first_convolution(file, tmp_path):
    _, weights = file
    backbone = {n: v for n, v in weights.items() if n in ("conv1", "bn_conv1") or n.startswith(("res", "bn"))}
    path = write_file(tmp_path / "imagenet.h5", backbone)
    settings = MaskRCNNSettings.preset(
        "default", tile_size=SIZE, pyramid_width=8, rpn_width=8, box_width=8, mask_width=8
    )
    model = MaskRCNN(settings)
    report = load_matterport_weights(model, path, part="backbone")
    assert len(report.loaded) == 2 + 2 * 52 and not report.unused
    image = np.random.default_rng(3).random((1, 32, 32, 1), dtype="f")
    kernel, bias = model.pyramid.get_layer("conv1").get_weights()
    found = conv(image, {"kernel": kernel, "bias": bias}, 2)
    expected = conv(255 * np.repeat(image, 3, axis=-1) - MEANS, weights["conv1"], 2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"lacks \d+ layers.*part=\"backbone\""):
        load_matterport_weights(model, path)
    narrow = {"pyramid_width": 8, "rpn_width": 8, "box_width": 8, "mask_width": 8}
    deep = MaskRCNN(MaskRCNNSettings.preset("legacy", tile_size=SIZE, **narrow))
    with pytest.raises(ValueError, match='The file is of a ResNet-50: use backbone="resnet50"'):
        load_matterport_weights(deep, path, part="backbone")


SMALL = {"tile_size": 64, "pyramid_width": 8, "rpn_width": 8, "box_width": 8, "mask_width": 8, "light_widths": (4,) * 5}


def small_model(classes=2):
    return MaskRCNN(MaskRCNNSettings.preset("light", **SMALL, num_classes=classes))


def small_weights(model, seed=4):
    rng = np.random.default_rng(seed)
    return {
        layer.name: {weight.name: rng.random(weight.shape, dtype="f") for weight in layer.weights}
        for layer in model.weighted_layers()
    }


def test_coco_heads_are_skipped_or_chosen(tmp_path):
    model, coco = small_model(), small_weights(small_model(classes=5))
    path = write_file(tmp_path / "coco.h5", coco)
    with pytest.raises(ValueError, match='other shapes for 3 layers.*part="shared"'):
        load_matterport_weights(model, path)
    head, mask = (part.get_layer(n) for part, n in ((model.box_head, "mrcnn_bbox_fc"), (model.mask_head, "mrcnn_mask")))
    before = head.get_weights()
    report = load_matterport_weights(model, path, part="shared")
    assert report.unused == ("mrcnn_bbox_fc", "mrcnn_class_logits", "mrcnn_mask")
    assert np.array_equal(head.get_weights()[0], before[0])
    assert np.array_equal(model.rpn.get_layer("rpn_class_raw").get_weights()[0], coco["rpn_class_raw"]["kernel"])
    load_matterport_weights(model, path, classes=(0, 3))
    columns = [0, 1, 2, 3, 12, 13, 14, 15]
    assert np.array_equal(head.get_weights()[0], coco["mrcnn_bbox_fc"]["kernel"][:, columns])
    assert np.array_equal(head.get_weights()[1], coco["mrcnn_bbox_fc"]["bias"][columns])
    assert np.array_equal(mask.get_weights()[1], coco["mrcnn_mask"]["bias"][[0, 3]])
    with pytest.raises(ValueError, match=r"`classes` must be among 0..4"):
        load_matterport_weights(model, path, classes=(0, 9))


def test_missing_layers_are_named_and_may_be_skipped(tmp_path):
    model = small_model()
    weights = small_weights(model)
    less = {name: value for name, value in weights.items() if name not in ("fpn_p3", "mrcnn_mask_conv2")}
    path = write_file(tmp_path / "less.h5", less | {"extra": {"kernel": np.zeros((1, 1))}})
    before = model.get_weights()
    with pytest.raises(ValueError, match="lacks 2 layers of the model: fpn_p3, mrcnn_mask_conv2"):
        load_matterport_weights(model, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))  # all or nothing
    report = load_matterport_weights(model, path, skip_missing=True)
    assert report.missing == ("fpn_p3", "mrcnn_mask_conv2") and report.unused == ("extra",)
    assert "2 missing: fpn_p3, mrcnn_mask_conv2" in str(report)


def test_written_files_are_read_again(tmp_path):
    model, copy = small_model(), small_model()
    path = write_matterport_weights(model, tmp_path / "out.h5")
    with h5py.File(path) as opened:
        assert "rpn_model" in opened and opened["conv1/conv1/kernel:0"].shape == (3, 3, 1, 4)
        assert b"conv1" in list(opened.attrs["layer_names"])
    report = load_matterport_weights(copy, path)
    assert len(report.loaded) == len(model.weighted_layers()) and not report.unused
    assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), model.get_weights(), strict=True))


def test_other_files_are_refused(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match="no such weight file"):
        load_matterport_weights(model, tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="text.h5: is no readable HDF5"):
        load_matterport_weights(model, tmp_path / "text.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match="holds no layers"):
        load_matterport_weights(model, tmp_path / "empty.h5")
    path = write_file(tmp_path / "few.h5", {"conv1": {"kernel": np.zeros((7, 7, 3, 64)), "bias": np.zeros(64)}})
    with pytest.raises(ValueError, match="holds no class head"):
        model_from_matterport(path)
