"""Discs, fields of a mosaic and their brightness: known answers."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.registration import find_disc, find_mosaic, match_fields, reduce_image, repair_mosaic
from keras_microseg.simulation.rocks import Rock, RockSettings


def mosaic_of(scene, pitch, first, overlap, shear, fields):
    """What an instrument makes of `scene`: fields that repeat rows and columns and are set off."""
    rows, columns = (
        np.concatenate([[0], f + p * np.arange(n - 1)]) for f, p, n in zip(first, pitch, fields, strict=True)
    )
    shape = rows[-1] + pitch[0] - 7, columns[-1] + pitch[1] - 9
    out = np.zeros(shape, scene.dtype)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            y = np.arange(top, min(np.append(rows, shape[0])[i + 1], shape[0])) - i * overlap[0] + j * shear[0]
            x = np.arange(left, min(np.append(columns, shape[1])[j + 1], shape[1])) - j * overlap[1] + i * shear[1]
            out[top : top + len(y), left : left + len(x)] = scene[np.ix_(y + 40, x + 40)]
    return out


def scene_of(seed, shape):
    rock = Rock(RockSettings(tuple(4 * n for n in shape), seed, grain_size=40, disc=0))
    y, x = np.meshgrid(*(np.arange(n) * 4 for n in shape), indexing="ij")
    return rock.class_at(y, x)


@pytest.mark.parametrize(
    ("overlap", "shear"), [((3, 5), (1, 3)), ((5, 4), (0, 0)), ((4, 1), (-2, -3)), ((0, 0), (2, 3))]
)
def test_layout_of_a_mosaic_is_found(overlap, shear):
    scene = scene_of(1, (560, 520))
    labels = mosaic_of(scene, (90, 84), (97, 89), overlap, shear, (5, 5))
    noisy = np.where(np.random.default_rng(0).random(labels.shape) < 0.03, 6, labels)
    found = find_mosaic(noisy)
    assert found.pitch == (90, 84)
    assert (found.overlap, found.shear) == (overlap, shear)
    assert [f % p for f, p in zip(found.first, found.pitch, strict=True)] == [7, 5]


def test_repair_gives_the_scene_back():
    scene = scene_of(2, (560, 520))
    labels = mosaic_of(scene, (90, 84), (90, 84), (3, 5), (1, 3), (5, 5))
    found = find_mosaic(labels)
    repaired, valid = repair_mosaic(labels, found, fill=255)
    corner = np.argwhere(valid[0])[0, 0]
    assert (repaired[~valid] == 255).all() and valid.mean() > 0.85
    window = scene[40 : 40 + repaired.shape[0], 40 : 40 + repaired.shape[1]]
    inside = valid[: window.shape[0], : window.shape[1]]
    np.testing.assert_array_equal(repaired[: window.shape[0], : window.shape[1]][inside], window[inside])
    assert corner == 0
    with pytest.raises(UserError, match="layout"):
        repair_mosaic(labels[1:], found)


@pytest.mark.slow
def test_the_layout_of_the_reference():
    scene = scene_of(3, (1700, 1700))
    labels = mosaic_of(scene, (360, 360), (367, 365), (3, 5), (1, 3), (4, 4))
    found = find_mosaic(labels)
    assert (found.pitch, found.first) == ((360, 360), (7, 5)) or found.first == (367, 365)
    assert (found.overlap, found.shear) == ((3, 5), (1, 3))


def test_a_map_without_fields_is_refused():
    with pytest.raises(UserError, match="No periodic field borders"):
        find_mosaic(scene_of(5, (300, 300)))
    with pytest.raises(UserError, match="two axes"):
        find_mosaic(np.zeros((4, 4, 3), int))


def test_disc_with_a_chip_and_pores():
    rock = Rock(RockSettings((900, 1000), seed=1, grain_size=40, disc=0.9))
    image = rock.sem[...].copy()
    image[200:420, :240] = 16  # a chip
    disc = find_disc(image)
    np.testing.assert_allclose(disc.centre, (449.5, 499.5), atol=2)
    assert disc.radius == pytest.approx(405, abs=2) and disc.background == pytest.approx(16, abs=1)
    assert disc.mask(image.shape).sum() == pytest.approx(np.pi * 405**2, rel=0.02)
    half = disc.mask((450, 500), factor=2)
    assert half.sum() == pytest.approx(disc.mask(image.shape).sum() / 4, rel=0.005)
    again = find_disc(rock.classes, is_mask=True)  # lazily
    assert again.radius == pytest.approx(405, abs=1.5)


@pytest.mark.parametrize("image", [np.zeros((50, 50)), np.pad(np.ones((20, 90)), 30)])
def test_no_disc(image):
    with pytest.raises(UserError, match="[Ss]ample"):
        find_disc(image)


def test_reduced_images_are_means():
    image = np.arange(35 * 42).reshape(35, 42).astype(np.uint16)
    np.testing.assert_allclose(reduce_image(image, 7), image.reshape(5, 7, 6, 7).mean(axis=(1, 3)))
    assert reduce_image(image, 4).shape == (8, 10)


def test_steps_between_fields_vanish():
    rng = np.random.default_rng(3)
    clean = Rock(RockSettings((480, 400), grain_size=25, disc=0, sem_field=0, charging=0, offset=16)).sem[...]
    borders = np.arange(0, 480, 120), np.arange(0, 400, 100)
    gains = rng.normal(1, 0.06, (4, 4))
    profile = 1 + 0.1 * np.cos(np.linspace(-1.5, 1.5, 120))[:, None] * np.cos(np.linspace(-1.5, 1.5, 100))
    factor = np.kron(gains, np.ones((120, 100))) * np.tile(profile, (4, 4))
    image = (clean - 16.0) * factor + 16
    found = match_fields(image, borders, black=16, shading=True)
    fixed = found.apply(image)
    ratio = found.gains / gains * gains.mean()
    assert ratio.std() < 0.025 < gains.std() / 2  # grains of 25 px leave 2 % over four fields
    assert abs(found.shading - profile / profile.mean()).mean() < 0.02
    np.testing.assert_allclose(found.apply(image[100:300, 50:250], (100, 50)), fixed[100:300, 50:250])
    with pytest.raises(UserError, match="one shape"):
        match_fields(image, borders, mask=np.ones((3, 3), bool))
