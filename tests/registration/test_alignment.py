"""Alignment of simulated pairs: the transform comes back, says so itself, and travels as JSON."""

import json

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.registration import AlignmentSettings, Transform, align, checkerboard, edge_overlay, residual_chart
from keras_microseg.registration.alignment import mutual_information
from keras_microseg.simulation.rocks import COLOURS, Rock, RockSettings


def true_error(rock, transform):
    points = np.stack(np.indices(rock.map_shape), -1)[::4, ::4]
    truth, shape = rock.map_to_sem(points), np.array(rock.settings.shape)
    inside = np.hypot(*np.moveaxis(truth - (shape - 1) / 2, -1, 0)) < rock.settings.disc * shape.min() / 2
    return np.hypot(*np.moveaxis(transform(points) - truth, -1, 0))[inside] / rock.settings.scale


@pytest.fixture(scope="module")
def pair():
    rock = Rock(RockSettings((1050, 1000), seed=4, grain_size=40, scale=4, pitch=(90, 90), sem_field=256))
    return rock, rock.sem[...], rock.mineral_map[...]


@pytest.fixture(scope="module")
def aligned(pair):
    rock, sem, labels = pair
    return align(sem, labels, borders=rock.field_borders)


def test_the_map_of_the_reference_is_aligned(pair, aligned):
    rock, _, labels = pair
    error, figures = true_error(rock, aligned.transform), aligned.figures()
    assert error.mean() < 0.5 and np.percentile(error, 95) < 1
    assert figures["held_out_mean"] < 0.5 and figures["residual_p95"] < 1
    assert figures["scale"] == pytest.approx(4, rel=0.003)
    assert figures["rotation_degrees"] == pytest.approx(0.48, abs=0.2)
    before, after = aligned.mutual_information
    assert after > before + 0.2
    assert aligned.expected[1] < aligned.expected[4] < aligned.expected[2] < aligned.expected[6]


def test_the_scale_of_the_reference():
    """Scale 19.8, 0.48 degrees, overlaps, shear and jitter of the fields; the micrograph is read once, in bands."""
    rock = Rock(RockSettings((3000, 2960), seed=1, grain_size=160, pitch=(70, 70), scale=19.8, sem_field=700))
    found = align(rock.sem, rock.mineral_map[...], borders=rock.field_borders)
    error = true_error(rock, found.transform)
    assert error.mean() < 0.25 and np.percentile(error, 95) < 0.5  # measured 0.11 and 0.21; required 0.5 and 1


def test_from_the_micrograph_back_to_the_map(pair, aligned):
    rock, _, labels = pair
    inner = np.array([[40.0, 35.0], [100.25, 130.5], [200.0, 60.0]])  # in the middle of fields, no other covers them
    back, covered = aligned.transform.inverse(aligned.transform(inner))
    assert covered.all()
    np.testing.assert_allclose(back, inner, atol=1e-9)
    values = aligned.transform.to_dict()
    row, column = aligned.transform.field_of(inner[1])
    np.testing.assert_allclose(  # the formula in the file
        np.array(values["inverse_linear"]) @ (aligned.transform(inner[1]) - np.array(values["shifts"])[row, column]),
        inner[1],
    )
    outside, covered = aligned.transform.inverse([-5000.0, 0.0])
    assert not covered and np.isnan(outside).all()


def test_the_transform_travels_as_json(aligned):
    again = Transform.from_dict(json.loads(json.dumps(aligned.transform.to_dict())))
    points = np.array([[3.0, 5.0], [100.5, 200.25], [249.0, 10.0]])
    np.testing.assert_allclose(again(points), aligned.transform(points))


def test_labels_on_the_grid_of_the_micrograph(pair, aligned):
    rock, sem, labels = pair
    truth = rock.classes[...]
    painted = aligned.transform.resample_labels(labels, sem.shape)
    solid = np.isin(truth, (2, 3))
    assert (painted == truth)[solid].mean() > 0.85  # one spectrum per 4 x 4 pixels, outlines of grains of 40
    part = aligned.transform.resample_labels(labels, (70, 90), origin=(300, 400))
    np.testing.assert_array_equal(part, painted[300:370, 400:490])


def test_pictures(pair, aligned):
    _, sem, labels = pair
    grey = aligned.transform.resample_sem(sem)
    painted = np.array(COLOURS, np.uint8)[labels]
    board = checkerboard(grey, painted, square=16)
    assert board.dtype == np.uint8 and (board[:16, 16:32] == painted[:16, 16:32]).all()
    assert (edge_overlay(grey, labels)[..., 0] == 255).mean() > 0.1
    assert len(residual_chart(aligned).axes) == 2
    with pytest.raises(UserError, match="one shape"):
        checkerboard(grey, painted[1:])


def test_one_field_without_a_disc_from_a_given_start():
    rock = Rock(
        RockSettings((640, 600), seed=2, grain_size=40, scale=4, pitch=(400, 400), disc=0, jitter=0, rotation=1.0)
    )
    labels = rock.mineral_map[...]
    shift = rock.map_to_sem([[75.0, 75.0]])[0] - 4 * 75 + 12  # three map pixels off
    start = Transform.similarity(4, 0, shift, shape=labels.shape)
    settings = AlignmentSettings(search=8, ignore=0)
    found = align(rock.sem, labels, initial=start, settings=settings).transform
    inner = np.stack(np.meshgrid(np.arange(15, 140), np.arange(15, 130), indexing="ij"), -1)
    error = np.hypot(*np.moveaxis(found(inner) - rock.map_to_sem(inner), -1, 0)) / 4
    assert error.mean() < 0.3 and np.percentile(error, 95) < 0.6
    assert found.rotation == pytest.approx(1.0, abs=0.3)


def test_mutual_information_has_its_known_values():
    classes = np.repeat(np.arange(4), 100).reshape(20, 20)
    assert mutual_information(classes, classes * 10.0) == pytest.approx(2)
    assert mutual_information(np.zeros((20, 20), int), classes * 10.0) == pytest.approx(0)


def test_what_cannot_be_aligned_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="initial"):
        align(np.full((100, 100), 7, np.uint8), np.ones((30, 30), np.uint8))
    start = Transform.similarity(3, shape=(64, 64))
    with pytest.raises(UserError, match="No part of the map matches"):
        align(rng.integers(0, 255, (200, 200)), rng.integers(1, 4, (64, 64)), initial=start,
              settings=AlignmentSettings(min_score=0.6))  # fmt: skip
    with pytest.raises(UserError, match="shape"):
        align(np.ones((100, 100)), np.ones((30, 30), int), initial=start)
    with pytest.raises(UserError, match="two axes"):
        align(np.ones((100, 100, 3)), np.ones((30, 30), int))
