"""Frame series: layouts, numbers and times, masks and their polarity, and what is wrong said clearly."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from keras_microseg.checks import FileError, MissingPackageError, UserError
from keras_microseg.io.frame_layouts import frame_numbers, open_series, open_series_set
from keras_microseg.io.frames import (
    FrameSeries,
    find_fill,
    find_valid,
    read_members,
    write_masks,
    write_members,
    write_series,
)

NUMBERS = (1, 44, 88, 150, 1200)


def grey(shape=(32, 40), seed=0):
    return np.random.default_rng(seed).integers(100, 170, shape).astype(np.uint8)


def square(i, size=8):
    mask = np.zeros((32, 40), bool)
    mask[10 : 10 + size + 2, 10 + i : 10 + i + size] = True
    return mask


def frames():
    """Five frames with the fill grey 178 outside columns 5 to 29."""
    out = np.stack([grey(seed=i) for i in range(len(NUMBERS))])
    out[:, :, :5] = out[:, :, 30:] = 178
    return out


def prepared(folder, name="103", modes=("RGBA", "L", "RGB")):
    """A video as the data set lays it out."""
    for i, (number, frame) in enumerate(zip(NUMBERS, frames(), strict=True)):
        file = f"{name}_r1_{number:06d}.png"
        for part, picture in (
            ("img", frame),
            ("area1", np.where(square(i), 0, 255).astype(np.uint8)),
            ("area2", np.where(square(i, 3), 0, 255).astype(np.uint8)),
        ):
            path = folder / name / "results" / part / file
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Picture.fromarray(picture)
            if part == "img":
                image = image.convert(modes[i % len(modes)])
            image.save(path)
    return folder / name


def layers(folder):
    """The original layout: transparent layers, two names with seven digits."""
    for i, number in enumerate(NUMBERS):
        for part, mask, digits in (("area1", square(i), 7 if number in (44, 88) else 6), ("area2", square(i, 3), 6)):
            layer = np.zeros((32, 40, 4), np.uint8)
            layer[mask] = (0, 255, 22, 255)
            layer[tuple(np.argwhere(mask)[0])] = (0, 255, 22, 3)  # antialiased edge
            path = folder / "original" / part / f"{number:0{digits}d}_layerA{part[-1]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Picture.fromarray(layer).save(path)
        path = folder / "original" / "img" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(grey(seed=i)).convert("RGBA").save(path)
    return folder


def test_prepared_layout_with_the_facts_of_its_names(tmp_path):
    series = open_series(prepared(tmp_path))
    assert series.name == "103" and series.shape == (5, 32, 40) and series.images.dtype == np.uint8
    assert series.numbers.tolist() == list(NUMBERS)
    assert series.times.tolist() == [-43.5, -22.0, 0.0, 31.0, 556.0] and series.time_unit == "s"
    assert str(series.pixel_size) == "0.52 nm" and "names" in series.pixel_size.source
    assert series.fill == 178 and series.tasks == ("A1", "A2")
    np.testing.assert_array_equal(series.read_images(), frames())
    np.testing.assert_array_equal(series.read_masks("A1"), np.stack([square(i) for i in range(5)]))
    valid = series.read_valid([1, 3])
    assert valid.shape == (2, 32, 40) and valid[:, :, 5:30].all() and not valid[:, :, 30:].any()


def test_the_reaction_starts_at_frame_88_and_parts_stay_unread(tmp_path):
    series = open_series(prepared(tmp_path))
    reaction = series.reaction
    assert reaction.numbers.tolist() == [88, 150, 1200] and reaction.files[0] == "103_r1_000088.png"
    np.testing.assert_array_equal(reaction.read_images([2, 0]), frames()[[4, 2]])
    loaded = reaction.take([2]).load()
    assert isinstance(loaded.images, np.ndarray) and loaded.valid.dtype == bool and len(loaded.reaction) == 1
    np.testing.assert_array_equal(loaded.masks["A2"][0], square(4, 3))
    with pytest.raises(UserError, match="before time 0"):
        _ = series.take([0, 1]).reaction


def test_layers_match_by_number(tmp_path):
    series = open_series(layers(tmp_path / "103"))
    assert series.metadata["layout"] == "original" and series.name == "103" and series.fill is None
    np.testing.assert_array_equal(series.read_masks("A1"), np.stack([square(i) for i in range(5)]))
    assert series.numbers.tolist() == list(NUMBERS) and series.times[2] == 0


def test_a_written_series_reads_back_and_tells_what_names_cannot(tmp_path):
    first = open_series(prepared(tmp_path / "a"), pixel_size="2 nm", frame_rate=4, zero_frame=44)
    write_series(tmp_path / "b" / "other", first)
    second = open_series(tmp_path / "b" / "other")
    assert str(second.pixel_size) == "2 nm" and second.times.tolist() == first.times.tolist()
    assert second.metadata["zero_frame"] == 44 and second.name == "103"
    for task in first.tasks:
        np.testing.assert_array_equal(first.read_masks(task), second.read_masks(task))
    np.testing.assert_array_equal(first.read_images(), second.read_images())
    assert open_series(tmp_path / "b" / "other", frame_rate=2, zero_frame=88).times[2] == 0  # arguments go first


def test_masks_are_written_black_on_white_with_the_same_names(tmp_path):
    series = open_series(prepared(tmp_path))
    masks = np.stack([square(i) for i in range(5)])
    paths = write_masks(tmp_path / "out", series, "A1", masks)
    assert [path.name for path in paths] == list(series.files) and paths[0].parent.name == "area1"
    written = np.asarray(Picture.open(paths[2]))
    assert written.dtype == np.uint8 and set(np.unique(written)) == {0, 255} and (written[square(2)] == 0).all()
    again = open_series(tmp_path / "103", masks=tmp_path / "out")
    assert again.tasks == ("A1",)
    np.testing.assert_array_equal(again.read_masks("A1"), masks)
    with pytest.raises(UserError, match="masks are"):
        write_masks(tmp_path / "out", series, "A1", masks[:2])


def test_masks_of_several_videos_may_share_a_folder(tmp_path):
    one = open_series(prepared(tmp_path, "201"))
    other = open_series(prepared(tmp_path, "203"))
    write_masks(tmp_path / "all", one, "A1", np.stack([square(i) for i in range(5)]))
    write_masks(tmp_path / "all", other, "A1", np.stack([square(4 - i) for i in range(5)]))
    read = open_series(tmp_path / "203", masks=tmp_path / "all").read_masks("A1")
    np.testing.assert_array_equal(read[0], square(4))


def test_sets_are_found_and_named(tmp_path):
    prepared(tmp_path, "102_R1")
    prepared(tmp_path, "301")
    assert [series.name for series in open_series_set(tmp_path)] == ["102_R1", "301"]
    assert [series.name for series in open_series_set(tmp_path, ["301"])] == ["301"]
    assert [series.name for series in open_series_set([tmp_path / "301" / "results"])] == ["301"]
    with pytest.raises(FileError, match="no video '999'.*102_R1, 301"):
        open_series_set(tmp_path, ["999"])


def test_stacks_and_plain_folders(tmp_path):
    stack = frames()
    tifffile.imwrite(tmp_path / "movie.tif", stack, photometric="minisblack", metadata={"axes": "TYX"})
    series = open_series(tmp_path / "movie.tif", pixel_size="1 nm")
    assert series.shape == (5, 32, 40) and series.time_unit == "frame" and series.times.tolist() == [0, 1, 2, 3, 4]
    assert series.files[1] == "movie_000001.png" and series.fill == 178
    np.testing.assert_array_equal(series.read_images(slice(1, 4)), stack[1:4])
    colour = np.repeat(stack[..., None], 3, axis=-1)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    np.testing.assert_array_equal(open_series(tmp_path / "rgb.tif").read_images(), stack)
    (tmp_path / "plain").mkdir()
    for i, frame in enumerate(stack):
        Picture.fromarray(frame).save(tmp_path / "plain" / f"img{i + 9}.png")
    plain = open_series(tmp_path / "plain", frame_rate=10)
    assert plain.numbers.tolist() == [9, 10, 11, 12, 13] and plain.times[1] == pytest.approx(0.1)
    given_times = open_series(tmp_path / "plain", times=[0, 1, 4, 9, 16])
    assert given_times.times[-1] == 16 and given_times.time_unit == "s"


def test_video_files_need_an_optional_package(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    try:
        import av
    except ImportError:
        with pytest.raises(MissingPackageError, match=r"keras_microseg\[video\]"):
            open_series(tmp_path / "a.mp4")
        pytest.skip("the package av is not installed")
    with pytest.raises(FileError, match=r"a\.mp4"):
        open_series(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "b.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "gray"
        for frame in frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    series = open_series(tmp_path / "b.avi")
    assert series.shape == (5, 32, 40) and series.times[1] == pytest.approx(0.2) and series.time_unit == "s"
    np.testing.assert_array_equal(series.read_images(), frames())
    np.testing.assert_array_equal(series.read_images([3, 1]), frames()[[3, 1]])


def test_frames_of_different_size(tmp_path):
    folder = prepared(tmp_path)
    Picture.fromarray(grey((30, 40))).save(folder / "results" / "img" / "103_r1_000150.png")
    with pytest.raises(FileError, match=r"different size \(30 x 40, 32 x 40\).*103_r1_000150\.png"):
        open_series(folder)


def test_missing_masks_are_listed_or_left_out(tmp_path):
    folder = prepared(tmp_path)
    (folder / "results" / "area2" / "103_r1_000150.png").unlink()
    with pytest.raises(FileError, match="no mask of frame 150.*skip-missing"):
        open_series(folder)
    series = open_series(folder, skip_missing=True)
    assert series.numbers.tolist() == [1, 44, 88, 1200] and "frame 150" in series.warnings[0]
    np.testing.assert_array_equal(series.read_masks("A2", [3])[0], square(4, 3))
    np.testing.assert_array_equal(series.read_images([3])[0], frames()[4])
    assert open_series(folder, tasks=("A1",)).shape[0] == 5


def test_missing_frames_are_named(tmp_path):
    folder = prepared(tmp_path)
    (folder / "results" / "img" / "103_r1_000150.png").unlink()
    series = open_series(folder)
    assert len(series) == 4 and any("frame 150 that have no image" in text for text in series.warnings)


def test_missing_layers_are_named(tmp_path):
    folder = layers(tmp_path / "103")
    (folder / "original" / "area1" / "0000088_layerA1.png").unlink()
    with pytest.raises(FileError, match="area1.*no mask of frame 88"):
        open_series(folder)
    with pytest.raises(FileError, match="no masks of A3"):
        open_series(folder, tasks=("A3",))


def test_inverted_masks_are_found_with_a_suggestion(tmp_path):
    folder = prepared(tmp_path)
    for path in (folder / "results" / "area1").iterdir():
        Picture.fromarray(255 - np.asarray(Picture.open(path))).save(path)
    with pytest.raises(FileError, match="A1 look inverted: 100% of the grey outside.*foreground='white'"):
        open_series(folder)
    series = open_series(folder, foreground="white", tasks=("A1",))
    np.testing.assert_array_equal(series.read_masks("A1", [0])[0], square(0))


def test_inverted_masks_are_found_without_a_fill_grey(tmp_path):
    folder = prepared(tmp_path)
    for path in (folder / "results" / "area2").iterdir():
        Picture.fromarray(255 - np.asarray(Picture.open(path))).save(path)
    with pytest.raises(FileError, match="A2 look inverted.*of the frame"):
        open_series(folder, fill=None)


def test_exchanged_folders_give_a_warning(tmp_path):
    folder = prepared(tmp_path) / "results"
    (folder / "area1").rename(folder / "x")
    (folder / "area2").rename(folder / "area1")
    (folder / "x").rename(folder / "area2")
    assert any("exchanged" in text for text in open_series(folder).warnings)


def test_a_picture_is_no_mask(tmp_path):
    folder = prepared(tmp_path)
    Picture.fromarray(grey()).save(folder / "results" / "area1" / "103_r1_000088.png")
    with pytest.raises(FileError, match="is no mask"):
        open_series(folder).read_masks("A1")


@pytest.mark.parametrize("times", [[0, 1, 1, 2, 3], [0, 2, 1, 3, 4], [0, 1, np.nan, 3, 4]])
def test_times_must_increase(tmp_path, times):
    with pytest.raises(UserError, match="times must"):
        open_series(prepared(tmp_path), times=times)


def test_times_must_be_as_many_as_frames(tmp_path):
    with pytest.raises(UserError, match="one entry per frame"):
        open_series(prepared(tmp_path), times=[0, 1])


def test_two_files_of_one_number(tmp_path):
    folder = prepared(tmp_path)
    source = folder / "results" / "img" / "103_r1_000088.png"
    (source.parent / "103_r2_000088.png").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="both frame 88"):
        open_series(folder)


def test_bad_files_are_named(tmp_path):
    folder = prepared(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        open_series(tmp_path / "nothing")
    (folder / "results" / "series.json").write_text("{")
    with pytest.raises(FileError, match=r"series\.json"):
        open_series(folder)
    (folder / "results" / "series.json").write_text(json.dumps({"times": {"88": 0.0}}))
    with pytest.raises(FileError, match="no time for frames 1, 44"):
        open_series(folder)


def test_members_read_back(tmp_path):
    series = open_series(prepared(tmp_path))
    areas = {"A1": np.arange(10.0).reshape(5, 2), "A2": np.full((5, 3), 7.0)}
    areas["A1"][1, 1] = np.nan
    write_members(tmp_path / "members.csv", series, areas)
    found = read_members(tmp_path / "members.csv", series)
    np.testing.assert_array_equal(found["A1"], areas["A1"])
    np.testing.assert_array_equal(read_members(tmp_path / "members.csv", series.reaction)["A2"], areas["A2"][2:])
    (tmp_path / "members.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="no table of frame, task, member, area_px"):
        read_members(tmp_path / "members.csv", series)


def test_single_pixels_of_the_fill_grey_are_image():
    frame = grey((60, 60))
    frame[20:24, 20:24] = 178  # 16 pixels
    frame[:, 50:] = 178
    valid = find_valid(frame, 178)
    assert valid[20:24, 20:24].all() and not valid[:, 50:].any()
    assert find_valid(frame, None).all()
    assert find_fill(frame) == 178
    assert find_fill(grey((60, 60))) is None and find_fill(np.full((9, 9), 3, np.uint8)) is None


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True))
def test_numbers_come_from_names(numbers):
    from pathlib import Path

    paths = [Path(f"x/103_r1_{number:06d}.png") for number in numbers]
    assert frame_numbers(paths).tolist() == numbers
    assert frame_numbers([Path(f"{number:07d}_layerA1.png") for number in numbers], last=False).tolist() == numbers


def test_series_of_arrays_are_checked():
    images = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(UserError, match="frame numbers must increase"):
        FrameSeries("a", images, [3, 3], [0, 1], ("a", "b"))
    with pytest.raises(UserError, match="masks of A1"):
        FrameSeries("a", images, [1, 2], [0, 1], ("a", "b"), masks={"A1": np.zeros((2, 4, 8), bool)})
    with pytest.raises(UserError, match="no masks"):
        FrameSeries("a", images, [1, 2], [0, 1], ("a", "b")).read_masks("A1")


def test_the_data_set(real_data):
    folder = real_data / "etem_filaments"
    if not folder.is_dir():
        pytest.skip(f"no filament videos at {folder}")
    counts = {"102_R1": 51, "102_R2": 56, "302": 19, "103": 46, "301": 18, "201": 27, "203": 14}
    for series in open_series_set(folder, list(counts)):
        assert len(series.reaction) == counts[series.name], series.name
        assert series.times[np.flatnonzero(series.numbers == 88)[0]] == 0
        assert bool(series.masks) == (series.name not in ("201", "203"))
