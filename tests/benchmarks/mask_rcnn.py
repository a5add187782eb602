"""Seconds of a Mask R-CNN on the active backend: an image, its parts, suppression, a training step.

    KERAS_BACKEND=torch python tests/benchmarks/mask_rcnn.py --threads 2

The least of several repetitions, wall time, or CPU time with `--cpu` (on a machine with other work). The image of
1024 x 1024 pixels goes through the network as one tile and as nine tiles of 512 pixels (128 overlap); weights are
random, so the number of detections is not that of a trained model, but static shapes make the network's work the same.
Parts are timed as programs of their own and given as shares of the one tile; suppression is timed alone with 256 and
with 2000 boxes.

    KERAS_BACKEND=jax python tests/benchmarks/mask_rcnn.py --model MODEL/model.keras --image IMAGE.png

times a trained detector on the first 1024 x 1024 pixels of an image instead: `InstancePredictor` (contrast, tiles,
network, joining, drawing) after a first image, and what one further image costs `particles detect` from file to labels,
table and report (three copies against one).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg import backend  # noqa: E402

BACKEND = backend.select()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_microseg.layers.box_targets import rpn_targets  # noqa: E402
from keras_microseg.layers.nms import non_maximum_suppression  # noqa: E402
from keras_microseg.models.mask_rcnn import MaskRCNN, mask_rcnn  # noqa: E402

CLOCK = [time.perf_counter]


class Part(keras.Model):
    """A function of a model's variables as something that can be compiled."""

    def __init__(self, function, model=None):
        super().__init__(dtype="float32")
        self.function, self.model = function, model
        self.built = True

    def call(self, x, training=None):
        return self.function(x)


def seconds(call, repetitions: int) -> float:
    call()
    best = float("inf")
    for _ in range(repetitions):
        start = CLOCK[0]()
        call()
        best = min(best, CLOCK[0]() - start)
    return best


def parts(model: MaskRCNN, image: np.ndarray, repetitions: int) -> dict[str, float]:
    """Seconds of growing parts of the network, as differences."""

    def pyramid(x):
        return model.pyramid(x, training=False)[-1]

    def rpn(x):
        return model._features(x, False)[1][0]

    def proposals(x):
        _, logits, deltas = model._features(x, False)
        return model.proposals(logits, deltas)[0]

    def classes(x):
        features, logits, deltas = model._features(x, False)
        boxes, _, valid = model.proposals(logits, deltas)
        return model.detections(boxes, valid, *model._classify(features, boxes, False))["boxes"]

    times, before = {}, 0.0
    for name, function in (("pyramid", pyramid), ("rpn", rpn), ("proposals", proposals), ("box head", classes)):
        predict = backend.compile_predict(Part(function, model))
        total = seconds(lambda predict=predict: predict(image), repetitions)
        times[name], before = total - before, total
    predict = backend.compile_predict(model)
    total = seconds(lambda: predict(image), repetitions)
    return {**times, "mask head": total - before, "all": total}


def training_step(size: int, batch: int, repetitions: int) -> float:
    model = mask_rcnn("light", tile_size=size)
    settings, rng = model.settings, np.random.default_rng(0)
    count = settings.max_instances
    corners = rng.uniform(0, 0.85, (batch, count, 2)).astype("f")
    boxes = np.concatenate([corners, corners + rng.uniform(0.05, 0.15, (batch, count, 2)).astype("f")], axis=-1)
    classes = np.ones((batch, count), "int32")
    targets = [rpn_targets(model.anchors, b, c, rng) for b, c in zip(boxes, classes, strict=True)]
    data = {
        "image": rng.random((batch, size, size, 1), dtype="float32"),
        "boxes": boxes,
        "classes": classes,
        "masks": np.ones((batch, count, settings.mini_mask_size, settings.mini_mask_size), "f"),
        "rpn_match": np.stack([match for match, _ in targets]),
        "rpn_deltas": np.stack([deltas for _, deltas in targets]),
    }
    model.compile(keras.optimizers.AdamW(1e-4))
    return seconds(lambda: model.train_on_batch(data), repetitions)


