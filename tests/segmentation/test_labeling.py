import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage import filters, segmentation

from keras_microseg.checks import UserError
from keras_microseg.segmentation import labeling

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20))
label_images = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 4)
)


def discs(shape=(90, 120), count=25, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(count):
        mask |= np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1])) < rng.uniform(4, 11)
    return mask


def scan_8_to_4(mask):
    """The published scan, pixel by pixel."""
    result = mask.copy()
    for i in range(mask.shape[0] - 1):
        for j in range(mask.shape[1] - 1):
            (a, b), (c, d) = result[i : i + 2, j : j + 2]
            if not a and not d and b and c:
                result[i + 1, j] = False
            elif not b and not c and a and d:
                result[i, j] = False
    return result


@settings(deadline=None)
@given(masks)
def test_separation_is_the_scan(mask):
    assert np.array_equal(labeling.separate_8_to_4(mask), scan_8_to_4(mask))


@settings(deadline=None)
@given(masks)
def test_distance_is_that_of_the_whole_image(mask):
    if not mask.all():
        np.testing.assert_allclose(
            labeling.distance_to_background(mask), ndimage.distance_transform_edt(mask), rtol=1e-6
        )


@settings(deadline=None)
@given(label_images)
def test_cut_mask_has_one_component_per_object(labels):
    labels = labeling.label_components(labels == 1, 4) + 1000 * labeling.label_components(labels == 2, 4)
    cut = labeling.cut_touching(labels)
    components = labeling.label_components(cut, 4)
    assert set(np.unique(cut)) <= {0, 255}
    pairs = np.unique(np.stack([components[cut > 0], labels[cut > 0]]), axis=1)
    assert pairs.shape[1] == components.max(initial=0) == len(np.unique(labels[cut > 0]))


def test_cut_takes_the_pixels_of_the_larger_object():
    labels = np.repeat([[1, 1, 1, 2, 2]], 3, axis=0)
    assert labeling.cut_touching(labels)[0].tolist() == [255, 255, 0, 255, 255]


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("draw_lines", [False, True])
def test_watershed_is_that_of_scikit_image(connectivity, draw_lines):
    mask = discs()
    rng = np.random.default_rng(1)
    landscape = -labeling.distance_to_background(mask) + 0.01 * rng.random(mask.shape)
    seeds = labeling.find_peaks(-landscape, 4, mask=mask, border=4)
    expected = segmentation.watershed(
        landscape, seeds, ndimage.generate_binary_structure(2, connectivity // 4), mask=mask, watershed_line=draw_lines
    )
    result = labeling.seeded_watershed(landscape, seeds, mask, connectivity=connectivity, draw_lines=draw_lines)
    assert result.dtype == np.int32 and np.array_equal(result, expected)


def test_watershed_keeps_components_without_seed_on_request():
    mask = np.array([[1, 1, 0, 1]])
    seeds = np.array([[7, 0, 0, 0]])
    assert labeling.seeded_watershed(-mask, seeds, mask).tolist() == [[7, 7, 0, 0]]
    assert labeling.seeded_watershed(-mask, seeds, mask, keep_unseeded=True).tolist() == [[7, 7, 0, 8]]


def test_two_touching_discs_are_split_at_the_neck():
    y, x = np.mgrid[:60, :90]
    mask = (np.hypot(y - 30, x - 30) < 16) | (np.hypot(y - 30, x - 58) < 16)
    labels = labeling.split_by_distance(mask)
    assert labels.max() == 2 and np.array_equal(labels > 0, mask)
    # The neck lies midway between the centres, at x = 44; areas agree to one column of the neck.
    assert abs(np.subtract(*np.bincount(labels.ravel())[1:])) <= 16
    assert abs(np.flatnonzero(labels[30] == labels[30, 58])[0] - 44) <= 1


def test_published_split_drops_objects_at_the_frame():
    mask = np.zeros((60, 60), bool)
    mask[0:8, 20:40] = mask[30:45, 20:40] = True
    kept = labeling.split_as_published(mask)
    assert not kept[:9].any() and kept[30:45, 20:40].all()
    assert labeling.split_by_distance(mask).max() == 2


def test_archive_variant_fills_holes():
    mask = np.zeros((60, 60), bool)
    mask[20:45, 20:45] = True
    mask[25, 25] = False
    assert not labeling.split_as_published(mask)[25, 25]
    assert labeling.split_as_published(mask, archive=True)[25, 25]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_thresholds_are_those_of_scikit_image(dtype):
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.normal(60, 12, 4000), rng.normal(170, 20, 2000)]).clip(0, 255).astype(dtype)
    assert labeling.threshold_value(image, "otsu") == pytest.approx(filters.threshold_otsu(image), abs=0.2)
    # Li: the iterations stop at half a grey value (integers) or a bin of the histogram (floats).
    assert labeling.threshold_value(image, "li") == pytest.approx(filters.threshold_li(image), abs=0.6)


