import numpy as np

from keras_microseg.data.outlines import OutlineImages
from keras_microseg.simulation.outlines import OutlineSet

MASKS = np.zeros((5, 32, 32), bool)
for _i, _mask in enumerate(MASKS):
    _mask[8 : 14 + _i, 9:25] = True
OUTLINES = OutlineSet(MASKS, tuple("abcde"))


def test_mirror_images_and_background():
    data = OutlineImages(OUTLINES, 8)
    assert data.images.shape == (20, 32, 32, 1) and data.images.dtype == np.float32
    assert set(np.unique(data.images)) == {-1.0, 1.0} and (data.images[:, 0] == -1).all()
    assert (
        len(OutlineImages(OUTLINES, 8, turns=True).images) == 40
        and len(OutlineImages(OUTLINES, flips=False).images) == 5
    )


def test_every_epoch_holds_every_image():
    data = OutlineImages(OUTLINES, 8, seed=3)
    assert len(data) == 3

    def epoch(number):
        data.set_epoch(number)
        return np.concatenate([data[i] for i in range(3)])

    first = epoch(0)
    assert first.shape == (24, 32, 32, 1)
    images = {image.tobytes() for image in data.images}
    assert {image.tobytes() for image in first[:20]} == images
    assert not np.array_equal(first, epoch(1)) and np.array_equal(first, epoch(0))


def test_scaled_down_images_keep_the_area():
    data = OutlineImages(OUTLINES, 8, flips=False, size=16)
    assert data.images.shape == (5, 16, 16, 1) and data.scale == 2
    np.testing.assert_allclose((data.images / 2 + 0.5).sum(axis=(1, 2, 3)) * 4, MASKS.sum(axis=(1, 2)), rtol=1e-5)
    odd = OutlineImages(OUTLINES, 8, flips=False, size=24)
    np.testing.assert_allclose(
        (odd.images / 2 + 0.5).sum(axis=(1, 2, 3)) * (32 / 24) ** 2, MASKS.sum(axis=(1, 2)), rtol=0.05
    )
