"""The Mask R-CNN: sizes, training by plain `fit`, files, equal numbers on all backends, awkward input."""

import dataclasses
import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_microseg import backend
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.models.mask_rcnn import LOSSES, MaskRCNN, MaskRCNNSettings, mask_rcnn
from keras_microseg.models.saving import load_model, save_model

GOLDEN = Path(__file__).parents[1] / "golden" / "make_mask_rcnn.py"


def load_maker():
    spec = importlib.util.spec_from_file_location("make_mask_rcnn", GOLDEN)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


MAKER = load_maker()


def tiny(**changes):
    return mask_rcnn("light", **(MAKER.TINY | changes))


@pytest.fixture(scope="module")
def trained():
    """A tiny model after a short training, its tiles, and the losses per epoch."""
    keras.utils.set_random_seed(0)
    model = draw_kernels(tiny(min_score=0.3), 1)
    tiles = MAKER.make_tiles(12, model.settings, model.anchors)
    model.compile(keras.optimizers.AdamW(5e-3, global_clipnorm=5.0))
    history = model.fit(tiles, batch_size=4, epochs=40, verbose=0, shuffle=False).history
    return model, tiles, history


def test_legacy_parameters_are_those_of_the_original():
    settings = MaskRCNNSettings.preset("legacy", tile_size=64, backbone="resnet50")
    model = MaskRCNN(settings)
    assert model.count_params() == 44_662_942
    layers = model.weighted_layers()
    names = [layer.name for layer in layers]
    assert len(names) == len(set(names)) == 131 + 2  # the file keeps the three layers of the RPN in one group
    assert sum(len(layer.weights) for layer in layers) == 384
    sizes = {part.name: part.count_params() for part in (model.rpn, model.box_head, model.mask_head)}
    assert sizes == {"rpn_model": 1_189_394, "box_head": 13_914_122, "mask_head": 2_627_330}
    # A further block of stage 4 has the 7 tensors of each of its 3 convolutions and normalizations; ResNet-101 has 17.
    block = sum(layer.count_params() for layer in layers if layer.name[3:5] == "4b" or layer.name[2:4] == "4b")
    assert model.count_params() + 17 * block == 63_733_406
    model.set_trainable("heads")
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == 21_069_086
    three = MaskRCNN(dataclasses.replace(settings, num_classes=3))
    assert three.count_params() - model.count_params() == 5_382


@pytest.mark.slow
def test_legacy_resnet101_has_the_parameters_of_the_original():
    assert mask_rcnn("legacy", tile_size=64).count_params() == 63_733_406


def test_fit_reduces_every_loss_on_bright_discs(trained):
    _, _, history = trained
    assert set(history) == {"loss", *LOSSES}
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    for name in ("rpn_class_loss", "class_loss", "mask_loss"):
        assert history[name][-1] < history[name][0]


def test_detections_after_training_lie_on_discs(trained):
    model, tiles, _ = trained
    found = model.predict(tiles["image"], verbose=0, batch_size=5)  # 12 tiles: the last batch is smaller
    count, slots, side = 12, model.settings.detections, model.settings.mask_size
    assert found["boxes"].shape == (count, slots, 4) and found["masks"].shape == (count, slots, side, side)
    assert found["classes"].dtype == np.int32 and set(np.unique(found["valid"])) <= {0, 1}
    empty = found["valid"] == 0
    assert all(not found[name][empty].any() for name in ("boxes", "classes", "scores", "masks"))
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    boxes = found["boxes"]
    assert ((boxes >= 0) & (boxes <= 1)).all() and ((found["masks"] >= 0) & (found["masks"] <= 1)).all()
    truths = [tiles["boxes"][i][tiles["classes"][i] > 0][:-1] for i in range(count)]
    hits = sum(count_found(boxes[i], truth) for i, truth in enumerate(truths))
    assert hits > 0.6 * sum(map(len, truths))


def count_found(boxes, truth):
    """Boxes of `truth` that one of `boxes` overlaps by more than one half."""
    size = np.minimum(boxes[:, None, 2:], truth[:, 2:]) - np.maximum(boxes[:, None, :2], truth[:, :2])
    common = np.maximum(size, 0).prod(axis=-1)
    areas = (boxes[:, None, 2:] - boxes[:, None, :2]).prod(axis=-1) + (truth[:, 2:] - truth[:, :2]).prod(axis=-1)
    return int(((common / (areas - common)).max(axis=0) > 0.5).sum())


