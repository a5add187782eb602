import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_microseg.checks import UserError
from keras_microseg.segmentation.labeling import label_components
from keras_microseg.segmentation.stitching import LabelUnion, blocks, join_overlap, label_blocks, stitch_blocks


def same_partition(first, second):
    """Equal up to the numbering: the pairs of ids form a bijection."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return all(len(np.unique(ids)) == pairs.shape[1] for ids in pairs) and np.array_equal(first == 0, second == 0)


@settings(deadline=None, max_examples=60)
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=12)),
    size=st.integers(1, 6),
    connectivity=st.sampled_from([4, 8]),
)
def test_blockwise_components_are_those_of_the_whole(mask, size, connectivity):
    out = np.full(mask.shape, -1, np.int32)
    whole = label_components(mask, connectivity)
    assert label_blocks(mask, out, size, connectivity=connectivity) == whole.max(initial=0)
    assert same_partition(out, whole)


def test_spiral_through_all_blocks_is_one_object(tmp_path):
    mask = np.zeros((33, 47), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    out = np.memmap(tmp_path / "labels.raw", np.int32, "w+", shape=mask.shape)
    assert label_blocks(mask, out, (5, 8)) == 1
    assert np.array_equal(np.asarray(out), mask.astype(np.int32))


def test_instances_of_blocks_stay_apart_where_the_rule_says_so():
    bright = np.array([[1, 1, 2, 2, 2, 1]])
    out = np.zeros((1, 6), np.int32)
    count = stitch_blocks(lambda box: (bright[box] > 0).astype(int), out, (1, 3), joined=lambda a, b: a == b)
    assert count == 2 and out.tolist() == [[1, 1, 1, 2, 2, 2]]


def test_joins_of_overlapping_tiles():
    union = LabelUnion()
    first, second = union.reserve(2), union.reserve(2)
    a = np.array([[1, 1, 0, 2, 2, 2]]) + first
    b = np.array([[1, 1, 0, 2, 0, 0]])
    join_overlap(union, np.where(a == first, 0, a), np.where(b, b + second, 0))
    assert union.resolve().tolist() == [0, 1, 2, 1, 3]  # 1 = 3 fully, 2 and 4 share only a third


def test_blocks_cover_once():
    count = np.zeros((7, 10), int)
    for box in blocks(count.shape, (3, 4)):
        count[box] += 1
    assert (count == 1).all()


def test_wrong_block_and_narrow_output_are_refused():
    with pytest.raises(UserError, match="shape of its box"):
        stitch_blocks(lambda box: np.zeros((1, 1), int), np.zeros((4, 4), np.int32), 2)
    with pytest.raises(UserError, match="wider integer"):
        label_blocks(np.eye(300, dtype=bool), np.zeros((300, 300), np.uint8), 100)
