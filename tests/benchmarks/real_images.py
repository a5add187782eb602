"""Scores of label images on real micrographs with hand-made truth.

    python tests/benchmarks/real_images.py --method both --data bam_tio2,ampis_powder,emps

Prints one row per method and data set, then the same with 95 % bootstrap intervals over images. The data folder is
`MICROSEG_DATA` or `--root`, by default `../shared/data` beside the repository. `score_dataset` takes any function from
`keras_microseg.Image` to labels, so other methods are scored by the same code.

What is compared, per data set:

* bam_tio2: 16 SEM images of TiO2, rows 0-703 (above the info bar). True particles are the 4-connected components of the
  cut mask of at least 10 px; smaller specks are left out of the instances but stay in the image IoU and in the three
  scores of the source system, which use the mask as it is.
* ampis_powder: 4 SEM images of metal powder, particle polygons drawn as labels, later ones on top. Whether every
  particle in them was annotated is not stated by the source; one that was not counts as false when it is found.
* emps: 30 figures from articles, one label per particle.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_microseg.image import Image  # noqa: E402
from keras_microseg.io import find_images, open_image, read_grey  # noqa: E402
from keras_microseg.io.annotations import draw_regions, read_via  # noqa: E402
from keras_microseg.metrics import instance, pixel, published  # noqa: E402
from keras_microseg.segmentation import classical, labeling  # noqa: E402

DATASETS = ("bam_tio2", "ampis_powder", "emps")
BAM_ROWS = 704
MIN_AREA = 10
SegmentFunction = Callable[[Image], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image with its truth.

    Attributes:
        image: axes YX or YXC, in memory.
        truth: (H, W) int32 instance labels.
        mask: (H, W) bool, everything drawn as particle.
    """

    image: Image
    truth: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Scores of one image."""

    name: str
    table: instance.OverlapTable
    match: instance.Match
    counts: pixel.Counts
    boundary: pixel.BoundaryCounts
    published: published.PublishedScores | None
    seconds: float


def data_root() -> Path:
    """Folder of the real data."""
    return Path(os.environ.get("MICROSEG_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def load_dataset(name: str, root: Path | None = None) -> Iterator[Sample]:
    """Read images and truth one after the other.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    folder = (root or data_root()) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Set MICROSEG_DATA to the folder of the real images.")
    return {"bam_tio2": _load_bam, "ampis_powder": _load_ampis, "emps": _load_emps}[name](folder)


def score_dataset(
    name: str, segment_function: SegmentFunction, *, root: Path | None = None, limit: int | None = None
) -> list[ImageScores]:
    """Segment and score every image of a data set.

    Args:
        name: one of `DATASETS`.
        segment_function: maps an `Image` to integer labels of its height and width.
        root: folder of the data sets.
        limit: use the first images only.
    """
    scores = []
    for sample in load_dataset(name, root):
        if limit is not None and len(scores) >= limit:
            break
        start = time.process_time()
        labels = np.asarray(segment_function(sample.image))
        seconds = time.process_time() - start
        table = instance.overlap_table(sample.truth, labels)
        scores.append(
            ImageScores(
                name=sample.image.name,
                table=table,
                match=instance.match(table),
                counts=pixel.count(sample.mask, labels),
                boundary=pixel.count_boundary(sample.truth, labels),
                published=(published.score_mask(_separated(labels), sample.mask) if name == "bam_tio2" else None),
                seconds=seconds,
            )
        )
    return scores


SUMMARY: dict[str, Callable[[list[ImageScores]], float]] = {
    "precision": lambda s: instance.pool([x.match for x in s]).precision,
    "recall": lambda s: instance.pool([x.match for x in s]).recall,
    "F1": lambda s: instance.pool([x.match for x in s]).f1,
    "PQ": lambda s: instance.pool([x.match for x in s]).panoptic_quality,
    "AP50": lambda s: instance.pool([x.match for x in s]).accuracy,
    "AP50:95": lambda s: instance.average_precision([x.table for x in s]),
    "AJI": lambda s: instance.aggregated_jaccard([x.table for x in s]),
    "image IoU": lambda s: float(np.mean([pixel.iou(x.counts) for x in s])),
    "boundary F1": lambda s: pixel.boundary_f1(sum((x.boundary for x in s[1:]), start=s[0].boundary)),
    "pub. image": lambda s: _published(s, "image_iou"),
    "pub. inst.": lambda s: _published(s, "instance_iou"),
    "pub. >9 px": lambda s: _published(s, "instance_iou_filtered"),
    "pub. Youden": lambda s: _published(s, "youden"),
}
INTERVALS = ("precision", "recall", "F1", "PQ", "image IoU")


