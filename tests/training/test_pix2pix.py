"""pix2pix: published sizes, equal steps on all backends, objectives against formulas, hidden unknown pixels."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import check_model, to_numpy

sys.path.insert(0, str(Path(__file__).parent))
from test_adversarial import checksums

from keras_microseg.checks import UserError
from keras_microseg.models import pix2pix_discriminator, pix2pix_generator
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.training.adversarial import train_adversarial
from keras_microseg.training.pix2pix import Pix2Pix
from keras_microseg.training.schedules import OptimizerSettings

pytestmark = pytest.mark.network
K = 3


class Pairs:
    """Random micrographs and classes; the last rows are not known."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng([8, index])
        x = rng.uniform(0, 1, (2, 16, 16, 1)).astype("float32")
        y = (rng.integers(0, K, (2, 16, 16, 1)) == np.arange(K)).astype("float32")
        weight = np.ones((2, 16, 16, 1), "float32")
        weight[:, -3:] = 0
        return x, np.concatenate([y * weight, weight], axis=-1)


def system(
    direction="labels", channels=None, maps=1, normalization="group", activation=None, spectral=False, **options
):
    source = 1 if direction == "labels" else channels or K
    result = K if direction == "labels" else 1
    activation = activation or ("softmax" if direction == "labels" else "tanh")
    generator = pix2pix_generator(
        (16, 16, source), result, filters=4, num_levels=3, normalization=normalization, activation=activation
    )
    judge = pix2pix_discriminator((16, 16, source + result), maps, 4, 2, normalization=normalization, spectral=spectral)
    networks = [draw_kernels(network, seed) for seed, network in enumerate((generator, judge))]
    # An epsilon above rounding: else Adam makes a full step of a gradient that is zero but for the last digit.
    adam = OptimizerSettings("adam", 2e-4, schedule="constant", options={"beta_1": 0.5, "epsilon": 1e-3})
    options = {"content": "dice-crossentropy" if direction == "labels" else "l1", "optimizer": adam} | options
    return Pix2Pix(*networks, direction=direction, num_classes=K, **options)


SYSTEMS = {
    "labels": {},
    "hinge": {"adversarial": "hinge", "normalization": "instance"},
    "spectral": {"adversarial": "hinge", "spectral": True},
    "images": {"direction": "images"},
    "source labeling": {"normalization": "batch", "activation": "tanh", "content": "l1"},
    "source categorical": {
        "normalization": "batch", "adversarial": "categorical", "maps": K, "content": "crossentropy",
        "content_weight": 1.0,
    },
    "source images": {"direction": "images", "channels": 1, "normalization": "batch", "signed": False},
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("labels", "images", "source categorical") else pytest.mark.slow)
        for name in SYSTEMS
    ],
)
def test_steps_agree_across_backends(name, tmp_path):
    """Two steps; the numbers were stored from one backend."""
    trained = system(**SYSTEMS[name])
    result = train_adversarial(trained, Pairs(), epochs=1, seed=7, out_dir=tmp_path)
    row, sums, stored = result.history[0], checksums(trained, system(**SYSTEMS[name])), STORED[name]
    for log, value in stored["logs"].items():
        assert row[log] == pytest.approx(value, rel=1e-4, abs=1e-6), (log, row)
    for network, (total, mixed) in stored["weights"].items():
        assert sums[network][0] == pytest.approx(total, rel=2e-3), (network, sums)
        # Terms of both signs cancel in the mixed sum, so its error is measured by the sum of their sizes.
        assert sums[network][1] == pytest.approx(mixed, abs=5e-4 * total), (network, sums)


@pytest.mark.parametrize(
    ("build", "arguments", "expected"),
    [
        (pix2pix_generator, {"input_shape": (None, None, 1), "num_outputs": 5}, 10_469_701),
        (pix2pix_generator, {"input_shape": (None, None, 1), "num_outputs": 1}, 10_465_601),
        (pix2pix_discriminator, {"input_shape": (None, None, 6)}, 697_569),
        (pix2pix_discriminator, {"input_shape": (None, None, 6), "num_maps": 5}, 713_957),
        (pix2pix_discriminator, {"input_shape": (None, None, 2)}, 695_521),
    ],
)
def test_published_numbers_of_parameters(build, arguments, expected):
    assert build(normalization="batch", **arguments).count_params() == expected


