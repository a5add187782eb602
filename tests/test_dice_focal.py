"""Dice + c x focal loss against numbers computed by hand on 2 x 2 maps."""

import keras
import numpy as np
import pytest
from harness import check_loss

from keras_microseg import losses

pytestmark = pytest.mark.network
# two classes, one image of 2 x 2 pixels: probabilities of class 1 are 0.2, 0.6, 0.9, 0.4; truth 0, 1, 1, 1
P1 = np.array([[0.2, 0.6], [0.9, 0.4]], "f")
P = np.stack([1 - P1, P1], axis=-1)[None]
Y = np.stack([[[1, 0], [0, 0]], [[0, 1], [1, 1]]], axis=-1).astype("f")[None]
# class 0: TP 0.8, sum p 1.9, sum y 1; class 1: TP 1.9, sum p 2.1, sum y 3
S = 1e-5
F0, F1 = (1.6 + S) / (1 + 1.9 + S), (3.8 + S) / (3 + 2.1 + S)
FOCAL = sum(-0.25 * (1 - p) ** 2 * np.log(p) for p in (0.8, 0.6, 0.9, 0.4)) / 8


def test_the_formulas():
    check_loss(losses.DiceFocal(focal_weight=0), Y, P, 1 - (F0 + F1) / 2)
    check_loss(losses.DiceFocal(), Y, P, 1 - (F0 + F1) / 2 + FOCAL)
    check_loss(losses.DiceFocal(focal_weight=3), Y, P, 1 - (F0 + F1) / 2 + 3 * FOCAL)
    check_loss(losses.DiceFocal([0.5, 1.5], 0), Y, P, 1 - (0.5 * F0 + 1.5 * F1) / 2)
    old = 1 - ((1.6 + 1) / (2.9 + 1) + (3.8 + 1) / (5.1 + 1)) / 2
    check_loss(losses.DiceFocal(focal_weight=0, smooth=1.0, per_image=True), Y, P, old)
    cross = sum(-0.5 * np.log(p) for p in (0.8, 0.6, 0.9, 0.4)) / 8
    dice = float(losses.DiceFocal(focal_weight=0)(Y, P))
    check_loss(losses.DiceFocal(alpha=0.5, gamma=0), Y, P, dice + cross)


def test_one_dice_of_the_batch_or_one_per_image():
    y, p = np.concatenate([Y, 1 - Y]), np.concatenate([P, P])
    pooled = [2 * (p * y)[..., k].sum() / (p[..., k].sum() + y[..., k].sum()) for k in (0, 1)]
    check_loss(losses.DiceFocal(focal_weight=0), y, p, 1 - np.mean(pooled))
    each = [2 * (p * y)[i, ..., k].sum() / (p[i, ..., k].sum() + y[i, ..., k].sum()) for i in (0, 1) for k in (0, 1)]
    check_loss(losses.DiceFocal(focal_weight=0, per_image=True), y, p, 1 - np.mean(each), rtol=1e-4)


def test_ignored_pixels_count_nowhere():
    """The last column of a wider image is unknown: the loss is that of the rest, whatever stands there."""
    y = np.concatenate([Y, np.zeros((1, 2, 1, 2), "f")], axis=2)
    weight = np.ones((1, 2, 3, 1), "f")
    weight[:, :, 2] = 0
    for junk in (0.1, 0.9):
        p = np.concatenate([P, np.full((1, 2, 1, 2), junk, "f")], axis=2)
        check_loss(
            losses.DiceFocal([0.7, 1.3]), np.concatenate([y, weight], -1), p, float(losses.DiceFocal([0.7, 1.3])(Y, P))
        )


def test_label_smoothing_and_soft_labels():
    soft = Y * 0.8 + 0.1
    check_loss(losses.DiceFocal(label_smoothing=0.2), Y, P, float(losses.DiceFocal()(soft, P)))
    both = 2 * (soft * P).sum(axis=(0, 1, 2)) / (soft.sum(axis=(0, 1, 2)) + P.sum(axis=(0, 1, 2)))
    check_loss(losses.DiceFocal(focal_weight=0), soft, P, 1 - both.mean(), rtol=1e-4)


def test_the_focal_part_is_that_of_keras_but_for_the_mean_over_classes():
    ours = float(losses.DiceFocal()(Y, P)) - float(losses.DiceFocal(focal_weight=0)(Y, P))
    assert 2 * ours == pytest.approx(float(keras.losses.CategoricalFocalCrossentropy()(Y, P)), rel=1e-4)