def summarize(scores: list[ImageScores]) -> dict[str, float]:
    """All scores of a data set; instance scores are pooled over images, image IoU is a mean over images."""
    return {name: function(scores) for name, function in SUMMARY.items()}


def segment_classical(image: Image) -> np.ndarray:
    """The robust classical method with its defaults."""
    return classical.segment_classical(read_grey(image))


def segment_floor(image: Image) -> np.ndarray:
    """The reference recipe to the letter."""
    return classical.segment_floor(read_grey(image))


def model_function(path: str | None = None) -> SegmentFunction:
    """The shipped network, or the one in the file `path`."""
    from keras_microseg.inference import Segmenter

    segmenter = Segmenter(path or "default")
    return lambda image: segmenter.segment(image).labels


def _load_bam(folder: Path) -> Iterator[Sample]:
    for path in find_images(folder / "masks_manual"):
        image = open_image(folder / "sem" / path.name.replace("_m.", "."))
        mask = read_grey(open_image(path))[:BAM_ROWS] > 0
        truth = labeling.remove_small(labeling.label_components(mask, 4), MIN_AREA)
        yield Sample(image.with_data(image.read()[:BAM_ROWS]), labeling.relabel_sequential(truth), mask)


def _load_ampis(folder: Path) -> Iterator[Sample]:
    regions = read_via(folder / "annotations" / "via_powder_particle_masks_training.json")
    for name in sorted(regions):
        image = open_image(folder / "images" / name)
        image = image.with_data(image.read())
        truth = labeling.relabel_sequential(draw_regions(regions[name], image.spatial_shape))
        yield Sample(image, truth, truth > 0)


def _load_emps(folder: Path) -> Iterator[Sample]:
    for path in find_images(folder / "segmaps"):
        image = open_image(folder / "images" / path.name)
        truth = read_grey(open_image(path)).astype(np.int32)  # as stored: a map with one particle is no mask to split
        yield Sample(image.with_data(image.read()), truth, truth > 0)


def _separated(labels: np.ndarray) -> np.ndarray:
    """Mask in which outline tracing (8-connected) keeps the objects apart."""
    return labeling.separate_8_to_4(labeling.cut_touching(labels))


def _published(scores: list[ImageScores], field: str) -> float:
    values = [getattr(x.published, field) for x in scores if x.published is not None]
    return float(np.mean(values)) if values else float("nan")


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="classical", choices=("floor", "classical", "model", "both", "all"))
    parser.add_argument("--data", default=",".join(DATASETS), help="comma-separated data sets")
    parser.add_argument("--model", help="a .keras file instead of the shipped model")
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--limit", type=int, help="use the first images of each set only")
    parser.add_argument("--per-image", action="store_true", help="print every image as well")
    options = parser.parse_args(arguments)
    names = options.data.split(",")
    unknown = [name for name in names if name not in DATASETS]
    if unknown:
        parser.error(f"unknown data: {', '.join(unknown)}. Choose from {', '.join(DATASETS)}")
    methods: dict[str, SegmentFunction] = {}
    if options.method in ("floor", "all"):
        methods["floor"] = segment_floor
    if options.method in ("classical", "both", "all"):
        methods["classical"] = segment_classical
    if options.method in ("model", "both", "all"):
        methods["model"] = model_function(options.model)
    header = ["data", "method", "images", "true", "found"]
    summary, intervals = [[*header, *SUMMARY, "CPU s/image"]], [["data", "method", *INTERVALS]]
    for name in names:
        for method, function in methods.items():
            scores = score_dataset(name, function, root=options.root, limit=options.limit)
            total = instance.pool([x.match for x in scores])
            values = [f"{value:.3f}" if np.isfinite(value) else "" for value in summarize(scores).values()]
            sizes = [str(len(scores)), str(total.tp + total.fn), str(total.tp + total.fp)]
            summary.append([name, method, *sizes, *values, f"{np.mean([x.seconds for x in scores]):.2f}"])
            bounds = [str(instance.bootstrap_interval(scores, SUMMARY[key], resamples=500)) for key in INTERVALS]
            intervals.append([name, method, *bounds])
            if options.per_image:
                for x in scores:
                    print(
                        f"{name} {method} {x.name}: F1 {x.match.f1:.3f} (tp {x.match.tp}, fp {x.match.fp}, "
                        f"fn {x.match.fn}), IoU {pixel.iou(x.counts):.3f}"
                    )
    print(_table(summary), "", "95 % bootstrap intervals over images:", _table(intervals), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
