import json

import numpy as np
import pytest

from keras_microseg.checks import FileError, UserError
from keras_microseg.classification.features import FEATURES, instance_features
from keras_microseg.classification.instances import (
    InstanceClassifier,
    classes_of_instances,
    fit_instances,
    scores_of_instances,
)
from keras_microseg.classification.logistic import choose_ridge, fit_logistic
from keras_microseg.image import PixelSize
from keras_microseg.io.annotations import ClassList

CLASSES = ClassList(("disc", "bar"), ("red", "lime"))


def scene(seed, count=12):
    """Discs (class 1) and bars (class 2) on a grid, with their labels and classes."""
    rng = np.random.default_rng(seed)
    labels, classes = np.zeros((120, 160), np.int32), np.zeros(count, int)
    yy, xx = np.indices((40, 40))
    for k in range(count):
        radius, part = rng.uniform(6, 12), np.s_[k // 4 * 40 : k // 4 * 40 + 40, k % 4 * 40 : k % 4 * 40 + 40]
        classes[k] = 1 + rng.integers(2)
        disc = (yy - 20) ** 2 + (xx - 20) ** 2 < radius**2
        bar = (abs(yy - 20) < radius / 3) & (abs(xx - 20) < radius * 1.4)
        labels[part][disc if classes[k] == 1 else bar] = k + 1
    return labels, np.where(labels > 0, 150.0, 50.0) + rng.normal(0, 5, labels.shape), classes


def trained(pixel_size=None):
    scenes = [scene(seed) for seed in range(4)]
    tables = [instance_features(labels, grey, pixel_size=pixel_size) for labels, grey, _ in scenes]
    return fit_instances(tables, [classes for *_, classes in scenes], CLASSES)


def test_tells_discs_from_bars():
    classifier, held_out = trained()
    labels, grey, classes = scene(9)
    ids, probabilities = classifier.predict(labels, grey)
    np.testing.assert_array_equal(ids, np.arange(1, 13))
    np.testing.assert_array_equal(probabilities.argmax(axis=1) + 1, classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert sum(len(part) for part in held_out) == 48 and np.isfinite(np.concatenate(held_out)).all()
    assert sum(classifier.card["examples"]) == 48


def test_saved_and_loaded_is_the_same(tmp_path):
    classifier, _ = trained()
    loaded = InstanceClassifier.load(classifier.save(tmp_path / "a.json"))
    labels, grey, _ = scene(5)
    np.testing.assert_array_equal(loaded.predict(labels, grey)[1], classifier.predict(labels, grey)[1])
    assert loaded.classes == CLASSES and loaded.card == classifier.card


def test_pixel_size_must_be_known_as_in_training(tmp_path):
    classifier, _ = trained(PixelSize.parse("2 nm"))
    labels, grey, classes = scene(5)
    with pytest.raises(UserError, match="sizes in nm, but the pixel size of the image is unknown"):
        classifier.predict(labels, grey)
    _, first = classifier.predict(labels, grey, pixel_size=PixelSize.parse("2 nm"))
    _, second = classifier.predict(labels, grey, pixel_size=PixelSize.parse("0.002 um"))
    np.testing.assert_allclose(first, second)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "x"}, "is no classifier"),
        ({"weights": [[1.0]]}, "do not fit together"),
        ({"bias": "no"}, "is damaged"),
        ({"features": ["colour"]}, "needs features unknown here: colour|do not fit"),
        ({"classes": []}, "is damaged"),
        ({"unit": "parsec"}, "do not fit together"),
    ],
)
def test_damaged_files(tmp_path, change, message):
    path = trained()[0].save(tmp_path / "a.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileError, match=f"a.json.*({message})"):
        InstanceClassifier.load(path)


def test_unreadable_files(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for name, message in (("a.json", "is not JSON"), ("b.json", "cannot be read")):
        with pytest.raises(FileError, match=message):
            InstanceClassifier.load(tmp_path / name)
    with pytest.raises(UserError, match=r"written as \.json"):
        trained()[0].save(tmp_path / "a.txt")


def test_missing_classes_and_mixed_units():
    labels, grey, classes = scene(0)
    table = instance_features(labels, grey)
    with pytest.raises(UserError, match="No particle of class bar among the 12 examples"):
        fit_instances([table], [np.ones(12, int)], CLASSES)
    sized = instance_features(labels, grey, pixel_size=PixelSize.parse("1 nm"))
    with pytest.raises(UserError, match="different units"):
        fit_instances([table, sized], [classes, classes], CLASSES)


def test_majority_of_pixels():
    labels = np.array([[1, 1, 1, 0, 2, 2, 2, 2, 7, 7, 7]])
    marked = np.array([[1, 1, 2, 1, 2, 2, 1, 1, 0, 0, 2]])
    ids, classes = classes_of_instances(labels, marked, 2)
    np.testing.assert_array_equal(ids, [1, 2, 7])
    np.testing.assert_array_equal(classes, [1, 0, 0])  # 2: one half is no majority; 7: mostly unmarked
    np.testing.assert_array_equal(classes_of_instances(labels, marked, 2, unmarked=2)[1], [1, 0, 2])
    assert len(classes_of_instances(np.zeros((2, 2), int), np.zeros((2, 2), int), 2)[0]) == 0


def test_mean_of_maps_inside_the_outline():
    labels = np.array([[3, 3, 0, 1]])
    maps = np.array([[[0.2, 1], [0.4, 0], [9, 9], [0.7, 0.5]]])
    ids, scores = scores_of_instances(labels, maps)
    np.testing.assert_array_equal(ids, [1, 3])
    np.testing.assert_allclose(scores, [[0.7, 0.5], [0.3, 0.5]])


def test_logistic_regression_finds_the_truth():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    p = 1 / (1 + np.exp(-(0.5 + 2 * x[:, 0])))
    y = (rng.random(4000) < p).astype(int)
    found = fit_logistic(x, y, 2, ridge=1e-3, balanced=False)
    slope = (found.weights[:, 1] - found.weights[:, 0]) / found.scale
    # standard errors of slope and offset are 0.06 and 0.04 for 4000 examples
    np.testing.assert_allclose(slope, [2, 0], atol=0.2)
    predicted = found.predict(x)[:, 1]
    assert abs(predicted - p).max() < 0.1  # offset and slope both one and a half standard errors off
    missing = x.copy()
    missing[0, 1] = np.nan  # counts as the centre of that feature
    np.testing.assert_allclose(found.predict(missing)[1:], found.predict(x)[1:])


def test_products_need_the_second_degree():
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (300, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    right = [np.mean(fit_logistic(x, y, 2, ridge=0.1, degree=d).predict(x).argmax(axis=1) == y) for d in (1, 2)]
    assert right[0] < 0.7 and right[1] > 0.95


def test_cross_validation_holds_images_out():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    ridge, held_out = choose_ridge(x, y, np.repeat(np.arange(8), 5), 2)
    assert held_out.shape == (40, 2) and np.isfinite(held_out).all()
    assert ridge >= 10  # nothing to learn: the strongest penalties win
    with pytest.raises(UserError, match="At least two classes"):
        fit_logistic(x, np.zeros(40, int), 2)
    assert len(FEATURES) == 27
