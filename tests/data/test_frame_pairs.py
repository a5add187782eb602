import dataclasses

import numpy as np
import pytest
from harness import check_dataset

from keras_microseg.checks import UserError
from keras_microseg.data.augment import VALID, FrameAugmentSettings, augment_frames
from keras_microseg.data.frame_pairs import FrameInput, FramePairs, FrameStore, SingleFrames, class_weights
from keras_microseg.io.frames import FrameSeries

NO_CHANGE = FrameAugmentSettings(False, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0)
SHARES = {"A1": (0.84365, 0.05921, 0.05921, 0.03792), "A2": (0.93314, 0.02921, 0.02921, 0.00845)}
WEIGHTS = {"A1": (1.185, 16.888, 16.888, 26.369), "A2": (1.072, 34.236, 34.236, 118.406)}


def video(name="a", count=5, shape=(32, 48), seed=0):
    """A bar that shrinks from the right, with a core, in a window with grey around."""
    rng = np.random.default_rng(seed)
    images = rng.integers(150, 200, (count, *shape)).astype(np.uint8)
    a1, a2 = np.zeros((2, count, *shape), bool)
    for i in range(count):
        a1[i, 8:24, 6 : 40 - 5 * i] = True
        a2[i, 12:20, 6 : 40 - 6 * i] = True
    images[a1] -= 60
    images[:, :, :4] = 178
    valid = np.ones(images.shape, bool)
    valid[:, :, :4] = False
    return FrameSeries(
        name,
        images,
        np.arange(count) * 10,
        np.arange(count) * 5.0,
        tuple(f"{i}.png" for i in range(count)),
        masks={"A1": a1, "A2": a2},
        fill=178,
        valid=valid,
    )


@pytest.fixture(scope="module")
def store():
    return FrameStore([video(), video("b", 3, seed=1)], ("A1", "A2"))


@pytest.mark.parametrize("partners", [None, {"any": 1.0, "first": 2.0, "last": 1.0}])
@pytest.mark.parametrize("balance", [1.0, 0.0])
def test_class_shares_in_closed_form_equal_counting(store, partners, balance):
    tables = store.pair_probabilities(partners, balance)
    assert np.isclose(sum(t.sum() for t in tables), 1)
    for bit, task in enumerate(("A1", "A2")):
        counted = np.zeros(4)
        for codes, table in zip(store.codes, tables, strict=True):
            masks = codes >> bit & 1
            for m in range(len(masks)):
                for n in range(len(masks)):
                    classes = np.bincount((2 * masks[m] + masks[n]).ravel(), minlength=4)
                    counted += table[m, n] * classes / masks[0].size
        np.testing.assert_allclose(store.class_shares(tables)[task], counted, atol=1e-12)


def test_weights_are_inverse_shares():
    shares = {"A1": np.array([0.5, 0.25, 0.25, 0.0])}
    assert class_weights(shares)["A1"] == [2, 4, 4, 0]
    assert class_weights(shares, 0.5)["A1"][1] == 2


def test_published_shares_and_memory_of_the_real_data(real_data):
    from keras_microseg.io.frame_layouts import open_series_set

    root = real_data / "etem_filaments"
    if not root.is_dir():
        pytest.skip("no etem_filaments data")
    names = ("102_R1", "102_R2", "302")
    training = FrameStore([s.reaction for s in open_series_set(root, names)], ("A1", "A2"))
    assert training.lengths == [51, 56, 19] and sum(n * n for n in training.lengths) == 6098
    shares = training.class_shares()
    for task in ("A1", "A2"):
        np.testing.assert_allclose(shares[task], SHARES[task], atol=6e-6)
        np.testing.assert_allclose(class_weights(shares)[task], WEIGHTS[task], atol=6e-4)
    frames = training.frame_shares()
    np.testing.assert_allclose([frames["A1"][1], frames["A2"][1]], [0.09683, 0.03716], atol=6e-6)
    assert training.nbytes == 126 * 256 * 256 * 2  # 16.5 MB


