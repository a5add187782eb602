import dataclasses

import numpy as np
import pytest
from harness import randomize, to_numpy

from keras_microseg.checks import UserError
from keras_microseg.inference.change import (
    ChangePredictor,
    ModeSettings,
    count_changes,
    predict_series,
)
from keras_microseg.io.frames import FrameSeries
from keras_microseg.metrics.change import change_matrix
from keras_microseg.models.delta_net import NetworkSettings, delta_net, frame_unet

pytestmark = pytest.mark.network
NETWORK = {"features": 4, "levels": 2, "in_channels": 2}
INPUT = {"channels": 2, "normalization": "series"}


def series(count=4, shape=(16, 16), before=1):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, *shape)).astype(np.uint8)
    valid = np.ones(images.shape, bool)
    valid[:, :, :3] = False
    masks = {task: rng.random(images.shape) < 0.3 for task in ("A1", "A2")}
    numbers = np.arange(count) * 44
    files = tuple(f"{n:06d}.png" for n in numbers)
    return FrameSeries("v", images, numbers, (numbers - 44.0 * before) / 2, files, masks=masks, fill=178, valid=valid)


def predictor(kind="delta_net", seed=0, **options):
    network = NETWORK | options
    settings = NetworkSettings(**network)
    model = delta_net(settings) if kind == "delta_net" else frame_unet(settings)
    randomize(model, seed)
    return model, ChangePredictor(model, {"kind": kind, "network": network, "frame_input": INPUT})


def inputs(video):
    from keras_microseg.data.frame_pairs import FrameInput

    frame_input = FrameInput(**INPUT)
    images, valid = video.read_images(), video.read_valid()
    used = video.times >= 0
    scale = frame_input.scale(images[used], valid[used])
    return frame_input.make(images, valid, scale)


