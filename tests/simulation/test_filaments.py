"""Simulated filament videos: masks agree with the exact areas, the law is the one stated, seeds repeat."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.io.frame_layouts import open_series
from keras_microseg.io.frames import write_series
from keras_microseg.measurement.change import segment_length
from keras_microseg.measurement.kinetics import fit_rate_law
from keras_microseg.simulation.filaments import MODES, simulate_video


@pytest.mark.parametrize("mode", MODES)
def test_masks_have_the_exact_areas(mode):
    video = simulate_video(3, num_frames=6, shape=128, mode=mode)
    for task in ("A1", "A2"):
        counted = video.series.masks[task].sum(axis=(1, 2))
        # a pixel more or less around the outline of about 150 px, and the cut end of a tilted strip
        np.testing.assert_allclose(counted, video.truth[task], atol=25)
        assert abs(np.mean(counted - video.truth[task])) < 10
    assert not (video.series.masks["A2"] & ~video.series.masks["A1"]).any()
    assert not (video.series.masks["A1"] & ~video.series.valid).any()


def test_the_law_is_the_one_stated():
    video = simulate_video(1, num_frames=9, shape=96, k=4.0, n=2.0)
    truth = video.truth
    volume = np.pi * (truth["A1"] ** 2 - truth["A2"] ** 2) / (4 * video.facts["L"])
    np.testing.assert_allclose(truth["V"], volume)
    np.testing.assert_allclose(truth["V"] / truth["V"][0], np.exp(-4 * (truth["time"] / truth["time"].iloc[-1]) ** 2))
    assert (np.diff(truth["A1"]) < 0).all()
    fit = fit_rate_law(truth["time"], truth["conversion"])
    assert fit.parameters["k"] == pytest.approx(4) and fit.parameters["n"] == pytest.approx(2)


def test_the_axis_of_the_first_mask_has_the_length_of_the_segment():
    for seed in range(4):
        video = simulate_video(seed, num_frames=2, shape=192)
        assert segment_length(video.series.masks["A1"][0]) == pytest.approx(video.facts["L"], rel=0.03)


def test_frames_look_like_input(tmp_path):
    video = simulate_video(5, num_frames=4, shape=(96, 112), num_before=2)
    series = video.series
    assert series.shape == (6, 96, 112) and series.numbers.tolist() == [1, 22, 88, 138, 188, 238]
    assert len(series.reaction) == 4 and (series.images[~series.valid] == 178).all()
    assert 140 < series.images[series.valid].mean() < 185 and 8 < series.images[series.valid].std() < 40
    write_series(tmp_path, series)
    read = open_series(tmp_path)
    np.testing.assert_array_equal(read.read_images(), series.images)
    np.testing.assert_array_equal(read.read_masks("A2"), series.masks["A2"])
    assert read.times.tolist() == series.times.tolist()
    # the visible region comes back from the fill grey; thin slivers apart
    assert (read.read_valid() != series.valid).mean() < 0.002


def test_seeds_repeat_and_differ():
    one, same, other = (simulate_video(seed, num_frames=3, shape=64) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one.series.images, same.series.images)
    assert not np.array_equal(one.series.images, other.series.images)


def test_settings_are_checked():
    with pytest.raises(UserError, match="does not fit"):
        simulate_video(0, shape=64, diameters=(20, 25))
    with pytest.raises(UserError, match="mode"):
        simulate_video(0, mode="magic")
    with pytest.raises(UserError, match="num_frames"):
        simulate_video(0, num_frames=0)
    assert len(simulate_video(0, num_frames=1, shape=48).series) == 1
