"""Phantoms: exact labels, wanted volume share, blocks equal to the whole, artefacts that can be switched."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.simulation.phantoms import PRESETS, PhantomSettings, make_phantom, plan_phantom

QUIET = {"noise": 0.0, "rings": 0.0, "fringe": 0.0}


@pytest.mark.parametrize("kind", ["spheres", "grains", "fibres"])
@pytest.mark.parametrize("extra", [{}, {"noise_correlation": 0.8, "sample": 0.7, "tilt": 20, "cupping": 0.1}])
def test_a_block_equals_the_same_part_of_the_whole(kind, extra):
    settings = PhantomSettings(kind=kind, shape=(40, 45, 50), diameter=12, **extra)
    whole = make_phantom(settings)
    box = (slice(7, 39), slice(3, 41), slice(30, 50))
    grey, labels = plan_phantom(settings).read(box)
    np.testing.assert_array_equal(grey, whole.volume[box])
    np.testing.assert_array_equal(labels, whole.labels[box])
    assert whole.volume.dtype == np.uint16 and whole.labels.dtype == np.int32
    other = make_phantom(PhantomSettings(kind=kind, shape=(40, 45, 50), diameter=12, seed=1, **extra))
    assert (other.volume != whole.volume).any()


def test_labels_are_exact_spheres():
    phantom = make_phantom(PhantomSettings(shape=(48, 48, 48), diameter=14, fraction=0.25))
    position = np.indices((48, 48, 48))
    for row in phantom.table.itertuples():
        centre = np.array([row.z, row.y, row.x]).reshape(3, 1, 1, 1)
        inside = ((position - centre) ** 2).sum(axis=0) <= (row.diameter / 2) ** 2
        np.testing.assert_array_equal(phantom.labels == row.label, inside)
        if row.whole:  # volume of a digitized sphere: within a few percent at this size
            assert inside.sum() == pytest.approx(np.pi / 6 * row.diameter**3, rel=0.03)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.3, 0.5])
def test_fraction_of_spheres(fraction):
    phantom = make_phantom(PhantomSettings(shape=(72, 72, 72), diameter=12, fraction=fraction, **QUIET))
    assert (phantom.labels > 0).mean() == pytest.approx(fraction, abs=0.005)


def test_fraction_of_grains_and_fibres():
    grains = make_phantom(PhantomSettings(kind="grains", shape=(64, 64, 64), diameter=14, fraction=0.6))
    assert (grains.labels > 0).mean() == pytest.approx(0.6, abs=0.04)
    shares = [
        (plan_phantom(PhantomSettings(kind="fibres", shape=(48, 48, 48), diameter=5, fraction=0.15, seed=seed))
         .read_labels((slice(0, 48),) * 3) > 0).mean()
        for seed in range(6)
    ]  # fmt: skip
    assert np.mean(shares) == pytest.approx(0.15, abs=0.02)


def test_touching_and_kept_apart():
    def gaps(**changes):
        table = make_phantom(PhantomSettings(shape=(60, 60, 60), diameter=12, fraction=0.15, **changes)).table
        centres, radii = table[["z", "y", "x"]].to_numpy(), table["diameter"].to_numpy() / 2
        distance = np.linalg.norm(centres[:, None] - centres, axis=2) - radii[:, None] - radii
        return distance[np.triu_indices(len(radii), 1)]

    assert gaps().min() > -0.02 and gaps(gap=3).min() > 2.98
    assert (gaps(clustering=1.0) < 0.1).sum() > 10


def test_grey_values():
    clean = make_phantom(PhantomSettings(diameter=20, shape=(48, 48, 48), dtype="float32", **QUIET))
    deep = clean.volume[clean.labels > 0].max()
    assert deep == pytest.approx(0.5, abs=1e-3) and clean.volume.min() == pytest.approx(0.4, abs=1e-3)
    rim = PhantomSettings(diameter=20, shape=(48, 48, 48), dtype="float32", contrast=0.0, fringe=0.2, noise=0, rings=0)
    rim = make_phantom(rim)
    assert rim.volume[rim.labels > 0].mean() > 0.4 > rim.volume[rim.labels == 0].mean()  # bright inside, dark outside
    noisy = PhantomSettings(fraction=0.0, shape=(48, 48, 48), dtype="float32", noise=0.05, rings=0, poisson=0.5)
    assert make_phantom(noisy).volume.std() == pytest.approx(0.05, rel=0.02)
    smooth = PhantomSettings(fraction=0.0, shape=(48, 48, 48), dtype="float32", noise_correlation=1.0, rings=0)
    assert make_phantom(smooth).volume.std() == pytest.approx(0.05, rel=0.05)
    rings = make_phantom(PhantomSettings(fraction=0.0, shape=(8, 64, 64), dtype="float32", noise=0, rings=0.02)).volume
    assert (rings[:, 40, 32 + 10] != rings[:, 40, 32 + 11]).any() and rings.std() == pytest.approx(0.02, rel=0.4)
    np.testing.assert_array_equal(rings, rings[:, ::-1])  # round about the middle
    for name, look in PRESETS.items():
        assert make_phantom(PhantomSettings(shape=(16, 16, 16), **look)).volume.shape == (16, 16, 16), name


def test_square_sample_turned_in_the_field():
    settings = PhantomSettings(shape=(8, 80, 80), diameter=10, sample=0.6, tilt=30, dtype="float32", **QUIET)
    phantom = make_phantom(settings)
    inside = phantom.volume[4] > 0.325
    assert inside.mean() == pytest.approx(0.36, abs=0.01) and (phantom.labels[:, ~inside] == 0).all()
    assert not inside[40 + 23, 40 + 23] and inside[40, 40 + 22]  # corners of the upright square are cut


def test_bad_settings():
    with pytest.raises(UserError, match="No room"):
        make_phantom(PhantomSettings(shape=(48, 48, 48), fraction=0.55, diameter=12, gap=4))
    with pytest.raises(UserError, match="`kind` must be one of"):
        PhantomSettings(kind="cubes")
    with pytest.raises(UserError, match="fraction"):
        PhantomSettings(fraction=0.9)