def classes(model, frames, m, n):
    """Likeliest class and probabilities of one pair by the whole network."""
    pair = np.concatenate([frames[m], frames[n]], axis=-1)[None]
    found = {}
    for task, logits in model(pair, training=False).items():
        z = to_numpy(logits)[0].astype(float)
        p = np.exp(z - z.max(-1, keepdims=True))
        found[task] = (z.argmax(-1), p / p.sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize("mode", ["forward", "backward", "consecutive", "ensemble"])
def test_published_modes_pair_by_pair(mode):
    video = series()
    model, net = predictor()
    frames, last = inputs(video), len(video) - 1
    partners = {"forward": [1], "backward": [last], "ensemble": [1, 2, 3]}
    result = predict_series(net, video, ModeSettings.published(mode, batch_size=3))
    for m in range(len(video)):
        chosen = [min(m + 1, last)] if mode == "consecutive" else partners[mode]
        answers = [classes(model, frames, m, n) for n in chosen]
        for task in ("A1", "A2"):
            votes = np.mean([a[task][0] >= 2 for a in answers], axis=0)
            assert np.mean(result.masks[task][m] == (votes > 0.5)) > 0.99
            np.testing.assert_allclose(result.probabilities[task][m], votes, atol=1.01 / len(chosen), rtol=0)
            areas = result.member_areas[task][m]
            np.testing.assert_allclose(areas, [(a[task][0] >= 2).sum() for a in answers], atol=3)


def test_soft_ensembles_use_both_frames_and_orders():
    video = series()
    model, net = predictor()
    frames = inputs(video)
    settings = ModeSettings(inside=False, visible=False)
    result = predict_series(net, video, settings)
    for m in range(len(video)):
        expected = []
        for n in range(1, len(video)):
            expected.append(classes(model, frames, m, n)["A2"][1][..., 2:].sum(-1))
            expected.append(classes(model, frames, n, m)["A2"][1][..., [1, 3]].sum(-1))
        if m > 0:  # `second`: frame 0 was the first of pairs with the others, which are read there as well
            expected.append(classes(model, frames, 0, m)["A2"][1][..., [1, 3]].sum(-1))
            expected.append(classes(model, frames, m, 0)["A2"][1][..., 2:].sum(-1))
        np.testing.assert_allclose(result.probabilities["A2"][m], np.mean(expected, axis=0), atol=1e-5)
    np.testing.assert_array_equal(result.masks["A2"], result.probabilities["A2"] > 0.5)


def test_each_frame_is_encoded_once(monkeypatch):
    video = series(5)
    _, net = predictor()
    calls = []
    encode = net.pairs.encode
    monkeypatch.setattr(net.pairs, "encode", lambda x: calls.append(len(x)) or encode(x))
    predict_series(net, video)
    assert sum(calls) == 5
    calls.clear()
    predict_series(net, video, ModeSettings(flips=8))
    assert sum(calls) == 40


def test_a2_lies_inside_a1_and_all_in_the_visible_region():
    video = series()
    result = predict_series(predictor()[1], video, ModeSettings("backward"))
    assert not (result.masks["A2"] & ~result.masks["A1"]).any()
    assert not result.masks["A1"][:, :, :3].any()
    areas = predict_series(predictor()[1], video, ModeSettings.published()).member_areas
    assert areas["A1"].shape == (4, 1)


def test_mirror_images_of_a_mirrored_video_give_the_mirrored_masks():
    video = series()
    flipped = dataclasses.replace(
        video, images=np.ascontiguousarray(video.images[:, ::-1]), valid=np.ascontiguousarray(video.valid[:, ::-1])
    )
    _, net = predictor()
    settings = ModeSettings("backward", flips=8, visible=False)
    a, b = (predict_series(net, v, settings).probabilities["A1"] for v in (video, flipped))
    np.testing.assert_allclose(a, b[:, ::-1], atol=1e-5)


def test_sizes_that_are_no_multiple_are_padded():
    video = series(3, (13, 18))
    result = predict_series(predictor()[1], video)
    assert result.masks["A1"].shape == (3, 13, 18)


def test_the_baseline_looks_at_single_frames():
    video = series()
    model, net = predictor("frame_unet")
    result = predict_series(net, video, ModeSettings.published())
    logits = {task: to_numpy(z) for task, z in model(inputs(video), training=False).items()}
    for task, z in logits.items():
        assert np.mean(result.masks[task] == (z[..., 1] > z[..., 0])) > 0.99


@pytest.mark.parametrize("kind", ["delta_net", "frame_unet"])
def test_change_classes_of_all_pairs(kind):
    video = series(3, before=0)
    model, net = predictor(kind)
    matrices = count_changes(net, video)
    assert all(matrix.sum() == 9 * 256 for matrix in matrices.values())
    if kind == "delta_net":
        frames, expected = inputs(video), np.zeros((4, 4), int)
        for m in range(3):
            for n in range(3):
                truth = 2 * video.masks["A1"][m] + video.masks["A1"][n]
                np.add.at(expected, (truth, classes(model, frames, m, n)["A1"][0]), 1)
        assert np.abs(matrices["A1"] - expected).max() <= 3
    else:
        found = predict_series(net, video, ModeSettings.published()).masks["A1"]
        np.testing.assert_array_equal(matrices["A1"], change_matrix(video.masks["A1"], found))


def test_weights_are_taken_over():
    video = series()
    model, net = predictor()
    before = predict_series(net, video).probabilities["A1"]
    randomize(model, 7)
    net.update(model)
    after = predict_series(net, video).probabilities["A1"]
    fresh = predict_series(
        ChangePredictor(model, {"kind": "delta_net", "network": NETWORK, "frame_input": INPUT}), video
    )
    assert np.abs(before - after).max() > 0.01
    np.testing.assert_allclose(after, fresh.probabilities["A1"], atol=1e-6)


def test_faults_are_named():
    _, net = predictor()
    video = series()
    with pytest.raises(UserError, match="8 bit"):
        predict_series(net, dataclasses.replace(video, images=video.images.astype(np.float32)))
    with pytest.raises(UserError, match="square"):
        predict_series(net, series(3, (8, 16)), ModeSettings(flips=8))
    with pytest.raises(UserError, match="mode"):
        ModeSettings("sideways")
    with pytest.raises(UserError, match="kind"):
        ChangePredictor(delta_net(NetworkSettings(**NETWORK)), {"kind": "other"})
