"""Simulated rocks: windows equal the whole, fractions come out, the map lies where the transform says."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.simulation.rocks import COLOURS, MINERALS, Rock, RockSettings

SMALL = RockSettings((600, 640), grain_size=40, scale=4, pitch=(60, 60), sem_field=128)


def test_windows_equal_the_whole():
    rock, again = Rock(SMALL), Rock(SMALL)
    for name in ("sem", "classes", "mineral_map"):
        whole = getattr(rock, name)[...]
        assert whole.dtype == np.uint8 and whole.shape == getattr(rock, name).shape
        np.testing.assert_array_equal(getattr(again, name)[37:101, 50:143], whole[37:101, 50:143])
        np.testing.assert_array_equal(getattr(again, name)[99:100, ::7], whole[99:100, ::7])
    assert (Rock(RockSettings((64, 64), seed=1)).sem[...] != Rock(RockSettings((64, 64), seed=2)).sem[...]).mean() > 0.5


def test_fractions_are_those_asked_for():
    settings = RockSettings((1500, 1500), grain_size=12, disc=0)
    found = Rock(settings).fractions()
    # 15,600 grains and 62,500 small cells: deviation of a share of 0.4 is 0.4 points; cells differ in size
    np.testing.assert_allclose(list(found.values()), settings.abundances, atol=0.015)
    assert len(COLOURS) == len(MINERALS) == len(set(COLOURS))


def test_greys_tell_minerals_and_the_disc_is_round():
    rock = Rock(SMALL)
    grey, classes = rock.sem[...].astype(float), rock.classes[...]
    means = [grey[classes == k].mean() for k in range(7)]
    assert means[0] < means[1] < means[4] < means[2] < means[5] < means[6]
    assert abs(means[0] - 16) < 1.5 and abs(means[2] - means[3]) < 8
    assert (classes > 0).sum() == pytest.approx(np.pi * (0.48 * 600) ** 2, rel=0.002)


def test_the_map_shows_what_lies_under_its_pixels():
    rock = Rock(SMALL)
    names = rock.mineral_map[...]
    rows, columns = np.indices(names.shape)
    at = np.rint(rock.map_to_sem(np.stack([rows, columns], -1))).astype(int)
    inside = ((at >= 0) & (at < SMALL.shape)).all(axis=-1)
    true = rock.classes[...][tuple(at[inside].T)]
    solid = ~np.isin(true, (0, 4))
    assert (names[inside] == true)[solid].mean() > 0.95
    assert (names[inside] == true)[true == 4].mean() == pytest.approx(0.7, abs=0.06)


def test_fields_repeat_rows_and_columns_and_are_set_off():
    rock = Rock(RockSettings((600, 640), grain_size=40, scale=4, rotation=0, pitch=(60, 60), jitter=0))
    here, there = rock.map_to_sem([[30, 59], [30, 60]])
    np.testing.assert_allclose(there - here, [4.0, 4 * (1 - 5)])  # a row down, and four columns back
    here, there = rock.map_to_sem([[59, 30], [60, 30]])
    np.testing.assert_allclose(there - here, [4 * (1 - 3), 12.0])


def test_windows_of_a_gigapixel_image():
    rock = Rock(RockSettings((88_000, 87_000), sem_field=4096))
    window = rock.sem[44_000:44_064, 40_000:40_064]
    assert window.shape == (64, 64) and 20 < window.mean() < 220
    assert rock.map_shape[0] > 4400 and (rock.mineral_map[2300:2310, 2300:2310] > 0).any()


@pytest.mark.parametrize(
    "wrong", [{"abundances": (0.5, 0.1, 0, 0, 0, 0)}, {"shape": (0, 5)}, {"overlap": (3, 200)}, {"scale": 0}]
)
def test_bad_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RockSettings(**wrong)