def test_evaluate_gives_the_same_losses_twice(trained):
    model, tiles, _ = trained
    first, second = (model.evaluate(tiles, batch_size=4, verbose=0, return_dict=True) for _ in range(2))
    assert first == pytest.approx(second, rel=1e-6)
    parts = [first[name] for name in LOSSES]
    assert first["loss"] == pytest.approx(sum(parts), rel=1e-4)


def test_file_opens_with_equal_weights(trained, tmp_path):
    model, _, _ = trained
    save_model(model, tmp_path / "model.keras", {"kind": "mask_rcnn"})
    copy, card = load_model(tmp_path / "model.keras")
    assert card == {"kind": "mask_rcnn"} and type(copy) is MaskRCNN and copy.settings == model.settings
    assert np.array_equal(copy.anchors, model.anchors)
    assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), model.get_weights(), strict=True))


def test_network_for_other_tiles_has_the_same_weights(trained):
    model, _, _ = trained
    same, large = model.for_tile(64), model.for_tile(128, min_score=0.1)
    assert same.settings == model.settings
    assert large.settings.detections == 4 * model.settings.detections and large.settings.min_score == 0.1
    assert large.settings.anchor_scales == model.settings.anchor_scales and len(large.anchors) == 4 * len(model.anchors)
    for copy in (same, large):
        assert all(np.array_equal(a, b) for a, b in zip(copy.get_weights(), model.get_weights(), strict=True))


@pytest.mark.slow
def test_network_for_other_tiles_gives_its_shapes(trained):
    large = trained[0].for_tile(128)
    assert large.predict(np.zeros((1, 128, 128, 1), "f"), verbose=0)["boxes"].shape == (1, 24, 4)


def test_inspection_shows_consistent_stages(trained):
    model, tiles, _ = trained
    stages = model.inspect(tiles["image"][:2])
    s, anchors = model.settings, len(model.anchors)
    assert stages["anchors"].shape == (anchors, 4) and stages["rpn_scores"].shape == (2, anchors)
    assert stages["rpn_deltas"].shape == (2, anchors, 4) and stages["proposals"].shape == (2, s.proposals, 4)
    assert stages["class_probabilities"].shape == (2, s.proposals, s.num_classes)
    np.testing.assert_allclose(stages["class_probabilities"].sum(axis=-1), 1, atol=1e-5)
    assert stages["candidates"].shape[1] >= s.proposals
    found = model.predict(tiles["image"][:2], verbose=0)
    for name, value in found.items():
        np.testing.assert_allclose(stages[name], value, atol=1e-5)
    best = stages["rpn_scores"].max(axis=1)
    np.testing.assert_allclose(stages["proposal_scores"].max(axis=1), best, atol=1e-6)


