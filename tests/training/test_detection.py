"""Training of detectors: it learns, goes on exactly after an interruption, keeps to its plan."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.data.boxes import DetectionTiles, object_image_from_labels
from keras_microseg.models.mask_rcnn import mask_rcnn
from keras_microseg.training.detection import train_detector
from keras_microseg.training.epochs import StopTraining
from keras_microseg.training.schedules import OptimizerSettings

SMALL = {
    "tile_size": 64,
    "anchor_scales": (12.0, 20.0, 40.0, 60.0),
    "pyramid_width": 16,
    "rpn_width": 16,
    "box_width": 32,
    "mask_width": 16,
    "mask_convs": 1,
    "proposals": 16,
    "train_proposals": 24,
    "pre_nms": 32,
    "rois": 16,
    "max_instances": 8,
    "detections": 8,
}
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, clip_norm=5.0)


def make_data():
    y, x = np.mgrid[:96, :96]
    labels = np.zeros((96, 96), np.int32)
    for k, (cy, cx, r) in enumerate(((20, 22, 9), (60, 30, 12), (44, 72, 8), (80, 80, 10)), start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = k
    one = object_image_from_labels("discs", np.where(labels > 0, 200, 50).astype(np.uint8), labels)
    model = mask_rcnn("light", **SMALL)
    return model, DetectionTiles([one], 4, 2, 0, anchors=model.anchors, tile=64, max_instances=8, rpn_samples=64)


class StopAt:
    """A scorer that ends the run as a kill would: by an exception, after some calls."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, model, epoch):
        if epoch == self.epoch:
            raise RuntimeError("killed")
        return {"number": float(epoch)}


def run(out_dir, model, data, **changes):
    options = {"epochs": 3, "optimizer": OPTIMIZER, "scorers": [StopAt(-1)], "workers": 0} | changes
    return train_detector(model, data, out_dir=out_dir, **options)


def test_a_run_cut_off_goes_on_exactly(tmp_path):
    model, data = make_data()
    start = [np.array(w) for w in model.get_weights()]
    whole = run(tmp_path / "whole", model, data)
    expected = model.get_weights()
    assert [row["number"] for row in whole.history] == [0, 1, 2]
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.best_path.exists() and (tmp_path / "whole" / "log.csv").exists()

    model, data = make_data()
    model.set_weights(start)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "cut", model, data, scorers=[StopAt(1)], checkpoint_steps=3)
    model, data = make_data()
    again = run(tmp_path / "cut", model, data, resume=True, checkpoint_steps=3)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [[row["loss"] for row in result.history] for result in (again, whole)]
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match="holds a training"):
        run(tmp_path / "cut", model, data)


def test_minutes_make_a_plan_that_a_resumed_run_keeps(tmp_path):
    model, data = make_data()
    before = [np.array(w) for w in model.get_weights()]

    def stop(model, epoch):
        raise StopTraining("enough")

    result = run(tmp_path, model, data, epochs=1000, minutes=0.05, scorers=[stop])
    planned = int((tmp_path / "epochs.txt").read_text())
    assert 1 <= planned < 1000 and len(result.history) == 1 and result.stop_reason == "enough"
    # the trial steps left no trace: the same as a run whose plan is given
    model, data = make_data()
    model.set_weights(before)
    twin = run(tmp_path / "twin", model, data, epochs=planned, scorers=[stop])
    assert twin.history[0]["loss"] == result.history[0]["loss"]
