"""Losses: known values, finite extremes, masks and weights."""

import keras
import numpy as np
import pytest
from harness import check_loss, sample, to_numpy

from keras_microseg import losses
from keras_microseg.checks import UserError
from keras_microseg.metrics import tracked

pytestmark = pytest.mark.network
Y = np.zeros((2, 4, 4, 1), "float32")
Y[0, :2] = 1  # 8 pixels of image 0, none of image 1
P = np.full_like(Y, 0.25)


def test_weighted_binary_crossentropy_is_that_of_the_formula():
    expected = np.mean(-(Y * np.log(P) + (1 - Y) * np.log(1 - P)) * (1 + Y * (5 - 1)))
    check_loss(losses.WeightedBinaryCrossentropy(5.0), Y, P, expected)
    check_loss(losses.WeightedBinaryCrossentropy(5.0, from_logits=True), Y, np.log(P / (1 - P)), expected)
    plain = float(keras.losses.BinaryCrossentropy()(Y, P))
    check_loss(losses.WeightedBinaryCrossentropy(), Y, P, plain)


def test_dice():
    # image 0: 1 - (2*2 + 1) / (8 + 4 + 1); image 1: 1 - 1 / (4 + 1)
    check_loss(losses.SoftDice(), Y, P, ((1 - 5 / 13) + (1 - 1 / 5)) / 2)
    # squared: sum p^2 = 1
    check_loss(losses.SoftDice(squared=True), Y, P, ((1 - 5 / 10) + (1 - 1 / 2)) / 2)
    assert check_loss(losses.SoftDice(), Y, Y) == pytest.approx(0, abs=1e-6)
    assert check_loss(losses.SoftDice(smooth=1e-3), Y[:1], 1 - Y[:1]) == pytest.approx(1, abs=1e-3)
    logits = np.where(Y > 0, 40.0, -40.0).astype("float32")
    assert check_loss(losses.SoftDice(from_logits=True), Y, logits) == pytest.approx(0, abs=1e-6)


def test_focal_tversky_with_half_weights_is_dice():
    dice = float(losses.SoftDice(smooth=2.0)(Y, P))
    check_loss(losses.FocalTversky(0.5, 0.5, 1.0, smooth=1.0), Y, P, dice)
    more = float(losses.FocalTversky(0.3, 0.7, 1.0)(Y[:1], Y[:1] * 0.5))  # misses weigh more than false finds
    assert more > float(losses.FocalTversky(0.7, 0.3, 1.0)(Y[:1], Y[:1] * 0.5))
    check_loss(losses.FocalTversky(), Y, P)


OUTPUTS = ("foreground", "boundary", "distance", "flow_y", "flow_x")


def maps():
    y = np.concatenate([Y, Y * 0, Y * 0.5, Y * 0.3, Y * -0.3], axis=-1)
    y[0, 1, :, 1] = 1
    return y.astype("float32")


def test_instance_maps_are_the_sum_of_their_parts():
    y, p = maps(), sample((2, 4, 4, 5)) * 0.9 + 0.05
    parts = {}
    for name in OUTPUTS:
        loss = losses.InstanceMapsLoss(OUTPUTS, {other: float(other == name) for other in OUTPUTS})
        parts[name] = check_loss(loss, y, p)
    one = [slice(i, i + 1) for i in range(5)]
    bce = keras.losses.BinaryCrossentropy()
    expected = float(bce(y[..., one[0]], p[..., one[0]])) + float(losses.SoftDice()(y[..., one[0]], p[..., one[0]]))
    assert parts["foreground"] == pytest.approx(expected, rel=1e-5)
    weighted = losses.WeightedBinaryCrossentropy(3.0)
    assert parts["boundary"] == pytest.approx(float(weighted(y[..., one[1]], p[..., one[1]])), rel=1e-5)
    assert parts["flow_y"] == pytest.approx(np.mean((y[0, :2, :, 3] - p[0, :2, :, 3]) ** 2) / 2, rel=1e-5)
    error = np.abs(y[..., 2] - p[..., 2])
    huber = np.where(error < 0.1, error**2 / 0.2, error - 0.05)
    inside, outside = huber[0, :2].mean() / 2, 0.1 * (huber[0, 2:].mean() + huber[1].mean()) / 2
    assert parts["distance"] == pytest.approx(inside + outside, rel=1e-5)
    check_loss(losses.InstanceMapsLoss(OUTPUTS), y, p, sum(parts.values()))
    doubled = losses.InstanceMapsLoss(OUTPUTS, {"flow_y": 2.0})
    assert float(doubled(y, p)) == pytest.approx(sum(parts.values()) + parts["flow_y"], rel=1e-5)