def trained(model: Path, source: Path, repetitions: int) -> None:
    """Print the seconds of one image of 1024 x 1024 pixels with a trained detector, warm."""
    from keras_microseg import io
    from keras_microseg.inference.instances import InstancePredictor
    from keras_microseg.workflows.segment_images import segment

    image = io.read_grey(io.open_image(source))[:1024, :1024]
    if image.shape != (1024, 1024):
        raise SystemExit(f"{source} has less than 1024 x 1024 pixels.")
    predictor = InstancePredictor(model)
    options = {"min_score": predictor.card.get("min_score", 0.5), "scale": float(predictor.card.get("scale", 1.0))}
    runs: list = []
    total = seconds(lambda: runs.append(predictor(image, **options)), repetitions)
    best = min(runs[1:], key=lambda run: sum(run.seconds.values()))
    network, post = best.seconds["network"], best.seconds["post"]
    print(f"  {len(best.table)} objects, scale {options['scale']}, {total:.3f} s; network {network:.3f}, joining and "
          f"drawing {post:.3f} ({post / network:.1%} of the network's)", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for count in (1, 3):
            images = Path(folder, f"images{count}")
            images.mkdir()
            for k in range(count):
                io.write_image(images / f"{k}.tif", image.astype(np.float32))
            start = CLOCK[0]()
            segment(images, Path(folder, f"out{count}"), model=str(model))
            times.append(CLOCK[0]() - start)
    print(f"  particles detect, a further image, with table and report: {(times[1] - times[0]) / 2:.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--preset", default="light")
    parser.add_argument("--train-size", type=int, default=256)
    parser.add_argument("--train-batch", type=int, default=4)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--model", type=Path, help="a trained detector: time it on --image, and nothing else")
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    CLOCK[0] = time.process_time if options.cpu else time.perf_counter
    print("CPU time" if options.cpu else "wall time", end=", ")
    print(BACKEND, backend.configure_device(device="cpu", threads=options.threads), flush=True)
    if options.model is not None:
        if options.image is None:
            parser.error("--model needs --image")
        trained(options.model, options.image, options.repetitions)
        return
    rng = np.random.default_rng(0)
    image = rng.random((1, 1024, 1024, 1), dtype="float32")
    whole = mask_rcnn(options.preset, tile_size=1024, channels=1)
    for name, value in (found := parts(whole, image, options.repetitions)).items():
        print(f"  one tile of 1024   {name:10s} {value:7.3f} s  {value / found['all']:6.1%}", flush=True)
    tile = mask_rcnn(options.preset, tile_size=512, channels=1)
    predict = backend.compile_predict(tile)
    tiles = np.concatenate(
        [image[:, y : y + 512, x : x + 512] for y in (0, 256, 512) for x in (0, 256, 512)]
    )  # starts as a grid of overlap 256 would have them; an overlap of 128 also needs three per axis
    tiled = seconds(lambda: [predict(t[None]) for t in tiles], options.repetitions)
    print(f"  nine tiles of 512  all        {tiled:7.3f} s  {tiled / found['all']:6.2f} x one tile", flush=True)
    for count in (256, 2000):
        boxes = rng.uniform(0, 0.9, (1, count, 2)).astype("f")
        boxes = np.concatenate([boxes, boxes + rng.uniform(0.02, 0.1, (1, count, 2)).astype("f")], axis=-1)
        scores = rng.random((1, count, 1), dtype="f")

        def suppress(x):
            return non_maximum_suppression(x[..., :4], x[..., 4], x[..., 4] > 0, 0.5, 200)[0]

        run = functools.partial(backend.compile_predict(Part(suppress)), np.concatenate([boxes, scores], axis=-1))
        print(f"  suppression, {count:4d} boxes      {seconds(run, 5):7.4f} s", flush=True)
    if not options.no_training:
        size, batch = options.train_size, options.train_batch
        print(f"  training step, {batch} tiles of {size} {training_step(size, batch, options.repetitions):7.3f} s")


if __name__ == "__main__":
    main()
