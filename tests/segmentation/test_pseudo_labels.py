"""Automatic masks: the published procedure exactly, in any number of slabs; options with known answers."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage import exposure, filters, morphology

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.image import LazyArray
from keras_microseg.intensity import volume_statistics
from keras_microseg.segmentation.clahe import Clahe
from keras_microseg.segmentation.pseudo_labels import (
    MaskSettings,
    clahe_otsu,
    make_mask,
    phase_filter_strength,
)
from keras_microseg.simulation import PhantomSettings, make_phantom

DATA = Path(os.environ.get("MICROSEG_DATA", Path(__file__).parents[2] / "../shared/data")) / "xct_volumes"
PLAIN = {"clahe": False, "invert": "never"}


class Lazy(LazyArray):
    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def read_block(self, block):
        self.largest = max(self.largest, self.array[block].nbytes)
        return self.array[block]


def published(volume, side=None):
    """Section 5 of the specification, step by step."""
    equalized = exposure.equalize_adapthist(volume)
    mask = equalized > filters.threshold_otsu(equalized)
    for plane in mask:
        if plane.mean() > 0.5:
            plane[:] = ~plane
    if side is not None:
        top, left = (volume.shape[1] - side) // 2, (volume.shape[2] - side) // 2
        kept = np.zeros_like(mask)
        kept[:, top : top + side, left : left + side] = mask[:, top : top + side, left : left + side]
        mask = kept
    return mask.astype(np.uint8) * 255


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(20, 45, 51), (9, 16, 23)])
def test_clahe_equals_scikit_image_bit_by_bit(dtype, shape):
    volume = make_phantom(PhantomSettings(shape=shape, diameter=10, dtype=dtype)).volume
    lazy = Lazy(volume)
    clahe = Clahe(lazy, volume_statistics(volume), planes=4)
    got = np.stack([clahe.plane(z, plane) for z, plane in enumerate(volume)])
    got = clahe.scaled((int(got.min()), int(got.max())))[got]
    np.testing.assert_array_equal(got, exposure.equalize_adapthist(volume))
    assert lazy.largest == volume[:4].nbytes


def test_published_procedure():
    volume = make_phantom(PhantomSettings(shape=(24, 40, 40), diameter=10, fraction=0.3)).volume
    volume[5] = 60000 - volume[5] // 8  # mostly bright: this slice is inverted
    np.testing.assert_array_equal(clahe_otsu(volume, centre_square=31), published(volume, 31))
    out = np.zeros(volume.shape, np.uint8)
    facts = make_mask(Lazy(volume), out, MaskSettings(), max_ram=100_000)  # several slabs
    np.testing.assert_array_equal(out, published(volume))
    assert facts["kind"] == "pseudo-labels" and 5 in facts["inverted_slices"]
    assert np.allclose(facts["white_share"], (out > 0).mean(axis=(1, 2)))
    real = volume.astype(np.float32) / 3 - 5000  # scikit-image refuses this range
    assert (clahe_otsu(real) == clahe_otsu(volume)).mean() > 0.995


def spheres(**changes):
    settings = {"shape": (40, 48, 48), "diameter": 14, "contrast": 0.25, "fringe": 0.0, "noise": 0.02, "rings": 0.0}
    return make_phantom(PhantomSettings(**{**settings, **changes}))


def dice(mask, labels):
    truth = labels > 0
    return 2 * (truth & (mask > 0)).sum() / (truth.sum() + (mask > 0).sum())


def run(volume, max_ram="2GB", **settings):
    out = np.zeros(volume.shape, np.uint8)
    facts = make_mask(volume, out, MaskSettings(**{**PLAIN, **settings}), max_ram=max_ram)
    return out, facts


def test_threshold_alone_and_classes():
    phantom = spheres()
    mask, facts = run(phantom.volume)
    assert facts["thresholds"][0] == filters.threshold_otsu(phantom.volume) and dice(mask, phantom.labels) > 0.95
    np.testing.assert_array_equal(run(phantom.volume, threshold=30000)[0] > 0, phantom.volume > 30000)
    three = phantom.volume.copy()
    three[:, :, :10] = 5000
    classes, facts = run(three, classes=3)
    assert set(np.unique(classes)) == {0, 1, 2} and (classes[:, :, :10] == 0).all() and len(facts["thresholds"]) == 2
    np.testing.assert_array_equal(run(three, classes=3, keep_classes=(0, 2))[0] > 0, classes != 1)
    np.testing.assert_array_equal(run(phantom.volume, invert="always")[0], 255 - mask)
    with pytest.raises(UserError, match="Class maps"):
        MaskSettings(classes=3, min_size=5)


@pytest.mark.parametrize("name", ["erosion", "dilation", "opening", "closing"])
def test_morphology_in_slabs_equals_the_whole(name):
    volume = spheres(noise=0.15).volume
    whole, _ = run(volume, **{name: 2})
    slabs, _ = run(Lazy(volume), max_ram=300_000, **{name: 2})
    np.testing.assert_array_equal(whole, slabs)
    plain = run(volume)[0] > 0
    wanted = getattr(ndimage, f"binary_{name}")(np.pad(plain, 8, mode="edge"), morphology.ball(2))
    np.testing.assert_array_equal(whole[4:-4, 4:-4, 4:-4] > 0, wanted[12:-12, 12:-12, 12:-12])


def test_holes_and_small_parts():
    volume = np.zeros((20, 21, 22), np.uint8)
    volume[3:15, 3:15, 3:15] = 200
    volume[6:10, 6:10, 6:10] = 0  # a closed cavity
    volume[:, 11:13, 11:13] = 0  # a channel along z
    volume[18, 18, 18] = 200
    solid = volume > 0
    cavity, channel = solid.copy(), solid.copy()
    cavity[6:10, 6:10, 6:10] = True
    channel[3:15, 11:13, 11:13] = True
    for ram in ("1GB", 60_000):
        np.testing.assert_array_equal(run(volume, ram, fill=("3d",))[0] > 0, cavity)
        np.testing.assert_array_equal(run(volume, ram, fill=("z",))[0] > 0, cavity | channel)
        closed_along_y, _ = run(volume, ram, fill=("y", "x"))
        np.testing.assert_array_equal(closed_along_y > 0, cavity)
        kept, _ = run(volume, ram, min_size=2)
        assert kept[18, 18, 18] == 0 and (kept > 0).sum() == solid.sum() - 1


def test_regions():
    volume = spheres(fraction=0.5).volume
    everything = run(volume)[0]
    polygon = ((5, 5), (5, 30), (40, 5))
    triangle, _ = run(volume, region=polygon, threshold=30000)
    assert (
        not triangle[:, 40:, 30:].any()
        and (triangle[:, 10:15, 10:15] == run(volume, threshold=30000)[0][:, 10:15, 10:15]).all()
    )
    circle, _ = run(volume, region="circle", threshold=30000)
    assert not circle[:, 0, 0].any() and circle[:, 0:3, 24].any() and everything[:, 0, 0].any()
    y, x = np.ogrid[:48, :48]
    reconstructed = np.where(np.hypot(y - 23.5, x - 23.5) <= 20, volume, 0)  # nothing outside the circle
    found, _ = run(reconstructed, region="circle", threshold=30000)
    assert not found[:, np.hypot(y - 23.5, x - 23.5) > 20].any() and found[:, np.hypot(y - 23.5, x - 23.5) < 17].any()
    with pytest.raises(UserError, match="leaves nothing"):
        run(volume, region=((-9, -9), (-9, -8), (-8, -9)))
    with pytest.raises(UserError, match="3 corners"):
        run(volume, region=((0, 0), (1, 1)))


def test_phase_filter_turns_rims_into_filled_spheres():
    phantom = spheres(contrast=0.06, fringe=0.15, fringe_width=1.2, noise=0.03)
    rims = dice(run(phantom.volume)[0], phantom.labels)
    strength = 4.13 * 0.15 * 1.2**2 / 0.06  # the fringe is -a times the Laplacian of the blurred step
    filled = dice(run(phantom.volume, phase_filter=strength)[0], phantom.labels)
    assert rims < 0.55 and filled > 0.8, (rims, filled)
    tiled, _ = run(Lazy(phantom.volume), max_ram=4_000_000, phase_filter=2.0, threshold=28000)
    whole, _ = run(phantom.volume, phase_filter=2.0, threshold=28000)
    assert (tiled == whole).mean() > 0.9999
    smooth, _ = run(spheres(noise=0.3).volume, sigma=1.5)
    assert dice(smooth, spheres().labels) > 0.85 > dice(run(spheres(noise=0.3).volume)[0], spheres().labels)
    # lambda z (delta / beta) / (4 pi) at 27.4 keV, 60 mm, ratio 500, voxels of 0.65 um
    assert phase_filter_strength(27.4, 0.06, 500, 0.65e-6) == pytest.approx(
        4.525e-11 * 0.06 * 500 / 12.566 / 4.225e-13, rel=1e-3
    )


def test_interrupted_mask_goes_on(tmp_path):
    volume = spheres(fraction=0.5).volume
    volume[3] = 65535 - volume[3] // 2
    settings = MaskSettings(clahe=False, threshold=30000)

    def stop(done, total):
        raise KeyboardInterrupt

    def begin():
        return io.create_volume(tmp_path / "m.zarr", volume.shape, np.uint8, chunks=(4, 48, 48), resume=True, key=1)

    with pytest.raises(KeyboardInterrupt), begin() as out:
        make_mask(volume, out, settings, max_ram=140_000, progress=stop)
    with begin() as out:
        assert out.is_done("slab 0:4")
        facts = make_mask(volume, out, settings, max_ram=140_000)
    assert 3 in facts["inverted_slices"]
    wanted = np.zeros(volume.shape, np.uint8)
    make_mask(volume, wanted, settings)
    np.testing.assert_array_equal(io.open_volume(tmp_path / "m.zarr").read(), wanted)


def test_bad_input():
    volume = spheres().volume.astype(np.float32)
    with pytest.raises(UserError, match="needs the shape of the volume"):
        make_mask(volume, np.zeros((3, 4, 5), np.uint8))
    volume[3:5, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"2 of 40 slices hold NaN or infinite voxels: 3, 4"):
        clahe_otsu(volume)
    with pytest.raises(UserError, match="max_ram"):
        run(spheres().volume, max_ram=1000)


@pytest.mark.skipif(not DATA.is_dir(), reason="MICROSEG_DATA/xct_volumes is not there")
def test_real_scans_give_their_published_numbers():
    fibres = io.open_volume(DATA / "fiberform/100_fiberform.tif").data
    share = [(run(fibres, "5MB", threshold=level)[0] > 0).mean() for level in (89, "otsu")]
    assert share[0] == 0.16714 and round(share[1], 3) == 0.154
    strut = io.open_volume(DATA / "am_strut_90deg")
    mask, facts = run(strut.data, fill=("z",), min_size=5000)
    diameters = 2 * np.sqrt((mask > 0).sum(axis=(1, 2)) / np.pi) * strut.pixel_size.to("um").size[0]
    assert facts["thresholds"] == [78.0]
    assert diameters.mean() == pytest.approx(616.8, abs=0.1) and diameters.std() == pytest.approx(4.4, abs=0.1)