def test_pixel_weights_ignore_what_has_none():
    loss, y, p = losses.InstanceMapsLoss(OUTPUTS), maps(), sample((2, 4, 4, 5)) * 0.9 + 0.05
    ones = np.ones((2, 4, 4, 1), "float32")
    plain = float(loss(y, p))
    assert check_loss(loss, np.concatenate([y, ones], -1), p) == pytest.approx(plain, rel=1e-5)
    ones[:, :, 3:] = 0
    changed = p.copy()
    changed[:, :, 3:] = 0.5
    weighted = np.concatenate([y, ones], -1)
    assert float(loss(weighted, changed)) == pytest.approx(float(loss(weighted, p)), rel=1e-6)
    assert np.isfinite(float(loss(np.concatenate([y, ones * 0], -1), p)))


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="`outputs` must be one of"):
        losses.InstanceMapsLoss(["shape"])
    with pytest.raises(UserError, match="`weights` must be one of"):
        losses.InstanceMapsLoss(["foreground"], {"distance": 1.0})
    with pytest.raises(UserError, match="`weight` must be a number > 0"):
        losses.WeightedBinaryCrossentropy(0)


def test_tracked_scores_pool_counts_over_batches():
    scores = {
        "iou": (tracked.ForegroundIoU(), 2 / 8),
        "dice": (tracked.ForegroundDice(), 4 / 10),
        "precision": (tracked.ForegroundPrecision(), 2 / 4),
        "recall": (tracked.ForegroundRecall(), 2 / 6),
    }
    truth, found = np.zeros((2, 4, 4, 2), "float32"), np.zeros((2, 4, 4, 2), "float32")
    truth[0, 0, :3, 1] = truth[1, 0, :3, 1] = 1  # 6 in all
    found[0, 0, 2:, 1] = found[1, 0, 2:, 1] = 0.9  # 4 in all, 2 of them right
    for metric, expected in scores.values():
        metric.channel = 1
        assert float(metric.result()) == 1.0  # nothing to find, nothing found
        metric.update_state(truth[:1], found[:1])
        metric.update_state(truth[1:], found[1:])
        assert float(metric.result()) == pytest.approx(expected)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        assert copy.get_config() == metric.get_config()
        metric.reset_state()
        metric.update_state(truth, found, sample_weight=np.array([1.0, 0.0], "float32"))
        assert float(metric.hits) == 1.0
    assert to_numpy(metric.missed).shape == ()


@pytest.mark.parametrize(
    "loss",
    [
        losses.SoftDice(),
        losses.WeightedBinaryCrossentropy(3.0),
        losses.FocalTversky(),
        losses.DiceCrossentropy(),
        losses.DiceCrossentropy(class_weights=[2.0]),
        losses.InstanceMapsLoss(("foreground",)),
    ],
    ids=lambda loss: loss.name,
)
def test_pixels_of_weight_zero_do_not_count(loss):
    y, p = (sample((2, 3, 4, 6, 1), 1) > 0.5).astype("float32"), sample((2, 3, 4, 6, 1), 2)
    weight = np.zeros_like(y)
    weight[:, :, :2] = 1
    truth = np.concatenate([y, weight], axis=-1)
    value = check_loss(loss, truth, p)
    assert value == pytest.approx(float(loss(y[:, :, :2], p[:, :, :2])), rel=1e-4)
    assert float(loss(truth, np.where(weight > 0, p, 1 - p))) == pytest.approx(value, rel=1e-5)
    nothing = np.concatenate([y, 0 * weight], axis=-1)
    assert np.isfinite(float(loss(nothing, p)))


