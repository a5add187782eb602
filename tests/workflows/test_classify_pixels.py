"""The classifier of pixels: data, one step on every backend, from files to classes."""

import keras
import numpy as np
import pytest
from harness import check_dataset, check_model, randomize

from keras_microseg import models
from keras_microseg.checks import FileError, UserError
from keras_microseg.data.augment import NO_AUGMENTATION
from keras_microseg.data.class_maps import BACKGROUND_WEIGHT, ClassifiedImages, classifier_input
from keras_microseg.inference.pixel_classes import TASK, PixelClassifier
from keras_microseg.models.saving import save_model
from keras_microseg.training import supervised
from keras_microseg.training.schedules import OptimizerSettings

pytestmark = pytest.mark.network
CARD = {
    "task": TASK, "outputs": ["a"], "contrast": [0, 100], "multiple_of": 1, "halo": 0,
    "diameter": {"typical": 8, "minimum": 3, "maximum": 20},
    "classes": [{"name": "a", "colour": "#ff0000"}, {"name": "b", "colour": "#00ff00"}],
}  # fmt: skip


def scene():
    """Four squares, two of which touch, of grey values 0.2, 0.4, 0.8, 1.0 on 0."""
    labels, classes = np.zeros((40, 48), np.int32), np.zeros((40, 48), np.int32)
    for number, (y, x) in enumerate([(4, 4), (4, 12), (20, 4), (24, 30)], start=1):
        labels[y : y + 8, x : x + 8] = number
    grey = np.array([0, 0.2, 0.4, 0.8, 1.0])[labels]
    classes = np.array([0, 1, 2, 3, 0])[labels]
    return grey, labels, classes


def grey_model(outputs):
    """Gives back the grey value as the first output, its complement as the last, 0 between."""
    inputs = keras.Input((None, None, 2))
    conv = keras.layers.Conv2D(outputs, 1)
    model = keras.Model(inputs, conv(inputs))
    kernel, bias = np.zeros((1, 1, 2, outputs), np.float32), np.zeros(outputs, np.float32)
    kernel[0, 0, 0, 0] = 1
    if outputs > 1:
        kernel[0, 0, 0, 1], bias[1] = -1, 1
    conv.set_weights([kernel, bias])
    return model


def test_input_keeps_touching_particles_apart():
    grey, labels, _ = scene()
    x = classifier_input(grey, labels, (0, 100))
    np.testing.assert_allclose(x[..., 0], grey, atol=1e-6)
    assert x[6, 6, 1] == x[6, 17, 1] == 1 and x[6, 11:13, 1].min() == 0 and x[0, 0, 1] == 0


@pytest.mark.parametrize("num_classes, channels", [(3, 4), (2, 1)])
def test_dataset(num_classes, channels):
    grey, labels, classes = scene()
    classes = np.where(classes > num_classes, 0, classes)
    data = ClassifiedImages([(grey, labels, classes)], 2, 3, 0, num_classes=num_classes, size=(16, 24))
    check_dataset(data, (3, 16, 24, 2), (3, 16, 24, channels))
    whole = ClassifiedImages(
        [(grey, labels, classes)], 1, 1, 0, num_classes=num_classes, size=(40, 48), augment=NO_AUGMENTATION
    )
    x, y, weights = whole[0]
    assert weights.shape == (1, 40, 48)
    total = [float(weights[0][classes == k].sum()) for k in range(1, num_classes + 1)]
    np.testing.assert_allclose(total, total[0])  # classes count alike
    assert weights[0][labels == 4].max() == 0 and weights[0][labels == 0].max() == np.float32(BACKGROUND_WEIGHT)
    if num_classes == 2:
        np.testing.assert_array_equal(y[0, ..., 0] == 1, classes == 1)
    else:
        np.testing.assert_array_equal(y[0].argmax(axis=-1)[labels == 0], 3)


