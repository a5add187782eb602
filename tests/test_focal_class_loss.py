"""The focal loss of class maps against its formula in float64."""

import keras
import numpy as np
import pytest

from keras_microseg import backend
from keras_microseg.losses import FocalClassLoss

pytestmark = pytest.mark.network


def focal_by_the_formula(y, logits, alpha, gamma=2.0, s=1e-5):
    """Per pixel, in float64."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    classes = logits.shape[-1]
    q = np.where(np.arange(classes) == y[..., None], 1 - s, s / (classes - 1))
    pt = (q * p).sum(-1) + s
    return np.asarray(alpha)[y] * (1 - pt) ** gamma * -np.log(pt)


@pytest.mark.parametrize("classes", [2, 4])
def test_focal_class_loss_is_the_published_formula(classes):
    rng = np.random.default_rng(0)
    tasks = ("A1", "A2")
    y = rng.integers(0, classes, (2, 5, 6, 2))
    logits = {task: rng.normal(0, 3, (2, 5, 6, classes)) for task in tasks}
    alpha = {"A1": [1.2, 16.9, 16.9, 26.4][:classes], "A2": [1.1, 34.2, 34.2, 118.4][:classes]}
    expected = sum(focal_by_the_formula(y[..., i], logits[t], alpha[t]) for i, t in enumerate(tasks))
    loss = FocalClassLoss(tasks, alpha)
    predicted = {task: values.astype("float32") for task, values in logits.items()}
    assert float(loss(y.astype("float32"), predicted)) == pytest.approx(expected.mean(), rel=2e-5)
    weight = rng.integers(0, 2, (2, 5, 6, 1))
    judged = float(loss(np.concatenate([y, weight], -1).astype("float32"), predicted))
    assert judged == pytest.approx((expected * weight[..., 0]).sum() / weight.sum(), rel=2e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()


def test_focal_class_loss_stays_finite_on_extremes():
    y = np.zeros((1, 2, 2, 1), "float32")
    for value in (0.0, 80.0, -80.0, 1e4):
        logits = np.zeros((1, 2, 2, 4), "float32")
        logits[..., 0] = value
        variable = keras.Variable(logits)
        loss = FocalClassLoss(("A1",))
        result, (gradient,) = backend.value_and_grad(lambda v=variable, f=loss: f(y, {"A1": v.value}), [variable])
        assert np.isfinite(float(result)) and np.isfinite(keras.ops.convert_to_numpy(gradient)).all()
