"""Patches of volumes: where they come from, what sparse labels give, splits, augmentation, phantoms."""

import dataclasses

import numpy as np
import pytest
from harness import check_dataset

from keras_microseg.checks import UserError
from keras_microseg.data.augment_volumes import (
    FLIPS_ONLY,
    NO_VOLUME_AUGMENTATION,
    VolumeAugmentSettings,
    take_patch,
    vary_volume_grey,
)
from keras_microseg.data.targets import class_maps, instance_maps
from keras_microseg.data.volumes import LabelledVolume, SimulatedPhantoms, VolumePatches, split_slices
from keras_microseg.intensity import Normalizer
from keras_microseg.simulation.packing import place_spheres
from keras_microseg.simulation.phantoms import PhantomPlan
from keras_microseg.simulation.random_phantoms import random_phantom

pytestmark = pytest.mark.network
SHAPE = (30, 24, 28)
Z, Y, X = np.indices(SHAPE)
CODE = (Z * 10000 + Y * 100 + X).astype(np.float32)  # every voxel tells where it is
SCALE = Normalizer("fixed", 0.0, 300000.0)


class Lazy:
    """Gives windows only, and remembers how many voxels were asked for."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, key):
        assert all(isinstance(part, slice) for part in key)
        self.largest = max(self.largest, self.array[key].size)
        return self.array[key]


def balls(shape=SHAPE):
    rng = np.random.default_rng(0)
    plan = PhantomPlan.of_spheres(shape, *place_spheres(rng, shape, 8, 0.0, 0.2))
    return plan.read_labels(tuple(slice(0, n) for n in shape))


def volume(**options):
    return LabelledVolume(CODE, balls(), SCALE, **options)


def test_batches_are_repeatable_and_lazy():
    grey = Lazy(CODE)
    data = VolumePatches([LabelledVolume(grey, balls(), SCALE)], 3, 2, 5, size=(8, 12, 12))
    check_dataset(data, (2, 8, 12, 12, 1), (2, 8, 12, 12, 3))
    assert grey.largest < 8 * 12 * 12 * 4
    assert data.fingerprint() == VolumePatches([volume()], 3, 2, 5, size=(8, 12, 12)).fingerprint()


def test_patches_stay_in_their_slices():
    ranges = ((0, 9), (20, 30))
    for settings in (NO_VOLUME_AUGMENTATION, VolumeAugmentSettings(rings=0, stripes=0, noise=0, blur=0, gamma=0,
                     contrast=0, dropped_slices=0, elastic=2.0)):  # fmt: skip
        plain = VolumePatches([volume(slices=ranges)], 20, 1, 1, size=(8, 12, 12), augment=settings)
        depths = np.concatenate([np.ravel(plain[i][0]) for i in range(20)]) * 300000 / 10000
        inside = (depths < 9.3) | (depths > 19.9)
        assert inside.mean() > 0.999  # linear interpolation between two y, x codes shifts a little
    training, validation = split_slices(200, 0.2, 40, least=16, seed=3)
    (block,) = validation
    assert block[1] - block[0] == 40 and all(b <= block[0] - 40 or a >= block[1] + 40 for a, b in training)
    assert split_slices(10, 0, 5) == (((0, 10),), ())
    with pytest.raises(UserError, match="need 36"):
        split_slices(30, 0.3, 4, least=16)


def test_sparse_labels_weigh_annotated_voxels_only():
    data = VolumePatches(
        [volume(labelled=(4, 15))], 8, 1, 0, size=(8, 12, 12), outputs=("foreground",), augment=FLIPS_ONLY
    )
    for i in range(8):
        x, y = data[i]
        assert y.shape[-1] == 2
        z = np.floor(x[0, ..., 0] * 30)
        np.testing.assert_array_equal(y[0, ..., 1] > 0, np.isin(z, (4, 15)))
        assert y[..., 1].any()
    labels = balls().astype(np.uint8)
    labels[:, :12] = 255
    sparse = VolumePatches(
        [LabelledVolume(CODE, labels, SCALE, ignore=255)], 2, 1, 0, size=(8, 12, 12), outputs=("foreground",)
    )
    assert 0 < sparse[0][1][..., 1].mean() < 1 or 0 < sparse[1][1][..., 1].mean() < 1
    with pytest.raises(UserError, match="Sparse labels"):
        VolumePatches([volume(labelled=(4,))], 1, 1, 0, size=8)


def test_classes_and_25d():
    labels = (Z // 10).astype(np.uint8)
    data = VolumePatches([LabelledVolume(CODE, labels, SCALE)], 2, 2, 0, size=8, num_classes=3)
    x, y = data[0]
    assert y.shape == (2, 8, 8, 8, 3) and (y.sum(axis=-1) == 1).all()
    thin = VolumePatches([volume()], 2, 2, 0, size=(1, 12, 8), num_slices=5, augment=NO_VOLUME_AUGMENTATION)
    x, y = thin[0]
    assert x.shape == (2, 12, 8, 5) and y.shape == (2, 12, 8, 3)
    np.testing.assert_allclose(np.diff(x * 30, axis=-1), 1, atol=1e-3)  # channels are neighbouring slices


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelledVolume(CODE, balls((30, 24, 27)), SCALE, name="a.tif"), "a.tif.*one shape"),
        (lambda: VolumePatches([volume()], 1, 1, 0, size=(32, 8, 8)), "30 slices is thinner.*size=\\(32, 8, 8\\)"),
        (lambda: VolumePatches([volume()], 1, 1, 0, size=(8, 25, 8)), "planes of"),
        (lambda: VolumePatches([volume(slices=((0, 4),))], 1, 1, 0, size=8), "4 slices is thinner"),
        (lambda: VolumePatches([LabelledVolume(CODE, 0 * balls(), SCALE)], 1, 1, 0, size=8), "no foreground"),
        (lambda: volume(labelled=(30,)), "must name slices in 0..29"),
        (lambda: volume(slices=((3, 31),)), "must lie in 0..30"),
        (lambda: VolumePatches([], 1, 1, 0), "No labelled volumes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_grey_and_labels_move_together():
    rng = np.random.default_rng(0)
    solid = (np.hypot(Y - 12, X - 14) < 6).astype(np.float32)
    settings = VolumeAugmentSettings(rotate=30, zoom=1.3, elastic=2)
    region = tuple((0, n) for n in SHAPE)
    for _ in range(5):
        grey, labels = take_patch(rng, [solid, solid.astype(np.int32)], (15, 12, 14), (8, 16, 16), region, settings)
        assert grey.dtype == np.float32 and labels.dtype == np.int32
        assert np.mean((grey > 0.5) == labels) > 0.98 and 0.05 < labels.mean() < 0.95
    plain = take_patch(rng, [CODE], (2, 12, 26), (8, 8, 8), region, orders=(1,))[0]
    np.testing.assert_array_equal(plain, CODE[0:8, 8:16, 20:28])


def test_artefacts_are_those_of_scanners():
    grey = np.full((6, 32, 32), 0.5, np.float32)
    off = dataclasses.asdict(NO_VOLUME_AUGMENTATION)
    for name in ("rings", "stripes"):
        found = vary_volume_grey(np.random.default_rng(1), grey, VolumeAugmentSettings(**off | {name: 0.5}))
        assert found.std() > 0.001
        np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))  # equal in all slices
    lost = vary_volume_grey(np.random.default_rng(1), grey, VolumeAugmentSettings(**off | {"dropped_slices": 1}))
    assert np.count_nonzero((lost != 0.5).any(axis=(1, 2))) == 1
    np.testing.assert_array_equal(vary_volume_grey(np.random.default_rng(1), grey, NO_VOLUME_AUGMENTATION), grey)


def test_target_maps_of_spheres():
    labels = np.zeros((20, 20, 30), np.int32)
    z, y, x = np.indices(labels.shape)
    labels[(z - 9.5) ** 2 + (y - 9.5) ** 2 + (x - 7) ** 2 < 49] = 1
    labels[((z - 9.5) ** 2 + (y - 9.5) ** 2 + (x - 20) ** 2 < 49) & (labels == 0)] = 2
    maps = instance_maps(labels, ("foreground", "boundary", "distance"))
    np.testing.assert_array_equal(maps[..., 0], labels > 0)
    touching = np.nonzero(maps[..., 1])
    assert len(touching[0]) > 20 and np.abs(touching[2] - 13.5).max() <= 1.5
    assert maps[9, 9, 7, 2] == pytest.approx(1, abs=0.08) and maps[..., 2][labels == 0].max() == 0
    with pytest.raises(UserError, match="flow_y"):
        instance_maps(labels, ("flow_y",))
    np.testing.assert_array_equal(class_maps(np.array([0, 2, 9]), 3), [[1, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_phantoms_are_endless_and_their_labels_exact():
    data = SimulatedPhantoms(2, 1, 0, size=(16, 24, 24), diameter=(6, 9))
    check_dataset(data, (1, 16, 24, 24, 1), (1, 16, 24, 24, 3))
    rng = np.random.default_rng(3)
    centres, radii = place_spheres(rng, (40, 40, 40), 10, 0.1, 0.3, touching=0.5)
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2) - radii[:, None] - radii[None]
    np.fill_diagonal(gaps, 1)
    assert gaps.min() >= 0 and (gaps < 0.3).any()
    labels = PhantomPlan.of_spheres((40, 40, 40), centres, radii).read_labels((slice(0, 40),) * 3)
    whole = [r for c, r in zip(centres, radii, strict=True) if (c - r > 0).all() and (c + r < 39).all()]
    counted = np.bincount(labels.ravel())[1:]
    assert sum(np.isclose(counted, 4 / 3 * np.pi * r**3, rtol=0.05).any() for r in whole) == len(whole)
    grey, labels = random_phantom(rng, (16, 20, 24), fraction=(0.2, 0.3))
    assert grey.dtype == np.float32 and grey.shape == labels.shape and np.isfinite(grey).all()