def test_networks():
    assert pix2pix_discriminator((768, 768, 6), filters=1).output_shape == (None, 48, 48, 1)
    for kind in ("group", "instance", "batch"):
        options = {"filters": 2, "num_levels": 2, "num_outputs": 3, "normalization": kind}
        shapes = {(2, 16, 24, 1): (2, 16, 24, 3), (1, 13, 18, 1): (1, 13, 18, 3)}
        model = check_model(pix2pix_generator, options, shapes, atol=1e-4)
        np.testing.assert_allclose(to_numpy(model(np.ones((1, 8, 8, 1), "float32"))).sum(-1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="normalization"):
        pix2pix_generator(normalization="layer")


def test_objectives_equal_their_formulas():
    """Against NumPy, with unknown pixels that must not matter."""
    tensor, (_, y) = keras.ops.convert_to_tensor, Pairs()[0]
    scores = np.random.default_rng(0).normal(0.2, 1, (2, 4, 4, K)).astype("float32")
    least = system()
    assert float(least._judged(tensor(scores), True)) == pytest.approx(((scores - 1) ** 2).mean(), rel=1e-5)
    assert float(least._judged(tensor(scores), False)) == pytest.approx((scores**2).mean(), rel=1e-5)
    hinge = system(adversarial="hinge")
    assert float(hinge._judged(tensor(scores), True)) == pytest.approx(np.maximum(1 - scores, 0).mean(), rel=1e-5)
    assert float(hinge._judged(tensor(scores), False)) == pytest.approx(np.maximum(1 + scores, 0).mean(), rel=1e-5)
    assert float(hinge._fooled(tensor(scores))) == pytest.approx(-scores.mean(), rel=1e-4)
    categorical = system(adversarial="categorical", maps=K)
    even = np.ones((1, 2, 2, 5), "float32")
    assert float(categorical._judged(tensor(even), True)) == pytest.approx(5 * np.log(5), rel=1e-5)  # 8.05, its optimum
    assert float(categorical._judged(tensor(even), False)) == 0

    made = np.random.default_rng(1).dirichlet((1,) * K, (2, 16, 16)).astype("float32")
    truth, known = y[..., :K], y[..., K] > 0
    entropy = -np.log((made * truth).sum(-1)[known]).mean()
    plain = system(content="crossentropy")
    assert float(plain._content_loss(*map(tensor, (y, truth, made, y[..., K:])))) == pytest.approx(entropy, rel=1e-4)
    inside = [(truth * made * y[..., K:]).sum((1, 2)), ((truth + made) * y[..., K:]).sum((1, 2))]
    dice = (1 - (2 * inside[0] + 1) / (inside[1] + 1)).mean()
    assert float(least._content_loss(*map(tensor, (y, truth, made, y[..., K:])))) == pytest.approx(
        entropy + dice, rel=1e-4
    )
    changed = made.copy()
    changed[~known] = [1, 0, 0]
    for one in (plain, least, system(content="l1")):
        losses = [float(one._content_loss(*map(tensor, (y, truth, m, y[..., K:])))) for m in (made, changed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_cannot_work_is_explained():
    with pytest.raises(UserError, match="one-hot classes"):
        system("images", channels=2)
    with pytest.raises(UserError, match="content='l1'"):
        system("images", content="crossentropy")
    with pytest.raises(UserError, match="its input, 4 channels"):
        Pix2Pix(system().networks["generator"], pix2pix_discriminator((16, 16, 2), filters=2), num_classes=K)
    with pytest.raises(UserError, match="makes 3 classes, not 4"):
        Pix2Pix(*system().networks.values(), num_classes=4)


# Means over two steps, and `checksums` after them, as in `test_adversarial`.
STORED = {
    "labels": {
        "logs": {
            "adversarial": 2.517437,
            "content": 1.891346,
            "generator_loss": 191.652,
            "discriminator_loss": 2.095206,
            "fake": 1.25053,
            "real": 2.939883,
        },
        "weights": {"generator": [1.532614, -0.007100185], "discriminator": [0.221541, -0.001715231]},
    },
    "hinge": {
        "logs": {
            "adversarial": 0.1075529,
            "content": 1.910558,
            "generator_loss": 191.1634,
            "discriminator_loss": 1.173012,
            "fake": 1.031341,
            "real": 1.314683,
        },
        "weights": {"generator": [1.518417, -0.003627367], "discriminator": [0.1246027, 0.002567216]},
    },
    "spectral": {
        "logs": {
            "adversarial": 0.09579455,
            "content": 1.891359,
            "generator_loss": 189.2317,
            "discriminator_loss": 1.079633,
            "fake": 0.9661874,
            "real": 1.193079,
        },
        "weights": {"generator": [1.532089, -0.01060699], "discriminator": [2.352767, -0.1722792]},
    },
    "images": {
        "logs": {
            "adversarial": 2.485183,
            "content": 0.6520723,
            "generator_loss": 67.69242,
            "discriminator_loss": 1.799282,
            "fake": 1.582181,
            "real": 2.016384,
        },
        "weights": {"generator": [1.56754, 0.01583625], "discriminator": [0.2024766, -0.001362606]},
    },
    "source labeling": {
        "logs": {
            "adversarial": 3.088365,
            "content": 0.6226777,
            "generator_loss": 65.35614,
            "discriminator_loss": 2.13078,
            "fake": 1.492469,
            "real": 2.76909,
        },
        "weights": {"generator": [15.2037, 0.6326739], "discriminator": [6.507612, -1.055275]},
    },
    "source categorical": {
        "logs": {
            "adversarial": 18.45236,
            "content": 1.23758,
            "generator_loss": 19.68994,
            "discriminator_loss": 7.76156,
            "fake": 0.0,
            "real": 15.52312,
        },
        "weights": {"generator": [15.38256, 0.6058519], "discriminator": [6.624254, -1.049346]},
    },
    "source images": {
        "logs": {
            "adversarial": 2.269362,
            "content": 0.5312062,
            "generator_loss": 55.38998,
            "discriminator_loss": 1.636181,
            "fake": 1.190434,
            "real": 2.081928,
        },
        "weights": {"generator": [15.28015, 0.7299902], "discriminator": [6.403701, 0.7297163]},
    },
}
