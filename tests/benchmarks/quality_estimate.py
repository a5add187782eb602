"""How good is the label-free estimate of quality? Its correlation with the true score, on real images with truth.

    python tests/benchmarks/quality_estimate.py --data bam_tio2
    python tests/benchmarks/quality_estimate.py --data bam_tio2 --others

For every image the default model (or `--model`, or `--method classical`) segments once as usual and again under each
perturbation; agreement is the F1 (IoU > 0.5) of the perturbed result with the first, stability of a particle its best
IoU there. Printed per perturbation: mean agreement; Pearson and Spearman correlation over the images with the true F1,
with 95 % bootstrap intervals over images; the same for PQ; mean absolute error of `expected_f1` (and, beside it, of
always guessing the mean F1 of the other images); and the area under the curve with which stability tells particles that
match the truth from those that do not. `--others` adds the perturbations that were weighed against the shipped ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage, stats

sys.path.insert(0, str(Path(__file__).resolve().parent))
import real_images  # noqa: E402  (also puts the package on the path)

from keras_microseg import io  # noqa: E402
from keras_microseg.inference.agreement import FACTORS, Stability, compare_runs, rescaled_runs  # noqa: E402
from keras_microseg.metrics import instance  # noqa: E402
from keras_microseg.segmentation.classical import segment_classical  # noqa: E402

SHIPPED = "two scales (shipped)"
Runs = dict[str, list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """One image: true scores, and what each perturbation says."""

    f1: float
    pq: float
    right: np.ndarray
    stabilities: dict[str, Stability]


def network_runs(model: str, others: bool) -> Callable[[real_images.Sample], tuple[np.ndarray, dict[str, Stability]]]:
    """Labels and stabilities of one image by a network."""
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.segmenter import Prepared, Segmenter, labels_at_full_size, open_grey
    from keras_microseg.segmentation.decode import labels_from_maps

    segmenter = Segmenter(model)

    def run(sample: real_images.Sample) -> tuple[np.ndarray, dict[str, Stability]]:
        found = segmenter.segment(sample.image, quality=True)
        stabilities = {SHIPPED: found.stability}
        if not others:
            return found.labels, stabilities
        _, grey, _ = open_grey(sample.image, True)
        values = grey[:, :]
        prepared = Prepared(segmenter, values, "auto", False)
        view = prepared.input_view(found.scale)

        def decode(maps: np.ndarray, **changes: float) -> np.ndarray:
            settings = segmenter.settings(found.scale, None, None, maps[..., segmenter.foreground])
            settings = dataclasses.replace(settings, **changes)
            small = labels_from_maps(maps, segmenter.predictor.outputs, settings)
            full = np.zeros(sample.truth.shape, np.int32)
            foreground = maps[..., segmenter.foreground]
            full[: len(values)] = labels_at_full_size(small, foreground, settings.threshold, values.shape)
            return full

        def predict(array: np.ndarray) -> np.ndarray:
            return prepared._predict(np.ascontiguousarray(array, np.float32))

        rng = np.random.default_rng(0)
        maps = prepared.maps(found.scale)
        noisy = [view + rng.normal(0, sigma, view.shape) for sigma in (0.07, 0.12)]
        scales = {f"scale {f:.2f}": prepared.relabel(found.scale, None, None) for f in FACTORS}
        window = (slice(0, values.shape[0]), slice(0, values.shape[1]))
        runs: Runs = {
            "flips": [
                decode(predict(view[:, ::-1])[:, ::-1]),
                decode(predict(view[::-1])[::-1]),
                decode(predict(view.T).swapaxes(0, 1)),
            ],
            "noise": [decode(predict(np.clip(one, 0, 1))) for one in noisy],
            "blur": [decode(predict(ndimage.gaussian_filter(view, 1.2)))],
            "gamma": [decode(predict(view**gamma)) for gamma in (0.7, 1.4)],
            "thresholds": [decode(maps, threshold=t) for t in (0.3, 0.7)]
            + [decode(maps, seed_threshold=t) for t in (0.5, 0.7)],
            "classical": [segment_classical(io.read_grey(sample.image))],
        }
        for (name, relabel), factor in zip(scales.items(), FACTORS, strict=True):
            runs[name] = [np.zeros(sample.truth.shape, np.int32)]
            runs[name][0][: len(values)] = relabel(window, factor)
        stabilities |= {name: compare_runs(found.labels, other) for name, other in runs.items()}
        return found.labels, stabilities

    return run


def classical_runs(sample: real_images.Sample) -> tuple[np.ndarray, dict[str, Stability]]:
    """Labels and stability of one image by the classical method."""
    grey = io.read_grey(sample.image)
    labels = segment_classical(grey)
    return labels, {SHIPPED: rescaled_runs(labels, grey, lambda image, factor: segment_classical(image))}


def judge(name: str, run: Callable, *, root: Path | None, limit: int | None) -> list[Judged]:
    """All images of a data set in which something was found."""
    judged = []
    for number, sample in enumerate(real_images.load_dataset(name, root)):
        if limit is not None and number >= limit:
            break
        labels, stabilities = run(sample)
        match = instance.match(sample.truth, labels)
        ids = np.unique(labels)[1:]
        if len(ids):
            judged.append(Judged(match.f1, match.panoptic_quality, np.isin(ids, match.pairs[:, 1]), stabilities))
    return judged


def correlation(x: np.ndarray, y: np.ndarray, kind: Callable, resamples: int = 2000) -> str:
    """A correlation and its percentile bootstrap interval over images."""
    if len(x) < 4:
        return "too few images"

    def value(pairs: list[tuple[float, float]]) -> float:
        first, second = np.array(pairs).T
        return float(kind(first, second)[0]) if np.ptp(first) > 0 and np.ptp(second) > 0 else np.nan

    found = instance.bootstrap_interval(list(zip(x, y, strict=True)), value, resamples=resamples)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bam_tio2", help="comma-separated data sets")
    parser.add_argument("--method", default="network", choices=("network", "classical"))
    parser.add_argument("--model", default="default", help="a .keras file instead of the shipped model")
    parser.add_argument("--others", action="store_true", help="also other perturbations: ten more runs per image")
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--limit", type=int, help="use the first images of each set only")
    options = parser.parse_args(arguments)
    run = classical_runs if options.method == "classical" else network_runs(options.model, options.others)
    for name in options.data.split(","):
        start = time.process_time()
        judged = judge(name, run, root=options.root, limit=options.limit)
        f1, pq = (np.array([getattr(one, key) for one in judged]) for key in ("f1", "pq"))
        seconds = (time.process_time() - start) / max(1, len(judged))
        print(f"{name}: {len(judged)} images, F1 {f1.mean():.3f} +- {f1.std(ddof=1):.3f}; {seconds:.1f} CPU s each")
        guess = np.mean([abs(np.delete(f1, i).mean() - value) for i, value in enumerate(f1)])
        right = np.concatenate([one.right for one in judged])
        for kind in judged[0].stabilities:
            found = [one.stabilities[kind] for one in judged]
            agreement, quality = (np.array([getattr(one, key) for one in found]) for key in ("f1", "pq"))
            print(f"  {kind}: agreement {agreement.mean():.3f}")
            for title, x, y in (("F1", agreement, f1), ("PQ", quality, pq)):
                pearson, spearman = (correlation(x, y, measure) for measure in (stats.pearsonr, stats.spearmanr))
                print(f"    {title}: Pearson {pearson}, Spearman {spearman}")
            if kind == SHIPPED:
                error = np.mean(np.abs([one.expected_f1 for one in found] - f1))
                print(f"    expected F1: mean absolute error {error:.3f} (mean of the other images: {guess:.3f})")
            stability = np.concatenate([one.particles for one in found])
            if right.any() and not right.all():
                rank = stats.mannwhitneyu(stability[right], stability[~right]).statistic
                area = rank / (right.sum() * (~right).sum())
                print(f"    particles: area under the curve {area:.3f} ({len(right)} particles)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
