"""Micrographs of discs and bars with label and class images, for the tests of classification."""

import numpy as np

from keras_microseg import io
from keras_microseg.image import PixelSize
from keras_microseg.io.annotations import ClassList

CLASSES = ClassList(("disc", "bar"), ("lime", "red"))


def scene(seed, shape=(120, 160)):
    """Discs (class 1) and bars (class 2) on a grid: grey values, labels, class map."""
    rng = np.random.default_rng(seed)
    labels, classes = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    yy, xx = np.indices((40, 40))
    for k in range(12):
        radius, part = rng.uniform(6, 12), np.s_[k // 4 * 40 : k // 4 * 40 + 40, k % 4 * 40 : k % 4 * 40 + 40]
        kind = 1 + (k + seed) % 2
        inside = (yy - 20) ** 2 + (xx - 20) ** 2 < radius**2
        if kind == 2:
            inside = (abs(yy - 20) < radius / 3) & (abs(xx - 20) < radius * 1.4)
        labels[part][inside], classes[part][inside] = k + 1, kind
    return (np.where(labels > 0, 150.0, 50.0) + rng.normal(0, 5, shape)).clip(0, 255).astype(np.uint8), labels, classes


def write_data(folder, count=4, classes=CLASSES):
    for seed in range(count):
        grey, labels, class_map = scene(seed)
        io.write_image(folder / f"images/s{seed}.tif", grey, axes="YX", pixel_size=PixelSize.parse("2 nm"))
        io.write_labels(folder / f"labels/s{seed}.tif", labels)
        io.write_image(folder / f"classes/s{seed}_cm.png", classes.paint(class_map), axes="YXC")
    return folder
