import numpy as np
import pandas as pd
import pytest
import tifffile

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.workflows.filter_masks import filter_masks


@pytest.fixture
def folders(tmp_path):
    """Two images; of three particles in each mask the image shows two."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        mask = np.zeros((60, 90), np.uint8)
        mask[10:30, 10:30] = mask[10:30, 40:60] = mask[35:55, 40:60] = 255
        image = rng.normal(30, 3, mask.shape)
        image[10:30, 10:30] += 90
        image[35:55, 40:60] += 120
        tifffile.imwrite(tmp_path / "images" / f"{i}.tif", image.astype(np.uint8))
        tifffile.imwrite(tmp_path / "masks" / f"{i}.tif", mask)
    tifffile.imwrite(tmp_path / "images" / "alone.tif", np.zeros((9, 9), np.uint8))
    return tmp_path


@pytest.mark.parametrize("split", [False, True])
def test_particles_that_are_not_shown_go(folders, split):
    out, failures = filter_masks(folders / "images", folders / "masks", folders / "out", split=split, blur=1.0)
    assert [failure.message.split(": ")[1] for failure in failures] == [
        f"has no mask of the same name. Put one into {folders / 'masks'}."
    ]
    table = pd.read_csv(out / "filtered.csv", comment="#")
    assert table["kept"].tolist() == [2, 2] and table["removed"].tolist() == [1, 1]
    labels = np.asarray(io.read_labels(out / "labels" / "0.tif").data)
    assert labels[20, 50] == 0 and labels[20, 20] > 0 and labels[45, 50] > 0
    assert (tifffile.imread(out / "masks" / "0.tif") == np.where(labels > 0, 255, 0)).all()
    assert tifffile.imread(out / "images" / "1.tif").dtype == np.uint8


def test_nothing_in_common(folders):
    (folders / "empty").mkdir()
    tifffile.imwrite(folders / "empty" / "x.tif", np.zeros((9, 9), np.uint8))
    with pytest.raises(UserError, match="No image .* has a mask"):
        filter_masks(folders / "images", folders / "empty", folders / "out")