def test_dice_crossentropy_is_the_sum_of_both():
    y, p = (sample((2, 4, 4, 1), 1) > 0.5).astype("float32"), sample((2, 4, 4, 1), 2)
    expected = float(keras.losses.BinaryCrossentropy()(y, p)) + 0.5 * float(losses.SoftDice()(y, p))
    check_loss(losses.DiceCrossentropy(dice_weight=0.5), y, p, expected)
    classes = np.eye(3, dtype="float32")[np.random.default_rng(0).integers(0, 3, (2, 4, 4))]
    p = sample((2, 4, 4, 3), 3)
    p /= p.sum(axis=-1, keepdims=True)
    entropy = float(keras.losses.CategoricalCrossentropy()(classes, p))
    check_loss(losses.DiceCrossentropy(exclusive=True, dice_weight=0), classes, p, entropy)


def test_deep_supervision_weighs_levels():
    y = (sample((2, 4, 4, 1), 1) > 0.5).astype("float32")
    p = sample((2, 4, 4, 2), 2)
    parts = [float(losses.SoftDice()(y, p[..., i : i + 1])) for i in range(2)]
    check_loss(losses.DeepSupervision(losses.SoftDice(), 1, decay=0.5), y, p, (parts[0] + 0.5 * parts[1]) / 1.5)


def test_losses_on_the_grid_of_coarser_labels():
    """Labels of 2 x 2 pixels: outlines inside of them cost nothing, another composition does; ignored ones are out."""
    coarse = np.eye(3, dtype="f")[np.random.default_rng(0).integers(0, 3, (2, 3, 4))]
    y = coarse.repeat(2, 1).repeat(2, 2)
    p = sample((2, 6, 8, 3), 3) ** 2 + 0.05
    p /= p.sum(axis=-1, keepdims=True)
    means = p.reshape(2, 3, 2, 4, 2, 3).mean(axis=(2, 4))
    loss, grid = losses.DiceFocal([0.5, 1.0, 1.5]), losses.LabelGrid(losses.DiceFocal([0.5, 1.0, 1.5]), 2)
    check_loss(grid, y, p, float(loss(coarse, means)))
    moved = p.reshape(2, 3, 2, 4, 2, 3)[:, :, ::-1, :, ::-1].reshape(p.shape)
    assert float(grid(y, moved)) == pytest.approx(float(grid(y, p)), rel=1e-5)
    # the right half of a square is not known: its left half counts
    weight = np.ones((2, 6, 8, 1), "f")
    weight[:, :, 1::2] = 0
    left = p.reshape(2, 3, 2, 4, 2, 3)[:, :, :, :, 0].mean(axis=2)
    check_loss(grid, np.concatenate([y * weight, weight], -1), p, float(loss(coarse, left)))
    weight[:, :2] = 0  # nor the first row of squares at all
    expected = float(loss(coarse[:, 1:], left[:, 1:]))
    check_loss(grid, np.concatenate([y * weight, weight], -1), p, expected)
    with pytest.raises(UserError, match="multiples of 2"):
        grid(y[:, :5], p[:, :5])


def test_scores_leave_out_ignored_pixels():
    y, p = (sample((2, 4, 4, 1), 1) > 0.5).astype("float32"), sample((2, 4, 4, 1), 2)
    weight = np.zeros_like(y)
    weight[:, :2] = 1
    masked = tracked.ForegroundDice(weight_channel=1)
    masked.update_state(np.concatenate([y, weight], axis=-1), p)
    part = tracked.ForegroundDice()
    part.update_state(y[:, :2], p[:, :2])
    assert float(masked.result()) == pytest.approx(float(part.result()))
    assert tracked.ForegroundDice.from_config(masked.get_config()).weight_channel == 1
