"""Parts that share nothing, and the check for leaks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.io.annotations import (
    AnnotatedImage,
    Place,
    cut_blocks,
    find_leaks,
    place_of,
    split_blocks,
    split_images,
)

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@given(st.integers(3, 40), st.integers(0, 5))
def test_images_are_distributed_once(count, seed):
    names = [f"image{k}.png" for k in range(count)]
    parts = split_images(names, SHARES, seed=seed)
    assert sorted(sum(parts.values(), [])) == sorted(names) and all(parts.values())
    assert abs(len(parts["train"]) - 0.6 * count) <= 1 or count < 5
    assert parts == split_images(names, SHARES, seed=seed)


def test_groups_stay_together():
    names = [f"Slice{s}_{512 * k}_0_{512 * k + 512}_512.png" for s in range(4) for k in range(5)]
    parts = split_images(names, {"train": 3, "test": 1}, group=lambda name: place_of(name).source)
    sources = {part: {place_of(name).source for name in listed} for part, listed in parts.items()}
    assert not sources["train"] & sources["test"] and len(parts["test"]) == 5
    with pytest.raises(UserError, match="Split by block"):
        split_images(names[:5], {"train": 3, "test": 1}, group=lambda name: place_of(name).source)
    with pytest.raises(UserError, match="positive share"):
        split_images(names, {"train": 1, "test": 0})


@given(st.integers(3, 60), st.integers(0, 4))
def test_blocks_leak_nothing(count, guard):
    places = [place_of(f"scan_xy{k:04d}.tif") for k in range(count)]
    parts = split_blocks(places, SHARES, guard=guard)
    assert sorted(sum(parts.values(), [])) == [place.name for place in places]
    by_name = {place.name: place for place in places}
    assert not find_leaks({part: [by_name[n] for n in names] for part, names in parts.items()}, guard=guard)
    for names in parts.values():
        assert names == sorted(names)


def test_places():
    assert place_of("Slice1Bottom_10240_0_10752_512.png") == Place(
        "Slice1Bottom_10240_0_10752_512.png", "Slice1Bottom", ((-np.inf, np.inf), (0, 512), (10240, 10752))
    )
    assert place_of("xz0800.jpg").box[1] == (800, 801) and place_of("scan_7.png").source == "scan_7"
    assert place_of(AnnotatedImage("v.tif", plane=("x", 3))).box[2] == (3, 4)


def test_planes_that_cross_leak():
    parts = {"train": [place_of("xy0010.jpg"), place_of("xy0011.jpg")], "test": [place_of("xz0800.jpg")]}
    assert len(find_leaks(parts)) == 2
    near = {"train": [place_of("xy0010.jpg")], "test": [place_of("xy0012.jpg")]}
    assert not find_leaks(near) and find_leaks(near, guard=2)[0].distance == 1
    assert not find_leaks({"train": near["train"], "guard": near["test"]}, guard=9)
    same = {"train": [place_of("a.png")], "test": [place_of("a.png")]}
    assert len(find_leaks(same)) == 1


def test_windows_of_one_image():
    windows = cut_blocks((100, 50), {"train": 3, "test": 1}, guard=20)
    assert windows == {"train": (slice(0, 60), slice(0, 50)), "test": (slice(80, 100), slice(0, 50))}
    with pytest.raises(UserError, match="too short"):
        cut_blocks((20, 50), {"train": 3, "test": 1}, guard=20)
