"""Writes `mask_rcnn.npz` and `mask_rcnn.keras`: training steps of a tiny Mask R-CNN and what it then detects.

KERAS_BACKEND=jax python tests/golden/make_mask_rcnn.py
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("mask_rcnn.npz")
MODEL_PATH = PATH.with_suffix(".keras")
TINY = {
    "tile_size": 64,
    "light_widths": (4, 6, 8, 8, 8),
    "pyramid_width": 8,
    "rpn_width": 8,
    "box_width": 16,
    "mask_width": 8,
    "mask_convs": 1,
    "anchor_scales": (8.0, 16.0, 32.0, 48.0),
    "max_instances": 4,
    "mini_mask_size": 16,
    "pre_nms": 24,
    "train_proposals": 16,
    "proposals": 16,
    "rois": 12,
    "detections": 6,
}


def make_tiles(count, settings, anchors, seed=0):
    """Bright discs of 8 to 20 pixels in noise, as the dictionary that training takes; the last tile is empty."""
    from keras_microseg.layers.box_targets import rpn_targets

    rng = np.random.default_rng(seed)
    size, slots, mini = settings.tile_size, settings.max_instances, settings.mini_mask_size
    y, x = np.mgrid[:size, :size] + 0.5
    inner = (np.arange(mini) + 0.5) / mini * 2 - 1
    disc = (inner[:, None] ** 2 + inner**2 <= 1).astype(np.float32)
    tiles = {
        "image": rng.integers(0, 64, (count, size, size, settings.channels)).astype(np.float32) / 256,
        "boxes": np.zeros((count, slots, 4), np.float32),
        "classes": np.zeros((count, slots), np.int32),
        "masks": np.zeros((count, slots, mini, mini), np.float32),
        "rpn_match": np.zeros((count, len(anchors)), np.int8),
        "rpn_deltas": np.zeros((count, len(anchors), 4), np.float32),
    }
    for i in range(count):
        for slot in range(0 if i == count - 1 else int(rng.integers(1, slots))):
            radius = int(rng.integers(4, 11))
            centre = rng.integers(radius, size - radius, 2)
            tiles["image"][i][(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] += 0.5
            tiles["boxes"][i, slot] = np.concatenate([centre - radius, centre + radius]) / size
            tiles["classes"][i, slot], tiles["masks"][i, slot] = 1, disc
        tiles["boxes"][i, -1], tiles["classes"][i, -1] = (0.5, 0.5, 0.5, 0.7), 1  # without area: counts for nothing
        found = rpn_targets(anchors, tiles["boxes"][i], tiles["classes"][i], rng, samples=64)
        tiles["rpn_match"][i], tiles["rpn_deltas"][i] = found
    return tiles


def compute(path=None):
    """Losses of four steps of SGD on fixed tiles, sums of the weights after them; with a path, detections too."""
    import keras

    from keras_microseg.models.initialization import draw_kernels
    from keras_microseg.models.mask_rcnn import LOSSES, mask_rcnn

    model = draw_kernels(mask_rcnn("light", **TINY, min_score=0.0), 1)
    model.random_rois = False
    tiles = make_tiles(4, model.settings, model.anchors)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=5.0))
    rows = []
    for step in range(4):
        half = {name: value[2 * (step % 2) :][:2] for name, value in tiles.items()}
        logs = model.train_on_batch(half, return_dict=True)
        model.reset_metrics()
        rows.append([float(logs[name]) for name in ("loss", *LOSSES)])
    weights = [keras.ops.convert_to_numpy(weight.value).astype(float) for weight in model.weights]
    kernel, bias = model.box_head.get_layer("mrcnn_class_logits").get_weights()
    model.box_head.get_layer("mrcnn_class_logits").set_weights([kernel, bias + [0, 3]])  # else all is background yet
    results = {"losses": np.array(rows), "sums": np.array([[w.sum(), np.abs(w).sum()] for w in weights])}
    if path is not None:
        model.save(path)
        results |= model.predict(tiles["image"], verbose=0)
    return results


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from keras_microseg import backend

    backend.select()
    np.savez_compressed(PATH, **compute(MODEL_PATH))