def test_steps_are_those_of_every_backend():
    backend.configure_device(deterministic=True)
    found, stored = MAKER.compute(), np.load(MAKER.PATH)
    np.testing.assert_allclose(found["losses"], stored["losses"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["sums"], stored["sums"], rtol=1e-4, atol=1e-4)


def test_file_of_another_backend_opens_with_its_results():
    model, _ = load_model(MAKER.MODEL_PATH, card={})
    stored = np.load(MAKER.PATH)
    tiles = MAKER.make_tiles(4, model.settings, model.anchors)
    found = model.predict(tiles["image"], verbose=0)
    assert found["valid"].sum() > 8
    for name, value in found.items():
        np.testing.assert_allclose(value, stored[name], atol=2e-4)


@pytest.mark.slow
def test_empty_tiles_and_boxes_without_area_give_finite_losses():
    model = draw_kernels(tiny(), 2)
    tiles = MAKER.make_tiles(2, model.settings, model.anchors)
    tiles["image"][:] = 0
    tiles["boxes"][0], tiles["classes"][0] = 0.5, 1  # without area
    tiles["boxes"][1], tiles["classes"][1] = 0, 0
    tiles["rpn_match"][:], tiles["rpn_deltas"][:] = -1, 0
    model.compile(keras.optimizers.SGD(0.01))
    for _ in range(2):
        logs = model.train_on_batch(tiles, return_dict=True)
        assert np.isfinite(list(logs.values())).all()
        assert logs["mask_loss"] == 0 and logs["box_loss"] == 0 and logs["rpn_box_loss"] == 0
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    found = model.predict(np.zeros((1, 64, 64, 1), "f"), verbose=0)
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.slow
def test_more_classes_channels_and_larger_masks():
    model = draw_kernels(tiny(num_classes=4, channels=3, mask_size=56, min_score=0.0, roi_samples=2), 3)
    tiles = MAKER.make_tiles(2, model.settings, model.anchors)
    tiles["classes"][0, :2] = [3, -1]
    model.compile(keras.optimizers.AdamW(1e-3))
    assert np.isfinite(model.train_on_batch(tiles, return_dict=True)["loss"])
    found = backend.compile_predict(model)(tiles["image"])
    assert found["masks"].shape[2:] == (56, 56) and set(np.unique(found["classes"])) <= {0, 1, 2, 3}


@pytest.mark.slow
def test_mixed_precision_keeps_boxes_and_results_in_float32():
    model = draw_kernels(tiny(min_score=0.0), 1)
    half = draw_kernels(mask_rcnn("light", dtype="mixed_bfloat16", **MAKER.TINY, min_score=0.0), 1)
    tiles = MAKER.make_tiles(2, model.settings, model.anchors)
    assert half.pyramid.get_layer("fpn_p2").compute_dtype == "bfloat16"
    assert all(weight.dtype == "float32" for weight in half.weights)
    scores = [m.inspect(tiles["image"])["rpn_scores"] for m in (model, half)]
    assert scores[1].dtype == np.float32
    np.testing.assert_allclose(scores[1], scores[0], atol=0.1)
    half.compile(keras.optimizers.SGD(0.01))
    model.random_rois = half.random_rois = False
    model.compile(keras.optimizers.SGD(0.01))
    losses = [m.train_on_batch(tiles, return_dict=True)["loss"] for m in (half, model)]
    np.testing.assert_allclose(*losses, rtol=0.1)


def test_groups_of_layers_are_trained():
    model = tiny()
    heads = model.set_trainable("heads")
    assert "mrcnn_mask" in heads and "fpn_p2" in heads and not any(name.startswith("res") for name in heads)
    learning = {weight.path.split("/")[-2] for weight in model.trainable_weights}
    assert learning == set(heads)
    assert len(model.set_trainable("all")) == len(model.weighted_layers())
    assert "res4a_branch2a" in model.set_trainable("4+") and "res3a_branch2a" not in model.set_trainable("4+")
    with pytest.raises(ValueError, match="No layer is called like 'nothing'"):
        model.set_trainable("nothing")


@pytest.mark.slow
def test_other_layers_stay_as_they_are():
    model = draw_kernels(tiny(), 1)
    tiles = MAKER.make_tiles(2, model.settings, model.anchors)
    heads = model.set_trainable("heads")
    model.compile(keras.optimizers.SGD(0.1))
    before = {layer.name: layer.get_weights() for layer in model.weighted_layers()}
    model.train_on_batch(tiles)
    for layer in model.weighted_layers():
        same = all(np.array_equal(a, b) for a, b in zip(before[layer.name], layer.get_weights(), strict=True))
        assert same == (layer.name not in heads), layer.name  # statistics of frozen normalizations stay as well


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="multiple of 32.*Use 128"):
        mask_rcnn("light", tile_size=100)
    with pytest.raises(ValueError, match="Unknown settings: widht"):
        mask_rcnn("light", widht=3)
    with pytest.raises(ValueError, match="anchor_scales"):
        mask_rcnn("light", anchor_scales=(16.0, 32.0))
    with pytest.raises(ValueError, match="one of 'light', 'default', 'legacy'"):
        mask_rcnn("heavy")
    model = tiny()
    with pytest.raises(ValueError, match=r"takes images of \(batch, 64, 64, 1\)"):
        model(np.zeros((1, 32, 32, 1), "f"))
    with pytest.raises(ValueError, match="Missing: boxes, classes"):
        model.compute_loss({"image": 0}, y_pred={})