def test_scores_are_means_inside_outlines():
    grey, labels, _ = scene()
    ids, found = PixelClassifier(grey_model(1), CARD).predict(labels, 7 + 3 * grey)
    np.testing.assert_array_equal(ids, [1, 2, 3, 4])
    np.testing.assert_allclose(found, np.stack([[0.2, 0.4, 0.8, 1], [0.8, 0.6, 0.2, 0]], axis=1), atol=1e-5)
    third = {**CARD, "outputs": ["a", "b", "c", "background"]}
    third["classes"] = [*CARD["classes"], {"name": "c", "colour": "#0000ff"}]
    _, found = PixelClassifier(grey_model(4), third).predict(labels * 5, grey)
    np.testing.assert_allclose(found, np.stack([[0.2, 0.4, 0.8, 1], [0.8, 0.6, 0.2, 0], [0] * 4], axis=1), atol=1e-5)
    nothing = PixelClassifier(grey_model(1), CARD).predict(np.zeros((9, 9), int), np.zeros((9, 9)))
    assert nothing[1].shape == (0, 2)


def test_other_magnifications_are_brought_to_that_of_training():
    grey, labels, _ = scene()
    large = [np.kron(one, np.ones((3, 3), one.dtype)) for one in (labels, grey)]
    classifier = PixelClassifier(grey_model(1), CARD)
    _, found = classifier.predict(*large)
    # half of the pixels of a 7 px square are rim, which is part ground: about a tenth of the grey value is lost
    np.testing.assert_allclose(found[:, 0], [0.2, 0.4, 0.8, 1], atol=0.12)
    assert classifier.predictor.shapes[0][1] < large[0].shape[0]


def test_other_models_are_refused(tmp_path):
    path = save_model(grey_model(1), tmp_path / "m.keras", {"outputs": ["foreground"]})
    with pytest.raises(FileError, match=r"m\.keras: is no classifier of pixels"):
        PixelClassifier(path)
    with pytest.raises(FileError, match="damaged card"):
        PixelClassifier(grey_model(1), {**CARD, "classes": []})
    with pytest.raises(UserError, match="one size"):
        PixelClassifier(grey_model(1), CARD).maps(np.zeros((3, 3), int), np.zeros((3, 4)))


LOSSES = [0.1784697026014328, 0.2093898057937622, 0.09617853909730911]


def test_training_steps_are_the_same_on_every_backend(tmp_path):
    """Losses of three steps from equal weights and data, stored numbers (float32, 1e-4)."""
    grey, labels, classes = scene()
    data = ClassifiedImages([(grey, labels, classes)], 1, 2, 3, num_classes=3, size=(16, 24))
    model = models.unet((None, None, 2), num_outputs=4, filters=(2, 3, 4, 5), activation="softmax")
    randomize(model)
    settings = OptimizerSettings(name="adam", learning_rate=0.01, schedule="constant")
    loss = keras.losses.CategoricalCrossentropy()
    found = supervised.train(model, data, loss=loss, epochs=3, out_dir=tmp_path, optimizer=settings)
    np.testing.assert_allclose([row["loss"] for row in found.history], LOSSES, rtol=1e-4)


def test_network():
    arguments = {"input_shape": (None, None, 2), "num_outputs": 4, "filters": (2, 3, 4, 5), "activation": "softmax"}
    check_model(models.unet, arguments, {(1, 24, 16, 2): (1, 24, 16, 4)})


def test_from_files_to_classes(tmp_path):
    from classify_scenes import write_data

    from keras_microseg.workflows.classify_particles import classify
    from keras_microseg.workflows.classify_train import train_classifier

    data = write_data(tmp_path / "data", 2)
    options = {"method": "pixels", "epochs": 1, "steps_per_epoch": 2, "tile": 32, "filters": 2, "batch_size": 2}
    found = train_classifier(data, tmp_path / "model", **options)
    assert found.model_path.name == "classifier.keras" and found.confusion.sum() == 12
    assert found.cross_validation is None
    results = classify(data / "labels", tmp_path / "out", model=tmp_path / "model", images=data / "images")
    assert len(results.table) == 24 and set(results.table["class"]) <= {"red", "green"}
    assert results.table["class_score"].between(0.5, 1).all()
