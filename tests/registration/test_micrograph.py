"""Micrographs corrected while they are read: black, fields, means; labels on their grid."""

import json

import numpy as np

from keras_microseg.registration import (
    CorrectedMicrograph,
    Correction,
    ResampledLabels,
    Transform,
    estimate_correction,
    find_fields,
)
from keras_microseg.simulation.rocks import Rock, RockSettings


def test_ground_disc_and_fields_of_a_micrograph():
    rock = Rock(RockSettings((1200, 1180), seed=3, grain_size=40, sem_field=256))
    sem, classes = rock.sem[...], rock.classes[...]
    found = estimate_correction(sem)
    assert found.black == 16
    assert abs(found.disc.radius - 0.48 * 1180) < 2
    assert all(b.tolist() == [0, 256, 512, 768, 1024] for b in found.gains.borders)
    again = Correction.from_dict(json.loads(json.dumps(found.to_dict())))
    fixed = CorrectedMicrograph(sem, again)[...]

    def spread(image):  # of the mean grey of quartz between whole fields
        fields = [np.s_[i : i + 256, j : j + 256] for i in (256, 512, 768) for j in (256, 512, 768)]
        return np.std([image[f][classes[f] == 2].mean() for f in fields])

    assert spread(fixed) < 0.3 * spread(sem)
    outside = ~found.disc.mask(sem.shape)
    assert np.median(fixed[outside]) == 0


def test_no_fields_are_made_up():
    for seed in range(3):
        rock = Rock(RockSettings((700, 700), seed, grain_size=40, sem_field=0))
        assert find_fields(rock.sem[...].astype(np.float32)) is None


def test_a_reduced_window_is_that_of_the_reduced_whole():
    image = np.random.default_rng(0).integers(0, 255, (61, 83), np.uint8)
    reduced = CorrectedMicrograph(image, Correction(black=20), factor=4)
    whole = np.clip(image[:60, :80].astype(float) - 20, None, None).reshape(15, 4, 20, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(reduced[...], np.clip(np.rint(whole), 0, 255).astype(np.uint8))
    np.testing.assert_array_equal(reduced[3:9, 5:11], reduced[...][3:9, 5:11])


def test_labels_and_transform_at_another_scale():
    labels = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24) % 250
    transform = Transform.similarity(8.0, 2.0, (5.0, -3.0), shape=labels.shape)
    small = transform.rescaled(4)
    point = np.array([7.25, 11.5])
    np.testing.assert_allclose(small(point), (transform(point) - 1.5) / 4)
    np.testing.assert_allclose(small.rescaled(1 / 4)(point), transform(point))
    lazy = ResampledLabels(labels, small, (45, 50))
    np.testing.assert_array_equal(lazy[...], transform.resample_labels(labels, (45, 50), factor=4, fill=255))
    np.testing.assert_array_equal(lazy[10:20, 30:41], lazy[...][10:20, 30:41])