def test_labels_are_two_f_plus_g_and_swap_exchanges_1_and_2(store):
    data = FramePairs(store, 34, 1, 0, frame_input=FrameInput(1))
    seen = set()
    for i in range(34):
        x, y = data[i]
        owner, m, n = data.pair(i, 0)
        seen.add((owner, m, n))
        f, g = (store.codes[owner][k] & 1 for k in (m, n))
        np.testing.assert_array_equal(y[0, ..., 0], 2 * f + g)
        np.testing.assert_allclose(x[0, ..., 0], (store.images[owner][m] / 255 - 0.5) / 0.5, atol=1e-6)
        np.testing.assert_allclose(x[0, ..., 1], (store.images[owner][n] / 255 - 0.5) / 0.5, atol=1e-6)
    assert len(seen) == 5 * 5 + 3 * 3  # an epoch goes through all ordered pairs


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_batches_depend_on_seed_epoch_and_index_alone(store, channels):
    options = {"frame_input": FrameInput(channels, "series"), "size": 16, "weigh_valid": True}
    augment = FrameAugmentSettings(zoom=(0.6, 1.6), rotate=30, cut=0.5, noise=5, focus=True)
    check_dataset(
        FramePairs(store, 3, 2, 5, augment=augment, partners={"any": 1, "last": 1}, balance=0.5, **options),
        (2, 16, 16, 2 * channels),
        (2, 16, 16, 3),
    )
    check_dataset(SingleFrames(store, 3, 2, 5, augment=augment, **options), (2, 16, 16, channels), (2, 16, 16, 3))


def test_normalization_over_the_visible_pixels_of_a_video(store):
    codes, images = store.codes[0], store.images[0]
    valid = codes & VALID > 0
    frame_input = FrameInput(2, "series")
    scale = frame_input.scale(images, valid)
    x = frame_input.make(images, valid, scale)
    assert abs(np.median(x[..., 0][valid])) < 0.05
    assert (x[..., 0][~valid] == 0).all() and (x[..., 1] == valid).all()


def test_flips_and_turns_move_frames_and_masks_together_exactly(store):
    frame, code = store.images[0][0][:32, :32].copy(), store.codes[0][0][:32, :32].copy()
    settings = dataclasses.replace(NO_CHANGE, flips=True)
    views = {np.rot90(v, k).tobytes() for v in (frame, frame[:, ::-1]) for k in range(4)}
    found = set()
    for seed in range(40):
        frames, codes = augment_frames(
            np.random.default_rng(seed), [frame, frame], [code, code], (32, 32), settings, 178
        )
        assert frames[0].tobytes() in views and frames[0].tobytes() == frames[1].tobytes()
        found.add(frames[0].tobytes())
        place = [k for k in range(8) if np.array_equal(np.rot90(frame[:, :: -1 if k > 3 else 1], k), frames[0])][0]
        np.testing.assert_array_equal(np.rot90(code[:, :: -1 if place > 3 else 1], place), codes[0])
    assert len(found) == 8


def test_no_augmentation_is_the_identity(store):
    frames, codes = augment_frames(
        np.random.default_rng(0), [store.images[0][1]], [store.codes[0][1]], store.shape, NO_CHANGE, 178
    )
    np.testing.assert_array_equal(frames[0], store.images[0][1])
    np.testing.assert_array_equal(codes[0], store.codes[0][1])


def test_outside_of_the_image_is_fill_and_not_valid(store):
    settings = dataclasses.replace(NO_CHANGE, zoom=(0.5, 0.5))
    frames, codes = augment_frames(
        np.random.default_rng(0), [store.images[0][0]], [store.codes[0][0]], store.shape, settings, 178
    )
    assert np.isclose((codes[0] > 0).mean(), 0.25 * 44 / 48, atol=0.03)
    assert (frames[0][codes[0] == 0] == 178).mean() > 0.9  # the rest is the rim of interpolation


def test_faults_are_named(store):
    with pytest.raises(UserError, match="No video"):
        FrameStore([], ("A1",))
    with pytest.raises(UserError, match="no masks of task 'A3'"):
        FrameStore([video()], ("A3",))
    with pytest.raises(UserError, match="one size.*a: .*b: "):
        FrameStore([video(), video("b", shape=(32, 40))], ("A1",))
    wide = dataclasses.replace(video(), images=video().images.astype(np.uint16))
    with pytest.raises(UserError, match="8 bit"):
        FrameStore([wide], ("A1",))
    with pytest.raises(UserError, match="augment"):
        FramePairs(store, 1, 1, 0, size=16)
    with pytest.raises(UserError, match="partners"):
        FramePairs(store, 1, 1, 0, partners={"next": 1.0})