def test_thresholds_of_awkward_images():
    assert labeling.threshold_value(np.full((3, 3), 5.0), "li") == 5
    assert np.isnan(labeling.threshold_value(np.full((3, 3), np.nan)))
    assert 0 < labeling.threshold_value(np.array([0, 1, np.nan, np.inf]), "li") < 1
    assert labeling.threshold_value(np.zeros((0, 4)), 0.5) == 0.5
    with pytest.raises(UserError, match="must be one of 'otsu', 'li'"):
        labeling.threshold_value(np.zeros(3), "best")


def test_holes_belong_to_the_object_around_them():
    labels = np.zeros((9, 12), np.int32)
    labels[1:8, 1:6], labels[1:8, 6:11] = 3, 5
    labels[3, 3] = 0  # inside 3
    labels[5, 5:7] = 0  # between 3 and 5
    labels[6, 8:10] = 0  # inside 5, two pixels
    filled = labeling.fill_holes(labels)
    assert filled[3, 3] == 3 and not filled[5, 5:7].any() and (filled[6, 8:10] == 5).all()
    assert labeling.fill_holes(labels, max_area=1)[6, 8] == 0
    assert np.array_equal(labeling.fill_holes(np.zeros((4, 4), np.int32)), np.zeros((4, 4)))


def test_border_open_notch_is_no_hole():
    labels = np.ones((5, 5), np.int32)
    labels[0, 2] = 0
    assert labeling.fill_holes(labels)[0, 2] == 0


def test_small_border_and_relabel_with_sparse_ids():
    labels = np.zeros((6, 8), np.int32)
    labels[0, 0], labels[2:4, 2:5], labels[4, 6] = 2_000_000_000, 7, 40
    assert labeling.touches_border(labels).tolist() == [2_000_000_000]
    assert np.unique(labeling.remove_small(labels, 2)).tolist() == [0, 7]
    sequential = labeling.relabel_sequential(labels)
    assert sequential.dtype == np.int32 and sequential[2, 2] == 1 and sequential[4, 6] == 2 and sequential[0, 0] == 3
    assert np.unique(labeling.remove_labels(labels, [7, 40])).tolist() == [0, 2_000_000_000]


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (7, 300), (0, 5)])
def test_any_size(shape):
    mask = np.ones(shape, bool)
    labels = labeling.split_by_distance(mask)
    assert labels.shape == shape and labels.dtype == np.int32
    for function in (labeling.fill_holes, labeling.relabel_sequential, labeling.cut_touching, labeling.separate_8_to_4):
        assert function(labels).shape == shape
    assert labeling.remove_small(labels, 1).shape == shape


def test_connectivity_in_2d_and_3d():
    diagonal = np.eye(3, dtype=bool)
    assert labeling.label_components(diagonal, 4).max() == 3 and labeling.label_components(diagonal, 8).max() == 1
    volume = np.zeros((2, 2, 2), bool)
    volume[0, 0, 0] = volume[1, 1, 1] = True
    assert labeling.label_components(volume, 4).max() == 2 and labeling.label_components(volume, 8).max() == 1
    with pytest.raises(UserError, match="connectivity"):
        labeling.label_components(diagonal, 6)
