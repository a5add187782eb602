"""Generators and discriminators: the published sizes, any image size, every option."""

import numpy as np
import pytest
from harness import check_model, sample, to_numpy

from keras_microseg.checks import UserError
from keras_microseg.models.discriminators import outline_critic, patchgan_discriminator
from keras_microseg.models.generators import outline_generator, resnet_generator
from keras_microseg.models.initialization import draw_kernels


def parameters(build, filters):
    """Of `build(filters)`: its number is quadratic in `filters`, and networks of 1, 2 and 4 are built quickly."""
    known = [build(n).count_params() for n in (1, 2, 4)]
    return round(np.polyval(np.polyfit((1, 2, 4), known, 2), filters))


@pytest.mark.parametrize(
    "build, filters, expected",
    [
        (lambda n: outline_generator(64, filters=n), 64, 2_532_676),
        (lambda n: outline_critic(64, filters=n), 64, 4_311_553),
        (lambda n: resnet_generator((384, 384, 1), filters=n), 64, 45_591_425),
        (lambda n: resnet_generator((384, 384, 1), filters=n), 32, 11_404_737),
        (lambda n: patchgan_discriminator((384, 384, 1), filters=n), 128, 2_633_345),
    ],
    ids=["outlines", "critic", "resnet64", "resnet32", "patchgan"],
)
def test_published_numbers_of_parameters(build, filters, expected):
    assert parameters(build, filters) == expected


def test_outline_networks():
    check_model(outline_generator, {"size": (16, 24), "latent_size": 5, "filters": 2}, {(3, 5): (3, 16, 24, 1)})
    check_model(outline_critic, {"size": (16, 24), "filters": 2}, {(3, 16, 24, 1): (3, 1)})
    with pytest.raises(UserError, match=r"multiples of 8.*Use \(24, 64\)"):
        outline_generator((20, 64))


@pytest.mark.parametrize("options", [{}, {"skip": True, "resize_convolution": True, "activation": "sigmoid"}])
def test_resnet_generator_gives_images_back_at_their_size(options):
    shapes = {(2, 16, 24, 1): (2, 16, 24, 1), (1, 21, 19, 1): (1, 21, 19, 1)}
    arguments = {"filters": 2, "num_blocks": 1, **options}
    model = check_model(resnet_generator, arguments, shapes, atol=1e-4)
    y = to_numpy(model(sample((1, 16, 16, 1))))
    assert np.abs(y).max() <= 1 and (y.min() >= 0 if options else True)


def test_patchgan_scores_patches():
    assert patchgan_discriminator((384, 384, 1), filters=1).output_shape == (None, 43, 43, 1)
    noisy = {"filters": 2, "noise": 0.1}
    model = check_model(patchgan_discriminator, noisy, {(1, 46, 46, 1): (1, 1, 1, 1), (2, 54, 70, 1): (2, 2, 4, 1)})
    x = sample((1, 46, 46, 1))
    assert np.array_equal(to_numpy(model(x)), to_numpy(model(x)))
    assert not np.array_equal(to_numpy(model(x, training=True)), to_numpy(model(x, training=True)))
    with pytest.raises(UserError, match="at least 46 pixels"):
        patchgan_discriminator((45, 64, 1))
    assert patchgan_discriminator((46 + 24, 46 + 24, 1), filters=1, num_blocks=4).output_shape == (None, 1, 1, 1)


def test_drawn_kernels_depend_on_the_seed_alone():
    a, b = (draw_kernels(outline_generator(16, 8, 2), seed=3) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))
    kernel = a.get_layer("dense").kernel
    assert float(np.abs(to_numpy(kernel)).max()) == pytest.approx(np.sqrt(6 / (8 + kernel.shape[1])), rel=0.05)
    draw_kernels(b, seed=4)
    assert not np.array_equal(a.get_weights()[0], b.get_weights()[0])
